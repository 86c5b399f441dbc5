"""What the pages promise their reader: plain words, numbers that stand above their sentence, one
interval for one difference, links in every direction, an order."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from reproduce.files import ROOT
from reproduce.report import claims, names, pages

PAGES = [path.stem for path in pages.notebooks()]
STUDY = [stem for stem in PAGES if stem not in ("scale", "benchmark")]  # of runs
MOST_WORDS = 250
NUMBER = re.compile(r"(?<![\w.,])[−-]?(\d+\.\d+)(?!\w|\.\d)")
ROW = re.compile(
    r"(?m)^(.*?) +(\d+(?:, \d+)*) +(−?\d+\.\d) +(−?\d+\.\d) +([+−]\d+\.\d) \[(\S+), (\S+)\]"
)


def cells(stem, executed=False):
    folder = ROOT / ("results" if executed else "notebooks")
    found = nbformat.read(folder / f"{stem}.ipynb", as_version=4).cells
    return [c for c in found if "injected-parameters" not in c.metadata.get("tags", [])]


def output(cell):
    """The text that a cell shows."""
    texts = []
    for shown in cell.get("outputs", []):
        data = shown.get("data", {})
        texts += [shown.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")]
    return "\n".join("".join(text) for text in texts)


def prose(cell):
    """A text without code, formulas and addresses."""
    text = re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$", " ", cell.source, flags=re.S)
    return re.sub(r"\]\([^)]*\)", "]", text)


def given():
    """Numbers that are no result of ours: published, or a setting."""
    folder = ROOT / "notebooks"
    files = [*folder.glob("settings/*.yaml"), folder / "differences.yaml"]
    files += [folder / "campaign.yaml", *(ROOT / "results").glob("*.csv")]
    texts = [file.read_text(encoding="utf-8") for file in files]
    found = {f"{float(n):g}" for text in texts for n in re.findall(r"\d+\.\d+", text)}
    return found | {"7.2", "57.6", "5"}  # 48.1 - 40.9; IIC's mean of sub-heads and its deviation


def unfounded(stem):
    """The decimals of a page's prose that stand in no output above them."""
    known, seen, missing = given(), set(), []
    for cell in cells(stem, executed=True):
        if cell.cell_type == "code":
            seen |= {number.rstrip("0") for number in re.findall(r"\d+\.\d+", output(cell))}
            continue
        for number in NUMBER.findall(prose(cell)):
            if number.rstrip("0") not in seen and f"{float(number):g}" not in known:
                missing.append(number)
    return missing


@pytest.mark.parametrize("stem", STUDY)
def test_every_number_in_prose_stands_in_an_output_above_it(stem):
    assert not unfounded(stem)


def test_a_number_that_stands_nowhere_is_found(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    for folder in ("results", "notebooks"):
        (tmp_path / folder).mkdir(exist_ok=True)
    code = nbformat.v4.new_code_cell("x", outputs=[])
    code.outputs = [nbformat.v4.new_output("stream", text="36.30 and 5.9")]
    texts = ["It is 5.9.", "`1.23` $4.56$ [a](b#7.89) **36.3** −5.9 and 6.1; 79.9 is published"]
    marked = [nbformat.v4.new_markdown_cell(text) for text in texts]
    notebook = nbformat.v4.new_notebook(cells=[marked[0], code, marked[1]])
    nbformat.write(notebook, tmp_path / "results" / "x.ipynb")
    monkeypatch.setattr("test_reading.given", lambda: {"79.9"})
    monkeypatch.setattr("test_reading.ROOT", tmp_path)
    assert unfounded("x") == ["5.9", "6.1"]


def test_no_difference_has_two_intervals_on_any_two_pages():
    """Rows of tables of one name, with the same n, means and difference."""
    rows, twice = {}, 0
    for stem in STUDY:
        for cell in cells(stem, executed=True):
            for label, *row, low, high in ROW.findall(output(cell)):
                key = (re.split(r"\s{2,}", label.strip())[-1], *row)
                twice += key in rows
                rows.setdefault(key, set()).add((low, high))
    assert len(rows) > 100 and twice > 2
    assert not {key: found for key, found in rows.items() if len(found) > 1}


@pytest.mark.parametrize("stem", PAGES)
def test_a_text_is_short_and_says_where_to_go_next(stem):
    texts = [cell.source for cell in cells(stem) if cell.cell_type == "markdown"]
    for text in texts:
        assert len(text.split()) <= MOST_WORDS, text[:80]
    assert re.search(r"\*\*(Next|Back):\*\* .*\]\(\w+\.", texts[-1]), texts[-1]


def test_pages_stand_in_their_order_and_lead_through_it():
    assert [*names.PAGES] == PAGES
    order = STUDY
    for stem, following in zip(order, order[1:]):
        last = [cell.source for cell in cells(stem) if cell.cell_type == "markdown"][-1]
        leads = re.search(r"\*\*Next:\*\* .*?\]\((\w+)\.ipynb", last)
        assert leads and leads[1] == following, stem


HOUSE = r"\bthe course\b|\bclear: |what this detail|\bNaN\b"


@pytest.mark.parametrize("stem", PAGES)
def test_words_of_the_house_are_gone(stem):
    text = " ".join(prose(cell) for cell in cells(stem) if cell.cell_type == "markdown")
    assert not re.search(HOUSE, text), re.findall(HOUSE, text)
    assert not re.search(r"\*[ab]\*", text), "columns have names"


def pages_made():
    made = [ROOT / "results" / f"{name}.html" for name in [*PAGES, "index", "runs"]]
    return made + sorted((ROOT / "results" / "settings").glob("*.html"))


def test_no_table_shows_what_only_a_program_understands():
    bad = re.compile(r"NaN|nan|None|True|False|[ab]|low|<NA>|\w*_acc|\w+_\w+")
    for path in pages_made():
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for code in soup("code"):
            code.decompose()
        for cell in soup(["th", "td"]):
            text = cell.get_text().strip()
            if path.stem != "benchmark":
                assert not bad.fullmatch(text), (path.name, text)
            assert not re.search(r"\bNaN\b|_acc\b", text), (path.name, text)


def test_a_claim_leads_to_its_section_and_runs_and_these_lead_back():
    claimed = yaml.safe_load(claims.CLAIMS.read_text(encoding="utf-8"))
    soup = BeautifulSoup((ROOT / "results" / "index.html").read_text("utf-8"), "html.parser")
    rows = soup.select("table.claims tbody tr")
    assert len(rows) == len(claimed)
    for row in rows:
        links = [link["href"] for link in row("a")]
        assert links and re.match(r"\w+\.html#", links[0]), row.text
        for link in links[1:]:
            assert re.fullmatch(r"settings/\w+\.html#seed-\d+", link)
    said = set()
    for path in (ROOT / "results" / "settings").glob("*.html"):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        assert "ACC" in page.select_one(".lead").text and page.select_one("pre.command")
        said |= {link.text for link in page.select("#claims + ul a")}
        assert [a for a in page("a") if a["href"].endswith("/losses.py")], path.name
    measured = {row("td")[1]("a")[0].text for row in rows if len(row("a")) > 1}
    assert said == measured


def test_no_link_opens_a_bare_folder():
    for path in pages_made():
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for link in soup("a", href=re.compile(r"^(?!https?:|mailto:|#)")):
            there = path.parent / Path(link["href"].partition("#")[0])
            assert not there.is_dir(), (path.name, link["href"])
