"""The count of a run's operations, against counts by hand and against what really ran."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from reproduce import Config, fit, processes
from reproduce.__main__ import main
from reproduce.evaluation.extractor import Extractor
from reproduce.methods import METHODS
from reproduce.networks import muon
from reproduce.report import results
from reproduce.runs import flops
from reproduce.runs.directory import Run
from reproduce.settings import types_of

TINY = {"width": 4, "limit": 150, "epochs": 2, "batch_size": 16, "trace_images": 2}
OWN = {
    "crlc": {"n_heads": 2},
    "moco": {"queue_size": 64},
    "pcl": {"queue_size": 64, "prototypes": "3 5", "prototype_warmup": 1},
    "propos": {"prototype_warmup": 1},
    "deepcluster": {"pseudo_clusters": 12},
}


def tiny(tmp_path, method="crlc", **settings):
    given = {"method": method, "results_dir": str(tmp_path), **TINY, **OWN.get(method, {})}
    return Config.from_params({**given, **settings})


def trained(config):
    rows = list(fit(config))
    return Run(config), rows


# ---- by hand


@pytest.mark.parametrize("first", [True, False])
def test_one_convolution(first):
    """4 images of 3 channels and 8 x 6 pixels, padded, to 5 channels: 9 x 3 multiply-adds for each
    of 4 x 5 x 48 outputs; on the way back as many for the weights and as many for the input, of
    which the first layer needs none."""
    with torch.device("meta"):
        conv, x = torch.nn.Conv2d(3, 5, 3, padding=1), torch.empty(4, 3, 8, 6)
        count = flops.operations(lambda: conv(x.requires_grad_(not first)).sum().backward())
    assert count == (2 if first else 3) * 2 * (9 * 3) * (4 * 5 * 48)


@pytest.mark.parametrize("first", [True, False])
def test_one_linear_layer(first):
    with torch.device("meta"):
        linear, x = torch.nn.Linear(7, 5), torch.empty(4, 7)
        count = flops.operations(lambda: linear(x.requires_grad_(not first)).sum().backward())
    assert count == (2 if first else 3) * 2 * 4 * 7 * 5


def test_simclr_on_digits():
    """64 images in two views of 8 x 8 pixels; four convolutions, of which the last sees 4 x 4;
    two linear layers; the products of all pairs of 128 projections, and their two gradients."""
    n, w = 2 * 64, 32
    first = 2 * (n * 64) * (9 * 1 * w)
    inner = 2 * (n * 64) * (9 * w * w)
    last = 2 * (n * 16) * (9 * w * 2 * w)
    projector = 2 * n * (2 * w * 128 + 128 * 128)
    pairs = 2 * n * n * 128
    by_hand = 2 * first + 3 * (2 * inner + last + projector + pairs)
    config = Config.from_params({"method": "simclr"})
    assert flops.of_step(config, 1, 10) == by_hand
    # 1797 images are 28 whole batches
    assert flops.of_epochs(config, 60, 1, 10, 1797) == pytest.approx(60 * 28 * by_hand / 1e15)


def test_resnet50_takes_the_four_billion_multiply_adds_that_it_is_known_for():
    photos = {"dataset": "imagenet10", "folder": "x", "augmentation": "images", "view_size": 224}
    network = {"backbone": "resnet50", "stem": "imagenet", "method": "simclr"}
    config = Config.from_params({**photos, **network, "batch_size": 256})
    features = flops._of_image(config, 3, 10)[1]
    assert features == 2 * (
        4_089_184_256 - 2048 * 1000
    )  # torchvision's own, without its classifier


def test_the_presets_for_a_cpu():
    config = Config(**results.presets()["cifar10-cpu"])
    four, all_45 = (flops.of_epochs(config, n, 3, 10, 50_000) for n in (4, 45))
    assert four == pytest.approx(0.0752, abs=1e-4) and all_45 == pytest.approx(45 / 4 * four)


# ---- beside what really ran

CASES = [
    *[(method, {}) for method in METHODS],
    ("crlc", {"views": "apart", "n_views": 3, "critic": "dot", "batchnorm_split": 4}),
    ("byol", {"batchnorm_split": 2, "shuffle_keys": True}),
    ("simclr", {"sobel": True, "backbone": "compact", "width": 2, "precision": "bfloat16"}),
    ("crlc", {"optimizer": "muon"}),
    ("crlc", {"n_views": 3, "negatives": "all", "covariance_weight": 0.1}),
    ("crlc", {"n_views": 3, "neighbour_weight": 0.5, "neighbour_queue": 32}),
    ("crlc", {"negatives": "all", "neighbour_weight": 1, "neighbour_queue": 64}),
    ("crlc", {"projector_batchnorm": True}),
    ("byol", {"eval_batchnorm": "measured"}),
    ("crlc", {"augmentation": "images", "view_sizes": "6x1 12x1", "eval_flip": True}),
    ("simsiam", {"augmentation": "images", "view_size": 12, "eval_size": 16, "split": "test"}),
    ("simsiam", {"augmentation": "images", "split": "test", "eval_flip": True}),
]  # fmt: skip


@pytest.mark.parametrize("method, settings", CASES)
def test_a_run_costs_what_it_computes(method, settings, tmp_path, monkeypatch):
    steps, passes = counted(monkeypatch)
    check(*trained(tiny(tmp_path, method, **settings)), steps, passes)


@pytest.mark.parametrize("augmentation, method", [("none", "crlc"), ("digits", "cc")])
def test_heads_on_a_frozen_network(augmentation, method, tmp_path, monkeypatch):
    start, _ = trained(tiny(tmp_path))
    steps, passes = counted(monkeypatch)
    settings = {"freeze": True, "neighbours": 5, "augmentation": augmentation}
    run, rows = trained(tiny(tmp_path, method, weights=str(start.path), **settings))
    check(run, rows, steps, passes)


def counted(monkeypatch):
    """The operations of each step and of each pass without gradients, as they really run."""
    steps, passes, loss_of = [], [], processes.loss_of
    extract = Extractor.__call__

    def noted_loss_of(method):
        def loss(views, index):
            named = {}
            learnt = [p for p in method.parameters() if p.requires_grad]

            def both_ways():
                named.update(loss_of(method)(views, index))
                torch.autograd.grad(named["loss"], learnt, retain_graph=True, allow_unused=True)

            steps.append(flops.operations(both_ways))
            return named

        return loss

    def noted_extract(*given, **how):
        found = []
        passes.append(flops.operations(lambda: found.append(extract(*given, **how))))
        return found[0]

    orthogonalized = muon.orthogonalized

    def noted_orthogonalized(matrix):
        found = []
        if matrix.device.type != "meta":
            steps[-1] += flops.operations(lambda: found.append(orthogonalized(matrix)))
        return found[0] if found else orthogonalized(matrix)

    monkeypatch.setattr(muon, "orthogonalized", noted_orthogonalized)
    measure = Extractor.measure_batchnorm

    def noted_measure(self, pixels):
        passes.append(flops.operations(lambda: measure(self, pixels)))

    monkeypatch.setattr(processes, "loss_of", noted_loss_of)
    monkeypatch.setattr(Extractor, "__call__", noted_extract)
    monkeypatch.setattr(Extractor, "measure_batchnorm", noted_measure)
    return steps, passes


def check(run, rows, steps, passes):
    metrics, each = run.json("metrics.json"), len(steps) // run.config.epochs
    assert each == metrics["data"]["n_train"] // run.config.batch_size
    assert metrics["pflop"] == pytest.approx(sum(steps) / 1e15, rel=1e-12)
    assert metrics["evaluation_pflop"] == pytest.approx(sum(passes) / 1e15, rel=1e-12)
    so_far = [sum(steps[: each * row["epoch"]]) / 1e15 for row in rows]
    assert [row["pflop"] for row in rows] == pytest.approx(so_far, rel=1e-12)
    assert [row["pflop"] for row in run.history()] == pytest.approx(so_far, rel=1e-5)


def test_one_count_does_for_runs_that_differ_in_nothing_that_is_multiplied():
    """Every setting that the count passes over, at another value: the same step, counted anew."""
    fields = [f for f in dataclasses.fields(Config) if f.name in flops.SAME]
    for method in METHODS:
        config = Config(method=method, width=4, batch_size=8, queue_size=64, prototypes="3 5")
        other = dataclasses.replace(config, **{f.name: another(f) for f in fields})
        count, same = (flops._of_step.__wrapped__(c, 1, 4, True) for c in (config, other))
        assert count == same, method


def another(field):
    """A value that is not the default."""
    choices, high = field.metadata["choices"], field.metadata["high"]
    kind = types_of(Config)[field.name]
    if kind is bool:
        return not field.default
    if kind is str:
        return next(c for c in choices or ["elsewhere"] if c != field.default)
    return field.default / 2 + 0.2 if kind is float else min(field.default + 1, high or 9)


def test_counting_draws_no_random_number_and_changes_no_weight(tmp_path, monkeypatch):
    flops._of_step.cache_clear()
    before = torch.get_rng_state()
    for method in METHODS:
        flops.of_step(tiny(tmp_path, method), 1, 10, True)
        flops.of_evaluation(tiny(tmp_path, method), 1, 10, 150, 150)
    assert torch.equal(torch.get_rng_state(), before)
    run, _ = trained(tiny(tmp_path / "counted"))
    monkeypatch.setattr(flops, "of_step", lambda *_: 1)
    other, _ = trained(tiny(tmp_path / "not"))
    digests = [r.json("metrics.json")["weights_sha256"] for r in (run, other)]
    assert digests[0] == digests[1]


def test_each_of_several_processes_counts_the_whole_batch(tmp_path, monkeypatch):
    config = tiny(tmp_path)
    alone = flops._of_step.__wrapped__(config, 1, 10, False)
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(processes.dist, "get_rank", lambda: 1)
    assert flops._of_step.__wrapped__(config, 1, 10, False) == alone
    assert (processes.world(), processes.rank()) == (2, 1)


# ---- runs that followed others, and runs that are older than the count


@pytest.fixture
def chain(tmp_path):
    """Three runs, each from the one before it."""
    runs = []
    for seed in range(3):
        start = str(runs[-1].path) if runs else ""
        runs.append(trained(tiny(tmp_path / "runs", seed=seed, epochs=seed + 1, weights=start))[0])
    return runs


def forget(run):
    """As a run that is older than the count."""
    metrics = run.json("metrics.json")
    kept = {k: v for k, v in metrics.items() if "pflop" not in k}
    (run.path / "metrics.json").write_text(json.dumps(kept))


def test_what_the_start_had_cost_is_told_too(chain, tmp_path):
    each = [run.json("metrics.json") for run in chain]
    one = each[0]["pflop"]
    assert [m["pflop"] for m in each] == pytest.approx([one, 2 * one, 3 * one])
    assert "pflop_with_start" not in each[0]
    assert [m["pflop_with_start"] for m in each[1:]] == pytest.approx([3 * one, 6 * one])

    def table():
        loaded = results.load(tmp_path / "runs").sort_values("seed")
        return loaded[["pflop", "pflop_with_start"]].to_numpy().ravel().tolist()

    told = [n * one for n in (1, 1, 2, 3, 3, 6)]
    assert table() == pytest.approx(told)
    for run in chain:
        forget(run)
    assert table() == pytest.approx(told)  # counted from their settings
    shutil.rmtree(chain[0].path)
    assert table() == pytest.approx([2 * one, float("nan"), 3 * one, float("nan")], nan_ok=True)


def test_a_folder_of_older_runs_is_counted_once(chain, tmp_path, capsys, monkeypatch):
    for run in chain:
        forget(run)
    assert main(["pflop", str(tmp_path / "runs")]) == 0
    file = tmp_path / "runs" / "pflop.csv"
    lines = file.read_text().splitlines()
    assert lines[0] == "run,pflop,pflop_with_start" and len(lines) == 4
    assert capsys.readouterr().out.splitlines() == [*lines, str(file)]
    before = results.load(tmp_path / "runs")
    monkeypatch.setattr(flops, "of_step", None)
    assert results.load(tmp_path / "runs").equals(before)
    # what a run says itself stands before what the file says
    content = chain[0].json("metrics.json") | {"pflop": 7.0}
    (chain[0].path / "metrics.json").write_text(json.dumps(content))
    after = results.load(tmp_path / "runs").set_index("seed")
    assert after.loc[0, ["pflop", "pflop_with_start"]].tolist() == [7.0, 7.0]


def test_the_committed_count_is_that_of_the_committed_runs():
    """Of every method and network, and of heads that followed another run, the first."""
    table = results.load()
    assert table[["pflop", "pflop_with_start"]].notna().all(axis=None)
    some = table.drop_duplicates(["dataset", "method", "backbone", "freeze"])
    assert some["method"].nunique() == 9 and some["freeze"].any()
    for run in some.to_dict("records"):
        found = flops.of_directory(Path(run["path"]))
        assert {k: run[k] for k in flops.COLUMNS} == pytest.approx(found, rel=1e-5), run["path"]


def test_published_figures_stand_beside_their_arithmetic():
    """Those that a preset aims at as in published.csv, with the preset's count; the others by the
    epochs or the patches of SimCLR on the same network."""
    points = pd.read_csv(results.runs.ROOT / "results" / "compute.csv", keep_default_na=False)
    known = pd.read_csv(results.runs.ROOT / "results" / "published.csv")
    known = known[known["dataset"] == "CIFAR-10"].dropna(subset=["preset"])
    aims = {name: row for row in known.to_dict("records") for name in row["preset"].split()}
    for point in points[points["preset"] != ""].to_dict("records"):
        aim = aims[point["preset"]]
        assert point["value"] == aim["acc" if point["metric"] == "ACC" else "knn"]
        assert (point["method"], point["source"]) == (aim["method"], aim["source"])
    for name in ("cifar10-simclr", "cifar10-paper"):
        config = Config(**results.presets()[name])
        (told,) = points.loc[points["preset"] == name, "pflop"]
        assert told == pytest.approx(flops.of_epochs(config, config.epochs, 3, 10, 50_000), 0.01)
    (simclr,) = points.loc[points["preset"] == "cifar10-simclr", "pflop"]
    for point in points[points["preset"] == ""].to_dict("records"):
        if words := re.match(r"ResNet-18, (\d+) epochs?( of (\d+) patches)?", point["setting"]):
            views = int(words[1]) * int(words[3] or 2)
            assert point["pflop"] == pytest.approx(simclr * views / 1600, 0.01), point
    assert points["source"].all() and set(points["verified"]) == {"yes", "no"}
