"""``kill -9`` at any moment: the same command goes on, and what it leaves behind equals, bit for
bit, what no kill ever touched.

Importing torch takes seconds, so this file is also a program, ``python tests/loop/test_kill.py``:
it imports once and forks a process for each command, which is killed after a random share of its
processor time, or right before or after a random call to the disk.
"""

import csv
import functools
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reproduce import Config, ConfigError, fit
from reproduce.__main__ import main
from reproduce.config import readers
from reproduce.files import ROOT
from reproduce.methods import METHODS
from reproduce.report import notebook
from reproduce.runs.directory import Run, find
from reproduce.runs.provenance import provenance

TINY = dict(
    epochs=3,
    limit=96,
    batch_size=32,
    width=4,
    n_heads=2,
    head_hidden=8,
    evaluate_every=2,
    trace_images=5,
    sampler="endless",
)
TO_DISK = [
    (os, "replace"),
    (os, "link"),
    (os, "unlink"),
    (os, "mkdir"),
    (os, "fsync"),
    (io, "open"),
    (np, "savez"),
    (np, "savez_compressed"),
]


# ---- the program


def serve() -> None:
    """Read one line per command, [words, processor seconds or None, call or None, log]; answer
    [status, processor seconds, calls]."""
    import scipy.optimize  # noqa: F401 what a command imports on its way is imported once
    import torch._dynamo
    import tqdm  # noqa: F401

    from reproduce.metrics import clustering_scores

    torch.set_num_threads(1)
    clustering_scores(np.arange(4), np.arange(4))
    provenance(Config())  # asks git
    for line in sys.stdin:
        words, seconds, number, log = json.loads(line)
        child = os.fork()
        if not child:
            one_command(words, number, log)
        clock, used = (~child << 3) | 2, 0.0  # of the child's processor time, in Linux's numbering
        while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            used = time.clock_gettime(clock)
            if seconds is not None and used >= seconds:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.001)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(
            json.dumps(
                [status, used, None if status else int(Path(log).with_suffix(".calls").read_text())]
            ),
            flush=True,
        )


def one_command(words: list[str], number: int | None, log: str) -> None:
    """A command in a process of its own, which dies at its ``number``-th moment right before or
    after a call to the disk."""
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    moments = 0

    def moment():
        nonlocal moments
        moments += 1
        if moments == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(call):
        @functools.wraps(call)
        def wrapper(*args, **kwargs):
            moment()
            result = call(*args, **kwargs)
            moment()
            return result

        return wrapper

    for module, name in TO_DISK:
        setattr(module, name, watched(getattr(module, name)))
    code = main(words)
    Path(log).with_suffix(".calls").write_text(str(moments))
    os._exit(code)


# ---- the tests


