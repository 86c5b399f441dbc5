"""Several processes train what one trains: on a CPU, through gloo, with a file to meet at."""

import contextlib
import dataclasses
import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as spawning
from torch.distributed.nn import functional

from reproduce import Config, ConfigError, augment, data, fit, processes
from reproduce.files import ROOT
from reproduce.methods import METHODS
from reproduce.networks import norm
from reproduce.runs import directory, stopping
from reproduce.runs.directory import Run

TINY = dict(
    epochs=2,
    limit=168,
    batch_size=32,
    width=4,
    evaluate_every=2,
    trace_images=5,
    learning_rate=0.005,
)
OWN = {  # what makes a method's own parts take part within two epochs
    "crlc": dict(
        n_heads=2, views="apart", neighbour_weight=0.5, neighbour_queue=64, neighbour_from=0.5
    ),
    "moco": dict(queue_size=128, shuffle_keys=True),
    "pcl": dict(queue_size=128, prototypes="5 8", prototype_warmup=1, shuffle_keys=True),
    "propos": dict(prototype_warmup=1, sigma=0.1),
    "deepcluster": dict(pseudo_clusters=15, quotas=True),
}


# with a batch norm over all processes: heads, a queue of keys, a target network, other clusters
WHOLE = ("crlc", "moco", "byol", "deepcluster")
# sums are added in another order: gradients of several passes, and the k-means of prototypes
ROUNDED = ("crlc", "pcl", "propos")


def settings(method: str, split: int, folder) -> dict:
    own = dict(OWN.get(method, {}))
    if split == 1:
        own.pop("shuffle_keys", None)
    where = {"results_dir": str(folder), "data_dir": str(folder.parent / "data")}
    return {**TINY, **own, "method": method, "batchnorm_split": split, **where}


def with_neighbours(folder, name: str) -> dict:
    """Heads on the frozen backbone of SimCLR as one process has trained it."""
    start = Run(Config.from_params(settings("simclr", 2, folder / "one"))).path
    start = dict(weights=str(start), freeze=True, neighbours=3)
    return {**settings("crlc", 2, folder / name), **start}


BUGS = {
    "own gradient": "a gather whose backward keeps this process's gradient alone",
    "ranks for views": "what is gathered lies process by process, not view by view",
    "own draws": "each process augments as if it were alone",
}


def one_of_two(rank: int, meeting: str, runs: list[tuple[dict, str]]) -> None:
    """A process of two: trains all runs, one after the other, each with its bug or none."""
    torch.set_num_threads(1)
    meet = dict(init_method=f"file://{meeting}", timeout=datetime.timedelta(minutes=3))
    dist.init_process_group("gloo", rank=rank, world_size=2, **meet)
    for params, bug in runs:
        with pytest.MonkeyPatch.context() as patch:
            if bug == "own gradient":
                own = lambda ctx, *grads: (None, grads[rank].clone())  # noqa: E731
                patch.setattr(functional._AllGather, "backward", staticmethod(own))
            if bug == "ranks for views":
                rows = lambda x, _=1: torch.cat(processes.all_gather(x))  # noqa: E731
                patch.setattr(processes, "gather", rows)
            if bug == "own draws":
                patch.setattr(augment, "world", lambda: 1)
                patch.setattr(augment, "share", lambda x, *_: x)
            if bug == "stopped":
                said = stop_and_go_on(params, asked=2, interrupted=7)
                Path(meeting).with_name(f"said-{rank}").write_text(said)
            list(fit(Config.from_params(params)))
    x, weight = normed_batch()
    layer = norm.with_global_norm(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), x.device)[0]
    layer.double()
    mine = processes.share(x.detach()).requires_grad_()
    y = processes.gather(layer(mine))
    (y * weight).sum().backward()  # in both processes: twice the gradient
    grads = [processes.gather_rows(mine.grad) / 2]
    grads += [processes.reduce_(p.grad) / 2 for p in layer.parameters()]
    if rank == 0:
        folder = Path(meeting).parent
        torch.save([y, *grads, layer.running_mean, layer.running_var], folder / "norm.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads outlive the group; one that frees a tensor late would abort Python


def stop_and_go_on(params: dict, asked: int, interrupted: int) -> str:
    """Train until the second process gets a signal within one step, then until both are
    interrupted within another, with a checkpoint of each step; what the first stop says, and of
    how many steps there is a checkpoint then."""
    config, method, said = Config.from_params(params), METHODS[params["method"]], ""

    def after_step(self, done, steps, own=method.after_step):
        own(self, done, steps)
        if not said and done == asked and dist.get_rank():
            os.kill(os.getpid(), signal.SIGTERM)
        if said and done == interrupted:
            raise KeyboardInterrupt

    own_save = Run.save_checkpoint

    def save_late(self, state):
        time.sleep(0.3)
        own_save(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "after_step", after_step)
        patch.setattr(Run, "save_checkpoint", save_late)
        with pytest.raises(stopping.Stopped) as stopped:
            list(fit(config))
        steps = len(Run(config).load_checkpoint()[0]["at"]["terms"])
        said = f"{stopped.value.status}: {stopped.value}; kept {steps}"
        patch.setattr(Run, "save_checkpoint", own_save)
        with contextlib.suppress(KeyboardInterrupt):
            list(fit(config.replace(checkpoint_minutes=0)))
    dist.barrier()
    return said


def normed_batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, 4, 5, generator=draw, dtype=torch.float64) * 3 + 100
    return x.requires_grad_(), torch.randn(x.shape, generator=draw, dtype=torch.float64)


