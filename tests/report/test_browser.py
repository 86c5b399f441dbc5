"""The pages and the notebook as a reader meets them: in Chromium, without any network."""

import collections
import csv
import functools
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import nbformat
import numpy as np
import pytest
import requests
import yaml
from bs4 import BeautifulSoup, SoupStrainer
from PIL import Image

from reproduce.__main__ import main
from reproduce.config import Config
from reproduce.files import ROOT, printable
from reproduce.report import pages, run_pages
from reproduce.runs import html

RUNS = [
    "digits/crlc/lambda1-0.1_*_seed-[012]_*",
    "digits/crlc/lambda1-1_entropy-*_seed-[012]_*",
    "digits/byol/*",
    "cifar10/crlc/*_seed-0_*",
]
NOTEBOOK = {
    "entropy": """# What one page holds

This first sentence is what the overview says of it. A second one is not.
---
results_dir: str = ""  # folder of run directories
---
print("a line that was printed")
---
## A figure

Prose before it.
---
import matplotlib.pyplot as plt
plt.plot([0, 1], [1, 0])
plt.show()
---
### Its table

---
import pandas as pd
table = pd.DataFrame({"ACC": ["97.4 ± 0.8", "9.0"]} | {f"wide {i}": [i, i] for i in range(20)})
table.insert(0, "setting", ["first", "second"])
table.set_index(pd.MultiIndex.from_product([["digits"], ["a", "b"]], names=["data", "name"]))
---
## Accuracy against the weight

The sections that claims on these runs lead to.

## Heads and their loss
""",
}


