"""One run directory that is damaged, in whatever way, is one sentence; the other runs stay."""

import json
import shutil

import numpy as np
import pytest
from fake_runs import write_run

from reproduce.__main__ import main
from reproduce.config import Config
from reproduce.own_images.clusterer import Clusterer
from reproduce.report import notebook, results, run_pages
from reproduce.runs import directory, flops
from reproduce.settings import ConfigError
from reproduce.sweeps import sweep
from reproduce.train import fit

TABLES = results.history, results.heads, results.protocols, results.traces, results.mass
JSON = "config.json", "metrics.json", "provenance.json"


@pytest.fixture
def runs(tmp_path, capsys):
    """A folder with a whole run and one to be damaged, with the directory of the second."""
    directory.leave_out.cache_clear()
    for seed in (0, 1):
        path = write_run(tmp_path, arrays=True, seed=seed)
        metrics = json.loads((path / "metrics.json").read_text())
        (path / "metrics.json").write_text(json.dumps({**metrics, "epochs": 2}))
        (path / "history.csv").write_text("epoch,loss,aligned_average_acc\n1,2.5,0.5\n2,2,0.9\n")
    return tmp_path, path


def read_all(folder) -> list:
    """What every reader of many runs makes of a folder; all must come to an end."""
    table = results.load(folder)
    run_pages.settings_rows(table, folder)
    flops.write(folder)
    (folder / "pflop.csv").unlink()
    return [table, *(read(table, "data") for read in TABLES)]


def put(path, **changes):
    """Change entries of a run's metrics.json."""
    metrics = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps({**metrics, **changes}))


def score(value, name="acc"):
    return lambda path: put(path, scores={"aligned_average": {name: value}})


def cut(file):
    return lambda path: (path / file).write_bytes((path / file).read_bytes()[:-20])


DAMAGE = {
    **{f"no {name}": lambda p, n=name: (p / n).unlink() for name in JSON if name[0] != "m"},
    **{f"empty {name}": lambda p, n=name: (p / n).write_text("") for name in JSON},
    **{f"no JSON in {name}": lambda p, n=name: (p / n).write_text("{") for name in JSON},
    **{f"other JSON in {name}": lambda p, n=name: (p / n).write_text("[1]") for name in JSON},
    **{f"no text in {name}": lambda p, n=name: (p / n).write_bytes(b"\xff\xfe") for name in JSON},
    "a folder in its place": lambda p: ((p / "config.json").unlink(), (p / "config.json").mkdir()),
    "settings of other types": lambda p: (p / "config.json").write_text('{"lambda1": "high"}'),
    "an unknown method": lambda p: (p / "config.json").write_text('{"method": "magic"}'),
    "no device": lambda p: (p / "provenance.json").write_text("{}"),
    "no scores": lambda p: (p / "metrics.json").write_text('{"status": "diverged"}'),
    "scores in a list": lambda p: put(p, scores=[1]),
    "a score that is a text": score("high"),
    "700 %": score(7.0),
    "a negative accuracy": score(-0.1),
    "nan": score(float("nan")),
    "ARI below -1": score(-1.5, "ari"),
    "kNN of 700 %": lambda p: put(p, knn_acc=7.0),
    "a head of 700 %": lambda p: put(p, heads=[{"loss": 1.0, "acc": 7.0}]),
    "seconds in words": lambda p: put(p, seconds="many"),
}
OF_ONE_TABLE = {
    "history.csv cut within a line": (cut("history.csv"), results.history),
    "history.csv cut after a line": (
        lambda p: (p / "history.csv").write_text("epoch,loss\n1,2.5\n"),
        results.history,
    ),
    "history.csv empty": (lambda p: (p / "history.csv").write_text(""), results.history),
    "a history of 700 %": (
        lambda p: (p / "history.csv").write_text("epoch,loss,a_acc\n1,2,0.5\n2,2,7\n"),
        results.history,
    ),
    "heads in words": (lambda p: put(p, heads=["good", "bad"]), results.heads),
    "traces.npz cut": (cut("traces.npz"), results.traces),
    "traces.npz empty": (lambda p: (p / "traces.npz").write_bytes(b""), results.traces),
    "traces.npz without mass": (
        lambda p: np.savez(p / "traces.npz", epochs=[0], probabilities=np.ones((1, 1, 1, 1))),
        results.mass,
    ),
}


