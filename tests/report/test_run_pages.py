"""The page of a setting, and what stands above the notebook of a run."""

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup
from fake_runs import write_method, write_run

from reproduce.report import results, run_pages

SITE = {"pages": {"entropy": "Entropy"}, "committed": False}


@pytest.fixture
def folder(tmp_path):
    """Two settings of CRLC, one with three seeds of which one has a notebook, and BYOL."""
    for seed, acc in ((0, 0.9), (1, 0.8), (2, 0.7)):
        path = write_run(tmp_path, acc=acc, seed=seed, lambda1=0.3)
        (path / "history.csv").write_text(f"epoch,loss,aligned_average_acc\n1,2.0,{acc}\n")
        metrics = json.loads((path / "metrics.json").read_text())
        (path / "metrics.json").write_text(json.dumps(metrics | {"epochs": 1}))
        if seed == 1:
            (path / "train.html").write_text("the whole run")
    write_run(tmp_path, acc=0.95)
    write_method(tmp_path, "byol", 0.6)
    return tmp_path


def page(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_a_setting_has_its_name_accuracy_command_seeds_and_code(folder):
    runs = results.load(folder)
    rows = run_pages.settings_rows(runs, folder)
    assert [row["setting"] for row in rows] == [
        "the recipe for digits",
        "the recipe for digits; λ1 0.3",
        "the recipe for digits",
    ]
    claim = {"id": "x", "sentence": "A claim", "verdict": "open", "shown": "+1", "href": "a.html#b"}
    claim["runs"] = [(1, rows[1]["seeds"][1][1])]
    run_pages.write_settings(rows, [claim], folder, **SITE)
    found = page(folder / rows[1]["href"])
    assert found.h1.text == "the recipe for digits; λ1 0.3"
    assert "ACC 80.0 ± 10.0 % (n = 3, aligned average)" in found.select_one(".lead").text
    assert "-f notebooks/settings/digits-quick.yaml -p lambda1 0.3 -p seed 0" in found.pre.text
    seeds = found.select(".seeds tbody tr")
    assert [row["id"] for row in seeds] == ["seed-0", "seed-1", "seed-2"]
    at = [head.text for head in found.select(".seeds thead th")].index("aligned average")
    assert [row(["th", "td"])[at].text for row in seeds] == ["90.0", "80.0", "70.0"]
    links = {link.text: link["href"] for link in seeds[1]("a")}
    assert {"the whole run", "config", "metrics", "history", "provenance"} == {*links}
    assert "the whole run" not in [link.text for link in seeds[0]("a")]
    for link in found.main("a"):
        there = unquote(link["href"].partition("#")[0])
        assert (folder / "settings" / there).exists() or there in ("../runs.html", "../a.html")
    assert found.select_one("#claims + ul a")["href"] == "../a.html#b"
    assert not page(folder / rows[0]["href"]).select("#claims")
    code = [a["href"].rpartition("/")[2] for a in found.select("#code + p a")]
    assert code[:3] == ["digits-quick.yaml", "crlc.py", "losses.py"]


def test_the_page_of_a_setting_that_is_gone_goes(folder):
    runs = results.load(folder)
    run_pages.write_settings(run_pages.settings_rows(runs, folder), [], folder, **SITE)
    assert len([*(folder / "settings").iterdir()]) == 3
    few = runs[runs["method"] == "byol"]
    run_pages.write_settings(run_pages.settings_rows(few, folder), [], folder, **SITE)
    (left,) = (folder / "settings").iterdir()
    assert "ACC 60.0 % (n = 1, k-means on features)" in left.read_text(encoding="utf-8")


def test_a_runs_notebook_says_its_setting_and_leads_to_its_siblings(folder):
    runs = results.load(folder)
    row = run_pages.settings_rows(runs, folder)[1]
    run = row["runs"].set_index("seed", drop=False).loc[0].to_dict()
    head = run_pages.head_of_run(row, run, folder)
    assert head["title"] == "the recipe for digits; λ1 0.3: seed 0"
    assert head["said"] == "digits, CRLC. ACC 90.0 % (aligned average)"
    here = Path(run["path"])
    (one, whole), (two, part) = head["siblings"]
    assert (one, two) == (1, 2)
    assert (here / whole).resolve().read_text() == "the whole run"
    assert part == f"{head['setting']}#seed-2"
    assert (here / head["setting"]).resolve() == (folder / row["href"]).resolve()


def test_the_overviews_table_is_of_both_ends(folder):
    assert run_pages.ladder(results.load(folder)) == []


@pytest.mark.parametrize("evaluations", [3, 4])
def test_a_curve_is_drawn_of_four_evaluations(tmp_path, evaluations):
    for seed, last in ((0, 0.5), (1, 0.7)):
        path = write_run(tmp_path, seed=seed)
        accs = [0.2, 0.3, 0.4][: evaluations - 1] + [last]
        rows = "".join(f"{i + 1},2.0,{acc}\n" for i, acc in enumerate(accs))
        (path / "history.csv").write_text(f"epoch,loss,aligned_average_acc\n{rows}")
        metrics = json.loads((path / "metrics.json").read_text())
        metrics["epochs"] = evaluations
        (path / "metrics.json").write_text(json.dumps(metrics))
    found = run_pages.curve(results.load(tmp_path))
    drawn = {"curve": "M15 13.8L30 12.2L45 10.6L60 7.4", "said": "20% to 60%"}
    assert found == (drawn if evaluations == 4 else {})
