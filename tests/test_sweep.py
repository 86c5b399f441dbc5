"""Sweeps: what they expand to, and that they run, skip, survive a failure and say so."""

import subprocess
import sys

import pytest

from reproduce import ConfigError, sweep
from reproduce.__main__ import main
from reproduce.runs import ROOT, find, table

QUICK = ["-p", "epochs", "1", "-p", "width", "4", "-p", "n_heads", "2", "-p", "limit", "200"]


def test_grid_and_factors_expand_to_a_product():
    grid = sweep.parse_grid(["lambda1=0.1,1", "seed=0,1,2"])
    assert grid == {"lambda1": [0.1, 1], "seed": [0, 1, 2]}
    configs = sweep.expand({"epochs": 2}, grid, [sweep.parse_one("head_init=torch,head_bias=False")])
    assert len(configs) == 12 and len({c.hash() for c in configs}) == 12
    assert sum(c.head_init == "torch" and not c.head_bias for c in configs) == 6
    assert all(c.epochs == 2 for c in configs)


def test_equal_settings_run_once():
    assert len(sweep.expand({}, {"lambda1": [1, 1.0]}, [{"entropy": "batch"}])) == 1


@pytest.mark.parametrize("word", ["lambda1", "lambda1=", "=1"])
def test_a_grid_that_cannot_be_read(word):
    with pytest.raises(ConfigError):
        sweep.expand({}, sweep.parse_grid([word]))


def test_nothing_runs_if_one_setting_is_wrong(tmp_path, capsys):
    settings = tmp_path / "s.yaml"
    settings.write_text("epochs: 1\n")
    assert main(["sweep", str(settings), "--grid", "lambda1=0.1,-1", "-p", "results_dir", str(tmp_path / "r")]) == 2
    assert "lambda1 must be a number of at least 0, got -1" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_sweep_runs_skips_and_survives_a_failure(tmp_path, capsys, monkeypatch):
    settings, results = tmp_path / "s.yaml", tmp_path / "results"
    settings.write_text("evaluate_every: 1\n")
    words = ["sweep", str(settings), *QUICK, "-p", "results_dir", str(results), "-p", "data_dir", str(tmp_path), "--keep", "first"]
    # learning_rate 1000 diverges or not; a split that cannot be: batch_size 201 fails on 200 images
    assert main([*words, "--grid", "seed=0,1", "--one", "batch_size=201", "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "2 finished" in said and "2 failed" in said and "batch_size is 201, more than the 200 images" in said
    runs = find(results)
    assert len(runs) == 2 and len(table(results)) == 2
    kept = [sorted(p.name for p in run.iterdir()) for run in runs]
    assert set(sweep.BULKY) <= set(kept[0]) and not set(sweep.BULKY) & set(kept[1])
    page = (runs[0] / "train.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page.replace("https://www.w3.org", "")
    assert "<script" not in page and "data:image/png;base64" in page
    assert main([*words, "--grid", "seed=0,1"]) == 0
    assert "2 skipped" in capsys.readouterr().out


def test_train_without_jupyter(tmp_path):
    command = [sys.executable, "-m", "reproduce", "train", *QUICK, "-p", "results_dir", str(tmp_path / "r"), "-p", "data_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "aligned average" in done.stdout and len(find(tmp_path / "r")) == 1
    wrong = subprocess.run([*command, "-p", "lamda1", "3"], capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2 and wrong.stderr.strip() == "error: unknown parameter 'lamda1': did you mean 'lambda1'?"
