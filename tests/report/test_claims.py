"""What the pages claim is what the runs say, and each difference has one interval."""

import json
import re
import subprocess

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import yaml
from fake_runs import write_run

from reproduce.files import ROOT
from reproduce.report import claims, plots, results, run_pages, statistics
from reproduce.sweeps import campaign

WRITTEN = yaml.safe_load(claims.CLAIMS.read_text(encoding="utf-8"))
VERDICTS = {"holds", "holds the other way", "equal within 1 point", "open", "one seed", "not run"}


@pytest.fixture(scope="module")
def runs():
    return results.load()


@pytest.fixture(scope="module")
def measured(runs):
    return claims.measure(runs)


def test_the_readme_has_the_overviews_table(runs):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    told = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    rows = [[r["what"], *r["values"], r["n"].replace(" and", ",")] for r in run_pages.ladder(runs)]
    assert len(rows) == 6 and [row for row in told if row in rows] == rows


def test_no_verdict_has_changed_since_the_prose_was_written(measured):
    changed = measured[measured["verdict"] != measured["recorded"]]
    said = [
        f"{c.section} says of '{c.sentence}' ({c.data}): {c.recorded}, but the runs say {c.verdict}"
        f" ({c.shown}, n = {c.n}): rewrite it, and claims.yaml"
        for c in changed.itertuples()
    ]
    assert not said, "\n".join(said)


def test_a_claim_names_a_section_that_there_is():
    for claim in WRITTEN:
        stem, heading, _ = claims.section(claim["section"])
        notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
        headings = [
            line.lstrip("# ")
            for cell in notebook.cells
            if cell.cell_type == "markdown"
            for line in cell.source.splitlines()
            if line.startswith("#")
        ]
        assert heading in headings, claim["id"]
        assert claim["verdict"] in VERDICTS and claim["direction"] in (
            "above",
            "below",
            "equal",
            "same",
        )
        assert re.match(r"before any run|with \w+ .*known$|after$", claim["asked"]), claim["id"]
    assert len({claim["id"] for claim in WRITTEN}) == len(WRITTEN)


def test_every_run_of_a_claim_is_there_and_of_its_settings(runs, measured):
    setting = runs.set_index("path")["setting"]
    for claim, told in zip(WRITTEN, measured.itertuples()):
        paths = [path for _, path in told.runs]
        assert len({*paths}) == len(paths)
        assert told.verdict == "not run" or len(paths) > 1, claim["id"]
        if "effect" not in claim:
            sides = len(re.findall("preset", json.dumps([claim["ours"], claim["against"]])))
            assert setting[paths].nunique() <= max(sides, 2), claim["id"]


# ---- when a claim was asked


def git(*words):
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def history():
    """When each claim was first committed (seconds), and the claims of any commit, by id."""
    try:
        if git("rev-parse", "--is-shallow-repository").strip() == "true":
            pytest.skip("a shallow clone knows the last commit only")
        commits = git("log", "--reverse", "--format=%H %ct", "--", "notebooks/claims.yaml").split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no git repository here")
    known, first = {}, {}

    def at(commit):
        if commit not in known:
            try:
                text = git("show", f"{commit}:notebooks/claims.yaml")
            except subprocess.CalledProcessError:  # a commit that is gone, or before any claim
                text = "[]"
            known[commit] = {claim["id"]: claim for claim in yaml.safe_load(text)}
        return known[commit]

    for commit, time in zip(commits[::2], commits[1::2]):
        for name in at(commit):
            first.setdefault(name, int(time))
    return first, at


NUMBERS = {"one": 1, "three": 3, "five": 5}
ASKED = [c for c in WRITTEN if c["asked"] != "after" and "effect" not in c]


def asked_the_same(then, now):
    """Whether two versions of a claim ask the same but for the number of epochs."""

    def question(claim):
        sides = [claim["ours"], claim["against"]]
        free = "epochs", "evaluate_every"
        sides = [
            {k: v for k, v in side.items() if k not in free} if isinstance(side, dict) else side
            for side in sides
        ]
        return sides, claim["rule"], claim["direction"]

    return then is not None and question(then) == question(now)


@pytest.mark.parametrize("claim", ASKED, ids=lambda claim: claim["id"])
def test_a_claim_that_was_asked_before_its_runs_is_older_than_they(claim, runs, history):
    """Of one side at least, all runs but those that were known carry a commit that has the claim,
    or ended after the claim was committed: a run starts after the commit that it names."""
    first, at = history
    known = NUMBERS.get(claim["asked"].split()[1], 0)

    def proved(path):
        made = json.loads((ROOT / path / "provenance.json").read_text())["git"]
        seconds = json.loads((ROOT / path / "metrics.json").read_text())["seconds"]
        if made["dirty"]:
            return False
        if asked_the_same(at(made["commit"]).get(claim["id"]), claim):
            return True
        started = int(git("show", "-s", "--format=%ct", made["commit"]))
        return claim["id"] in first and started + seconds > first[claim["id"]]

    unproved = []
    for side in (claim["ours"], claim["against"]):
        if isinstance(side, dict):
            settings = {name: value for name, value in side.items() if name != "rule"}
            paths = results.select(runs, **settings)["path"]
            unproved.append(sum(not proved(path) for path in paths))
    assert min(unproved) <= known, f"{unproved} runs of the sides may be older than the claim"


