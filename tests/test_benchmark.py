"""What the benchmark times, and that what it writes can be read; not how fast this machine is."""

import dataclasses
import itertools
import json
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import benchmark
import pytest
import torch

from reproduce.config import Config
from reproduce.files import ROOT
from reproduce.loop.devices import uses_bfloat16
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError

TINY = {
    "dataset": "cifar10",
    "augmentation": "images",
    "width": 4,
    "batch_size": 8,
    "n_heads": 2,
    "head_hidden": 8,
    "projection_dim": 4,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    monkeypatch.setitem(benchmark.SIDE, "cpu", 64)


def test_a_step_beside_busy_processes(monkeypatch):
    """They compute while a step is timed and end with it, and the threads are as before."""
    others, popen = [], benchmark.subprocess.Popen
    monkeypatch.setattr(
        benchmark.subprocess, "Popen", lambda *given: others.append(popen(*given)) or others[-1]
    )
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found = benchmark.threads(Config.from_params(TINY), 0.03, busy=(0, 1))
    torch.set_num_threads(before)
    rows = found["rows"]
    assert [(r["busy"], r["threads"]) for r in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert rows[0]["times_one_thread"] == 1
    for row in rows:
        ratio = row["seconds"] / rows[0]["seconds"]
        assert 0 < row["times_one_thread"] == pytest.approx(ratio)
    assert len(others) == 1 and others[0].poll() is not None


def test_in_turns_gives_the_time_of_each(monkeypatch):
    """By this clock, on which another program once takes a second."""
    now, done = [0.0], []
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def work(name, seconds):
        done.append(name)
        now[0] += seconds + (len(done) == 30)

    pieces = {"short": lambda: work("short", 0.002), "long": lambda: work("long", 0.02)}
    took = benchmark.time_interleaved(pieces, torch.device("cpu"), 0.1)
    assert took == {"short": pytest.approx(0.002), "long": pytest.approx(0.02)}
    assert len(done) > 40 and len([*itertools.groupby(done)]) == 2 + 2 * 3, "in three rounds"


@pytest.mark.parametrize("native", [False, True])
def test_step_times_every_precision_that_the_device_computes_in(tmp_path, monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    config = Config.from_params(TINY)
    found = benchmark.run(config, "step", 0.03, str(tmp_path / "b.json"))
    precisions = ["float32", "bfloat16"] if native else ["float32"]
    assert [r["precision"] for r in found["rows"]] == precisions
    for row in found["rows"]:
        # no bounds on times: other work on the machine may hit any of them
        for part in ("augmentation", "network"):
            share = row["step_images_per_second"] / row[f"{part}_images_per_second"]
            assert row[f"{part}_share"] == pytest.approx(share) and share > 0
        assert 0 < row["tflops"] / row["product_tflops"] == pytest.approx(row["share_of_product"])
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["rows"] == found["rows"] and written["provenance"]["source"]


def test_the_flops_are_those_of_the_network():
    """Twice the images of a batch, twice the work: the share of the time may change, the count may
    not."""
    config = Config.from_params({**TINY, "critic": "log_dot"})
    counts = []
    for b in (8, 16):
        row = benchmark.step(config.replace(batch_size=b), 0.02)["rows"][0]
        counts.append(row["tflops"] / row["step_images_per_second"])  # operations per image
    assert counts[1] == pytest.approx(counts[0], rel=0.15)


@pytest.mark.parametrize("method", ["deepcluster", "pcl"])
def test_methods_with_pseudo_labels_are_timed_too(method):
    extra = (
        {"pseudo_clusters": 5}
        if method == "deepcluster"
        else {"queue_size": 16, "prototypes": "2 4", "prototype_warmup": 0}
    )
    config = Config.from_params(
        {k: v for k, v in TINY.items() if k not in ("n_heads", "head_hidden", "projection_dim")}
        | {"method": method}
        | extra
    )
    assert benchmark.step(config, 0.01)["rows"][0]["step_images_per_second"] > 0


@pytest.mark.parametrize("name", ["cifar10-cpu-heads", "imagenet-deepcluster"])
def test_views_of_a_presets_loop_have_its_batch_size(name):
    given = read_settings(ROOT / "notebooks" / "settings" / f"{name}.yaml")
    small = dict(batch_size=8, backbone="compact", stem="cifar", width=4, view_size=16)
    given |= {**small, "n_clusters": 2, "weights": "", "freeze": False, "neighbours": 0}
    config = dataclasses.replace(Config(), **given)
    seen = []
    for near in (0, 20):
        work, _ = benchmark.loop(
            dataclasses.replace(config, neighbours=near), "float32", torch.device("cpu")
        )
        seen.append([len(view) for view in work["augmentation"]()])
    assert seen == [[8] * config.n_views] * 2


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
def test_seconds_out_of_range(seconds, tmp_path):
    with pytest.raises(ConfigError, match="seconds must be"):
        benchmark.run(Config.from_params(TINY), "step", seconds, str(tmp_path / "b.json"))
    assert not list(tmp_path.iterdir())


def test_kmeans_beside_scikit_learn(monkeypatch):
    monkeypatch.setattr(benchmark, "KMEANS", ((600, 5, 3), (400, 20, 1)))
    rows = benchmark.kmeans(repeats=1)["rows"]
    assert [(r["n"], r["k"], r["restarts"]) for r in rows] == [(600, 5, 3), (400, 20, 1)]
    for row in rows:
        assert row["ratio"] == row["ours"] / row["theirs"] > 0 and row[
            "inertia_ratio"
        ] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("installed", [True, False])
def test_kmeans_on_many_samples(monkeypatch, installed):
    if installed:
        pytest.importorskip("faiss", reason="faiss is an extra of the benchmark")
    else:
        monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    found = benchmark.kmeans_large(3000, k=12, iterations=3)
    names = [row["k-means"] for row in found["rows"]]
    assert names == ["k-means++", "MiniBatchKMeans"] + ["faiss"] * installed
    assert ("without faiss: pip" in found["note"]) is not installed
    ratios = [row["inertia_ratio"] for row in found["rows"]]
    assert min(ratios) == 1 and max(ratios) < 1.1
    for row in found["rows"]:
        assert min(row["seconds"], row["cpu_seconds"]) > 0 <= row["MiB"] < 500 and row["n"] == 3000


@pytest.mark.parametrize("what, samples", [("kmeans", 999), ("kmeans", -1), ("step", 5000)])
def test_samples_out_of_range(what, samples):
    with pytest.raises(ConfigError, match=f"samples must be .* got {samples}: {what}"):
        benchmark.run(Config.from_params(TINY), what, samples=samples)


def test_beside_lightly_or_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("lightly.loss", reason="lightly is an extra of the benchmark")
    row = benchmark.run(Config.from_params(TINY), "peer", 0.03, str(tmp_path / "b.json"))["rows"][0]
    rates = row["ours_images_per_second"], row["lightly_images_per_second"]
    assert row["times_lightly"] == pytest.approx(rates[0] / rates[1])


def test_what_the_readme_calls_works_on_digits_too():
    small = dict(batch_size=16, width=4, head_hidden=8, projection_dim=8, n_heads=2)
    assert benchmark.step(Config.from_params(small), 0.01)["rows"][0]["step_images_per_second"] > 0


def test_a_peer_of_digits_is_refused(monkeypatch):
    for name in ("lightly.loss", "lightly.models.modules", "lightly.transforms"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    with pytest.raises(ConfigError, match="augmentation is 'digits' and dataset 'digits'"):
        benchmark.peer(Config())


def test_without_lightly_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    with pytest.raises(ConfigError, match="lightly is not installed: pip install"):
        benchmark.peer(Config.from_params(TINY))


@pytest.mark.parametrize(
    "flags, backbone, expected",
    [
        ({}, "compact", False),
        ({"amx_bf16": True}, "compact", True),
        ({"avx512_bf16": True}, "small", False),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_computes_in_it(monkeypatch, flags, backbone, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    config = Config.from_params({**TINY, "backbone": backbone})
    assert uses_bfloat16(config, torch.device("cpu")) is expected
    assert uses_bfloat16(config, torch.device("cuda"))
    assert uses_bfloat16(config.replace(precision="bfloat16"), torch.device("cpu"))
    assert not uses_bfloat16(config.replace(precision="float32"), torch.device("cuda"))
