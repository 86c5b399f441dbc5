"""Sweeps: what they expand to, and that they run, skip, survive a failure and say so."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jupyter_client.kernelspec import KernelSpecManager

from reproduce import Config, ConfigError, fit
from reproduce.__main__ import given, main, parser
from reproduce.files import ROOT
from reproduce.own_images.grouping import Grouping
from reproduce.report.results import load
from reproduce.runs import kernel, stopping
from reproduce.runs.directory import Run, find
from reproduce.sweeps import campaign, launch, sweep

QUICK = ["-p", "epochs", "1", "-p", "width", "4", "-p", "n_heads", "2", "-p", "limit", "200"]


def test_a_parameter_on_the_command_line_overrides_the_settings_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 45\nwidth: 8\n")
    args = parser().parse_args(["train", "-f", str(tmp_path / "mine.yaml"), "-p", "epochs", "1"])
    assert given(args) == {"epochs": 1, "width": 8}


def test_grid_and_factors_expand_to_a_product():
    grid = sweep.parse_grid(["lambda1=0.1,1", "seed=0,1,2"])
    assert grid == {"lambda1": [0.1, 1], "seed": [0, 1, 2]}
    configs = sweep.expand(
        {"epochs": 2}, grid, [sweep.parse_one("head_init=torch,head_bias=False")]
    )
    assert len(configs) == 12 and len({c.hash() for c in configs}) == 12
    assert sum(c.head_init == "torch" and not c.head_bias for c in configs) == 6
    assert all(c.epochs == 2 for c in configs)


def test_an_installed_package_takes_notebook_presets_and_blocks_from_share(tmp_path):
    """As of a wheel: no checkout, and notebooks below sys.prefix."""
    shutil.copytree(ROOT / "reproduce", tmp_path / "site" / "reproduce")
    share = tmp_path / "share" / "reproduce"
    share.mkdir(parents=True)
    (share / "notebooks").symlink_to(ROOT / "notebooks")
    code = f"""
import sys
sys.prefix = {str(tmp_path)!r}
from reproduce.files import ROOT
from reproduce.sweeps import campaign, sweep
print(ROOT, sweep.TEMPLATE.is_file(), len(campaign.block("cpu", {{}})))"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    n = len(campaign.block("cpu", {}))
    assert done.stdout.split() == [str(tmp_path), "True", str(n)], done.stderr


def test_equal_settings_run_once():
    assert len(sweep.expand({}, {"lambda1": [1, 1.0]}, [{"entropy": "batch"}])) == 1


def test_the_parts_of_a_sweep_are_all_of_it(tmp_path, monkeypatch):
    configs, ran = sweep.expand({}, {"seed": range(12)}), []
    parts = [sweep.shard(configs, f"{i}/5") for i in range(1, 6)]
    assert sorted(map(len, parts)) == [2, 2, 2, 3, 3]
    assert sorted(c.seed for part in parts for c in part) == [*range(12)]
    for wrong in ("0/5", "6/5", "2", "2/", "-1/5", "2/5/7", "a/b"):
        with pytest.raises(ConfigError, match="shard must be written 2/5"):
            sweep.shard(configs, wrong)

    def run_notebook(config, *_):
        ran.append(config.seed)
        return launch.LATE

    monkeypatch.setattr(sweep, "run_notebook", run_notebook)
    (tmp_path / "s.yaml").write_text(f"results_dir: {tmp_path / 'r'}\n")
    main(
        [
            "sweep",
            str(tmp_path / "s.yaml"),
            "--grid",
            "seed=0,1,2,3,4",
            "--shard",
            "2/2",
            "--jobs",
            "1",
        ]
    )
    assert ran == [1, 3]
    assert main(["sweep", str(tmp_path / "s.yaml"), "--shard", "2/2"]) == 2, "one run, two parts"


@pytest.mark.parametrize("word", ["lambda1", "lambda1=", "=1"])
def test_a_grid_that_cannot_be_read(word):
    with pytest.raises(ConfigError):
        sweep.expand({}, sweep.parse_grid([word]))


