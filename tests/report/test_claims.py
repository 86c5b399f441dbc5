"""What the pages claim is what the runs say."""

import re

import nbformat
import pytest
import yaml
from fake_runs import write_run

from reproduce.files import ROOT
from reproduce.report import results
from reproduce.report.statistics import points


@pytest.fixture(scope="module")
def claims():
    return results.claims(results.load())


def test_no_verdict_has_changed_since_the_prose_was_written(claims):
    changed = claims[claims["verdict"] != claims["recorded"]]
    said = [
        f"{c.where} says of '{c.sentence}' ({c.data}): {c.recorded}, but the runs say {c.verdict} "
        f"(n = {c.n}, {c.difference:.1f} [{c.low:.1f}, {c.high:.1f}]): rewrite it, and claims.yaml"
        for c in changed.itertuples()
    ]
    assert not said, "\n".join(said)


def test_a_claim_names_a_place_that_there_is():
    for claim in yaml.safe_load(results.CLAIMS.read_text(encoding="utf-8")):
        file, heading = re.fullmatch(r"(\w+\.ipynb), \"(.+)\"", claim["where"]).groups()
        notebook = nbformat.read(ROOT / "notebooks" / file, as_version=4)
        headings = [
            line.lstrip("# ")
            for cell in notebook.cells
            if cell.cell_type == "markdown"
            for line in cell.source.splitlines()
            if line.startswith("#")
        ]
        assert heading in headings, claim["id"]
        assert claim["verdict"] in ("holds", "not shown", "one seed", "not run")


def test_the_readme_states_what_the_runs_say(tmp_path, claims):
    """The table of claims, computed again from results/, is the one in the README to the letter."""
    again = tmp_path / "README.md"
    again.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    results.write_claims(again, claims)
    assert again.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_states_what_each_detail_is_worth_at_both_ends(claims):
    """README's typed table: added to the course's settings ACC and kNN, taken from the authors'."""
    known, runs = claims.set_index("id"), results.load()
    taken = {
        "stem": {"stem": "imagenet"},
        "crop": {"crop_scale": 0.08, "jitter": 0.8, "normalize": False},
        "heads": {"head_bias": False, "head_init": "torch", "decay": "all", "logit_clamp": 0.0},
        "entropy": {"entropy": "sample", "entropy_smoothed": True, "lambda1": 1.0},
    }
    preset = {"preset": "cifar10-cpu"}
    authors = results.select(runs, **preset)
    pairs = {k: (results.select(runs, **preset, **change), authors) for k, change in taken.items()}
    features = results.family(pairs, "knn_acc")
    last_step = known.loc["cifar-heads"].copy()  # on the path it is an addition
    last_step[["difference", "low", "high"]] = -last_step[["difference", "high", "low"]].to_numpy()
    said = []
    for k in taken:
        alone = known.loc["cifar-heads-alone" if k == "heads" else f"cifar-{k}"]
        less = last_step if k == "heads" else known.loc[f"cifar-less-{k}"]
        four = alone, known.loc[f"cifar-features-{k}"], less, features.loc[k]
        said.append([f"**{points(row)}**" if row["clear"] else points(row) for row in four])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| detail | added to")[2].partition("\n\n")[0].splitlines()[2:]
    assert [re.split(r" *\| *", line)[2:-1] for line in table] == said


WRITTEN = """
- &a
  id: above
  sentence: 0.1 beats 1
  data: digits
  family: one
  rule: aligned_average
  ours: {lambda1: 0.1}
  against: {}
  direction: above
  where: report.ipynb, "Claims"
  verdict: holds
- {<<: *a, id: below, direction: below}
- {<<: *a, id: same, ours: {}, direction: same}
- {<<: *a, id: missing, ours: {lambda1: 0.7}}
- {<<: *a, id: alone, family: four, ours: {lambda1: 0.3}}
- {<<: *a, id: threshold, family: two, ours: {}, against: 85.0, direction: below}
- {<<: *a, id: rule, family: three, ours: {}, against: {rule: first_head}, direction: above}
"""


def test_verdicts(tmp_path):
    for seed, acc in enumerate([0.8, 0.81, 0.82, 0.8]):
        write_run(tmp_path, acc=acc, seed=seed)
        write_run(tmp_path, acc=acc + 0.1 + 0.001 * seed, seed=seed, lambda1=0.1)
    write_run(tmp_path, acc=0.85, seed=1, lambda1=0.3)
    table = results.load(tmp_path)
    table["weights_sha256"] = table["path"]
    (tmp_path / "claims.yaml").write_text(WRITTEN)
    found = results.claims(table, tmp_path / "claims.yaml").set_index("id")
    assert found["verdict"].to_dict() == {
        "above": "holds",
        "below": "not shown",
        "same": "holds",
        "missing": "not run",
        "alone": "one seed",
        "threshold": "holds",
        "rule": "not shown",
    }
    assert found.loc["above", "difference"] == pytest.approx(10.15)
    assert found.loc["threshold", "difference"] == pytest.approx(80.75 - 85)
    assert found.loc["above", "ours"] == "90.9 ± 1.0" and found.loc["missing", "ours"] == ""
    shown = results.claims_table(found.reset_index())
    assert list(shown["difference [95 %]"])[2:4] == ["0, the same computation", ""]
    assert shown.iloc[4].tolist()[2:] == ["85.0", "+4.0, n = 1", "1", "one seed"]
    assert re.fullmatch(r"\+10\.2 \[9\.9, 10\.4\]", shown["difference [95 %]"][0])


def test_the_table_is_put_between_its_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before <!-- claims -->\nold\n<!-- /claims -->\nafter")
    (tmp_path / "claims.yaml").write_text(WRITTEN)
    results.write_claims(readme, results.claims(results.load(tmp_path), tmp_path / "claims.yaml"))
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before <!-- claims -->\n| data | claim | ours |")
    assert text.endswith("|\n<!-- /claims -->\nafter") and "old" not in text
    assert text.count("not run") == 7
