"""The HTML of a page: cleaned of what could run, tables for wide and narrow screens, formulas."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import bleach
from bs4 import BeautifulSoup, Tag

from reproduce.files import ROOT

TAGS = (  # what a page takes from a notebook; scripts, styles, frames and forms are none of it
    "a abbr b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 "
    "h5 h6 hr i img kbd li ol p pre s small span strong sub summary sup table tbody td tfoot th "
    "thead tr u ul"
).split()
NAMED = (
    "alt aria-label class colspan data-label height id open role rowspan scope start title width"
).split()
HREF = re.compile(r"#|https?://|mailto:|[^:?#]*(?:[?#]|$)")  # a place here, or one of a network
NUMBER = re.compile(r"[+−–-]?[\d.,]+( ?%)?( ± [\d.]+)?( [\[(].*[\])])?( †)?|–|")
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.S)
NARROW = 40  # characters in a row of a table that a telephone shows whole


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


def content_policy(style: str, script: str, images: str = "data:") -> str:
    """What a browser is to let a page do: look like ``style``, run ``script``, show pictures that
    lie in it, or where ``images`` says, and ask no network for anything."""

    def alone(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'" if text else "'none'"

    inline = f"style-src {alone(style)}; script-src {alone(script)}"
    return f"default-src 'none'; img-src {images}; {inline}; base-uri 'none'; form-action 'none'"


# ---- formulas


def take_formulas(markdown: str, formulas: list[str]) -> str:
    """Markdown with a mark in place of each LaTeX formula, which is added to ``formulas``."""

    def mark(match: re.Match) -> str:
        formulas.append(match[1] or match[2])
        kind = "div" if match[1] else "span"
        return f'<{kind} class="formula" id="formula-{len(formulas) - 1}"></{kind}>'

    return FORMULA.sub(mark, markdown)


def put_formulas(body: str, formulas: list[str]) -> str:
    """The formulas as MathML, which a browser sets without a script, in place of their marks."""
    from latex2mathml.converter import convert

    for i, latex in enumerate(formulas):
        for kind, display in (("div", "block"), ("span", "inline")):
            mark = f'<{kind} class="formula" id="formula-{i}"></{kind}>'
            if mark in body:
                shown = convert(latex.strip(), display=display)
                body = body.replace(mark, f'<{kind} class="formula">{shown}</{kind}>')
    return body


# ---- what nbconvert gives


def polish(
    body: str,
    folder: Path,
    pages: Collection[str] | None = None,
    places: Mapping[str, str] | None = None,
) -> tuple[str, list[tuple[str, str, str]]]:
    """Tables in boxes, a text for each picture, links as they are seen from ``folder``; and the
    headings: (level, anchor, text).

    Links of notebooks to notebooks lead to their pages, if these are among ``pages``, where given;
    those to other files of the repository, relative to notebooks/, lead to them; those to folders
    lead to the pages that ``places`` names for them.
    """
    soup = BeautifulSoup(body, "html.parser")
    for unread in soup(["script", "style"]):  # with their text; the page has a style of its own
        unread.decompose()
    for table in soup("table"):
        _table(table, soup)
    for picture in soup("img"):
        alt = picture.get("alt", "")
        if " " not in alt or alt.startswith("No description"):  # a file's name, or nbconvert's
            heading = picture.find_previous(["h1", "h2", "h3"])
            picture["alt"] = f"Figure: {heading.text.rstrip('¶')}" if heading else "Figure"
        _caption(picture, soup)
    for link in soup("a", href=re.compile(r"^\w+\.ipynb(#|$)")):  # from notebook to notebook
        link["href"] = link["href"].replace(".ipynb", ".html", 1)
        if pages is not None and link["href"].partition(".")[0] not in pages:
            link.unwrap()
    for link in soup("a", href=re.compile(r"^\.\./\w")):
        there = (ROOT / "notebooks" / link["href"]).resolve()
        link["href"] = Path(os.path.relpath(there, folder)).as_posix()
    for link in soup("a", href=True):
        link["href"] = (places or {}).get(link["href"].rstrip("/"), link["href"])
    for anchor in soup(class_="anchor-link"):
        anchor.decompose()
    return str(soup), [(h.name, h.get("id"), h.text) for h in soup(["h2", "h3"])]


def _caption(picture: Tag, soup: BeautifulSoup) -> None:
    """What ``plots.save`` shows below a picture, a paragraph in italics, as its caption."""
    area = picture.find_parent(class_="output_area")
    below = area and area.find_next_sibling(class_="output_area")
    told = below and below.select_one(".output_markdown > p:only-child > em:only-child")
    if told and told.parent.text.strip() == told.text.strip():
        figure = area.wrap(soup.new_tag("figure"))
        told.name = "figcaption"
        figure.append(told.extract())
        below.decompose()


def _table(table: Tag, soup: BeautifulSoup) -> None:
    """A table in a box that scrolls, numbers to the right. Where its rows are too long for a
    telephone, each is a card there, and each cell says which column it is of."""
    rows = [row(["td", "th"], recursive=False)[::-1] for row in table("tr")]  # from the right,
    rows = [row for row in rows if not any(c.get("colspan") for c in row)]  # for rowspans left
    for column in zip(*rows):
        values = [cell.text.strip() for cell in column if cell.name == "td"]
        if any(values) and all(map(NUMBER.fullmatch, values)):
            for cell in column:
                cell["class"] = [*cell.get("class", []), "num"]
    labels = _labels(table)
    body = [row(["td", "th"], recursive=False) for part in table("tbody") for row in part("tr")]
    width = max((sum(len(c.text.strip()) + 2 for c in row) for row in body), default=0)
    heads = sum(len(label) + 2 for label in labels)
    box = soup.new_tag("div", attrs={"class": "wide"})
    if max(width, heads) > NARROW and labels:
        table["class"] = [*table.get("class", []), "stack"]
        spans: dict[int, tuple[int, Tag]] = {}  # of row headings: rows left, and the heading
        for cells in body:
            _card(cells, labels, spans)
    table.wrap(box)


def _labels(table: Tag) -> list[str]:
    """What stands above each column, from the left, in all rows of the table's head."""
    above: list[list[str]] = []
    for row in table.select("thead tr"):
        texts = []
        for cell in row(["td", "th"], recursive=False):
            texts += [cell.text.strip()] * int(cell.get("colspan", 1))
        above.append(texts)
    if not above:
        return []
    wide = max(map(len, above))
    padded = [[""] * (wide - len(texts)) + texts for texts in above]
    return [", ".join(dict.fromkeys(filter(None, column))) for column in zip(*padded)]


def _card(cells: list[Tag], labels: list[str], spans: dict[int, tuple[int, Tag]]) -> None:
    """One row of a table whose rows become cards: headings that span rows stand in each card."""
    for i in sorted(spans):
        left, heading = spans[i]
        again = BeautifulSoup("", "html.parser").new_tag("th", attrs={"class": "again"})
        again.string = heading.text
        cells[0].insert_before(again)
        spans[i] = (left - 1, heading)
    for i in [i for i, (left, _) in spans.items() if left < 1]:
        del spans[i]
    shift = len(labels) - len(cells)
    for i, cell in enumerate(cells):
        if rows := int(cell.get("rowspan", 1)) - 1:
            spans[shift + i] = (rows, cell)
        if cell.name == "td" and labels[shift + i]:
            cell["data-label"] = labels[shift + i]