def notebook(text, path):
    cells = []
    for i, source in enumerate(part.strip() for part in text.split("---\n")):
        code = not source.startswith(("#", "Prose"))
        cell = nbformat.v4.new_code_cell(source) if code else nbformat.v4.new_markdown_cell(source)
        cell.metadata["tags"] = ["parameters"] if i == 1 else []
        cells.append(cell)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages of a few committed runs and of one small notebook, as ``make report`` makes them. Few
    of the runs have a page of their own, which takes half a second each."""
    root = tmp_path_factory.mktemp("site")
    (root / "notebooks").mkdir()
    notebook(NOTEBOOK["entropy"], root / "notebooks" / "entropy.ipynb")
    folder = root / "results" / "local"
    for run in (run for pattern in RUNS for run in (ROOT / "results").glob(pattern)):
        whole = run.name.startswith("lambda1-0.1_") and "_seed-0_" in run.name
        left_out = shutil.ignore_patterns("*.npz", *([] if whole else ["train.*"]))
        shutil.copytree(run, folder / run.relative_to(ROOT / "results"), ignore=left_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "ROOT", root)
        assert pages.build(folder) == folder / "index.html"
    return folder


def column(page, name):
    """The shown values of a column of the table of runs."""
    names = page.locator("#runs thead th").all_inner_texts()
    index = [n.strip(" ▲▼") for n in names].index(name) + 1
    return [
        c.inner_text()
        for c in page.locator(f"#runs tbody tr:not([hidden]) td:nth-child({index})").all()
    ]


def test_the_runs_are_sorted_by_number_and_by_name(site, visit):
    page = visit(site / "runs.html")

    def means(name):
        return [float(v.split(" ±")[0]) for v in column(page, name) if v]

    for name in ("k-means on features", "aligned average"):
        before = means(name)
        assert before != sorted(before) and before != sorted(before, reverse=True)
        page.get_by_role("button", name=name).click()
        assert means(name) == sorted(before, reverse=True)
        page.get_by_role("button", name=name).click()
        assert means(name) == sorted(before)
    page.get_by_role("button", name="Method").click()
    assert column(page, "Method")[0] == "BYOL"
    page.get_by_role("button", name="aligned average").click()
    page.get_by_role("button", name="aligned average").click()
    blank = column(page, "aligned average")
    assert "" in blank and blank.index("") == len(means("aligned average")), "empty ones come last"
    assert page.locator("th[aria-sort]").count() == 1
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("aligned average")
    page.get_by_role("button", name="Method").click()
    methods = column(page, "Method")
    assert methods == sorted(methods) and {"BYOL", "CRLC"} == set(methods)


def test_the_runs_are_filtered_by_words_and_by_column(site, visit):
    page = visit(site / "runs.html")
    rows, count = column(page, "Method"), page.locator("#count")
    assert count.inner_text() == f"{len(rows)} settings"
    page.get_by_label("Method").select_option("BYOL")
    assert set(column(page, "Method")) == {"BYOL"}
    assert count.inner_text() == f"1 of {len(rows)} settings"
    page.get_by_label("Method").select_option("all")
    page.get_by_label("Data").select_option("digits")
    page.get_by_label("Find").fill("SAMPLE λ1 0.1")
    assert column(page, "Setting") == ["the recipe for digits; λ1 0.1, entropy of each sample"]
    page.get_by_label("Find").fill("no such thing")
    assert column(page, "Method") == [] and count.inner_text() == f"0 of {len(rows)} settings"
    page.get_by_label("Find").fill("")
    page.get_by_label("Data").select_option("all")
    assert column(page, "Method") == rows


def test_a_row_is_a_setting_and_its_seeds_are_links(site, visit):
    page = visit(site / "runs.html")
    page.get_by_label("Find").fill("digits λ1 0.1 sample")
    assert column(page, "n") == ["3"] and page.locator("tr:not([hidden]) svg path").count() == 1
    links = page.locator("#runs tbody tr:not([hidden]) a")
    assert links.all_inner_texts()[1:] == ["0", "1", "2"], "the setting, then its seeds"
    links.nth(2).click()
    assert re.search(r"/settings/\w+\.html#seed-1$", page.url)
    words = "the recipe for digits; λ1 0.1, entropy of each sample"
    assert page.locator("h1").text_content() == words
    assert page.locator("tr:target th").inner_text() == "1"
    assert page.locator("#seed-1").get_by_role("link", name="the whole run").count() == 0
    page.locator("#seed-0").get_by_role("link", name="the whole run").click()
    assert page.url.endswith("/train.html")
    assert page.locator("h1").text_content() == f"{words}: seed 0"
    assert page.locator("main > .lead").inner_text().startswith("digits, CRLC. ACC ")
    page.locator("main").get_by_role("link", name="1", exact=True).click()
    assert re.search(r"/settings/\w+\.html#seed-1$", page.url), "it has no page of its own"
    page.locator("nav").get_by_role("link", name="All runs").click()
    assert page.url.endswith("/runs.html")


def test_the_address_keeps_order_and_filters(site, visit):
    page = visit(site / "runs.html")
    assert "#" not in page.url
    page.get_by_label("Find").fill("λ1")
    page.get_by_label("Data").select_option("digits")
    page.get_by_role("button", name="aligned average").click()
    page.get_by_role("button", name="aligned average").click()
    shown = column(page, "Setting")
    other = visit(page.url)
    assert column(other, "Setting") == shown and len(shown) > 1
    assert other.get_by_label("Find").input_value() == "λ1"
    assert other.locator("th[aria-sort=ascending]").inner_text().startswith("aligned average")
    page.get_by_label("Find").fill("")
    page.get_by_label("Data").select_option("all")
    assert "find=" not in page.url and "data=" not in page.url


def test_from_the_overview_to_a_heading_and_back(site, visit):
    page = visit(site / "index.html")
    pages_first = ["Pages, in the order in which to read them", "Claims"]
    assert page.locator("h2").all_inner_texts() == pages_first
    known = page.locator(".tally .verdict").all_inner_texts()
    assert "holds" in known and len(known) == len(set(known))
    assert not page.locator(".claims").is_visible()
    page.get_by_text("Each of the").click()
    verdicts = page.locator(".claims .verdict").all_inner_texts()
    shown = zip(page.locator(".tally strong").all_inner_texts(), known)
    assert {verdict: int(n) for n, verdict in shown} == collections.Counter(verdicts)
    assert "not run" not in page.locator(".claims").inner_text()
    card = page.locator(".cards a").first
    assert "This first sentence is what the overview says of it." in card.inner_text()
    assert "second one" not in card.inner_text() and card.locator("img").count() == 1
    card.click()
    assert page.title() == "What one page holds"
    page.locator("nav.contents").get_by_role("link", name="Its table").click()
    assert page.url.endswith("entropy.html#Its-table")
    assert page.locator("nav.site [aria-current]").inner_text() == "Entropy"
    assert page.get_by_text("this machine's own runs").is_visible()
    page.get_by_role("link", name="Overview").click()
    assert page.url.endswith("/index.html")


def test_a_page_folds_its_code_and_shows_no_injected_cell(site, visit):
    page = visit(site / "entropy.html")
    assert page.get_by_text("a line that was printed", exact=True).is_visible()
    code = page.locator("details.source")
    assert code.all_inner_texts() == ["Parameters", "Code", "Code", "Code"]
    assert not page.get_by_text("plt.show()").is_visible()
    code.nth(2).locator("summary").click()
    assert page.get_by_text("plt.show()").is_visible()
    assert "Parameters" not in page.locator("main").inner_text().replace("Parameters", "", 1)
    assert page.locator("img").get_attribute("alt") == "Figure: A figure"
    assert str(site) not in page.content()


def test_text_stands_left_and_numbers_right(site, visit):
    page = visit(site / "entropy.html")
    align = "cells => cells.map(c => getComputedStyle(c).textAlign)"
    names, blank, first, second = (
        r.locator("th:not(.again), td") for r in page.locator("table tr").all()
    )
    assert names.evaluate_all(align)[:4] == ["left", "left", "left", "right"]
    assert first.evaluate_all(align)[:5] == ["left", "left", "left", "right", "right"]
    assert second.evaluate_all(align)[:4] == ["left", "left", "right", "right"]


def every_page(folder):
    """The pages of a folder, and those of its runs."""
    found = sorted(folder.glob("*.html")) + sorted(folder.glob("settings/*.html"))
    return found + sorted(folder.glob("*/*/*/train.html"))


@functools.cache
def ids(path, changed):
    return {*re.findall(r'id="([^"]+)"', path.read_text(encoding="utf-8"))}


def check(path, visit):
    """No sideways scroll on a telephone, a text for every picture, print."""
    page = visit(path, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    seen = "[...document.images].map(i => [i.getAttribute('alt'), i.naturalWidth])"
    for alt, width in page.evaluate(seen):
        assert " " in alt and "No description" not in alt, path
        assert width > 0, path
    page.emulate_media(media="print")
    assert page.locator("nav:visible").count() == 0 and page.locator("h1").is_visible(), path


def check_links(path):
    """To what exists, on the page or beside it; a link of a script is no link."""
    links = SoupStrainer("a", href=True)
    for link in BeautifulSoup(path.read_bytes(), "html.parser", parse_only=links):
        target = urlparse(urljoin(path.as_uri(), link.get("href")))
        assert target.scheme in ("file", "https"), path
        if target.scheme == "file":
            there = Path(unquote(target.path))
            assert there.exists(), (path, there)
            names = {target.fragment, unquote(target.fragment)}
            filters = there.name == "runs.html" and "=" in target.fragment
            named = names == {""} or filters or names & ids(there, there.stat().st_mtime_ns)
            assert named, (path, target.fragment)


def test_every_page_fits_a_telephone_and_its_links_lead_somewhere(site, visit):
    found = every_page(site)
    names = {p.name for p in found if p.parent.name != "settings"}
    assert {"index.html", "runs.html", "entropy.html", "train.html"} == names
    for path in found:
        check_links(path)
    for path in [*found[:5], found[-1]]:
        check(path, visit)


def test_every_committed_page_leads_somewhere_and_fits_a_telephone(visit):
    """Of the pages of settings and of runs, which are of one make, every tenth is opened."""
    found = [path for path in every_page(ROOT / "results") if "local" not in path.parts]
    written = [path for path in found if path.parent == ROOT / "results"]
    assert len(written) > 10 and len(found) > 100
    for path in found:
        check_links(path)
    for path in [*written, *(path for path in found[::10] if path not in written)]:
        check(path, visit)


WHOLE = ("index", "differences", "entropy", "report")  # on a telephone


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_wider_than_a_telephone(visit, name):
    page = visit(ROOT / "results" / f"{name}.html", width=390)
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("table, img, figure, math, .closed-form")]
        .filter(e => e.offsetParent && e.getBoundingClientRect().right > 390.5)
        .map(e => e.textContent.slice(0, 60))"""
    )
    assert not beyond


