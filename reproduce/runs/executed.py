"""Notebooks executed, and as pages that need no network; their HTML is notebooks/template."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import nbconvert
import nbformat
import papermill  # here, not in threads: two that import it at once may fail
from IPython.lib import lexers  # noqa: F401  the same
from nbconvert import HTMLExporter
from PIL import Image

from reproduce.files import NOTEBOOKS, ROOT, atomic, read_json
from reproduce.runs import html, kernel
from reproduce.runs.directory import warning_note
from reproduce.settings import ConfigError

TEMPLATE = NOTEBOOKS / "template"
PLACES = ("data_dir = ", "results_dir = ")
PHOTOGRAPH = 1 << 14  # colours that no drawing has


def execute(notebook: Path, executed: Path, **parameters) -> None:
    """papermill; ConfigError with the notebook's name and what went wrong if it fails."""
    os.environ.setdefault("PYTHONHASHSEED", "0")  # the kernel's: the same page twice
    kernel.own_first(os.environ)
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


def to_html(
    executed: Path,
    page_path: Path,
    mathematics: bool = False,
    places: Mapping[str, str] | None = None,
    head: dict | None = None,
    **site,
) -> None:
    """An executed notebook as one page with its pictures inside: no script but the template's,
    whatever the notebook holds, and nothing from any network.

    mathematics: between dollars, in notebooks that hold no names of a user's. places: the page to
    which a link to a folder leads. head: what stands above the page of a run, in place of the
    notebook's own title (``run_pages.head_of_run``). ``site`` is for ``write``. A page that was
    made of the same is left as it is.
    """
    from pygments.formatters import HtmlFormatter

    metrics = executed.with_name("metrics.json")  # of the run that it is about
    site["warning"] = warning_note(read_json(metrics)) if metrics.exists() else ""
    made_of = _digest(executed, [mathematics, places, head, site])
    if page_path.exists() and made_of in page_path.read_text(encoding="utf-8")[:400]:
        return
    notebook = nbformat.read(executed, as_version=4)
    title, _, rest = notebook.cells[0].source.partition("\n")
    title = title.lstrip("# ")
    if head:
        title, notebook.cells[0].source = head["title"], rest
    formulas: list[str] = []
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            given = [s for s in cell.source.splitlines()[1:] if not re.match(r"\w+_dir =", s)]
            cell.cell_type, cell.source = "markdown", ", ".join(map(_code_span, given))
        elif mathematics and cell.cell_type == "markdown":
            cell.source = html.take_formulas(cell.source, formulas)
    body, _ = _exporter().from_notebook_node(notebook)
    body = re.sub(r'<span class="(?:n|p|w)">([^<]*)</span>', r"\1", body)  # these have no colour
    body, contents = html.polish(body, page_path.parent, site.get("pages") or None, places or {})
    body = html.put_formulas(html.sanitise(body), formulas)
    style = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    content = {
        "body": body,
        "contents": contents,
        "head": head,
        "highlight": style,
        "made_of": made_of,
    }
    write(page_path, "page", title, **content, **site)


def _digest(executed: Path, content: list) -> str:
    """A hash of what a page is made of: notebook, template, the code here, what is handed in."""
    files = [executed, *sorted(TEMPLATE.iterdir()), Path(__file__), Path(html.__file__)]
    digest = hashlib.sha256(json.dumps([content, nbconvert.__version__], default=str).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _code_span(line: str) -> str:
    """A line of code within Markdown, whatever it holds."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks} {line} {ticks}"


@functools.cache
def _exporter() -> HTMLExporter:  # one for all pages: its templates take longest to compile
    where = [str(TEMPLATE.parent)]
    return HTMLExporter(template_name=TEMPLATE.name, extra_template_basedirs=where)


def write(
    path: Path,
    template: str,
    title: str,
    pages: Mapping[str, str] | None = None,
    up: str | None = "",
    **content,
):
    """Write a page of notebooks/template. ``pages``: the notebooks with pages beside index.html,
    each with its name; ``up`` leads to index.html, as "../../../" for the page of a run; None:
    there is none yet."""
    links = [(f"{up}{quote(stem)}.html", label) for stem, label in (pages or {}).items()]
    links = [(f"{up}index.html", "Overview"), *links, (f"{up}runs.html", "All runs")]
    links = [] if up is None else links
    script, style = TEMPLATE / f"{path.stem}.js", TEMPLATE / "style.css"
    content["script"] = script.read_text(encoding="utf-8") if script.exists() else ""
    content["style"] = style.read_text(encoding="utf-8") + content.pop("highlight", "")
    content["policy"] = html.content_policy(content["style"], content["script"])
    page = _templates().get_template(f"{template}.html.j2")
    text = page.render(title=title, kind=template, links=links, here=path.name, **content)
    with atomic(path) as temporary:  # names of files may be any bytes: what no text is, is drawn so
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


@functools.cache
def _templates():  # one for all pages: compiling takes longer than writing
    from jinja2 import Environment, FileSystemLoader

    return Environment(autoescape=True, loader=FileSystemLoader(TEMPLATE))