def test_nothing_runs_if_one_setting_is_wrong(tmp_path, capsys):
    settings = tmp_path / "s.yaml"
    settings.write_text("epochs: 1\n")
    assert (
        main(
            [
                "sweep",
                str(settings),
                "--grid",
                "lambda1=0.1,-1",
                "-p",
                "results_dir",
                str(tmp_path / "r"),
            ]
        )
        == 2
    )
    assert "lambda1 must be a number of at least 0, got -1" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_sweep_runs_skips_and_survives_a_failure(tmp_path, capsys, monkeypatch):
    settings, results = tmp_path / "s.yaml", tmp_path / "results"
    settings.write_text("evaluate_every: 1\n")
    words = [
        "sweep",
        str(settings),
        *QUICK,
        "-p",
        "results_dir",
        str(results),
        "-p",
        "data_dir",
        str(tmp_path),
        "--keep",
        "first",
    ]
    ones = ["--one", "seed=1", "--one", "batch_size=201"]  # of 200 images
    assert main([*words, *ones, "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert re.search(
        r"batch_size +finished +failed +ACC +seconds\n +64 +2 +0 +\d+\.\d +\d+\.\d\n"
        r" +201 +0 +1 +– +–\n",
        said,
    )
    assert "2 finished" in said and "1 failed" in said
    assert "batch_size is 201, more than the 200 images" in said
    runs = find(results)
    assert len(runs) == 2 and len(load(results)) == 2
    kept = [sorted(p.name for p in run.iterdir()) for run in runs]
    assert set(sweep.BULKY) <= set(kept[0]) and not set(sweep.BULKY) & set(kept[1])
    page = (runs[0] / "train.html").read_text()
    assert "http://" not in page.replace(
        "http://www.w3.org", ""
    ) and "https://" not in page.replace("https://www.w3.org", "")
    assert "<script" not in page and "data:image/png;base64" in page
    assert main([*words, "--grid", "seed=0,1"]) == 0
    assert "2 skipped" in capsys.readouterr().out


def stand_ins(tmp_path, **grid):
    """Rows of a sweep whose runs are a metrics.json each."""
    rows = []
    for i, config in enumerate(sweep.expand({}, grid)):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "metrics.json").write_text(
            json.dumps({"seconds": 10 * (i + 1), "scores": {"kmeans_embedding": {"acc": 0.1 * i}}})
        )
        rows.append({"config": config, "path": tmp_path / str(i), "status": "finished"})
    return rows


def test_the_summary_joins_seeds_and_names_what_varies(tmp_path):
    rows = stand_ins(tmp_path, lambda1=[0.1, 1], seed=[0, 1])
    rows[0]["status"], rows[3]["status"] = "skipped", "failed"
    found = sweep.summary(rows)
    assert found.columns.tolist() == ["lambda1", "finished", "failed", "ACC", "seconds"]
    assert (
        found["lambda1"].tolist() == ["0.1", "1.0"]
        and found["finished"].tolist() == [2, 1]
        and found["failed"].tolist() == [0, 1]
    )
    assert found["ACC"].tolist() == pytest.approx([5, 20]) and found["seconds"].tolist() == [15, 30]
    alone = sweep.summary(rows[:2])
    assert alone.values.tolist() == [[2, 0, pytest.approx(5), 15]]
    (tmp_path / "1" / "metrics.json").write_text(
        '{"seconds": 1, "scores": {"kmeans_embedding": {"acc": 0.5},'
        ' "aligned_average": {"acc": 0.7}}}'
    )
    assert sweep.summary(rows[1:2])["ACC"].tolist() == pytest.approx([70])


