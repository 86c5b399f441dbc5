"""One look for all figures: colours, fonts, and how a figure is kept and shown. Figures that take
more than a dozen lines are in figures.py, the others in the cells of the notebooks."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython import get_ipython
from matplotlib import font_manager
from scipy import stats

from reproduce.files import ROOT, atomic
from reproduce.metrics import matching

COLORS = sns.color_palette("colorblind")
ENTROPY = {"batch": COLORS[0], "sample": COLORS[1]}  # a palette for seaborn's hue
ENTROPY_LABELS = {"batch": "of the batch mean (authors)", "sample": "of each sample (CENG501)"}
WHOSE = {"batch": "batch mean", "sample": "each sample"}
INLINE = "module://matplotlib_inline.backend_inline"  # what a kernel sets where nothing is set
FONTS = (  # for names in scripts that the first font lacks, where they are installed
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Noto Emoji",
    "Symbola",
)


def draw_names_as_text() -> None:
    """Names are a user's, ``A $$ B`` or Chinese: no mathematics, and more fonts than one."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["sans-serif", *(font for font in FONTS if font in there)]
    plt.rcParams.update({"text.parse_math": False, "font.family": fonts})
    warnings.filterwarnings("ignore", "Glyph .* missing from")


def without_font(text: str) -> str:
    """The characters of a text that no font in use draws."""
    families = [font_manager.FontProperties(family=[f]) for f in plt.rcParams["font.family"]]
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
    wanted = dict.fromkeys(c for c in text if not c.isspace())
    return "".join(c for c in wanted if not any(f.get_char_index(ord(c)) for f in fonts))


def show_in_notebook() -> None:
    """Figures stand in the notebook also where a login's MPLBACKEND names another place."""
    shell = get_ipython()
    if hasattr(shell, "kernel") and os.environ.get("MPLBACKEND") != INLINE:
        shell.run_line_magic("matplotlib", "inline")


def style(mathematics: bool = False) -> None:
    """One look for all notebooks: colours that colour-blind readers can tell apart. mathematics:
    for logarithmic axes, which write their powers with it; names with dollars are then not safe."""
    look = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.35,
        "grid.linewidth": 0.6,
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "legend.frameon": False,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
    }
    sns.set_theme(style="ticks", context="notebook", palette=COLORS, rc=look)
    draw_names_as_text()
    plt.rcParams["text.parse_math"] = mathematics
    show_in_notebook()
    np.random.seed(0)  # of stripplot's jitter: the same runs give the same picture


def folder(results_dir: str | Path = "") -> Path:
    """Where figures go: figures/ of the repository, or of another folder of results."""
    path = Path(os.path.expanduser(results_dir)) / "figures" if results_dir else ROOT / "figures"
    path.mkdir(exist_ok=True)
    return path


def save(figure, name: str, caption: str, results_dir: str | Path = "") -> None:
    """Write figures/<name>.png and show that file with its caption: the finding, in a sentence. The
    caption is also its text for those who cannot see it."""
    from IPython.display import Image, Markdown, display

    path = folder(results_dir) / f"{name}.png"
    with atomic(path) as temporary:  # its bytes depend on the figure alone
        figure.savefig(temporary, format="png", metadata={"Software": None})
    width = round(figure.get_figwidth() * 80)
    plt.close(figure)
    display(Image(filename=path, width=width, alt=caption))
    display(Markdown(f"*{caption}*"))


def interval(values) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t, as ``errorbar`` of a seaborn plot."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return (np.nan, np.nan)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def cluster_mass(mass: pd.DataFrame, ax) -> None:
    """The share of the images in each cluster over the epochs, the largest at the end below.

    mass: ``results.mass`` of one run. Dotted lines: equal shares.
    """
    wide = mass.pivot(index="epoch", columns="cluster", values="share")
    wide = wide[wide.iloc[-1].sort_values(ascending=False).index]
    colors = sns.color_palette("colorblind", wide.shape[1])
    ax.stackplot(wide.index, wide.T, colors=colors, edgecolor="white", linewidth=0.4)
    for boundary in np.arange(1, wide.shape[1]) / wide.shape[1]:
        ax.axhline(boundary, color="black", linewidth=0.4, linestyle=":")
    ax.set(xlabel="epoch", ylabel="share of the images", ylim=(0, 1))
    ax.set_xlim(wide.index[0], wide.index[-1])
    ax.grid(False)


def umap_of_run(path: str | Path, n: int, store: Path) -> pd.DataFrame:
    """UMAP of a run's features for at most n images, evenly spread: "x", "y", "label", and
    "cluster" (of the aligned average, else of k-means), numbered like the class that it matches
    best.

    A seed does not make two machines draw the same UMAP, so the coordinates are kept in the file
    ``store`` under a hash of the features, and what is there is not computed again.
    """
    with np.load(Path(path) / "embeddings.npz") as stored:
        features, labels = stored["embedding"].astype(np.float32), stored["labels"].astype(int)
        rule = "aligned_average" if "aligned_average" in stored else "kmeans_embedding"
        clusters = stored[rule].astype(int)
    shown = np.unique(np.linspace(0, len(labels) - 1, min(n, len(labels))).astype(int))
    key = hashlib.sha256(features[shown].tobytes()).hexdigest()[:16]
    kept = dict(np.load(store)) if store.exists() else {}
    if key not in kept:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm, on a missing widget
            import umap  # late: it takes seconds
        reducer = umap.UMAP(random_state=0, n_jobs=1, n_epochs=200)
        kept[key] = reducer.fit_transform(features[shown])
        with atomic(store) as temporary, open(temporary, "wb") as file:
            np.savez(file, **kept)
    if labels.min() >= 0:
        matched = matching(labels, clusters)
        free = np.cumsum(matched < 0) - 1 + labels.max() + 1  # more clusters than classes
        clusters = np.where(matched < 0, free, matched)[clusters]
    return pd.DataFrame(kept[key], columns=["x", "y"]).assign(
        label=labels[shown], cluster=clusters[shown]
    )


# ---- a picture whose points are images: notebooks/template/embeddings.js shows them on hover


def places(ax, points: pd.DataFrame) -> np.ndarray:
    """Where points lie in the saved figure, [N, 2]: shares of its width and height, from the top
    left."""
    ax.figure.canvas.draw()  # only then is its layout known
    at = ax.transData.transform(points.to_numpy(float))
    at = ax.figure.transFigure.inverted().transform(at)
    return np.stack([at[:, 0], 1 - at[:, 1]], 1)


def sprite(images: np.ndarray, columns: int) -> bytes:
    """Grey images [N, S, S] side by side, so many in a row, as PNG."""
    n, side = len(images), images.shape[1]
    rows = -(-n // columns)
    sheet = np.full((rows * columns, side, side), 255, np.uint8)
    sheet[:n] = images
    sheet = sheet.reshape(rows, columns, side, side).swapaxes(1, 2)
    content = io.BytesIO()
    picture = PIL.Image.fromarray(sheet.reshape(rows * side, columns * side))
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def points_as_text(places: np.ndarray, labels, clusters) -> str:
    """HTML that a page's script reads: for each point its place in thousandths, class, cluster."""
    rows = zip((1000 * places).round().astype(int), labels, clusters)
    text = ";".join(f"{x},{y},{label},{cluster}" for (x, y), label, cluster in rows)
    return f"<details class='points'><summary>The points</summary><code>{text}</code></details>"
