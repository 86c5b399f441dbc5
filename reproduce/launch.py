"""Where the runs of a sweep take place: in processes on this machine, or as jobs of a Slurm cluster through submitit."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Callable, Iterator

from reproduce.config import ConfigError, short_repr

LAUNCHERS = ("local", "slurm")
CLUSTER = "slurm"  # submitit's name of it; "local" makes its jobs here, as the tests do
LATE = "left for the next call"
Done = tuple[int, object]  # which call, and what it returned or the exception that it raised


def catch(function: Callable, *arguments):
    """What the function returns, or the exception that it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def with_deadline(seconds: float, function: Callable) -> Callable:
    """The function, unless by the longest of its calls so far one would end later than in so many seconds: ``LATE`` then."""
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
    """The calls in threads, ``jobs`` at a time, each yielded when it is done."""
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = {pool.submit(catch, function, *arguments): i for i, arguments in enumerate(calls)}
        for future in as_completed(futures):
            yield futures[future], future.result()


def slurm_executor(folder: Path, jobs: int, options: dict):
    """submitit's executor, checked before anything is submitted. ``options`` have the names of its ``update_parameters``,
    or of ``sbatch``'s long options with underscores: partition, gpus_per_node, timeout_min, mem_gb, qos, account."""
    try:
        import submitit
    except ImportError:
        raise ConfigError(
            "launcher is 'slurm', but the package submitit is not installed: pip install -e '.[cluster]'"
        ) from None
    if CLUSTER == "slurm" and not shutil.which("sbatch"):
        raise ConfigError(
            "launcher is 'slurm', but there is no command 'sbatch' here: start the sweep on the cluster's login machine"
        )
    general = submitit.AutoExecutor._typed_parameters()
    named = {
        n if n in general or n.startswith("slurm_") else f"slurm_{n}": v for n, v in options.items()
    }
    executor = submitit.AutoExecutor(folder, cluster=CLUSTER)
    try:
        executor.update_parameters(
            **{"name": "reproduce", "slurm_array_parallelism": max(1, jobs), **named}
        )
    except (NameError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"slurm: {str(error).splitlines()[0]}; got {short_repr(options)}"
        ) from None
    return executor


def slurm(function: Callable, calls: list[tuple], executor, every: float = 1.0) -> Iterator[Done]:
    """The calls as one array of jobs, each yielded when it is done; a job that died is an exception."""
    with executor.batch():
        waiting = {
            i: executor.submit(catch, function, *arguments) for i, arguments in enumerate(calls)
        }
    while waiting:
        for i in [i for i, job in waiting.items() if job.done()]:
            job = waiting.pop(i)
            try:
                yield i, job.result()
            except Exception:  # submitit's: there is no result
                yield (
                    i,
                    RuntimeError(
                        f"job {job.job_id} ended without a result, in state {job.state}; its log: {job.paths.stderr}"
                    ),
                )
        time.sleep(every if waiting else 0)
