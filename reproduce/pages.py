"""Notebooks executed and made into pages that need no network; their HTML is notebooks/template."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
import papermill  # here, not in threads: two that import it at once may fail
from IPython.lib import lexers  # noqa: F401  the same
from nbconvert import HTMLExporter
from PIL import Image

from reproduce import results
from reproduce.files import atomic
from reproduce.runs import ROOT
from reproduce.settings import ConfigError

FIRST = ("report", "entropy", "details", "methods", "embeddings")  # in this order, then the others
OWN = ("entropy", "methods", "embeddings")  # whose text also fits the runs of one machine
ONE_RUN = "train", "linear_evaluation", "clusters"  # about one run: no page of their own
RULES = [rule for rule in results.RULES if rule != "kmeans_pixels"]
TEMPLATE = ROOT / "notebooks" / "template"
PLACES = ("data_dir = ", "results_dir = ")
PHOTOGRAPH = 1 << 14  # colours that no drawing has
NUMBER = re.compile(r"[+−–-]?[\d.,]+( ?%)?( ± [\d.]+)?( [\[(].*[\])])?|–|nan|NaN|")


def notebooks() -> list[Path]:
    """The notebooks that read many runs, in the order of their pages."""
    found = {p.stem: p for p in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    names = dict.fromkeys([*FIRST, *found])
    return [found[name] for name in names if name in found and name not in ONE_RUN]


def build(results_dir: str | Path = ROOT / "results" / "local", jobs: int = 2) -> Path:
    """Execute the notebooks on the runs below a folder, ``jobs`` at a time, and write their pages,
    runs.html and index.html there; of the committed runs also README's table of claims. Returns the
    path of index.html.

    Raises ConfigError if the folder has no finished run, or if a notebook fails on the committed
    runs. Of other runs, which may be too few for a notebook, only the pages ``OWN`` are made, and
    one that fails is left out with a sentence on stderr.
    """
    folder = Path(os.path.expanduser(results_dir)).resolve()
    runs = results.load(folder)
    if runs.empty:
        raise ConfigError(f"results_dir: {str(folder)!r} has no finished run yet")
    committed = folder == ROOT / "results"
    parameters = {} if committed else {"results_dir": str(folder)}

    def run(notebook: Path) -> str:
        try:
            execute(notebook, folder / notebook.name, **parameters)
        except ConfigError as error:
            if committed:
                raise
            print(f"page left out: {error}", file=sys.stderr)
            return ""
        return notebook.stem

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        chosen = [path for path in notebooks() if committed or path.stem in OWN]
        done = pool.map(run, chosen)
        for path in runs["path"]:  # meanwhile, the pages of single runs
            for executed in (Path(path) / f"{stem}.ipynb" for stem in ("train", "clusters")):
                if executed.exists():
                    to_html(executed, executed.with_suffix(".html"), up="../../../")
        claims = results.claims(runs)
        made = [stem for stem in done if stem]
    shared = {"pages": made, "committed": committed}
    for stem in made:
        to_html(folder / f"{stem}.ipynb", folder / f"{stem}.html", **shared)
    if committed:
        results.write_claims(ROOT / "README.md", claims)
    claims = claims[committed | (claims["verdict"] != "not run")].to_dict("records")
    shared |= {"rows": settings_rows(runs, folder), "names": [results.RULES[r] for r in RULES]}
    shared |= {"cards": [card(folder / f"{stem}.ipynb") for stem in made], "claims": claims}
    title = (
        "Deep image clustering: a study of the gap between 79.9 and 40.9 %"
        if committed
        else "The runs of this machine"
    )
    write(folder / "runs.html", "runs", "All runs", **shared)
    write(folder / "index.html", "overview", title, n_runs=len(runs), **shared)
    return folder / "index.html"


def execute(notebook: Path, executed: Path, **parameters) -> None:
    """papermill; ConfigError with the notebook's name and what went wrong if it fails."""
    os.environ.setdefault("PYTHONHASHSEED", "0")  # the kernel's: the same page twice
    quiet = {"progress_bar": False, "extra_arguments": ["--IPKernelApp.log_level=50"]}
    try:
        content = papermill.execute_notebook(notebook, None, parameters, **quiet)
    except papermill.PapermillExecutionError as error:
        raise ConfigError(f"{notebook.name}: {error.ename}: {error.evalue}") from None
    with atomic(executed) as temporary:
        nbformat.write(content, temporary)
        strip_paths_and_times(temporary)


