"""Executed notebooks as they are kept: small, without a place or a time, and still the same
pictures."""

import base64
import io
import json
import re
import shutil
from urllib.parse import unquote

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from reproduce.files import ROOT
from reproduce.report import pages, plots, results, run_pages
from reproduce.runs import executed
from reproduce.settings import ConfigError


@pytest.fixture
def drawn():
    """Ten thin lines of ten colours, as PNG."""
    plots.style()
    figure, ax = plt.subplots(figsize=(6, 4))
    for k in range(10):
        ax.plot(np.sin(np.linspace(0, 6, 50) + k), color=plots.COLORS[k])
    content = io.BytesIO()
    figure.savefig(content, format="png")
    plt.close(figure)
    return content.getvalue()


def rgb(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_few_colors_keep_every_line_its_colour(drawn):
    small = pages.quantize_png(drawn)
    before, after = rgb(drawn), rgb(small)
    assert len(small) < 0.5 * len(drawn) and len(np.unique(after.reshape(-1, 3), axis=0)) <= 64
    assert (
        before.shape == after.shape
        and np.abs(before - after).mean() < 1
        and (after[0, 0] == 255).all()
    )
    for color in plots.COLORS[:10]:
        line = np.abs(before - (255 * np.array(color)).round()).max(-1) <= 1
        assert line.sum() > 50 and np.abs(after[line] - before[line]).max() < 16


def test_what_has_few_colors_stays_as_it_is(drawn):
    small = pages.quantize_png(drawn)
    assert pages.quantize_png(small) == small


def test_photographs_stay_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    assert pages.quantize_png(content.getvalue()) == content.getvalue()


def test_a_transparent_picture_is_put_on_white():
    content = io.BytesIO()
    Image.new("RGBA", (400, 400), (0, 0, 0, 0)).save(content, "PNG", compress_level=0)
    assert (rgb(pages.quantize_png(content.getvalue())) == 255).all()


def test_an_executed_notebook_forgets_where_and_when_and_keeps_what_was_said(tmp_path, drawn):
    said = {
        "name": "stdout",
        "output_type": "stream",
        "text": [f"run directory: {ROOT}/results/x, 97 % ± 1\n"],
    }
    shown = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"image/png": base64.b64encode(drawn).decode(), "text/plain": "<Figure>"},
    }
    cell = {
        "cell_type": "code",
        "execution_count": 1,
        "id": "a",
        "source": "x",
        "outputs": [said, shown],
        "metadata": {
            "execution": {"iopub.status.busy": "2026"},
            "papermill": {"duration": 1.0},
            "tags": ["parameters"],
        },
    }
    path = tmp_path / "out.ipynb"
    path.write_text(
        json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    executed.strip_paths_and_times(path)
    (kept,) = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert kept["outputs"][0]["text"] == ["run directory: results/x, 97 % ± 1\n"] and kept[
        "metadata"
    ] == {"tags": ["parameters"]}
    assert (
        len(kept["outputs"][1]["data"]["image/png"]) < 0.5 * len(shown["data"]["image/png"])
        and kept["outputs"][1]["data"]["text/plain"] == "<Figure>"
    )


def test_every_kept_run_is_small():
    runs = [p.parent for p in (ROOT / "results").rglob("train.ipynb") if "local" not in p.parts]
    assert runs
    for run in runs:
        assert sum((run / f).stat().st_size for f in ("train.ipynb", "train.html")) < 340_000, (
            run.name
        )


def test_every_notebook_about_many_runs_has_a_page_the_differences_first():
    named = {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} - set(pages.ONE_RUN)
    found = [p.stem for p in pages.notebooks()]
    assert set(found) == named and len(found) == len(named) and found[0] == "differences"


def test_a_folder_without_runs_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="has no finished run yet"):
        pages.build(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_notebook_that_fails_is_named_and_leaves_the_page_before_it_whole(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise OSError('gone')")])
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, tmp_path / "failing.ipynb")
    (tmp_path / "executed.ipynb").write_text("what was there")
    with pytest.raises(ConfigError, match="failing.ipynb: OSError: gone"):
        pages.execute(tmp_path / "failing.ipynb", tmp_path / "executed.ipynb")
    assert (tmp_path / "executed.ipynb").read_text() == "what was there"
    assert {p.name for p in tmp_path.iterdir()} == {"failing.ipynb", "executed.ipynb"}


def test_figures_of_other_runs_do_not_overwrite_the_committed_ones():
    n = 0
    for path in pages.notebooks():
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        saved = re.findall(r"(?:plots|figures)\.save\((.*?)\)$", code, re.M | re.S)
        assert all(call.endswith("results_dir") for call in saved), path
        n += len(saved)
    assert n > 10


def test_a_small_picture_has_the_width_asked_for(drawn):
    small = pages.quantize_png(drawn, 32, width=440)
    assert rgb(small).shape[1] == 440 and len(small) < 30_000


def test_the_claims_on_the_committed_pages_link_to_sections_and_runs_that_there_are():
    found = {}
    for name in ("index", "report"):
        soup = BeautifulSoup((ROOT / "results" / f"{name}.html").read_text(), "html.parser")
        table = next(t for t in soup("table") if "by lowest loss" in t.text.lower())
        found[name] = [unquote(link["href"]).split("#") for link in table("a")]
    anchors = {}
    for page, *anchor in [*found["index"], *found["report"]]:
        path = ROOT / "results" / page
        assert path.exists(), page
        if anchor:
            if page not in anchors:
                soup = BeautifulSoup(path.read_text(), "html.parser")
                anchors[page] = {tag["id"] for tag in soup(id=True)}
            assert anchor[0] in anchors[page], (page, anchor)
    names = "report details entropy longer methods pflop".split()
    sections = {f"{name}.html" for name in names}
    assert {page for page in anchors if not page.startswith("settings/")} == sections
    assert len(found["index"]) == len(found["report"]) > 500


def test_every_row_of_the_table_of_settings_has_its_own_words():
    rows = run_pages.settings_rows(results.load(), ROOT / "results")
    words = [(row["data"], row["method"], row["setting"]) for row in rows]
    assert len(set(words)) == len(words) > 50


def test_a_collapse_is_said_at_the_top_of_the_page_and_in_the_table(tmp_path):
    kept = next((ROOT / "results").glob("digits/crlc/*/train.ipynb")).parent
    for name, collapsed in (("fallen", True), ("well", False)):
        run = tmp_path / name / "crlc" / "run"
        shutil.copytree(kept, run, ignore=shutil.ignore_patterns("*.npz", "*.html"))
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["collapse"] = {"collapsed": collapsed, "why": "9 of <10> are empty"}
        (run / "metrics.json").write_text(json.dumps(metrics))
        pages.to_html(run / "train.ipynb", run / "train.html")
        page = BeautifulSoup((run / "train.html").read_text(encoding="utf-8"), "html.parser")
        first = page.main.find(True)
        assert (first.text.startswith("This run has collapsed: 9 of <10> are empty.")) == collapsed
    rows = run_pages.settings_rows(results.load(tmp_path), tmp_path)
    pages.write(tmp_path / "runs.html", "runs", "All runs", rows=rows, names=[])
    assert "1 of 2 collapsed" in (tmp_path / "runs.html").read_text(encoding="utf-8")


def test_figures_are_in_the_notebook_whatever_backend_a_login_names(tmp_path, monkeypatch):
    code = "from reproduce.report import plots\nimport matplotlib.pyplot as plt\nplots.style()\n"
    cells = [
        nbformat.v4.new_code_cell(code),
        nbformat.v4.new_code_cell("plt.plot([0]); plt.show()"),
    ]
    content = nbformat.v4.new_notebook(cells=cells)
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(content, tmp_path / "a.ipynb")
    monkeypatch.setenv("MPLBACKEND", "agg")
    pages.execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    outputs = nbformat.read(tmp_path / "b.ipynb", 4).cells[1].outputs
    assert [o for o in outputs if "image/png" in o.get("data", {})], outputs


def test_a_page_that_too_few_runs_cannot_fill_says_what_it_needs(tmp_path, monkeypatch, capsys):
    kept = next((ROOT / "results").glob("digits/crlc/*/train.ipynb")).parent
    left_out = shutil.ignore_patterns("*.npz", "train.*")
    shutil.copytree(kept, tmp_path / "digits" / "crlc" / "run", ignore=left_out)

    def execute(notebook, executed, **parameters):
        raise ConfigError(f"{notebook.name}: KeyError: 'crlc'")

    monkeypatch.setattr(pages, "execute", execute)
    index = pages.build(tmp_path).read_text(encoding="utf-8")
    said = capsys.readouterr().err
    for name, needs in pages.OWN.items():
        assert f"page left out: {name}.html needs {needs} ({name}.ipynb: KeyError" in said
        assert f"There is no page {name} yet: it needs {needs}." in index


def test_a_page_is_made_again_when_what_it_is_made_of_has_changed(tmp_path):
    executed_copy, page = tmp_path / "a.ipynb", tmp_path / "a.html"
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title")])
    nbformat.write(content, executed_copy)

    def made_again(**site):
        page.write_text(page.read_text() + "<!-- kept -->")
        pages.to_html(executed_copy, page, **site)
        return "<!-- kept -->" not in page.read_text()

    pages.to_html(executed_copy, page)
    assert not made_again()
    assert made_again(pages={"b": "B"}) and not made_again(pages={"b": "B"})
    assert made_again(mathematics=True) and made_again()
    content.cells[0].source = "# Another"
    nbformat.write(content, executed_copy)
    assert made_again() and "<h1" in page.read_text() and "Another" in page.read_text()
    (tmp_path / "metrics.json").write_text('{"collapse": {"collapsed": true, "why": "x"}}')
    assert made_again() and "has collapsed" in page.read_text()


def test_a_card_has_the_first_picture_with_its_text(tmp_path):
    found = pages.card(ROOT / "results" / "details.ipynb")
    cells = json.loads((ROOT / "results" / "details.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = [o for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    said = [output["metadata"]["image/png"]["alt"] for output in shown]
    assert found["alt"] == said[0] and found["png"] and found["href"] == "details.html"
    text = "# A title\n\nIt *differs* in [fifteen](a.html) `points`."
    words = nbformat.v4.new_markdown_cell(text)
    nbformat.write(nbformat.v4.new_notebook(cells=[words]), tmp_path / "a.ipynb")
    text = pages.card(tmp_path / "a.ipynb")["text"]
    assert "in fifteen" in text and "a.html" not in text, "the words of a link without its address"
    without = pages.card(ROOT / "results" / "report.ipynb")
    assert without["png"] == "" and without["title"]
