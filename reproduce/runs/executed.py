"""Notebooks executed, and as pages that need no network; their HTML is notebooks/template."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

import bleach
import nbformat
import papermill  # here, not in threads: two that import it at once may fail
from IPython.lib import lexers  # noqa: F401  the same
from nbconvert import HTMLExporter
from PIL import Image

from reproduce.files import ROOT, atomic, read_json
from reproduce.runs.directory import collapse_note
from reproduce.settings import ConfigError

TEMPLATE = ROOT / "notebooks" / "template"
PLACES = ("data_dir = ", "results_dir = ")
PHOTOGRAPH = 1 << 14  # colours that no drawing has
TAGS = (  # what a page takes from a notebook; scripts, styles, frames and forms are none of it
    "a abbr b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 "
    "h5 h6 hr i img kbd li ol p pre s small span strong sub summary sup table tbody td tfoot th "
    "thead tr u ul"
).split()
NAMED = "alt aria-label class colspan height id open role rowspan scope start title width".split()
HREF = re.compile(r"#|https?://|mailto:|[^:?#]*(?:[?#]|$)")  # a place here, or one of a network
NUMBER = re.compile(r"[+−–-]?[\d.,]+( ?%)?( ± [\d.]+)?( [\[(].*[\])])?|–|nan|NaN|")


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


def to_html(executed: Path, page_path: Path, **site) -> None:
    """An executed notebook as one page with its pictures inside: no script, whatever the notebook
    holds, and nothing from any network. ``site`` is for ``write``."""
    from pygments.formatters import HtmlFormatter

    notebook = nbformat.read(executed, as_version=4)
    title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            given = [s for s in cell.source.splitlines()[1:] if not re.match(r"\w+_dir =", s)]
            cell.cell_type, cell.source = "markdown", ", ".join(map(_code_span, given))
    body, _ = _exporter().from_notebook_node(notebook)
    body = re.sub(r'<span class="(?:n|p|w)">([^<]*)</span>', r"\1", body)  # these have no colour
    body, contents = _polish(body)
    body = sanitise(body)
    metrics = executed.with_name("metrics.json")  # of the run that it is about
    site["warning"] = collapse_note(read_json(metrics)) if metrics.exists() else ""
    style = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    write(page_path, "page", title, body=body, contents=contents, highlight=style, **site)


def _code_span(line: str) -> str:
    """A line of code within Markdown, whatever it holds."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks} {line} {ticks}"


def sanitise(body: str) -> str:
    """HTML without what could run or ask a network: tags of text, tables and pictures, which lie in
    the page. A notebook and the names in it may be someone else's."""
    return _cleaner().clean(body)


@functools.cache
def _cleaner() -> bleach.Cleaner:
    def allowed(tag: str, name: str, value: str) -> bool:
        if name in ("href", "src"):
            picture = tag == "img" and name == "src" and value.startswith("data:image/")
            return picture or (tag == "a" and name == "href" and bool(HREF.match(value.strip())))
        return name in NAMED

    known = {"http", "https", "mailto", "data"}
    return bleach.Cleaner(tags=TAGS, attributes=allowed, protocols=known, strip=True)


@functools.cache
def _exporter() -> HTMLExporter:  # one for all pages: its templates take longest to compile
    where = [str(TEMPLATE.parent)]
    return HTMLExporter(template_name=TEMPLATE.name, extra_template_basedirs=where)


def _polish(body: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Each table in a box that scrolls, numbers to the right, a text for each picture, links to the
    pages of other notebooks; and the headings: (level, anchor, text)."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(body, "html.parser")
    for unread in soup(["script", "style"]):  # with their text; the page has a style of its own
        unread.decompose()
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
    for link in soup("a", href=re.compile(r"^\w+\.ipynb(#|$)")):  # from notebook to notebook
        link["href"] = link["href"].replace(".ipynb", ".html", 1)
    for anchor in soup(class_="anchor-link"):
        anchor.decompose()
    return str(soup), [(h.name, h.get("id"), h.text) for h in soup(["h2", "h3"])]


def write(path: Path, template: str, title: str, pages=(), up: str | None = "", **content):
    """Write a page of notebooks/template. ``pages`` are the notebooks with pages beside it; ``up``
    leads to index.html, as "../../../" for the page of a run; None: there is none yet."""
    from jinja2 import Environment, FileSystemLoader

    links = [(quote(f"{stem}.html"), stem.replace("_", " ").capitalize()) for stem in pages]
    links = [(f"{up}index.html", "Overview"), *links, (f"{up}runs.html", "All runs")]
    links = [] if up is None else links
    script, style = TEMPLATE / f"{template}.js", TEMPLATE / "style.css"
    content["script"] = script.read_text(encoding="utf-8") if script.exists() else ""
    content["style"] = style.read_text(encoding="utf-8") + content.pop("highlight", "")
    content["policy"] = content_policy(content["style"], content["script"])
    environment = Environment(autoescape=True, loader=FileSystemLoader(TEMPLATE))
    page = environment.get_template(f"{template}.html.j2")
    text = page.render(title=title, kind=template, links=links, here=path.name, **content)
    with atomic(path) as temporary:  # names of files may be any bytes: what no text is, is drawn so
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def content_policy(style: str, script: str) -> str:
    """What a browser is to let a page do: look like ``style``, run ``script``, show pictures that
    lie in it, and ask no network for anything."""

    def alone(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'" if text else "'none'"

    own = f"style-src {alone(style)}; script-src {alone(script)}"
    return f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"