def test_what_the_proof_asks_of_a_claim():
    now = next(claim for claim in WRITTEN if claim["id"] == "cifar-entropy")
    assert asked_the_same({**now, "ours": {**now["ours"], "epochs": 6}}, now)
    assert not asked_the_same({**now, "direction": "below"}, now)
    assert not asked_the_same({**now, "ours": {**now["ours"], "lambda1": 1.0}}, now)
    assert not asked_the_same(None, now)


# ---- one interval for a difference


def reading(runs, score):
    """The column of scores that a column such as "score" repeats."""
    names = [score, *(name for name in runs if name.endswith("_acc"))]
    return next(name for name in names[::-1] if runs[name].equals(runs[score].rename(name)))


@pytest.fixture(scope="module")
def compared(measured):
    """Every difference that the claims and the notebooks take: by the two settings and readings,
    the intervals that it was given."""
    found, compare = {}, statistics.compare

    def recorded(a, b, score="aligned_average_acc", against=""):
        row = compare(a, b, score, against)
        if "setting" in a and len(a) and len(b):
            sides = [
                (*t["setting"].unique(), reading(t, s))
                for t, s in ((a, score), (b, against or score))
            ]
            low, high = row["low"], row["high"]
            if sides[0] > sides[1]:
                sides, low, high = sides[::-1], -high, -low
            found.setdefault(tuple(sides), set()).add((round(low, 6), round(high, 6)))
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "compare", recorded)
        patch.setattr(results, "compare", recorded)
        patch.setattr(plots, "save", lambda figure, *_: plt.close(figure))
        for name in ("report", "entropy", "details", "methods"):
            cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
            cells = [cell for cell in cells if cell.cell_type == "code"]
            last = max(i for i, cell in enumerate(cells) if re.search("compar|claims", cell.source))
            namespace = {"display": lambda *_: None}
            for cell in cells[: last + 1]:
                exec(compile(cell.source, f"{name}, {cell.id}", "exec"), namespace)
    assert len(found) > 100
    return found, recorded


def test_no_difference_has_two_intervals(compared):
    found, _ = compared
    several = {key: values for key, values in found.items() if len({*map(str, values)}) > 1}
    assert not several


def test_a_difference_on_some_of_the_seeds_is_another_interval(compared, runs):
    """The check above has teeth: what earlier pages did, three common seeds of five."""
    found, recorded = compared
    a = results.select(runs, preset="cifar10-cpu")
    b = results.select(runs, preset="cifar10-cpu", stem="imagenet")
    recorded(b, a[a["seed"].isin(b["seed"])])
    assert sorted(len(values) for values in found.values())[-1] == 2


def test_what_survives_on_a_page_survives_among_the_claims(runs, measured):
    """methods.ipynb shows the family of claims about methods with the other sign."""
    family = measured[measured["family"] == "digits, methods"].set_index("id")
    crlc = results.select(runs).assign(score=lambda t: t["aligned_average_acc"])
    pairs = {}
    for name in family.index:
        other = results.select(runs, method=name)
        column = "aligned_average_acc" if name == "cc" else "kmeans_embedding_acc"
        pairs[name] = other.assign(score=other[column]), crlc
    found = results.compare_each(pairs, "score")
    assert results.survives(found).to_dict() == family["survives"].to_dict()


# ---- what a claim may say


EXAMPLES = """
- &a
  id: above
  sentence: 0.1 beats 1
  data: digits
  family: one
  rule: aligned_average
  ours: {lambda1: 0.1}
  against: {}
  direction: above
  asked: after
  section: report.ipynb, "Claims"
  verdict: holds
- {<<: *a, id: below, direction: below}
- {<<: *a, id: equal, direction: equal}
- {<<: *a, id: same, ours: {}, direction: same}
- {<<: *a, id: missing, ours: {lambda1: 0.7}}
- {<<: *a, id: alone, family: four, ours: {lambda1: 0.3}}
- {<<: *a, id: threshold, family: two, ours: {}, against: 85.0, direction: below}
- {<<: *a, id: rule, family: three, ours: {}, against: {rule: first_head}}
- {<<: *a, id: rules, family: three, ours: {rule: kmeans_embedding}, against: {rule: first_head}}
- {<<: *a, id: features, family: three, rule: knn}
- {<<: *a, id: gap, family: five, ours: [{lambda1: 0.1}, {}], against: [{lambda1: 2.0}, {}]}
- {<<: *a, id: effect, block: X, effect: "E:S", family: block X, direction: below}
"""