@pytest.mark.parametrize(
    "jobs, threads", [([], "1"), (["--jobs", "2"], "3"), (["--jobs", "1"], None)]
)
def test_one_run_on_each_core_with_one_thread(tmp_path, monkeypatch, jobs, threads):
    """Six cores; a run that has them all decides for itself."""
    seen = []

    def module(name, words, environment):
        seen.append(environment.get("OMP_NUM_THREADS"))
        return 1, "not run"

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(launch, "module", module)
    monkeypatch.setattr(sweep.os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    (tmp_path / "s.yaml").write_text(f"results_dir: {tmp_path}\n")
    assert main(["sweep", str(tmp_path / "s.yaml"), "--grid", "seed=0,1,2", *jobs]) == 1
    assert seen == [threads] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    configs = sweep.expand({}, {"seed": [0, 1]})
    assert sweep.jobs_at_a_time(configs) == 1
    assert sweep.jobs_at_a_time([config.replace(device="cpu") for config in configs]) == 6


def test_one_failure_stops_no_other(tmp_path, monkeypatch, capsys):
    """Not even one that no one thought of."""

    def run_notebook(config, bulky, jobs):
        if config.seed == 1:
            raise OSError(28, "No space left on device")
        return launch.Outcome("failed", "diverged") if config.seed == 2 else launch.Outcome()

    monkeypatch.setattr(sweep, "run_notebook", run_notebook)
    rows = sweep.sweep(sweep.expand({"results_dir": str(tmp_path)}, {"seed": [0, 1, 2, 3]}), jobs=2)
    assert [r["status"] for r in rows] == ["finished", "failed", "failed", "finished"]
    assert (
        rows[1]["log"] == "OSError: [Errno 28] No space left on device"
        and rows[2]["log"] == "diverged"
    )
    said = capsys.readouterr().err
    assert said.count("failed: digits/crlc/") == 2


def begin_sweep(folder):
    """A sweep of one long run, in a process of its own, and the run's process, once it trains."""
    (folder / "s.yaml").write_text(f"epochs: 3000\nresults_dir: {folder / 'r'}\n")
    words = ["sweep", str(folder / "s.yaml"), "-p", "width", "4", "-p", "limit", "200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "reproduce", *words]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (found := [*folder.rglob("progress.json")]):
        assert parent.poll() is None, parent.stderr.read()
        time.sleep(0.1)
    return parent, int((found[0].parent / "lock").read_text().split()[1]), words


def ended(process: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end the children")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_runs_end_with_their_sweep_and_are_running_before(tmp_path, capsys, number):
    """Killed, they end at once; asked to, they finish their step and keep a checkpoint."""
    parent, kernel, words = begin_sweep(tmp_path)
    (partial,) = tmp_path.rglob("*.partial")
    try:
        assert main(words) == 0  # while the other one lasts
        said = capsys.readouterr()
        assert "1 running" in said.out and "0 failed" in said.out
        parent.send_signal(number)
        said = parent.communicate(timeout=60)[1]
        assert parent.returncode == (143 if number == signal.SIGTERM else -number), said
        assert "Traceback" not in said
        end = time.monotonic() + 20
        while not ended(kernel) and time.monotonic() < end:
            time.sleep(0.1)
        assert ended(kernel)
        assert (partial / "checkpoint.pt").exists() == (number == signal.SIGTERM)
        if number == signal.SIGTERM:
            *_, run, last = said.splitlines()
            done = r"stopped: digits/crlc/\S+ at epoch \d+ of 3000( and \d+ steps?)?"
            assert re.fullmatch(done, run)
            assert last == "stopped; the same command continues"
            assert main([*words, "--status"]) == 0
            assert run.split(" ", 2)[2] in capsys.readouterr().out
    finally:
        parent.kill()
        if not ended(kernel):
            os.kill(kernel, signal.SIGKILL)


KERNEL = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.3)
    pathlib.Path("kept").write_text("")
    sys.exit()
signal.signal(signal.SIGTERM, stop if sys.argv[1] == "keeps" else signal.SIG_IGN)
pathlib.Path("trains").write_text("")
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
if sys.argv[1] == "says":
    sys.stderr.buffer.write(b"it broke: \\xff\\n")
    sys.exit(3)
if sys.argv[1] == "done":
    sys.exit()
if sys.argv[1] == "none":
    open("trains", "w").close()
    time.sleep(60)
subprocess.run([sys.executable, "kernel.py", sys.argv[1]])
"""


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begin a stand-in for papermill with a kernel that keeps a checkpoint when asked to end, one
    that never ends, or without any; return the thread that waits for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernel.py").write_text(KERNEL)
    (tmp_path / "stand_in.py").write_text(PARENT)

    def begin(kernel):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        waits = threading.Thread(target=launch.module, args=("stand_in", [kernel], environment))
        launch._ending.clear()
        waits.start()
        while not (tmp_path / "trains").exists():
            time.sleep(0.01)
        return waits

    return begin


@pytest.mark.parametrize("kernel", ["keeps", "none"])
def test_what_trains_is_waited_for_and_all_else_ends_at_once(begin, tmp_path, kernel):
    waits, start = begin(kernel), time.monotonic()
    (child,) = launch._children
    for process in (child.pid, *launch.below(child.pid)):
        os.kill(process, signal.SIGUSR2)  # a job's limit, which Slurm tells all its processes
    launch.end()
    waits.join(10)
    assert not waits.is_alive() and time.monotonic() - start < 10
    assert (tmp_path / "kept").exists() == (kernel == "keeps")


def test_a_second_signal_waits_for_nothing(begin, monkeypatch):
    waits = begin("never ends")
    (child,) = launch._children
    (kernel,) = launch.below(child.pid)
    with stopping.signals(), pytest.raises(stopping.Stopped):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        launch.end()
    waits.join(10)
    assert not waits.is_alive()
    os.kill(kernel, signal.SIGKILL)


def test_no_process_begins_once_the_sweep_ends(begin, tmp_path):
    launch._ending.set()
    code, _ = launch.module("stand_in", ["none"], {**os.environ, "PYTHONPATH": str(tmp_path)})
    assert code == -signal.SIGKILL and not (tmp_path / "trains").exists()


def test_what_a_process_says_may_be_any_bytes(begin, tmp_path):
    launch._ending.clear()
    found = launch.module("stand_in", ["says"], {**os.environ, "PYTHONPATH": str(tmp_path)})
    assert found == (3, "it broke: \ufffd\n")


# ---- what a finished run lacks


def test_a_finished_run_gets_what_it_lacks_without_being_trained_anew(tmp_path, capsys):
    settings, results = tmp_path / "s.yaml", tmp_path / "results"
    settings.write_text(f"results_dir: {results}\ndata_dir: {tmp_path}\n")
    words = ["sweep", str(settings), *QUICK, "--grid", "seed=0"]
    config = Config.from_params(given(parser().parse_args(words)))
    list(fit(config, Run(config)))
    (run,) = find(results)
    metrics, before = (run / "metrics.json").stat(), {**np.load(run / "embeddings.npz")}
    (run / "embeddings.npz").unlink()
    (run / "traces.npz").unlink()
    assert main([*words, "--keep", "none"]) == 0
    assert "1 skipped" in capsys.readouterr().out
    assert main(words) == 0
    said = capsys.readouterr()
    assert "1 completed" in said.out
    assert "train.ipynb, train.html, embeddings.npz made" in said.err
    again = {**np.load(run / "embeddings.npz")}
    assert again.keys() == before.keys()
    for name in before:
        np.testing.assert_array_equal(again[name], before[name], name)
    assert (run / "metrics.json").stat().st_mtime_ns == metrics.st_mtime_ns
    text = (run / "train.ipynb").read_text()
    assert "already finished; showing the stored run" in text
    (run / "train.html").unlink()
    assert main(words) == 0 and (run / "train.html").exists()
    assert (run / "train.ipynb").read_text() == text
    (run / "embeddings.npz").unlink()
    (run / "model.pt").unlink()
    assert main(words) == 0, "without weights there is no embedding, and nothing else is missing"
    assert "1 skipped" in capsys.readouterr().out and not (run / "embeddings.npz").exists()


# ---- jobs of a cluster: submitit's local executor makes them here


def test_no_run_is_started_that_would_end_too_late(tmp_path, monkeypatch, capsys):
    """Of 960 seconds three runs of 300 fit, a fourth would not; what is finished already costs
    nothing."""
    clock, ran = [0.0], []
    monkeypatch.setattr(launch.time, "monotonic", lambda: clock[0])

    def run_notebook(config, *rest):
        ran.append(config.seed)
        clock[0] += 300
        return launch.Outcome("failed", "it broke") if config.seed == 2 else launch.Outcome()

    monkeypatch.setattr(sweep, "run_notebook", run_notebook)
    monkeypatch.setattr(sweep.Run, "finished", property(lambda run: run.config.seed == 0))
    monkeypatch.setattr(sweep.content, "recognise", lambda run: None)
    configs = sweep.expand({"results_dir": str(tmp_path)}, {"seed": range(6)})
    rows = sweep.sweep(configs, keep="none", minutes=16)
    assert [row["status"] for row in rows] == [
        "skipped",
        "finished",
        "failed",
        "finished",
        "left",
        "left",
    ]
    assert ran == [1, 2, 3]
    assert "left for the next call" in capsys.readouterr().err
    for minutes in (0, float("nan")):
        with pytest.raises(ConfigError, match="minutes must be a number above 0"):
            sweep.sweep(configs, minutes=minutes)
    with pytest.raises(ConfigError, match="minutes is 5, but launcher is 'slurm'"):
        sweep.sweep(configs, launcher="slurm", minutes=5)


def test_jobs_that_return_raise_and_die(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "CLUSTER", "local")
    # for how long the result of a job that died may still arrive over a network's file system
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)

    def work(what):
        if what == "raise":
            raise ValueError("a wrong\nvalue")
        if what == "die":
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return f"did {what}"

    executor = launch.slurm_executor(tmp_path / "jobs", 2, {"timeout_min": 9})
    done = dict(launch.slurm(work, [("die",), ("raise",), ("return",)], executor, every=0.1))
    dead = "job [0-9]+ ended without a result, in state .*; its log: "
    assert re.search(dead, str(done[0])) and str(tmp_path / "jobs") in str(done[0])
    assert repr(done[1]) == repr(ValueError("a wrong\nvalue")) and done[2] == "did return"


def test_a_job_at_its_limit_keeps_a_checkpoint_and_goes_on_in_the_next_one(
    begin, tmp_path, monkeypatch
):
    """submitit's own signal and queue; the stand-in's kernel trains in the first job alone."""
    monkeypatch.setattr(launch, "CLUSTER", "local")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")

    def work(folder):
        before = (folder / "kept").exists()
        code, _ = launch.module("stand_in", ["done" if before else "keeps"], {**os.environ})
        return before, code

    executor = launch.slurm_executor(tmp_path / "jobs", 1, {"timeout_min": 9})
    job = executor.submit(launch.Job(work), tmp_path)
    while not (tmp_path / "trains").exists():
        assert not job.done(), job.stderr()
        time.sleep(0.02)
    (task,) = launch.below(job._process.pid)
    os.kill(task, signal.SIGUSR2)
    assert job.result() == (True, 0)
    assert "Requeued job" in job.stdout()


def test_a_job_without_a_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "CLUSTER", "local")
    with pytest.raises(ConfigError, match="^slurm has no time limit: .* --slurm timeout_min=600; "):
        launch.slurm_executor(tmp_path, 1, {"partition": "gpu"})


def test_a_sweep_on_a_cluster_runs_papermill_in_each_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "CLUSTER", "local")
    settings, results = tmp_path / "s.yaml", tmp_path / "results"
    settings.write_text("evaluate_every: 1\n")
    words = [
        "sweep",
        str(settings),
        *QUICK,
        "-p",
        "results_dir",
        str(results),
        "-p",
        "data_dir",
        str(tmp_path),
        "--launcher",
        "slurm",
        "--slurm",
        "timeout_min=9",
    ]
    assert main(words) == 0
    (run,) = find(results)
    assert "1 finished" in capsys.readouterr().out and (run / "train.ipynb").exists()
    monkeypatch.setattr(launch, "slurm_executor", None)
    assert main(words) == 0, "what is finished is not submitted again"
    assert "1 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--slurm", "timeout_min=1"], "launcher is 'local': add --launcher slurm"),
        (["--launcher", "slurm"], "no command 'sbatch' here"),
    ],
)
def test_a_launcher_that_cannot_be_used(tmp_path, capsys, monkeypatch, words, sentence):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "s.yaml").write_text(f"results_dir: {tmp_path / 'r'}\n")
    assert main(["sweep", str(tmp_path / "s.yaml"), *words]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"partitoin": "gpu"}, "slurm: Unknown argument 'partitoin'"),
        ({"gpus_per_node": "two"}, 'slurm: Parameter "gpus_per_node" expected'),
    ],
)
def test_what_a_job_asks_for_is_checked(tmp_path, monkeypatch, options, sentence):
    monkeypatch.setattr(launch, "CLUSTER", "local")
    with pytest.raises(ConfigError, match=sentence):
        launch.slurm_executor(tmp_path, 1, {"timeout_min": 9, **options})
    asked = {"partition": "gpu", "gpus_per_node": 1, "timeout_min": 9}
    assert launch.slurm_executor(tmp_path, 3, asked)


def test_without_submitit_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(
        ConfigError, match=r"submitit is not installed: pip install -e '.\[cluster\]'"
    ):
        sweep.sweep([Config.from_params({"results_dir": str(tmp_path / "r")})], launcher="slurm")
    assert not (tmp_path / "r").exists()


def test_train_without_jupyter(tmp_path):
    command = [
        sys.executable,
        "-m",
        "reproduce",
        "train",
        *QUICK,
        "-p",
        "results_dir",
        str(tmp_path / "r"),
        "-p",
        "data_dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "aligned average" in done.stdout and len(find(tmp_path / "r")) == 1
    wrong = subprocess.run(
        [*command, "-p", "lamda1", "3"], capture_output=True, text=True, cwd=ROOT
    )
    assert (
        wrong.returncode == 2
        and wrong.stderr.strip() == "error: unknown parameter 'lamda1': did you mean 'lambda1'?"
    )


def test_a_text_may_be_a_number_on_the_command_line():
    """A folder called 2023 or 007; in YAML it stands in quotes."""
    for folder in ("2023", "007", "1e5", "nan"):
        words = SimpleNamespace(parameter=[("folder", folder), ("epochs", "1e1"), ("seed", "007")])
        config = Config.from_params({**given(words), "dataset": "folder"})
        assert (config.folder, config.epochs, config.seed) == (folder, 10, 7)
    assert sweep.parse_grid(["folder=2023,007", "seed=1"]) == {
        "folder": ["2023", "007"],
        "seed": [1],
    }
    assert sweep.parse_one("data_dir=5,lambda1=5") == {"data_dir": "5", "lambda1": 5}
    words = SimpleNamespace(parameter=[("features", "12"), ("steps", "12")])
    assert given(words, Config, Grouping) == {"features": "12", "steps": 12}
    for word in ("True", "None"):
        with pytest.raises(ConfigError, match="folder must be a text, got"):
            Config.from_params(given(SimpleNamespace(parameter=[("folder", word)])))
    with pytest.raises(ConfigError, match=r"folder must be a text, got 2023 \(int\)"):
        Config.from_params({"folder": 2023})


def test_notebooks_run_in_this_python(tmp_path, monkeypatch):
    """Whatever another kernel of the same name there is, as one of an environment that is gone."""
    other = tmp_path / "kernels" / "python3"
    other.mkdir(parents=True)
    gone = {"argv": [str(tmp_path / "gone" / "python")], "display_name": "x", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(gone))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert KernelSpecManager().get_kernel_spec("python3").argv == gone["argv"]
    said = []
    monkeypatch.setattr(sweep.launch, "module", lambda *words: said.append(words[2]) or (1, "x"))
    sweep.execute(Run(Config.from_params({"results_dir": str(tmp_path)})), 1)
    for _ in range(2):
        kernel.own_first(os.environ)
        argv = KernelSpecManager().get_kernel_spec("python3").argv
        assert argv[1:3] == ["-m", "ipykernel_launcher"] and argv[0] in ("python", sys.executable)
    assert os.environ["JUPYTER_PATH"].split(os.pathsep)[1:] == [str(tmp_path)]
    assert said[0]["JUPYTER_PATH"] == os.environ["JUPYTER_PATH"]