def test_a_table_that_goes_on_shows_it(visit, tmp_path):
    """A shadow at the right, which goes where the table ends."""
    row = "".join(f"<td>column {i}</td>" for i in range(30))
    body, _ = html.polish(f"<table><tbody><tr>{row}</tr></tbody></table>", tmp_path)
    pages.write(tmp_path / "page.html", "page", "Title", body=body, contents=[])
    page = visit(tmp_path / "page.html", width=800)
    box = page.locator(".wide")
    assert box.evaluate("b => b.scrollWidth > b.clientWidth + 20")

    def darkest():
        image = Image.open(io.BytesIO(box.screenshot())).convert("L")
        right = np.asarray(image)[4:-4, -3:]
        return float(np.median(right))

    box.evaluate("b => { b.scrollLeft = 0; }")
    before = darkest()
    box.evaluate("b => { b.scrollLeft = b.scrollWidth; }")
    page.wait_for_timeout(100)
    assert before < 245 and darkest() > 250


def test_the_slider_moves_the_closed_form(visit):
    page = visit(ROOT / "results" / "entropy.html")
    panels = page.locator(".closed-form section")
    assert panels.count() == 2 and page.locator("#lambda1").input_value() == "1"

    def state(weight):
        page.locator("#lambda1").fill(str(weight))
        assert page.locator(".closed-form output").inner_text() == f"{weight:.2f}"
        return [panels.nth(i).locator("p").inner_text() for i in range(2)]

    assert state(0.1) == ["Preferred: certain, balanced."] * 2
    assert state(2) == ["Preferred: certain, balanced.", "Preferred: uniform."]
    terms = page.locator("table", has_text="H(each sample)").first.locator("tbody tr").all()
    for i, row in enumerate(terms):
        pc, sample, batch = (float(c.inner_text()) for c in row.locator("td").all())
        for panel, entropy in ((0, batch), (1, sample)):
            number = panels.nth(panel).locator(".number").nth(i).inner_text()
            assert float(number.replace("−", "-")) == pytest.approx(pc - 2 * entropy, abs=6e-3)


