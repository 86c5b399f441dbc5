"""Where runs take place: in processes here, one or several for a run (torchrun), or in jobs of a
Slurm cluster (submitit)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from reproduce import processes
from reproduce.config import Config
from reproduce.files import PACKAGE
from reproduce.runs.directory import Run
from reproduce.runs.stopping import Stopped
from reproduce.settings import ConfigError, Diverged, short_repr

CLUSTER = "slurm"  # submitit's name of it; "local" makes its jobs here, as the tests do
REQUEUED = 100  # times at most that a job is queued again at its limit
Done = tuple[int, object]  # which call, and what it returned or the exception that it raised


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended, one of ``sweep.ENDS``, and why."""

    status: str = "finished"
    log: str = ""


LATE = Outcome("left", "left for the next call")


def catch(function: Callable, *arguments):
    """What the function returns, or the exception that it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def with_deadline(seconds: float, function: Callable) -> Callable:
    """The function; but ``LATE`` where a call as long as the longest so far would end after the
    deadline, in so many seconds from now."""
    end, longest = time.monotonic() + seconds, 0.0

    def call(*arguments):
        nonlocal longest
        start = time.monotonic()
        if start + longest > end:
            return LATE
        outcome = function(*arguments)
        longest = max(longest, time.monotonic() - start)
        return outcome

    return call


def local(function: Callable, calls: list[tuple], jobs: int) -> Iterator[Done]:
    """The calls in threads, ``jobs`` at a time, each yielded when it is done. Where this ends
    early, as by a signal, no other call begins, and ``module``'s processes end as ``end`` says."""
    _ending.clear()
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = {pool.submit(catch, function, *arguments): i for i, arguments in enumerate(calls)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end()
            raise


# ---- processes that end with this one

_children: set[subprocess.Popen] = set()  # that ``module`` waits for
_ending = threading.Event()
WITH_PARENT = """
import ctypes, os, runpy, signal, sys
parent, name = int(sys.argv.pop(1)), sys.argv.pop(1)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != parent:  # which ended before that call
    sys.exit("the process that started this one has ended")
signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a job's limit, which is for the job alone
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


def module(name: str, words: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """``python -m name words`` in a process that ends with this one, however that is killed (on
    Linux): its status, and what it says on stderr. A kernel below it looks for its own parent. A
    terminal's signals do not reach it: they are for this process, which then calls ``end``."""
    command = [sys.executable, "-c", WITH_PARENT, str(os.getpid()), name, *words]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        streams = dict(stdout=subprocess.DEVNULL, stderr=errors)
        child = subprocess.Popen(command, **streams, env=environment, start_new_session=True)
        _children.add(child)
        try:
            if _ending.is_set():  # meanwhile
                child.kill()
            status = child.wait()
        finally:
            _children.discard(child)
        errors.seek(0)
        return status, errors.read()


def end() -> None:
    """End ``module``'s processes: a kernel that trains finishes its step and keeps a checkpoint,
    and this waits for it; a second signal waits for none. All else ends at once."""
    _ending.set()
    children = [*_children]
    try:
        for child in children:
            kernels = below(child.pid)
            for kernel in kernels:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(kernel, signal.SIGTERM)
            if not kernels:
                child.kill()
        for child in children:
            with contextlib.suppress(ChildProcessError):  # waited for by another thread
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    finally:
        for child in children:
            child.kill()


def below(parent: int) -> list[int]:
    """The processes that a process has started and that have not ended, on Linux."""
    children = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, its = file.read_text().rpartition(")")[2].split()[:2]
            if int(its) == parent and state != "Z":
                children.append(int(file.parent.name))
    return children


def torchrun(config: Config, run: Run) -> Iterator[dict]:
    """Train one run in ``config.processes`` processes of this machine; yield its rows. Raises what
    the first process that failed said."""
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}"]
    here = "processes", "tensorboard", "wandb"  # what this process does itself
    settings = {name: value for name, value in config.changed().items() if name not in here}
    threads = str(max(1, torch.get_num_threads() // config.processes))
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path}
    with tempfile.TemporaryFile("w+") as errors, tempfile.NamedTemporaryFile("w+") as file:
        yaml.safe_dump(settings, file)  # a word of a command line would lose a text's type
        file.flush()
        command += ["--module", "reproduce", "train", "-f", file.name, "--rows"]
        streams = dict(stdout=subprocess.PIPE, stderr=errors, text=True)
        # a terminal's signals are for this process, which passes one on
        streams |= dict(env=environment, start_new_session=True)
        torchrun, stopped = subprocess.Popen([sys.executable, "-m", *command], **streams), 0
        try:
            for line in torchrun.stdout:
                row = json.loads(line)
                if "step" in row and run.on_step:
                    run.on_step(row["step"], row["steps"])
                elif "note" in row:
                    run.notes.append(row["note"])
                elif "epoch" in row:
                    yield row
            code = torchrun.wait()
        except Stopped as stop:
            code = stopped = stop.status - 128
        finally:
            torchrun.terminate()
            torchrun.wait()
        errors.seek(0)
        text = errors.read()
        sentences = re.findall(r"^error: (.*(?:\n  .*)*)", text, re.M)
        for sentence in sentences:
            if sentence.startswith("diverged: "):
                raise Diverged(sentence[10:])
        kept = re.search(r"^stopped after .*?continues", text, re.M)  # others may be on its line
        if stopped or kept:
            raise Stopped(stopped or signal.SIGTERM, kept[0] if kept else "stopped")
        causes = [sentence for sentence in sentences if processes.GONE not in sentence]
        if code and causes:
            raise ConfigError(causes[0])
        if code:  # a process was killed, or has an error of its own: with its traceback
            print(text, file=sys.stderr)
            why = re.search(r"^[\w.]+(Error|Exception)\b.*", text, re.M)
            raise processes.Lost(why[0] if why else f"torchrun ended with status {code}")


def slurm_executor(folder: Path, jobs: int, options: dict):
    """submitit's executor, checked before anything is submitted.

    options: by the names of its ``update_parameters``, or of ``sbatch``'s long options with
    underscores: partition, gpus_per_node, timeout_min, mem_gb, qos, account.
    """
    unusable = "launcher is 'slurm', but"
    try:
        import submitit
    except ImportError:
        how = "pip install -e '.[cluster]'"
        raise ConfigError(f"{unusable} the package submitit is not installed: {how}") from None
    if CLUSTER == "slurm" and not shutil.which("sbatch"):
        how = "start the sweep on the cluster's login machine"
        raise ConfigError(f"{unusable} there is no command 'sbatch' here: {how}")
    if "timeout_min" not in options:
        how = "say how many minutes a job may take, as --slurm timeout_min=600"
        raise ConfigError(f"slurm has no time limit: {how}; a longer run goes on in a next job")
    general = submitit.AutoExecutor._typed_parameters()
    parameters = {"name": "reproduce", "slurm_array_parallelism": max(1, jobs)}
    for name, value in options.items():
        known = name in general or name.startswith("slurm_")
        parameters[name if known else f"slurm_{name}"] = value
    executor = submitit.AutoExecutor(folder, cluster=CLUSTER, slurm_max_num_timeout=REQUEUED)
    try:
        executor.update_parameters(**parameters)
    except (NameError, AssertionError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"slurm: {why}; got {short_repr(options)}") from None
    return executor


class Job:
    """A function in a job of a cluster, which submitit queues again when its limit is near: the run
    keeps a checkpoint first, and goes on from it in the next job."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *arguments):
        return catch(self.function, *arguments)

    def checkpoint(self, *arguments):
        """submitit's protocol: called at the limit; what is to be called in the next job."""
        from submitit.helpers import DelayedSubmission

        end()
        return DelayedSubmission(self, *arguments)


def slurm(function: Callable, calls: list[tuple], executor, every: float = 1.0) -> Iterator[Done]:
    """The calls as one array of jobs, each yielded when done; a job that died is an exception."""
    from submitit import helpers

    with executor.batch():
        jobs = [executor.submit(Job(function), *arguments) for arguments in calls]
    for job in helpers.as_completed(jobs, poll_frequency=every):
        try:
            outcome = job.result()
        except Exception:  # submitit's: there is no result
            how = f"job {job.job_id} ended without a result, in state {job.state}"
            outcome = RuntimeError(f"{how}; its log: {job.paths.stderr}")
        yield jobs.index(job), outcome