LEVELS = {"E": {0: {}, 1: {"entropy": "sample"}}, "S": {0: {}, 1: {"lambda2": 1.0}}}


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """Runs of digits, a design, and a file of claims about them."""
    design = {"settings": "digits-quick", "factors": LEVELS, "seeds": 100, "order": 1}
    design |= {"runs": {"none": 4, "else": 3}, "before": {"none": 4}}
    monkeypatch.setattr(campaign, "blocks", lambda: {"X": design})
    for seed, acc in enumerate([0.8, 0.81, 0.82, 0.8]):
        write_run(tmp_path, acc=acc, seed=seed)
        write_run(tmp_path, acc=acc + 0.1 + 0.001 * seed, seed=seed, lambda1=0.1)
    for seed in (7, 8, 9):
        write_run(tmp_path, acc=0.83 + 0.001 * seed, seed=seed, lambda1=2.0)
    write_run(tmp_path, acc=0.85, seed=1, lambda1=0.3)
    (tmp_path / "claims.yaml").write_text(EXAMPLES)
    table = results.load(tmp_path)
    table["weights_sha256"] = table["path"]
    table["lowest_loss_head_acc"] = 0.5 + 0.001 * table["seed"]
    return table, tmp_path / "claims.yaml"


def test_verdicts(examples):
    found = claims.measure(*examples).set_index("id")
    assert found["verdict"].to_dict() == {
        "above": "holds",
        "below": "holds the other way",
        "equal": "holds the other way",
        "same": "holds",
        "missing": "not run",
        "alone": "one seed",
        "threshold": "holds",
        "rule": "equal within 1 point",
        "rules": "equal within 1 point",
        "features": "not run",
        "gap": "holds",
        "effect": "not run",
    }
    assert found.loc["above", "difference"] == pytest.approx(10.15)
    assert found.loc["threshold", "difference"] == pytest.approx(80.75 - 85)
    assert found.loc["threshold", "test"] == "paired"
    assert found.loc["gap", "difference"] == pytest.approx(10.15 - (83.8 - 80.75))
    assert found.loc["gap", "n"] == "4, 4, 3, 4"


def test_the_lowest_loss_is_asked_too_where_the_average_was(examples):
    found = claims.measure(*examples).set_index("id")["by_lowest_loss"]
    assert found["above"] == "equal within 1 point", "both sides have the same scores"
    assert found["rule"] == "holds the other way", "the first head keeps its own rule"
    assert found["threshold"] == "holds"
    assert (found[["rules", "features", "missing", "effect"]] == "").all()


def test_claims_in_words(examples):
    measured = claims.measure(*examples)
    table = claims.shown(measured).set_axis(measured["id"])
    assert table.loc["above", "ours"] == "90.9 ± 1.0" and table.loc["missing", "ours"] == ""
    assert re.fullmatch(r"\+10\.2 \[8\.\d, 1[12]\.\d\] †", table.loc["above", "difference [95 %]"])
    assert table.loc["same", "difference [95 %]"] == "0, the same computation"
    assert table.loc["alone"].tolist()[2:6] == ["85.0", "+4.2, n = 1", "1, 4", "one seed"]
    assert table.loc["gap", "ours"] == "+10.2"
    assert table.loc["missing"].tolist()[2:] == ["", "", "", "not run", "", "after"]


def test_the_runs_of_a_claim_are_its_directories(examples):
    table, file = examples
    found = claims.measure(table, file).set_index("id")["runs"]
    assert [seed for seed, _ in found["above"]] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert {path for _, path in found["rule"]} == {*results.select(table)["path"]}
    assert len(found["gap"]) == 11, "each run once"
    text = claims.markdown(claims.measure(table, file), file.parent, with_runs=True)
    rows = text.splitlines()
    assert len(rows) == 2 + len(found) and len({row.count(" |") for row in rows}) == 1
    links = re.findall(r"\[(\d)\]\(([^)]+)\)", rows[2])
    assert len(links) == 8 and all((file.parent / path).is_dir() for _, path in links)


def test_an_effect_is_measured_when_every_run_is_there(examples):
    """Of a design with two factors: the model's row, with the dagger of its own table."""
    table, file = examples
    assert claims.measure(table, file).set_index("id").loc["effect", "verdict"] == "not run"
    rng, means = np.random.default_rng(0), {"E": 0.85, "S": 0.8, "ES": 0.75}
    runs = [(c, seed) for c in campaign.cells("X") if c.name in means for seed in c.seeds]
    assert len(runs) == 9
    for n, (cell, seed) in enumerate(runs, 1):
        acc = means[cell.name] + 0.003 * rng.normal()
        write_run(file.parent, acc=acc, **{**cell.settings, "seed": seed})
        if n >= 8:
            table = results.load(file.parent)
            measured = claims.measure(table, file).set_index("id")
            assert (measured.loc["effect", "verdict"] == "not run") == (n < 9)
    found, model = measured.loc["effect"], results.effects(table, "X")
    assert found["verdict"] == "holds" and found["survives"] and found["n"] == 4 + 3 * 3
    assert found["difference"] == pytest.approx(-5, abs=0.5)
    assert found["shown"] == statistics.points(model.loc["E:S"])
    assert found["ours"] == "half of the change"
    assert len(found["runs"]) == 13 and found["by_lowest_loss"] == "holds"
