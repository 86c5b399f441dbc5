"""Where a run comes from is taken before it trains, and once for each part of it."""

import datetime
import subprocess

import pytest
import torch

from reproduce import fit
from reproduce.config import Config
from reproduce.files import ROOT
from reproduce.runs import directory, provenance
from reproduce.runs.directory import Run

KEYS = {"start", "end", "epochs", "steps", "commit", "source", "torch"}


@pytest.fixture
def config(tmp_path):
    tiny = dict(epochs=3, limit=96, batch_size=32, width=4, n_heads=2, head_hidden=8)
    return Config.from_params({**tiny, "results_dir": str(tmp_path)})


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a minute at each look."""
    looks = iter(range(60))
    monkeypatch.setattr(directory, "now", lambda: f"2026-01-01T00:{next(looks):02d}:00Z")


def test_one_part_for_a_run_in_one_piece(config, clock):
    run = Run(config)
    list(fit(config, run))
    origin = run.json("provenance.json")
    (part,) = origin["parts"]
    assert part.keys() == {*KEYS, "processor", "threads", "precision"}
    assert part["start"] == "2026-01-01T00:00:00Z" and part["end"] > part["start"]
    assert (part["epochs"], part["steps"], part["precision"]) == (0, 0, "float32")
    assert part["threads"] == torch.get_num_threads()
    assert part["source"] == origin["source"] == provenance.source_tree()
    assert set(part["processor"]) == {"name", "family", "instructions"}


def test_the_code_is_asked_for_before_training(config, monkeypatch):
    """What is changed on the disk while a run trains is not what it ran with."""
    monkeypatch.setattr(provenance, "source_tree", lambda: "before")
    run = Run(config)
    rows = fit(config, run)
    next(rows)
    monkeypatch.setattr(provenance, "source_tree", lambda: "edited meanwhile")
    list(rows)
    origin = run.json("provenance.json")
    assert origin["source"] == origin["parts"][0]["source"] == "before"


@pytest.mark.parametrize("steps", [0, 2])
def test_a_part_for_each_time_that_a_run_is_continued(config, clock, monkeypatch, steps):
    """After a whole epoch, and after two of the three steps of the next."""

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 3 + steps:
            raise Stop

    monkeypatch.setattr(provenance, "source_tree", lambda: "first")
    config = config.replace(checkpoint_minutes=0.0)
    run = Run(config)
    if steps:
        run.on_step = lambda done, total: stop(done - 1, total)
        with pytest.raises(Stop):
            list(fit(config, run))
    else:
        rows = fit(config, run)
        next(rows)
        rows.close()
    monkeypatch.setattr(provenance, "source_tree", lambda: "second")
    again = Run(config)
    list(fit(config, again))
    origin = again.json("provenance.json")
    first, second = origin["parts"]
    assert origin["source"] == "first"
    assert [part["source"] for part in (first, second)] == ["first", "second"]
    assert (second["epochs"], second["steps"]) == (1, steps)
    assert first["start"] < first["end"] < second["start"] < second["end"]


def test_the_time_is_utc_to_the_second():
    told = datetime.datetime.strptime(provenance.now(), "%Y-%m-%dT%H:%M:%SZ")
    since = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - told
    assert abs(since) < datetime.timedelta(minutes=1)


def test_the_processor_is_more_than_its_name(monkeypatch):
    capabilities = {"avx2": True, "avx512_bf16": False, "sse2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    provenance.processor.cache_clear()
    told = provenance.processor()
    provenance.processor.cache_clear()
    assert told["name"] and told["instructions"] == ["avx2"]


def test_the_source_is_the_tree_that_git_has(tmp_path, monkeypatch):
    """Also of the files that are not Python; what Python and other programs leave is no part."""
    git = ["git", "-C", str(ROOT)]
    try:
        packed = subprocess.run([*git, "archive", "HEAD", "reproduce"], capture_output=True)
        tree = subprocess.run([*git, "rev-parse", "HEAD:reproduce"], capture_output=True, text=True)
    except OSError:
        pytest.skip("no git on this machine")
    if packed.returncode:
        pytest.skip("no checkout")
    subprocess.run(["tar", "x", "-C", str(tmp_path)], input=packed.stdout, check=True)
    package = tmp_path / "reproduce"
    assert any(file.suffix == ".js" for file in package.rglob("*"))
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_bytes(b"a")
    (package / ".DS_Store").write_bytes(b"b")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert provenance.source_tree.__wrapped__() == tree.stdout.strip()