def kept(params: dict) -> tuple[dict, list[dict], dict]:
    run = Run(Config.from_params(params))
    return torch.load(run.path / "model.pt"), run.history(), run.json("metrics.json")


def difference(a: dict, b: dict) -> float:
    """The largest, relative to the tensor's own largest value."""
    assert a.keys() == b.keys()
    pairs = [(a[k].double(), b[k].double()) for k in a if a[k].numel()]
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-2)) for x, y in pairs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every method by one process and by two, with a batch norm for each half, some with one for
    the whole; and SimCLR by two with the classic mistakes."""
    folder = tmp_path_factory.mktemp("trained")
    cases = [(method, 2) for method in METHODS] + [(method, 1) for method in WHOLE]
    for method, split in cases:
        list(fit(Config.from_params(settings(method, split, folder / "one"))))
    list(fit(Config.from_params(with_neighbours(folder, "one"))))
    runs = [(settings(method, split, folder / "two"), "") for method, split in cases]
    runs += [(with_neighbours(folder, "two"), "")]
    runs += [(settings("simclr", 2, folder / bug), bug) for bug in BUGS]
    runs += [(settings("propos", 2, folder / "stopped"), "stopped")]
    spawning.spawn(one_of_two, (str(folder / "meeting"), runs), nprocs=2)
    return folder


def test_two_processes_that_were_interrupted_continue_to_the_same_bits(trained):
    whole, stopped = (kept(settings("propos", 2, trained / name))[2] for name in ("two", "stopped"))
    assert whole["weights_sha256"] == stopped["weights_sha256"]


def test_a_signal_to_one_of_two_processes_stops_both_after_one_step(trained):
    """After the third step the one tells the other, which reads it after the fourth."""
    for rank in (0, 1):
        said = (trained / f"said-{rank}").read_text()
        known = "143: stopped after epoch 0 and 4 steps; the same command continues; kept 4"
        assert said == known


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_with_a_batch_norm_each_are_one_with_a_split_batch(trained, method):
    one, two = (kept(settings(method, 2, trained / name)) for name in ("one", "two"))
    assert difference(one[0], two[0]) < 1e-5
    if method not in ROUNDED:
        assert one[2]["weights_sha256"] == two[2]["weights_sha256"]
    same_history(one[1], two[1])
    for rule, scores in one[2]["scores"].items():
        assert scores == pytest.approx(two[2]["scores"][rule], abs=1e-9), rule


def test_two_processes_show_the_same_neighbours_as_one(trained):
    one, two = (kept(with_neighbours(trained, name)) for name in ("one", "two"))
    assert difference(one[0], two[0]) < 1e-5
    same_history(one[1], two[1])


@pytest.mark.parametrize("method", WHOLE)
def test_a_batch_norm_over_all_processes_is_that_of_one(trained, method):
    one, two = (kept(settings(method, 1, trained / name)) for name in ("one", "two"))
    # alike to 1e-5 until a ReLU at the edge of rounding falls to the other side
    assert difference(one[0], two[0]) < 2e-2
    same_history(one[1], two[1], 1e-3)


def test_a_batch_norm_over_all_processes_in_float64(trained):
    x, weight = normed_batch()
    norm = torch.nn.BatchNorm2d(3).double()
    y = norm(x)
    (y * weight).sum().backward()
    found = torch.load(trained / "norm.pt")
    known = (y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
    for a, b in zip(found, known, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def same_history(one: list[dict], two: list[dict], tolerance: float = 2e-5) -> None:
    """The default is one in the last of the six digits that are written."""
    assert len(one) == len(two) == TINY["epochs"]
    for a, b in zip(one, two):
        timed = {"seconds", "images_per_second"}
        assert a.keys() == b.keys()
        for column in a.keys() - timed:
            known = b[column]
            near = known and pytest.approx(known, rel=tolerance, abs=tolerance)
            assert a[column] == near, column


@pytest.mark.parametrize("bug", BUGS)
def test_the_classic_mistakes_would_be_seen(trained, bug):
    good = kept(settings("simclr", 2, trained / "one"))[0]
    assert difference(kept(settings("simclr", 2, trained / bug))[0], good) > 1e-2


# ---- what torchrun starts

QUICK = dict(epochs=2, limit=96, batch_size=32, width=4, n_heads=2, head_hidden=8)


def words(params: dict) -> list[str]:
    return [word for name, value in params.items() for word in ("-p", name, str(value))]


def test_a_notebook_starts_processes_and_shows_their_rows(tmp_path):
    executed = tmp_path / "out.ipynb"
    params = {**QUICK, "processes": 2, "results_dir": tmp_path / "results"}
    command = [sys.executable, "-m", "papermill", "notebooks/train.ipynb", str(executed)]
    done = subprocess.run(command + words(params), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
    text = "".join(o.get("text", "") for o in outputs)
    assert "epoch    2/2" in text and "run directory:" in text


def test_a_port_that_is_in_use_is_said(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        known = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**known, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(ConfigError, match=f"^port {port}, .* is in use: choose another"):
            processes.group("cpu").__enter__()


def test_a_lost_process_ends_the_others_and_leaves_a_checkpoint(tmp_path):
    params = {**QUICK, "epochs": 3000, "results_dir": tmp_path, "checkpoint_minutes": 0}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "--module", "reproduce", "train", "--rows", *words(params)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
    for line in running.stdout:
        if '"epoch"' in line:
            break
    second = [
        p for p in children(running.pid) if b"\0RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes()
    ]
    os.kill(int(second[0]), signal.SIGKILL)
    began = time.monotonic()
    _, errors = running.communicate(timeout=120)
    assert running.returncode and time.monotonic() - began < 60
    assert "error: process 0 of 2 ends because another one is gone" in errors
    partial = Run(Config.from_params({**params, "results_dir": str(tmp_path)}))
    state, _ = partial.load_checkpoint()
    assert state["at"]["epoch"] >= 1 and "damaged" not in "".join(partial.notes)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def unlike(rank: int, meeting: str, cases: list[dict]) -> None:
    """A process of two whose settings are not the first one's, nor the name that it would give a
    run; what is said goes into a file, and under which name it has trained."""
    meet = dict(init_method=f"file://{meeting}", timeout=datetime.timedelta(minutes=1))
    dist.init_process_group("gloo", rank=rank, world_size=2, **meet)
    said = []
    for changes in cases:
        folder = Path(meeting).parent
        params = {**QUICK, "results_dir": str(folder / "runs"), "data_dir": str(folder / "data")}
        with pytest.MonkeyPatch.context() as patch:
            if rank and "torch" in changes:
                patch.setattr(torch, "__version__", changes["torch"])
            elif rank and "data" in changes:
                load = data.load
                patch.setattr(data, "load", lambda c: replaced(load(c), changes["data"]))
            elif rank:
                params |= changes
                patch.setattr(directory, "run_name", lambda config: f"another_{config.hash()}")
            run = Run(Config.from_params(params))
            try:
                list(fit(run.config, run))
                said.append(f"trained {run.path}")
            except ConfigError as error:
                said.append(str(error))
    (folder / f"said-{rank}").write_text("\n".join(said))
    dist.barrier()
    os._exit(0)


def replaced(images, sha256: str):
    return dataclasses.replace(images, sha256=sha256)


def test_processes_that_differ_are_told_before_the_first_step(tmp_path):
    cases = {"lambda1": 0.5, "epochs": 3, "precision": "bfloat16", "torch": "1.0", "data": "else"}
    unequal = [{name: value} for name, value in cases.items()]
    spawning.spawn(unlike, (str(tmp_path / "meeting"), [*unequal, {}]), nprocs=2)
    first, second = ((tmp_path / f"said-{rank}").read_text().splitlines() for rank in (0, 1))
    path = Run(Config.from_params({**QUICK, "results_dir": str(tmp_path / "runs")})).path
    assert first == second and first.pop() == f"trained {path}" and "another" not in path.name
    for sentence, (name, value) in zip(first, cases.items(), strict=True):
        assert sentence.startswith(f"process 1 of 2 has {name} {value!r}, process 0 has "), sentence


def test_processes_started_by_hand_that_differ_end_with_2(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in ("0", "1"):
        params = {**QUICK, "seed": rank, "results_dir": tmp_path}
        command = [sys.executable, "-m", "reproduce", "train", *words(params)]
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        options = dict(cwd=ROOT, env={**os.environ, **where}, stderr=-1, text=True)
        started.append(subprocess.Popen(command, **options))
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert "error: process 1 of 2 has seed 1, process 0 has 0: start all with" in errors


@pytest.mark.parametrize(
    "params, sentence",
    [
        (dict(batch_size=65), "batch_size is 65, but there are 2 processes"),
        (dict(batch_size=66, batchnorm_split=3), "batchnorm_split is 3, but there are 2 processes"),
        (dict(compile=True), "compile is True, but there are 2 processes"),
    ],
)
def test_settings_that_processes_cannot_have(params, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Config.from_params({**params, "processes": 2})


def test_what_the_processes_say_is_raised_here(tmp_path):
    params = {**QUICK, "dataset": "folder", "folder": str(tmp_path / "none"), "processes": 2}
    config = Config.from_params({**params, "results_dir": str(tmp_path / "results")})
    with pytest.raises(ConfigError, match="folder .* does not exist"):
        list(fit(config))


def test_a_list_that_a_process_says_is_raised_whole(tmp_path, monkeypatch):
    said = "error: has 2 images that cannot be read:\n  'a.png': empty\n  'b.png': damaged"
    script = tmp_path / "torchrun"
    script.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nanother line\nEND\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    config = Config.from_params({**QUICK, "processes": 2, "results_dir": str(tmp_path / "runs")})
    with pytest.raises(ConfigError) as raised:
        list(fit(config))
    assert str(raised.value) == said.removeprefix("error: ")


def test_a_signal_reaches_the_processes_once_and_their_sentence_is_raised(tmp_path, monkeypatch):
    """A terminal would send it to all of its group; one that comes twice waits for nothing."""
    said = "stopped after epoch 1 and 2 steps; the same command continues"
    script, group = tmp_path / "torchrun", tmp_path / "group"
    script.write_text(
        f"#!/bin/sh\ntrap 'echo \"{said}{said}\" >&2; exit 1' TERM\n"
        f"ps -o pgid= $$ > {group}\nkill -TERM $PPID\nwhile true; do sleep 0.05; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    config = Config.from_params({**QUICK, "processes": 2, "results_dir": str(tmp_path / "runs")})
    with pytest.raises(stopping.Stopped, match=f"^{said}$") as stopped:
        list(fit(config))
    assert stopped.value.status == 143 and int(group.read_text()) != os.getpgrp()


def test_an_error_of_a_process_is_shown_with_its_traceback(tmp_path, monkeypatch, capfd):
    """What no sentence foresees, such as a full GPU."""
    said = "Traceback (most recent call last):\n  ...\ntorch.OutOfMemoryError: CUDA out of memory"
    also = f"error: process 0 of 2 ends because {processes.GONE}; the last ..."
    script = tmp_path / "torchrun"
    script.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{also}\n{said}\nEND\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    config = Config.from_params({**QUICK, "processes": 2, "results_dir": str(tmp_path / "runs")})
    with pytest.raises(processes.Lost, match="^torch.OutOfMemoryError: CUDA out of memory$"):
        list(fit(config))
    assert "Traceback (most recent call last)" in capfd.readouterr().err


# ---- shares of rows


def test_shares_are_whole_together():
    for n, w in ((10, 3), (7, 2), (3, 4), (64, 8)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "world", lambda: w)
            parts = []
            for r in range(w):
                patch.setattr(processes, "rank", lambda: r)
                parts += range(n)[processes.own(n)]
            assert parts == list(range(n))


def test_one_process_is_given_what_it_gives():
    x = torch.randn(6, 2)
    for function in (
        processes.share,
        processes.gather,
        processes.gather_rows,
        processes.reduce_,
    ):
        assert function(x) is x
    assert processes.broadcast(x) is x and processes.own(6) == slice(0, 6)