def test_a_count_that_is_cut_off_leaves_the_file_before(runs, monkeypatch):
    folder, _ = runs
    file = folder / "pflop.csv"
    file.write_text("of before")

    def stopped(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(flops, "of_directory", stopped)
    with pytest.raises(KeyboardInterrupt):
        flops.write(folder)
    assert file.read_text() == "of before" and [*folder.glob("*.csv")] == [file]


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_left_out_in_one_sentence(runs, capsys, kind):
    folder, path = runs
    DAMAGE[kind](path)
    for table in read_all(folder):
        assert set(table["seed"]) <= {0}
    assert len(results.load(folder)) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert said and all(line.startswith(f"left out: {path}: ") for line in said), said
    assert len(said) <= 2  # of pflop.csv, which reads less of it, another reason may come


@pytest.mark.parametrize("kind", OF_ONE_TABLE)
def test_a_damaged_file_leaves_the_run_out_of_its_table_alone(runs, capsys, kind):
    folder, path = runs
    damage, read = OF_ONE_TABLE[kind]
    damage(path)
    table, *_ = read_all(folder)
    assert set(read(table)["seed"]) == {0} and len(table) == 2
    said = capsys.readouterr().err.splitlines()
    assert said and all(line.startswith(f"left out: {path}: ") for line in said), said


def test_scores_at_the_ends_of_their_range_are_read(runs, capsys):
    folder, path = runs
    put(path, scores={"aligned_average": {"acc": 1, "nmi": 1.0000000000000002, "ari": -0.4}})
    assert len(results.load(folder)) == 2 and not capsys.readouterr().err


def test_the_summary_of_a_sweep(runs, capsys):
    folder, _ = runs
    configs = sweep.expand({"results_dir": str(folder)}, {"seed": [0, 1]})
    score(7.0)(sweep.Run(configs[1]).path)
    table = sweep.summary(sweep.sweep(configs, keep="none"))
    assert table["ACC"].tolist() == [pytest.approx(90)] and table["finished"].tolist() == [2]
    assert "aligned" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: (p / "metrics.json").write_text('{"status": "finished"}'),
        lambda p: put(p, epochs="many"),
        lambda p: put(p, data=[]),
        lambda p: put(p, data={"n_clusters": 10, "n_train": 96, "name": "digits"}),
        lambda p: put(p, scores=None),
        lambda p: put(p, weights_sha256=3),
        lambda p: (p / "apply.npz").write_bytes(b"PK"),
        lambda p: np.savez(p / "apply.npz", order=np.zeros(3)),
    ],
)
def test_apply_of_a_damaged_run_is_one_sentence(trained, tmp_path, damage):
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    Clusterer(path)
    damage(path)
    with pytest.raises(ConfigError, match=str(path)):
        Clusterer(path)


SHOWN = {
    "metrics.json empty": lambda p: (p / "metrics.json").write_text("{}"),
    "data in a list": lambda p: put(p, data=[]),
    "no data": lambda p: put(p, data=None),
    "scores in words": lambda p: put(p, scores={"aligned_average": "good"}),
    "epochs in words": lambda p: put(p, epochs="many"),
    "history.csv cut": cut("history.csv"),
    "history.csv cut after a line": lambda p: (p / "history.csv").write_text("epoch,loss\n"),
    "history.csv of other bytes": lambda p: (p / "history.csv").write_bytes(b"\xff"),
    "no history.csv": lambda p: (p / "history.csv").unlink(),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_damaged_run_is_not_shown(trained, tmp_path, capsys, kind):
    """But one sentence says which file it is, and how to train it anew."""
    folder, path = copied(trained, tmp_path)
    words = [word for k, v in TINY.items() for word in ("-p", k, str(v))]
    words = ["train", *words, "-p", "results_dir", str(folder)]
    assert main(words) == 0 and "already finished" in capsys.readouterr().out
    SHOWN[kind](path)
    assert main(words) == 2
    said, file = capsys.readouterr().err, "history.csv" if "history" in kind else "metrics.json"
    assert f"{str(path)!r} has a damaged {file}: -p resume False trains it anew" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"git": []}'])
def test_a_damaged_provenance_is_one_sentence(trained, tmp_path, content):
    folder, path = copied(trained, tmp_path)
    (path / "provenance.json").write_text(content)
    with pytest.raises(ConfigError, match=f"results_dir: '{path}"):
        notebook.print_provenance(Config.from_params({**TINY, "results_dir": str(folder)}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: (p / "metrics.json").write_text('{"data": []}'),
        lambda p: put(p, pflop="many", pflop_with_start="many"),
        lambda p: (p / "metrics.json").write_text("{"),
        lambda p: (p / "metrics.json").write_text("[]"),
    ],
)
def test_a_damaged_start_is_told_before_training(trained, tmp_path, damage):
    """And not at the end, when what led to a run is counted."""
    folder, path = copied(trained, tmp_path)
    damage(path)
    config = Config.from_params({**TINY, "results_dir": str(folder), "weights": str(path)})
    with pytest.raises(ConfigError, match="weights: .* is the directory of a damaged run: "):
        next(fit(config))


def copied(trained, base):
    """The results of a run once more, and its directory there."""
    shutil.copytree(trained.parents[2], base / "results")
    return base / "results", base / "results" / trained.relative_to(trained.parents[2])


TINY = dict(epochs=1, limit=96, batch_size=32, width=4, n_heads=2, head_hidden=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    run = sweep.Run(Config.from_params({**TINY, "results_dir": str(folder)}))
    list(fit(run.config, run))
    return run.path
