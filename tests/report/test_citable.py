"""What others cite: results.json is what the runs say, and a card loads the network it is about."""

import json
import re
import shlex
import statistics
import tomllib

import pytest
import torch
import yaml

from reproduce.__main__ import given, parser
from reproduce.config import Config
from reproduce.files import ROOT
from reproduce.report import citable, results
from reproduce.runs.directory import find

BACKBONES = sorted((ROOT / "results").rglob("backbone.pt"))
ROWS = json.loads((ROOT / "results" / "results.json").read_text(encoding="utf-8"))["rows"]


def parsed(command):
    """The settings that a command trains with."""
    papermill, notebook, _, *words = shlex.split(command)
    assert (papermill, notebook) == ("papermill", "notebooks/train.ipynb")
    return Config.from_params(given(parser().parse_args(["train", *words])))


def read(run, name):
    return json.loads((run / f"{name}.json").read_text(encoding="utf-8"))


def settings(config):
    """A run's settings but for the seed; of a run that goes on with another, that one's, too."""
    full = {name: config.get(name, f.default) for name, f in results.FIELDS.items()}
    if full["weights"].startswith("results/"):
        full["weights"] = settings(read(ROOT / full["weights"], "config"))
    return json.dumps({**full, "seed": None}, sort_keys=True)


def test_each_row_is_what_its_runs_say():
    runs = {}
    for run in find(ROOT / "results"):
        runs.setdefault(settings(read(run, "config")), []).append(run)
    counted = {}
    for line in (ROOT / "results" / "pflop.csv").read_text().splitlines()[1:]:
        name, _, with_start = line.split(",")
        counted[name] = float(with_start)
    rules = {name: rule for rule, name in results.RULES.items()}
    assert len(ROWS) > 40 and len({row["command"] for row in ROWS}) == len(ROWS)
    for row in ROWS:
        config = parsed(row["command"])
        same = runs[settings(config.identity())]
        same = [run for run in same if read(run, "config")["seed"] in row["seeds"]]
        acc = [100 * read(run, "metrics")["scores"][rules[row["rule"]]]["acc"] for run in same]
        assert row["n"] == len(same) == len(row["seeds"]) and config.seed == row["seeds"][0]
        assert row["value"] == pytest.approx(statistics.mean(acc), rel=1e-4)
        if len(acc) > 1:
            assert row["sd"] == pytest.approx(statistics.stdev(acc), rel=1e-4, abs=1e-9)
        else:
            assert row["sd"] is None
        seconds = statistics.median(read(run, "metrics")["seconds"] for run in same)
        assert row["seconds"] == pytest.approx(seconds, rel=1e-4)
        pflop = [counted[run.relative_to(ROOT / "results").as_posix()] for run in same]
        assert row["pflop"] == pytest.approx(statistics.mean(pflop), rel=1e-4)
        assert set(row["commit"]) == {read(run, "provenance")["git"]["commit"] for run in same}
        assert row["split"] == config.split and row["metric"] == "ACC"
        heads = "aligned_average" in read(same[0], "metrics")["scores"]
        assert row["rule"] == ("aligned average" if heads else "k-means on features")


def test_results_json_is_of_the_runs_that_there_are():
    table = results.load()
    found = json.loads(json.dumps(citable.results_json(table)))
    assert found["rows"] == ROWS and sum(row["n"] for row in ROWS) == len(table)
    assert set(found["about"]) <= set(ROWS[0])


def test_a_command_makes_the_same_run_again():
    """Of every committed run: the hash of the settings that the command gives is in its name."""
    runs = find(ROOT / "results")
    for run in runs:
        config = parsed(results.command(read(run, "config")))
        assert run.name.endswith(config.hash()), run
    assert len(runs) > 300


def test_a_setting_without_a_spread_or_labels():
    one = results.load().iloc[:1]
    (row,) = citable.results_json(one)["rows"]
    assert row["n"] == 1 and row["sd"] is None
    unlabelled = one.assign(aligned_average_acc=float("nan"), kmeans_embedding_acc=float("nan"))
    assert citable.results_json(unlabelled)["rows"] == []


@pytest.mark.parametrize("file", BACKBONES, ids=lambda p: p.parent.name)
def test_the_card_of_a_backbone_loads_it(file):
    text = (file.parent / "card.md").read_text(encoding="utf-8")
    assert text == citable.card(file.parent), "make pages"
    code, commands = re.findall(r"^```(?:python)?\n(.*?)^```", text, re.S | re.M)
    namespace = {}
    exec(code.replace('Path("', f'Path("{ROOT}/'), namespace)
    backbone, kept = namespace["backbone"], torch.load(file, weights_only=True)["state_dict"]
    with torch.no_grad():
        assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, backbone.n_features)
    parameters = sum(p.numel() for p in backbone.parameters())
    assert f"{parameters:,} parameters" in text and len(namespace["mean"]) == 3
    for name, value in kept.items():
        if value.is_floating_point():
            assert torch.equal(value.bfloat16().to(value.dtype), value), name
    heads = parsed(commands.splitlines()[1])
    assert heads.freeze and (ROOT / heads.weights) == file.parent
    scores = read(file.parent, "metrics")["scores"]["aligned_average"]["acc"]
    assert f"{100 * scores:.1f} % ACC" in text


def test_every_backbone_has_a_card():
    assert BACKBONES and all((file.parent / "card.md").is_file() for file in BACKBONES)


# ---- the project


def test_the_citation_is_that_of_this_version():
    """The form itself is checked by ``cffconvert --validate``, which wants an environment of its
    own."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["version"] == project["version"] and cited["license"] == project["license"]
    assert all(set(author) == {"name"} for author in cited["authors"]), "an entity, no person"
    (paper,) = cited["references"]
    assert paper["title"] == "Clustering by Maximizing Mutual Information Across Views"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {cited['version']} ({cited['date-released']})\n" in changes


def test_binder_finds_python_and_the_project_in_the_environment():
    """As repo2docker reads it: the version of ``python=``, and that an entry of pip is local, for
    which it takes the whole repository before it installs."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    entries = environment["dependencies"]
    versions = [re.match(r"python\s*=+\s*([\d.]*)", e) for e in entries if isinstance(e, str)]
    assert [found[1] for found in versions if found] == ["3.12"]
    (pip,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    assert [line.split()[-1] for line in pip if line.startswith("-")] == ["."]
    assert "prefix" not in environment
    others = ("Dockerfile", "requirements.txt", "Pipfile", "binder", ".binder")
    assert not any((ROOT / name).exists() for name in others), "which it would read instead"


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ONLINE = CONTRIBUTING.split("## Put a copy online")[1].split("\n## ")[0]


def test_addresses_of_binder_and_colab_lead_to_notebooks():
    binder = re.findall(r"HEAD\?labpath=(\S+)", ONLINE)
    colab = re.findall(r"blob/HEAD/(\S+)", ONLINE)
    assert colab == ["notebooks/train.ipynb"]
    for name in binder + colab:
        assert json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"], name


def test_the_first_cell_on_colab_goes_where_it_clones_and_installs_what_is_there():
    clone, enter, install = re.findall(r"^([!%].*)", ONLINE.split("```")[3], re.M)
    assert clone.startswith("!git clone ") and enter == f"%cd {clone.split()[-1]}"
    assert install.startswith("%pip install ") and install.split()[-2:] == ["--editable", "."]
