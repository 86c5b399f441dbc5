"""What a notebook cannot draw in a dozen lines of seaborn; the other figures are in its cells."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Mapping
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
from reproduce.report.statistics import points

COLORS = sns.color_palette("colorblind")
ENTROPY = {"batch": COLORS[0], "sample": COLORS[1]}  # a palette for seaborn's hue
ENTROPY_LABELS = {"batch": "of the batch mean (authors)", "sample": "of each sample (CENG501)"}
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


def save(figure, name: str, alt: str, results_dir: str | Path = "") -> None:
    """Write figures/<name>.png and show that file, with ``alt`` for those who cannot see it."""
    from IPython.display import Image, display

    path = folder(results_dir) / f"{name}.png"
    figure.savefig(path, metadata={"Software": None})  # its bytes depend on the figure alone
    width = round(figure.get_figwidth() * 80)
    plt.close(figure)
    display(Image(filename=path, width=width, alt=alt))


def interval(values) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t, as ``errorbar`` of a seaborn plot."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return (np.nan, np.nan)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def waterfall(steps: Mapping[str, pd.DataFrame], gains: pd.DataFrame, score: str, ax) -> None:
    """From the first setting to the last, one bar per step from the mean before it to its own mean.

    steps: ``results.variants`` of a path. gains: ``results.compare_each`` of each step and the one
    before it; a bar is filled where its interval excludes 0. One dot per seed, a dotted line for
    k-means on pixels.
    """
    beside = {"textcoords": "offset points", "va": "center", "size": "small"}
    white = {"facecolor": "white", "edgecolor": "none", "pad": 2}  # over the dotted line
    means = [100 * part[score].mean() for part in steps.values()]
    top = max(100 * part[score].max() for part in steps.values())
    for y, (name, part) in enumerate(steps.items()):
        before = means[y - 1] if y else 0.0
        color = COLORS[7] if not y else COLORS[0] if means[y] >= before else COLORS[1]
        clear = y == 0 or gains.loc[name, "low"] > 0 or gains.loc[name, "high"] < 0
        look = (
            {"color": color, "alpha": 0.85} if clear else {"facecolor": "none", "edgecolor": color}
        )
        ax.barh(y, means[y] - before, left=before, height=0.6, **look)
        ax.plot(100 * part[score], [y] * len(part), "o", color="black", ms=3)
        text = points(gains.loc[name]) if y else f"{means[0]:.1f} %"
        right = max(100 * part[score].max(), before)
        ax.annotate(text, (right, y), (8, 0), bbox=white, **beside)
    floor = 100 * next(iter(steps.values()))["kmeans_pixels_acc"].mean()
    ax.axvline(floor, color="0.35", linestyle=":", linewidth=1.4)
    ax.annotate("k-means on pixels", (floor, -0.55), ha="center", va="bottom", size="small")
    names = list(steps)
    ax.set_yticks(range(len(names)), [names[0], *(f"+ {name}" for name in names[1:])])
    ax.set(ylim=(len(names) - 0.5, -0.9), xlim=(0, 1.35 * top), xlabel="ACC, %")
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 100])
    ax.grid(axis="y", visible=False)


def lambda1_story(grid: pd.DataFrame, published: pd.DataFrame, score: str, axes) -> None:
    """Accuracy against the weight of the entropy: the published figures, then ours per data set.

    grid: ``results.grid``; published: results/published.csv; axes: one more than data sets.
    """
    weights = ["0", "0.1", "0.3", "1", "2"]
    cifar = published[published["dataset"] == "CIFAR-10"].dropna(subset=["acc"])
    course = cifar[cifar["method"] == "CRLC, course reproduction"]
    course = course.assign(at=course["setting"].str.removeprefix("lambda1 = ").map(weights.index))
    paper = cifar.loc[cifar["method"] == "CRLC", "acc"].iloc[0]
    axes[0].plot(course["at"], course["acc"], "s-", color=ENTROPY["sample"])
    axes[0].plot(weights.index("2"), paper, "o", color=ENTROPY["batch"], ms=9)
    for x, y, side in [
        *zip(course["at"], course["acc"], [8] * 3),
        (weights.index("2"), paper, -16),
    ]:
        axes[0].annotate(f"{y:.1f}", (x, y), (0, side), textcoords="offset points", ha="center")
    axes[0].annotate("CENG501", (0.75, 58), color=ENTROPY["sample"], ha="left")
    axes[0].annotate("paper, best head by label", (4.15, 84), color=ENTROPY["batch"], ha="right")
    axes[0].set_title("published, CIFAR-10")
    for ax, (data, part) in zip(axes[1:], grid.groupby("data", sort=False)):
        part = part[part["lambda1"].isin([float(weight) for weight in weights])]
        part = part.assign(at=part["lambda1"].map("{:g}".format).map(weights.index))
        part = part.assign(acc=100 * part[score])
        common = dict(data=part, x="at", y="acc", hue="entropy", palette=ENTROPY, ax=ax)
        sns.lineplot(**common, style="entropy", markers=["o", "s"], dashes=False, errorbar=interval)
        sns.scatterplot(**common, s=14, alpha=0.5, legend=False)
        floor = 100 * part["kmeans_pixels_acc"].mean()
        ax.axhline(floor, color="0.35", linestyle=":", linewidth=1.2)
        ax.annotate(
            "k-means on pixels", (0, floor), (0, 4), textcoords="offset points", size="small"
        )
        handles, names = ax.get_legend_handles_labels()
        ax.get_legend().remove()
        seeds = part.groupby(["lambda1", "entropy"]).size().agg(["min", "max"]).unique()
        ax.set_title(f"ours, {data} (n = {' to '.join(map(str, seeds))})")
    names = [ENTROPY_LABELS[name] for name in names]
    axes[-1].legend(handles, names, loc="lower left", title="entropy")
    for ax in axes:
        ax.set(xlabel="λ1, weight of the entropy", ylabel="ACC, %", ylim=(0, 103))
        ax.set_xticks(range(len(weights)), weights)


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