@pytest.fixture(scope="module")
def forks():
    """A function that runs one command in a fork, killed or not; returns status (-9: killed),
    processor seconds, calls to the disk."""
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )

    def run(words, folder, seconds=None, call=None):
        folder.mkdir(exist_ok=True)
        server.stdin.write(json.dumps([words, seconds, call, str(folder / "log")]) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait(60)


OWN = dict(
    queue_size=128,
    prototypes="4 8",
    prototype_warmup=1,  # the prototypes enter in the second epoch
    pseudo_clusters=12,
    checkpoint_minutes=0,  # a checkpoint after each step, too
)


def command(folder: Path, method: str) -> list[str]:
    given = {**TINY, **OWN}.items()
    known = {name: value for name, value in given if name == "method" or method in readers(name)}
    settings = {
        **known,
        "method": method,
        "results_dir": str(folder / "results"),
        "data_dir": str(folder / "data"),
    }
    return [
        "train",
        *(word for name, value in settings.items() for word in ("-p", name, str(value))),
    ]


def left_behind(folder: Path) -> dict:
    """Everything of the one finished run, without what a clock or a process counts."""
    (path,) = find(folder / "results")
    with open(path / "history.csv", newline="") as file:
        history = [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]
    metrics = json.loads((path / "metrics.json").read_text())
    for name in ("seconds", "images_per_second", "peak_memory_mb"):
        del metrics[name]
    arrays = {
        file.name: file.read_bytes() for file in path.iterdir() if file.suffix in (".npz", ".pt")
    }
    return {
        "history": history,
        "metrics": metrics,
        **arrays,
        "files": sorted(file.name for file in path.iterdir()),
    }


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_moments(forks, tmp_path, method):
    """Twenty kills for crlc, five for each other method, often several in one run; every other one
    right at a call to the disk."""
    status, seconds, calls = forks(command(tmp_path / "whole", method), tmp_path / "whole")
    assert status == 0, (tmp_path / "whole" / "log").read_text()
    whole = left_behind(tmp_path / "whole")
    assert len(whole["history"]) == TINY["epochs"] and calls > 40
    draw, kills = random.Random(method), []
    for run in range(100):
        folder, died = tmp_path / f"run{run}", True
        while died:
            more = len(kills) < (20 if method == "crlc" else 5)
            how = (
                {}
                if not more
                else {"call": draw.randint(1, calls)}
                if len(kills) % 2
                else {"seconds": draw.uniform(0, seconds)}
            )
            status = forks(command(folder, method), folder, **how)[0]
            died = status == -signal.SIGKILL
            assert died or status == 0, (folder / "log").read_text()
            kills += [how] * died
        assert left_behind(folder) == whole, kills
        if not more:
            return


def test_killed_by_another_process(forks, tmp_path):
    """The real command, in a process of its own, killed from outside soon after it has written a
    checkpoint, then let be."""
    assert forks(command(tmp_path / "whole", "crlc"), tmp_path / "whole")[0] == 0
    words, draw = command(tmp_path, "crlc"), random.Random(0)
    partial, kills = (
        Run(Config.from_params({**TINY, "results_dir": str(tmp_path / "results")})).partial,
        0,
    )
    for patience in (1, 2, None):  # so many checkpoints may it write
        process = subprocess.Popen(
            [sys.executable, "-m", "reproduce", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
        )
        seen = set()
        while patience and process.poll() is None and len(seen) < patience:
            seen |= {file.stat().st_ino for file in partial.glob("checkpoint.pt")}
            time.sleep(0.002)
        if patience:
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
        said = process.communicate()[1]
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), said
    assert kills and process.returncode == 0
    assert left_behind(tmp_path) == left_behind(tmp_path / "whole")


@pytest.mark.usefixtures("each_epoch")
@pytest.mark.parametrize("left", [0, 1, 31, 32, 33, 1000, -1])
def test_a_truncated_checkpoint_is_passed_over_and_the_notebook_says_so(tmp_path, capsys, left):
    """Whatever is left of it, the checkpoint before it is used; with both cut off, nothing starts
    anew in silence."""
    config = Config.from_params(
        {**TINY, "results_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "data")}
    )
    stopped = fit(config, Run(config))
    [next(stopped) for _ in range(2)]
    stopped.close()
    newest, before = (Run(config).partial / f"checkpoint{which}.pt" for which in ("", ".previous"))
    whole = before.read_bytes()
    newest.write_bytes(newest.read_bytes()[:left])
    if left == 1000:
        before.write_bytes(whole[:left])
        with pytest.raises(
            ConfigError, match="no whole checkpoint is left: start anew with -p resume False"
        ):
            list(fit(config, Run(config)))
        before.write_bytes(whole)
    run = Run(config)
    assert len(list(fit(config, run))) == TINY["epochs"]
    notebook.print_summary(run)
    said = capsys.readouterr().out
    assert (
        "note: checkpoint.pt is damaged and was passed over" in said
        and "note: continued after epoch 1 from checkpoint.previous.pt" in said
    )


if __name__ == "__main__":
    serve()