def strip_paths_and_times(executed: Path) -> None:
    """Leave in an executed notebook what is worth keeping: paths relative to the repository,
    pictures of few colours, no clock times."""
    content = json.loads(executed.read_text(encoding="utf-8").replace(f"{ROOT}/", ""))
    content["metadata"].pop("papermill", None)
    for cell in content["cells"]:
        for times in ("execution", "papermill"):
            cell["metadata"].pop(times, None)
        if "injected-parameters" in cell["metadata"].get("tags", []):  # places on one machine
            cell["source"] = [s for s in cell["source"] if not s.startswith(PLACES)]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                png = quantize_png(base64.b64decode("".join(data["image/png"])))
                data["image/png"] = base64.b64encode(png).decode()
    text = json.dumps(content, indent=1, ensure_ascii=False)
    executed.write_text(text + "\n", encoding="utf-8")


def quantize_png(png: bytes, n: int = 64, width: int = 0) -> bytes:
    """The picture with at most n colours, about a third of its size; one with a palette or with
    photographs stays as it is. Scaled to ``width`` pixels if that is given.

    Maximum coverage and k-means: a median cut gives thin lines the colour of their neighbours.
    """
    picture = Image.open(io.BytesIO(png))
    if picture.mode == "P" and not width:
        return png
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    if not width and not flat.getcolors(PHOTOGRAPH):  # it would lose much, and take minutes
        return png
    if width:
        flat = flat.resize((width, round(width * flat.height / flat.width)), Image.LANCZOS)
    smaller = io.BytesIO()
    flat = flat.quantize(n, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    flat.save(smaller, "PNG", optimize=True)
    return smaller.getvalue() if width else min(png, smaller.getvalue(), key=len)


def card(executed: Path) -> dict:
    """What the overview shows of an executed notebook: its title, first sentence, first picture."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    title, _, text = "".join(cells[0]["source"]).lstrip("# ").partition("\n")
    first = text.strip().split("\n\n")[0].replace("\n", " ")
    sentence = re.match(r"(.{40,}?[.?!](?= [A-Z])|.*)", re.sub(r"[*`]", "", first))[0]
    data = [o.get("data", {}) for cell in cells for o in cell.get("outputs", [])]
    pngs = [d["image/png"] for d in data if "image/png" in d]
    small = quantize_png(base64.b64decode(pngs[0]), 32, width=440) if pngs else b""
    picture = base64.b64encode(small).decode()
    return {"href": f"{executed.stem}.html", "title": title, "text": sentence, "png": picture}


def settings_rows(runs: pd.DataFrame, folder: Path) -> list[dict]:
    """What runs.html shows: one row per setting, its seeds together."""
    rows = []
    for (data, method, _), same in runs.groupby(["data", "method", "setting"], sort=False):
        scores = 100 * same[[*(f"{rule}_acc" for rule in RULES), "knn_acc"]].astype(float)
        found = [next(Path(path).glob("train.html"), Path(path)) for path in same["path"]]
        links = [path.relative_to(folder).as_posix() for path in found]
        row = {"data": data, "method": method, "setting": results.describe(same.iloc[0])}
        row |= {"n": len(same), "seconds": same["seconds"].median(), **_curve(same["path"])}
        scores, seeds = zip(scores.mean(), scores.std()), zip(same["seed"], links)
        rows.append(row | {"scores": [*scores], "seeds": [*seeds]})
    return rows


def _curve(paths: pd.Series) -> dict:
    """A line 60 wide and 18 high: ACC from 0 to 1 over the epochs, the mean over the seeds."""
    history = pd.concat([pd.read_csv(Path(path) / "history.csv") for path in paths])
    for rule in ("aligned_average_acc", "kmeans_embedding_acc"):
        if rule in history and history[rule].notna().any():
            acc = history.groupby("epoch")[rule].mean().dropna()
            x, y = 60 * acc.index / acc.index.max(), 17 - 16 * acc
            line = "L".join(f"{a:.0f} {b:.1f}" for a, b in zip(x, y))
            return {"curve": "M" + line, "said": f"{acc.iloc[0]:.0%} to {acc.iloc[-1]:.0%}"}
    return {}


def to_html(executed: Path, page_path: Path, **site) -> None:
    """An executed notebook as one page with its pictures inside: no script, no address of any
    network. ``site`` is for ``write``."""
    from pygments.formatters import HtmlFormatter

    notebook = nbformat.read(executed, as_version=4)
    title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            given = [s for s in cell.source.splitlines()[1:] if not re.match(r"\w+_dir =", s)]
            cell.cell_type, cell.source = "markdown", ", ".join(f"`{line}`" for line in given)
    body, _ = _exporter().from_notebook_node(notebook)
    body = re.sub(r'<span class="(?:n|p|w)">([^<]*)</span>', r"\1", body)  # these have no colour
    body, contents = _polish(body)
    style = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    write(page_path, "page", title, body=body, contents=contents, highlight=style, **site)


@functools.cache
def _exporter() -> HTMLExporter:  # one for all pages: its templates take longest to compile
    where = [str(TEMPLATE.parent)]
    return HTMLExporter(template_name=TEMPLATE.name, extra_template_basedirs=where)


def _polish(body: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Each table in a box that scrolls, numbers to the right, a text for each picture; and the
    headings: (level, anchor, text)."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(body, "html.parser")
    for table in soup("table"):
        rows = [row(["td", "th"], recursive=False)[::-1] for row in table("tr")]  # from the right,
        rows = [row for row in rows if not any(c.get("colspan") for c in row)]  # for rowspans left
        for column in zip(*rows):
            values = [cell.text.strip() for cell in column if cell.name == "td"]
            if any(values) and all(map(NUMBER.fullmatch, values)):
                for cell in column:
                    cell["class"] = [*cell.get("class", []), "num"]
        table.wrap(soup.new_tag("div", attrs={"class": "wide"}))
    for picture in soup("img"):
        alt = picture.get("alt", "")
        if " " not in alt or alt.startswith("No description"):  # a file's name, or nbconvert's
            heading = picture.find_previous(["h1", "h2", "h3"])
            picture["alt"] = f"Figure: {heading.text.rstrip('¶')}" if heading else "Figure"
    for anchor in soup(class_="anchor-link"):
        anchor.decompose()
    return str(soup), [(h.name, h.get("id"), h.text) for h in soup(["h2", "h3"])]


def write(path: Path, template: str, title: str, pages=(), up: str | None = "", **content):
    """Write a page of notebooks/template. ``pages`` are the notebooks with pages beside it; ``up``
    leads to index.html, as "../../../" for the page of a run; None: there is none yet."""
    from jinja2 import Environment, FileSystemLoader

    links = [(f"{stem}.html", stem.replace("_", " ").capitalize()) for stem in pages]
    links = [(f"{up}index.html", "Overview"), *links, (f"{up}runs.html", "All runs")]
    links = [] if up is None else links
    environment = Environment(autoescape=True, loader=FileSystemLoader(TEMPLATE))
    page = environment.get_template(f"{template}.html.j2")
    text = page.render(title=title, kind=template, links=links, here=path.name, **content)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
