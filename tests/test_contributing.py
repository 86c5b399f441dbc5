"""What CONTRIBUTING.md says is done here: its method is added to a copy of the project and run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from reproduce.files import ROOT
from reproduce.runs.directory import find

SECTION = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Add a method")[1]
SECTION = SECTION.split("\n## ")[0]
METHOD, LINE, COMMANDS = re.findall(r"^```(?:python)?\n(.*?)^```", SECTION, re.S | re.M)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with the method: one file and one line more."""
    folder = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "reproduce", folder / "reproduce", ignore=ignored)
    (folder / "notebooks").mkdir()
    for file in ("pyproject.toml", "notebooks/train.ipynb"):
        shutil.copy(ROOT / file, folder / file)
    methods = folder / "reproduce" / "methods"
    (methods / "barlowtwins.py").write_text(METHOD, encoding="utf-8")
    registry = (methods / "__init__.py").read_text(encoding="utf-8")
    last = registry.index(")\n", registry.index("NAMES = ("))
    (methods / "__init__.py").write_text(registry[:last] + LINE + registry[last:], encoding="utf-8")
    return folder


def run(copy, command: str, *more: str):
    words = shlex.split(command.split("  #")[0])
    words = words[1:] if words[0] == "python" else ["-m", *words]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = [sys.executable, *words, *more]
    return subprocess.run(done, cwd=copy, env=environment, capture_output=True, text=True)


def test_a_method_is_one_file_and_one_line(copy):
    """Its commands run as they stand, but shorter; both settings arrive in the run."""
    cell, papermill = COMMANDS.splitlines()
    done = run(copy, cell)
    assert done.returncode == 0, done.stderr
    explained = run(copy, "papermill --help-notebook notebooks/train.ipynb").stdout
    for text in ("redundancy_weight: float (default 0.005)", "loss_scale: float (default 1.0)"):
        assert text in explained
    short = "-p epochs 2 -p limit 300 -p width 4 -p head_hidden 16 -p projection_dim 8".split()
    done = run(copy, papermill, "--no-progress-bar", *short)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = find(copy / "results" / "local" / "digits" / "barlowtwins")
    config = json.loads((path / "config.json").read_text())
    assert (config["redundancy_weight"], config["loss_scale"]) == (0.01, 0.1)
    header, *rows = (path / "history.csv").read_text().splitlines()
    values = [dict(zip(header.split(","), row.split(","))) for row in rows]
    for row in values:
        total = float(row["invariance"]) + 0.01 * float(row["redundancy"])
        assert float(row["loss"]) == pytest.approx(0.1 * total, rel=1e-4)
    scores = json.loads((path / "metrics.json").read_text())["scores"]
    assert "kmeans_embedding" in scores


REFUSED = {
    "-p loss_scale 0.5": "method is 'crlc', which does not know it; it is for barlowtwins",
    "-p method barlowtwins -p lambda1 0.5": "which does not know it; it is for crlc",
    "-p method barlowtwins -p loss_scale -1": "loss_scale must be a number of at least 0",
    "-p method barlowtwins -p los_scale 1": "did you mean 'loss_scale'?",
}
ONE_BY_ONE = """
import sys
from reproduce.__main__ import main
for words in sys.argv[1:]:
    print("status", main(["train", *words.split()]), file=sys.stderr)
"""


def test_its_settings_are_refused_like_all_others(copy):
    done = run(copy, "python -c", ONE_BY_ONE, *REFUSED)
    *said, rest = done.stderr.split("status 2\n")
    assert not rest, done.stderr
    for words, sentence, one in zip(REFUSED, REFUSED.values(), said, strict=True):
        assert sentence in one, words


def test_its_loss_is_the_loop():
    """(1 - C_ii)^2 and C_ij^2, where C_ij = sum_b z1_bi z2_bj / B of standardised features."""
    module = types.ModuleType("barlowtwins")
    exec(compile(METHOD, "CONTRIBUTING.md", "exec"), module.__dict__)
    settings = module.BarlowTwins.Settings.from_params(
        {"redundancy_weight": 0.3, "loss_scale": 0.5, "projection_dim": 3, "projector_layers": 1}
    )
    backbone = nn.Flatten()
    backbone.n_features = 4
    method = module.BarlowTwins(settings, backbone, 3, 10).double()
    views = torch.rand(2, 6, 1, 2, 2, dtype=torch.float64)
    found = method.loss([*views], torch.arange(6))
    z = [method.project(view) for view in views]
    z = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in z]
    invariance = redundancy = 0.0
    for i in range(3):
        for j in range(3):
            c = sum(z[0][b, i] * z[1][b, j] for b in range(6)) / 6
            invariance += (1 - c) ** 2 if i == j else 0
            redundancy += c**2 if i != j else 0
    torch.testing.assert_close(found["invariance"], invariance)
    torch.testing.assert_close(found["redundancy"], redundancy)
    torch.testing.assert_close(found["loss"], 0.5 * (invariance + 0.3 * redundancy))
