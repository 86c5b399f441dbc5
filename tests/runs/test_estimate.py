"""How long it will take is said before it takes long, and the bar moves within an epoch."""

import sys

import pytest

from reproduce.config import Config
from reproduce.report import notebook
from reproduce.runs import estimate
from reproduce.runs.directory import Run
from reproduce.runs.estimate import Estimate, duration
from reproduce.train import fit


@pytest.mark.parametrize(
    "seconds, said",
    [(5.2, "5 s"), (400, "7 minutes"), (7000, "117 minutes"), (68400, "19.0 hours")],
)
def test_a_duration_is_said_in_its_own_unit(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize("per_step, device, n_said", [(2.0, "cpu", 1), (40.0, "cpu", 2)])
def test_it_is_said_once_after_the_first_steps(monkeypatch, per_step, device, n_said):
    now, said = [100.0], []
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    told = Estimate(Config(device=device), said.append)
    for done in range(1, 301):
        told(done, 1000)
        # the first step is not counted: it also allocates
        now[0] += per_step
        if done < 3:
            assert len(said) == (0 if done == 1 or per_step < 3 else n_said)
    assert len(said) == n_said and ("-p epochs" in said[-1]) == (n_said == 2)
    steps = 997 if per_step < 3 else 998
    assert said[0].startswith(f"{steps} steps are left, about {duration(per_step * steps)} on")


def test_a_run_tells_every_step_and_the_bar_moves_within_an_epoch(tmp_path, monkeypatch, capsys):
    config = Config.from_params(
        dict(limit=32, epochs=2, batch_size=8, width=4, n_heads=2, head_hidden=8)
        | dict(results_dir=str(tmp_path / "runs"), data_dir=str(tmp_path / "data"))
    )
    run, seen = Run(config), []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    rows = notebook.progress(fit(config, run), config.epochs, run)
    first = next(rows)
    step = run.on_step
    run.on_step = lambda done, total: (seen.append((done, total)), step(done, total))
    monkeypatch.setattr(notebook.time, "time", lambda: 1e10 + len(seen))
    assert [first["epoch"], *[row["epoch"] for row in rows]] == [1, 2]
    assert seen == [(5, 8), (6, 8), (7, 8), (8, 8)]
    shown = capsys.readouterr().out
    assert " 1.5/2 " in shown and " 2/2 " in shown