def test_the_map_of_digits_shows_the_image_under_the_pointer(visit):
    from reproduce import data

    page = visit(ROOT / "results" / "embeddings.html")
    points = page.locator("details.points code").text_content().split(";")
    images = data.load(Config()).parts("all", 0)[1]
    assert len(points) == len(images.labels)
    picture = page.locator(".hover-map img")
    picture.scroll_into_view_if_needed()
    box, card = picture.bounding_box(), page.locator(".hover-card")
    assert not card.is_visible()
    for i in (0, 700, 1500):
        x, y, label, _ = map(int, points[i].split(","))
        assert label == int(images.labels[i])
        page.mouse.move(box["x"] + x / 1000 * box["width"], box["y"] + y / 1000 * box["height"])
        assert card.is_visible()
        name = int(re.match(r"a (\d)", card.inner_text())[1])
        drawn = card.locator("canvas").evaluate(
            "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        )
        drawn = 255 - np.array(drawn).reshape(80, 80, 4)[5::10, 5::10, 0]
        same = (np.abs(images.pixels[:, 0].numpy() - drawn) <= 2).all((1, 2))
        assert same.any() and int(images.labels[np.flatnonzero(same)[0]]) == name
    page.mouse.move(box["x"] - 5, box["y"] - 5)
    assert not card.is_visible()


def test_the_table_of_runs_shows_its_seeds(visit):
    page = visit(ROOT / "results" / "runs.html")
    assert page.evaluate("document.querySelector('#runs').getBoundingClientRect().right") <= 1280


def test_the_table_of_all_committed_runs_is_small(tmp_path):
    from reproduce.report import results

    rows = run_pages.settings_rows(results.load(), ROOT / "results")
    names = [results.RULES[rule] for rule in run_pages.SHOWN]
    page = tmp_path / "runs.html"
    pages.write(page, "runs", "All runs", rows=rows, names=names)
    assert len(rows) > 40 and page.stat().st_size < 100_000


# ---- what others have named or written

RAN = "<img src=x onerror=document.title=1>"
CLASSES = ["A $$ B", f"=1+1 {RAN}"]
FILES = [
    f"{RAN}.png",
    "a<b.png",
    "R&D.png",
    "$50_$100.png",
    "=cmd|calc!A0.png",
    "猫 😀.png",
    "new\nline.png",
    "carriage\rreturn.png",
]
CLUSTERS = {k: f"{k} $50_$100 A $$ B {RAN} 猫 & <i>" for k in range(2)}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The run directory of a folder of images with such names, with its table and its pages."""
    base = tmp_path_factory.mktemp("named")
    rng = np.random.default_rng(0)
    for i in range(2 * len(FILES)):
        folder = base / f"{RAN} images" / CLASSES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        if i % 2 == 0:  # each file has its copy in the other class
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / FILES[i // 2])
    words = ["clusters", str(folder.parent), "2", "-p", "epochs", "1", "-p", "width", "4"]
    for name, value in (("results_dir", "runs"), ("data_dir", "data")):
        words += ["-p", name, str(base / value)]
    with pytest.MonkeyPatch.context() as without:
        without.setattr("reproduce.report.pages.execute", lambda *words, **named: None)
        without.setattr("reproduce.report.pages.to_html", lambda *words, **named: None)
        # the map takes UMAP seconds; it is kept
        without.setattr("reproduce.own_images.tables.map_of", lambda x, near, cosine: x[:, :2])
        assert main(words) == 0
    (run,) = (base / "runs" / "folder" / "crlc").iterdir()
    (run / "names.yaml").write_text(yaml.safe_dump(CLUSTERS, allow_unicode=True), encoding="utf-8")
    assert main(words) == 0
    config = Config(**json.loads((run / "config.json").read_text()), data_dir=str(base / "data"))
    parameters = {**config.identity(), "folder": config.folder, "data_dir": str(base / "data")}
    parameters["results_dir"] = str(base / "runs")
    pages.execute(ROOT / "notebooks" / "train.ipynb", run / "train.ipynb", **parameters)
    pages.to_html(run / "train.ipynb", run / "train.html", up=None)
    return run


def test_names_are_text(named, visit):
    page = visit(named / "clusters.html")
    text = page.locator("main").inner_text()
    for name in [*FILES, *CLASSES]:
        assert printable(name) in text, name
    titles = page.locator("tbody th").all_inner_texts()  # of the clusters that have images
    assert {*titles} & {*CLUSTERS.values()} and not any("cluster" in title for title in titles)
    assert page.locator("main img").count() >= 5 and page.title() == "The clusters of your images"
    page = visit(named / "train.html")
    assert RAN in page.locator("main").inner_text() and page.title() != "1"
    assert page.locator("main img").count() >= 6


def test_each_name_in_a_table_opens_its_file_and_is_no_formula(named):
    folder = Path(json.loads((named / "config.json").read_text())["folder"])
    for name in ("clusters.csv", "assignments.csv"):
        with open(named / name, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len({(folder / row["file"]).resolve(strict=True) for row in rows}) == 2 * len(FILES)
        assert not any(row["file"].startswith(tuple("=+-@\t\r")) for row in rows)
    assert any(row["file"].startswith("./=1+1") for row in rows)


OTHERS = f"""# Someone's notebook <script>document.title = "ran"</script> {RAN}

This sentence is what one reads of it. [a](javascript:document.title='ran')
---
results_dir = ""
---
Prose <a href="javascript:document.title='ran'">b</a> <svg onload="document.title='ran'"></svg>
<a href=" java&#10;script:document.title='ran'" onclick="document.title='ran'">c</a>
<iframe srcdoc="<script>parent.document.title='ran'</script>"></iframe> <math><style>{RAN}</style>
<form action="https://example.org/"><input name="q"><button>d</button></form>
<a href="data:text/html,<script>alert(1)</script>">e</a> <img src="https://example.org/x.png">
<base href="https://example.org/"><meta http-equiv="refresh" content="0;url=https://example.org/">
---
1
---
Prose: the end
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """The pages of runs that someone else has made: a folder, its data and a notebook."""
    root = tmp_path_factory.mktemp("foreign")
    (root / "notebooks").mkdir()
    folder = root / "results" / "local"
    kept = next((ROOT / "results").glob("digits/crlc/*_seed-0_*"))
    for name in ("javascript:document.title='ran'", f"a&b {RAN}"):
        run = folder / name / "crlc" / kept.name
        shutil.copytree(kept, run, ignore=shutil.ignore_patterns("*.npz", "train.*"))
        config = json.loads((run / "config.json").read_text())
        config |= {"dataset": "folder", "folder": f"{RAN} {name}"}
        (run / "config.json").write_text(json.dumps(config))
        notebook(OTHERS, run / "train.ipynb")
        content = nbformat.read(run / "train.ipynb", 4)
        outputs = {
            "text/html": f"<script>document.title = 'ran'</script>{RAN}<b>shown</b>",
            "application/javascript": "document.title = 'ran'",
            "image/svg+xml": "<svg onload=\"document.title='ran'\"></svg>",
            "text/markdown": f"{RAN} [f](javascript:document.title='ran')",
        }
        content.cells[3].outputs = [
            nbformat.v4.new_output("display_data", {mime: data}) for mime, data in outputs.items()
        ]
        nbformat.write(content, run / "train.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "ROOT", root)
        pages.build(folder)
    return folder


def test_nothing_of_someone_elses_runs(foreign, visit):
    page = visit(foreign / "runs.html")
    assert any(RAN in name for name in column(page, "Data"))
    rows = page.locator("#runs tbody tr")
    assert rows.count() == 2
    for i in range(2):
        rows.nth(i).locator("a").last.click()
        assert "folder" in page.locator("h1").inner_text() and page.title() not in ("1", "ran")
        page.get_by_role("link", name="the whole run").click()
        assert page.url.endswith("/train.html") and page.locator("h1").count() == 1
        assert "This sentence is what one reads of it" in page.locator("main").inner_text()
        assert page.locator("main b").inner_text() == "shown"
        for link in page.locator("main a").all():
            ours = "../../../settings/"  # to the page of its setting, and no link of the notebook's
            assert (link.get_attribute("href") or ours).startswith(ours), link
        assert page.locator("script, iframe, form, svg, input, base").count() == 0
        assert page.title() not in ("1", "ran")
        page.go_back()
        page.go_back()
    visit(foreign / "index.html")


def test_a_page_runs_no_script_but_its_own(browser, tmp_path):
    """Also where something gets past the cleaning."""
    body = f"<h1>x</h1><script>document.title = 'ran'</script>{RAN}<img src='https://localhost/x'>"
    pages.write(tmp_path / "page.html", "page", "Title", body=body, contents=[])
    page, refused, got = browser.new_page(), {}, []
    page.on("requestfailed", lambda request: refused.update({request.url: request.failure}))
    page.on("requestfinished", lambda request: got.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_timeout(300)
    assert page.title() == "Title" and len(got) == 1, got
    assert set(refused.values()) == {"csp"} and "https://localhost/x" in refused
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") != "none"
    page.close()


# ---- JupyterLab


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that has a small copy of train.ipynb, at a free port."""
    copy = nbformat.read(ROOT / "notebooks" / "train.ipynb", as_version=4)
    cell = next(c for c in copy.cells if "parameters" in c.metadata.get("tags", []))
    tiny = {"epochs": 12, "width": 4, "limit": 300, "results_dir": "runs", "data_dir": "data"}
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in tiny.items())
    nbformat.write(copy, tmp_path / "train.ipynb")
    tracker = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    every_cell = {"windowingMode": "none"}  # in the page, also where it is scrolled out of sight
    (tracker / "tracker.jupyterlab-settings").write_text(json.dumps(every_cell))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={tmp_path}",
        f"--IdentityProvider.token={token}",
        f"--LabApp.user_settings_dir={tmp_path / 'settings'}",
        f"--LabApp.workspaces_dir={tmp_path / 'workspaces'}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.news_url=",
    ]
    places = {f"JUPYTER_{k}_DIR": str(tmp_path / k) for k in ("CONFIG", "DATA", "RUNTIME")}
    here = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env={**os.environ, **places, **here},
            stdout=log,
            stderr=log,
        )
    yield f"http://127.0.0.1:{port}/lab/tree/train.ipynb?token={token}"
    server.terminate()
    server.wait(30)


OBSERVE = """() => {
  window.bars = [];
  new MutationObserver(() => {
    const found = document.body.innerText.match(/(\\d+)\\/12 \\[/);
    if (found && window.bars.at(-1) !== found[1]) window.bars.push(found[1]);
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def test_the_notebook_runs_in_jupyterlab_to_its_last_figure(lab, visit, tmp_path):
    patient = requests.adapters.Retry(total=90, backoff_factor=0.5, backoff_max=1)
    with requests.Session() as session:
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=patient))
        assert session.get(lab).ok
    page = visit(lab)
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    cells.last.wait_for(state="attached", timeout=60_000)
    page.get_by_text("| Idle").wait_for(timeout=60_000)
    page.evaluate(OBSERVE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    picture = cells.last.locator("img")
    picture.wait_for(state="attached", timeout=240_000)
    assert picture.evaluate("i => i.naturalWidth") > 300
    bars = [int(n) for n in page.evaluate("window.bars")]
    # on a busy machine what the page draws may be seen again or out of order
    assert len(set(bars)) > 3 and max(bars) == 12, "the bar moved"
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert [*tmp_path.glob("runs/digits/crlc/*/metrics.json")]
