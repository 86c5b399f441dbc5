"""How many threads a run takes, and that finding out changes nothing of it."""

from types import SimpleNamespace

import pytest
import torch

from reproduce import Config, fit
from reproduce import data as sets
from reproduce import train as loop
from reproduce.loop import threads
from reproduce.methods import METHODS
from reproduce.runs.directory import Run

TINY = dict(width=4, epochs=2, n_heads=2, head_hidden=8, limit=130, trace_images=2)


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """As on two cores whose owner says nothing."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    with threads.as_before():
        torch.set_num_threads(2)
        yield


def config_of(tmp_path, **settings):
    places = {"results_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}
    return Config.from_params({**TINY, **places, **settings})


def chosen(config, before=None):
    images = sets.load(config)
    method, augment = loop.build_method(config, images, 10, torch.device("cpu"))
    return threads.choose(config, method, augment, (1, 10), before)


def test_who_says_how_many(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "measured", lambda step, most: most)
    config = config_of(tmp_path)
    assert chosen(config) == 1  # a small run
    monkeypatch.setattr(threads, "SMALL", 0)
    assert chosen(config) == 2  # what was measured
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "measured", None)
    assert chosen(config) == 2
    assert chosen(config, before=1) == 1
    assert chosen(config.replace(threads=3), before=1) == 3


@pytest.mark.parametrize("seconds, threads_of_two, taken", [(0.01, 0.005, 2), (0.01, 0.0095, 1)])
def test_more_threads_are_taken_where_steps_are_faster(seconds, threads_of_two, taken, monkeypatch):
    """By this clock, on which only a step takes any time."""
    now = [0.0]
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def step():
        now[0] += seconds if torch.get_num_threads() == 1 else threads_of_two

    assert threads.measured(step, 2) == taken
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", METHODS)
def test_a_trial_leaves_the_run_as_it_was(name, tmp_path):
    given = {"method": name, "n_heads": 10, "head_hidden": 128}
    config = config_of(tmp_path, **given)
    images = sets.load(config)
    method, augment = loop.build_method(config, images, 10, torch.device("cpu"))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    drawn = torch.get_rng_state()
    threads.trial(config, method, augment, 1)()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_a_continued_run_keeps_its_own_and_the_caller_its(tmp_path, monkeypatch):
    """The number stands in the provenance of each part, whatever the second would have chosen."""
    small = threads.SMALL
    monkeypatch.setattr(threads, "SMALL", 0)
    monkeypatch.setattr(threads, "measured", lambda step, most: most)
    config = config_of(tmp_path, checkpoint_minutes=0)
    rows = fit(config, Run(config))
    next(rows)
    rows.close()
    monkeypatch.setattr(threads, "SMALL", small)
    run = Run(config)
    list(fit(config, run))
    assert torch.get_num_threads() == 2
    origin = run.json("provenance.json")
    assert [part["threads"] for part in origin["parts"]] == [2, 2] and origin["threads"] == 2
    anew = Run(config.replace(seed=1))
    list(fit(anew.config, anew))
    assert [part["threads"] for part in anew.json("provenance.json")["parts"]] == [1]
    assert torch.get_num_threads() == 2
