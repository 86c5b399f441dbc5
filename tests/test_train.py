"""The loop, its checkpoints and its run directory, on real digits with few epochs."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reproduce import Config, ConfigError, Diverged, data, fit, losses
from reproduce import train as loop
from reproduce.data.sets import write_cached
from reproduce.evaluation import Evaluator, monitors
from reproduce.evaluation.extractor import MEASURED
from reproduce.evaluation.probes import knn_accuracy
from reproduce.evaluation.scores import Scores
from reproduce.loop import devices, keeping
from reproduce.loop.drawing import draw_order
from reproduce.loop.optimizers import build_optimizer
from reproduce.methods import METHODS
from reproduce.networks import backbones
from reproduce.report import results
from reproduce.runs import flops, loggers
from reproduce.runs.directory import Run, find
from reproduce.runs.provenance import source_tree
from reproduce.runs.trained import Trained
from reproduce.schedules import learning_rate
from reproduce.sweeps import launch

QUICK = {
    "epochs": 3,
    "width": 4,
    "n_heads": 3,
    "head_hidden": 16,
    "limit": 300,
    "evaluate_every": 1,
    "trace_images": 5,
}

PLAIN = {
    "n_heads": 10,
    "head_hidden": 128,
}  # as they are by default: methods other than CRLC do not know all of QUICK


@pytest.fixture
def config(tmp_path):
    return Config.from_params(
        {**QUICK, "results_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "data")}
    )


def train(config):
    run = Run(config)
    return run, list(fit(config, run))


def test_a_run_leaves_everything_behind(config):
    run, rows = train(config)
    assert [r["epoch"] for r in rows] == [1, 2, 3]
    assert {
        "loss",
        "feature_contrast",
        "probability_contrast",
        "entropy",
        "images_per_second",
        "aligned_average_acc",
    } <= rows[0].keys()
    assert sorted(p.name for p in run.path.iterdir()) == [
        "apply.npz",
        "config.json",
        "embeddings.npz",
        "history.csv",
        "metrics.json",
        "model.pt",
        "provenance.json",
        "traces.npz",
    ]
    assert not run.partial.exists()
    metrics = run.json("metrics.json")
    assert metrics["status"] == "finished" and len(metrics["heads"]) == 3
    assert metrics["data"]["n_train"] == 300 and len(metrics["data"]["sha256"]) == 64
    assert set(metrics["scores"]) == {
        "first_head",
        "mean_of_heads",
        "lowest_loss_head",
        "aligned_average",
        "best_head_oracle",
        "best_epoch_and_head_oracle",
        "kmeans_embedding",
        "kmeans_pixels",
    }
    traces = np.load(run.path / "traces.npz")
    assert traces["probabilities"].shape == (4, 5, 3, 10) and traces["mass"].shape == (
        4,
        3,
        10,
    )  # before training and 3 epochs
    np.testing.assert_allclose(traces["probabilities"].astype(float).sum(-1), 1, atol=2e-3)
    assert run.json("config.json")["lambda1"] == 1.0 and "results_dir" not in run.json(
        "config.json"
    )
    assert run.json("provenance.json")["source"] == source_tree()
    assert [r["loss"] for r in run.history()] == pytest.approx([r["loss"] for r in rows], rel=1e-5)


def test_the_lowest_loss_head_and_the_oracle_are_what_they_say(config):
    metrics = train(config)[0].json("metrics.json")
    losses, accuracies = ([h[k] for h in metrics["heads"]] for k in ("loss", "acc"))
    assert metrics["scores"]["lowest_loss_head"]["acc"] == accuracies[int(np.argmin(losses))]
    assert metrics["scores"]["best_head_oracle"]["acc"] == max(accuracies)
    assert metrics["scores"]["first_head"]["acc"] == accuracies[0]
    assert metrics["scores"]["mean_of_heads"]["acc"] == pytest.approx(np.mean(accuracies))


@pytest.mark.usefixtures("each_epoch")
def test_the_authors_rule_is_the_best_head_of_the_best_epoch(config, monkeypatch):
    """By label, over all evaluations, also across an interruption; the last epoch's rules stay."""
    seen = []
    keep_best = Scores.keep_best

    def noted(self, epoch, accuracies, heads):
        seen.append((epoch, accuracies))
        keep_best(self, epoch, accuracies, heads)

    monkeypatch.setattr(Scores, "keep_best", noted)
    config = config.replace(epochs=6, evaluate_every=1, learning_rate=1.0, schedule="constant")
    stopped = fit(config, Run(config))
    list(itertools.islice(stopped, 4))
    stopped.close()
    run, _ = train(config)
    acc = np.array([accuracies for _, accuracies in seen])
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5, 6]
    epoch, head = np.unravel_index(acc.argmax(), acc.shape)
    found = run.json("metrics.json")["scores"]
    oracle = found["best_epoch_and_head_oracle"]
    assert oracle["acc"] == acc.max() >= found["best_head_oracle"]["acc"] == acc[-1].max()
    assert (oracle["epoch"], oracle["head"]) == (epoch + 1, head) and {"nmi", "ari"} <= set(oracle)


def test_features_are_extracted_in_float32(config, monkeypatch):
    """Training runs in bfloat16 here; what is clustered, scored and kept never does."""
    method, kinds = METHODS["propos"], {"loss": set(), "project": set(), "outputs": set()}

    def spied(name):
        original = getattr(method, name)

        def spy(self, *args):
            found = original(self, *args)
            first = found["backbone"] if name == "outputs" else found
            kind = self.training, torch.is_autocast_enabled("cpu"), getattr(first, "dtype", None)
            if next(self.parameters()).device.type != "meta":  # where operations are counted
                kinds[name].add(kind)
            return found

        monkeypatch.setattr(method, name, spy)

    for name in kinds:
        spied(name)
    train(config.replace(**PLAIN, method="propos", precision="bfloat16", prototype_warmup=0))
    assert kinds["outputs"] == {(False, False, torch.float32)}
    assert kinds["loss"] == {(True, True, None)}
    assert kinds["project"] == {(True, True, torch.bfloat16)}


def test_same_seed_same_bits_other_seed_other_bits(config):
    first = train(config)[0].json("metrics.json")["weights_sha256"]
    again = train(config.replace(resume=False))[0].json("metrics.json")["weights_sha256"]
    other = train(config.replace(seed=1))[0].json("metrics.json")["weights_sha256"]
    assert first == again != other


@pytest.mark.usefixtures("each_epoch")
@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize("sampler", ["epoch", "endless"])
def test_an_interrupted_run_continues_to_the_same_bits(config, tmp_path, stop_after, sampler):
    config = config.replace(sampler=sampler)
    whole, rows = train(config.replace(results_dir=str(tmp_path / "whole")))
    interrupted = Run(config)
    stopped = fit(config, interrupted)
    list(itertools.islice(stopped, stop_after))
    stopped.close()
    assert not interrupted.finished and (interrupted.partial / "checkpoint.pt").exists()
    run, continued = train(config)
    assert run.notes == [f"continued after epoch {stop_after} from checkpoint.pt"]
    timing = {"seconds", "images_per_second"}
    assert [{k: v for k, v in r.items() if k not in timing} for r in continued] == [
        {k: v for k, v in r.items() if k not in timing} for r in rows
    ]
    for key in ("weights_sha256", "scores", "heads"):
        assert run.json("metrics.json")[key] == whole.json("metrics.json")[key]
    for a, b in zip(
        np.load(run.path / "traces.npz").values(), np.load(whole.path / "traces.npz").values()
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": "muon"},
        {"neighbour_weight": 0.5, "neighbour_queue": 128},
        {**PLAIN, "method": "pcl", "prototypes": "5 20", "queue_size": 256, "prototype_warmup": 1},
        {**PLAIN, "method": "propos", "sigma": 0.1, "prototype_warmup": 1},
        {**PLAIN, "method": "deepcluster", "pseudo_clusters": 20, "sampler": "endless"},
    ],
    ids=["crlc", "muon", "neighbours", "pcl", "propos", "deepcluster"],
)
def test_a_run_interrupted_within_an_epoch_continues_to_the_same_bits(config, tmp_path, change):
    """After the first step of the second epoch, where prototypes or neighbours are in the loss
    already."""
    config = config.replace(**change, checkpoint_minutes=0)
    whole, _ = train(config.replace(results_dir=str(tmp_path / "whole")))
    stopped = Run(config)

    def stop(step, steps):
        if step == steps // 3 + 2:  # before its checkpoint is written
            raise KeyboardInterrupt

    stopped.on_step = stop
    with pytest.raises(KeyboardInterrupt):
        list(fit(config, stopped))
    run, rows = train(config)
    assert run.notes == ["continued after epoch 1 and 1 step from checkpoint.pt"]
    known = whole.history()
    for row, expected in zip(rows, known, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for key in ("weights_sha256", "scores"):
        assert run.json("metrics.json")[key] == whole.json("metrics.json")[key]


def test_seconds_are_those_of_the_steps_whole_or_continued(config, monkeypatch):
    """By this clock a step takes a second, an interruption an hour, and nothing else any time."""
    now, config = [0.0], config.replace(checkpoint_minutes=0)
    monkeypatch.setattr(keeping, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def stepped(until: int):
        def on_step(step, steps):
            if step > until:  # its checkpoint is not written
                now[0] += 3600
                raise KeyboardInterrupt
            now[0] += 1

        return on_step

    for until in (5, 8, 12):  # in the second epoch of three with four steps, at its end, never
        run, rows = Run(config), []
        run.on_step = stepped(until)
        with contextlib.suppress(KeyboardInterrupt):
            rows = list(fit(config, run))
    assert [row["seconds"] for row in rows] == [4, 4, 4]
    assert [row["images_per_second"] for row in rows] == [64, 64, 64]
    metrics = run.json("metrics.json")
    assert (metrics["seconds"], metrics["images_per_second"]) == (12, 64)


def test_an_endless_sampler_drops_no_image(config, monkeypatch):
    """Two steps of 16 of 40 images an epoch: after five each was shown four times."""
    shown, loss = [], METHODS["crlc"].loss

    def noted(self, views, index):
        if index.device.type != "meta":  # where operations are counted, without numbers
            shown.append(index)
        return loss(self, views, index)

    monkeypatch.setattr(METHODS["crlc"], "loss", noted)
    train(config.replace(sampler="endless", limit=40, batch_size=16, epochs=5, evaluate_every=5))
    assert torch.cat(shown).bincount(minlength=40).tolist() == [4] * 40


def test_evaluation_can_see_another_size_than_training(config, monkeypatch):
    seen, forward = set(), backbones.Small.forward

    def noted(self, x):
        seen.add((self.training, x.shape[-1]))
        return forward(self, x)

    monkeypatch.setattr(backbones.Small, "forward", noted)
    monkeypatch.setattr(monitors, "two_views", lambda *_: torch.ones(2, 3, 4))  # as in training
    train(config.replace(augmentation="images", view_size=6, eval_size=12))
    assert seen == {(True, 6), (False, 12)}


def test_views_grow_while_the_rate_has_one_peak(config, tmp_path, monkeypatch):
    """Each epoch at its size, also where the run is continued within one; evaluation at the last
    size; and the steps are counted at the size that they had."""
    seen, forward = [], backbones.Small.forward

    def noted(self, x):
        if x.device.type != "meta":  # where steps are counted
            seen.append((self.training, x.shape[-1]))
        return forward(self, x)

    monkeypatch.setattr(backbones.Small, "forward", noted)
    growing = config.replace(
        augmentation="images", view_sizes="6x1, 10x2", limit=128, checkpoint_minutes=0
    )
    whole, rows = train(growing.replace(results_dir=str(tmp_path / "whole")))
    n = whole.json("metrics.json")["data"]["n_train"]
    steps = n // growing.batch_size
    sizes = [side for training, side in seen if training]
    assert sizes == [6] * steps + [10] * 2 * steps
    assert {side for training, side in seen if not training} == {10}
    rates = [learning_rate("onecycle", 0.4, e * steps - 1, 3 * steps) for e in (1, 2, 3)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    small, large = (
        flops.of_epochs(growing.replace(view_sizes="", view_size=side), 1, 1, 10, n)
        for side in (6, 10)
    )
    assert [row["pflop"] for row in rows] == pytest.approx(
        [small, small + large, small + 2 * large]
    )
    seen.clear()
    stopped = Run(growing)

    def stop(step, of):
        if step == steps + 1:  # in the second epoch
            raise KeyboardInterrupt

    stopped.on_step = stop
    with pytest.raises(KeyboardInterrupt):
        list(fit(growing, stopped))
    seen.clear()
    run, _ = train(growing)
    assert [side for training, side in seen if training] == [10] * (2 * steps)
    digests = [r.json("metrics.json")["weights_sha256"] for r in (whole, run)]
    assert digests[0] == digests[1]


def test_batch_norm_is_measured_as_evaluation_sees_images(config, monkeypatch):
    """The statistics that are kept are those of whole images, by a loop over batches; what is
    trained stays as it is."""
    change = {"augmentation": "images", "view_size": 6, "eval_size": 12, "limit": 0}
    plain, rows = train(config.replace(**change))
    run, other = train(config.replace(**change, eval_batchnorm="measured"))
    assert [row["loss"] for row in rows] == [row["loss"] for row in other]
    kept, before = (
        torch.load(r.path / "model.pt", weights_only=True)
        for r in (run, plain)
    )  # fmt: skip
    running = [name for name in kept if "running" in name]
    assert running and all(
        torch.equal(kept[name], before[name]) == ("running" not in name)
        for name in kept
        if "num_batches" not in name
    )
    trained = Trained(run.path, config.data_dir)
    net, seen = trained.method.backbone, []
    assert len(trained.images) < MEASURED  # all of them, in one batch
    net.stem[0].register_forward_hook(lambda module, given, out: seen.append(out.double()))
    net.stem[0](trained.augment.clean(trained.images.pixels))
    mean = seen[0].mean((0, 2, 3))
    variance = ((seen[0] - mean.view(-1, 1, 1)) ** 2).sum((0, 2, 3)) / (seen[0][:, 0].numel() - 1)
    torch.testing.assert_close(net.stem[1].running_mean.double(), mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(net.stem[1].running_var.double(), variance, rtol=1e-3, atol=1e-4)


def test_the_last_evaluation_is_made_once(config, monkeypatch):
    looks, whole = [], Evaluator.look
    monkeypatch.setattr(Evaluator, "look", lambda *given: looks.append(1) or whole(*given))
    train(config.replace(method="simclr", epochs=2, n_heads=10))
    assert len(looks) == 2


@pytest.mark.usefixtures("each_epoch")
def test_a_run_begun_on_another_kind_of_device_is_not_continued_here(config, monkeypatch):
    stopped = fit(config, Run(config))
    next(stopped)
    stopped.close()
    state, file = Run(config).load_checkpoint()
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="was begun on cuda: "):
        patch.setattr(Run, "load_checkpoint", lambda self: ({**state, "device": "cuda"}, file))
        list(fit(config, Run(config)))
    assert len(list(fit(config, Run(config)))) == config.epochs


def test_a_run_begun_by_an_older_version_is_not_continued(config):
    """Its checkpoints have no format, and all else in other places."""
    run = Run(config)
    with run.lock():
        run.begin_part("float32")
        run.save_checkpoint({"epoch": 1, "device": "cpu", "within": {}})
    sentence = "was begun by an older version: start anew with -p resume False$"
    with pytest.raises(ConfigError, match=sentence):
        list(fit(config, run))
    assert run.notes == [] and len(list(fit(config.replace(resume=False)))) == config.epochs


@pytest.mark.usefixtures("each_epoch")
def test_a_run_begun_on_other_images_is_not_continued(config, monkeypatch):
    stopped = fit(config, Run(config))
    next(stopped)
    stopped.close()
    load = data.load
    other = lambda c: dataclasses.replace(load(c), sha256="another")  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="begun on other images"):
        patch.setattr(data, "load", other)
        list(fit(config, Run(config)))
    assert len(list(fit(config, Run(config)))) == config.epochs


@pytest.mark.parametrize("equal", [True, False])
def test_training_anew_keeps_the_names_that_a_user_gave(config, equal):
    """They fit the new clusters only if these are the same."""
    run, _ = train(config)
    (run.path / "names.yaml").write_text("0: zero\n")
    (run.path / "clusters.json").write_text("{}")
    if not equal:
        metrics = {**run.json("metrics.json"), "weights_sha256": "another"}
        (run.path / "metrics.json").write_text(json.dumps(metrics))
    anew, _ = train(config.replace(resume=False))
    name = "names.yaml" if equal else "names.before.yaml"
    assert [p.name for p in anew.path.glob("names*")] == [name]
    assert (anew.path / name).read_text() == "0: zero\n"
    assert (anew.path / "clusters.json").read_text() == "{}", "it finds its clusters again"


def test_a_run_that_another_process_has_finished_meanwhile_is_shown(config, monkeypatch):
    load, history = data.load, []

    def slow(c):
        monkeypatch.setattr(data, "load", load)
        history.extend(list(fit(config, Run(config))))
        monkeypatch.setattr(loop, "train", None)  # a second time would raise
        return load(c)

    monkeypatch.setattr(data, "load", slow)
    assert [row["epoch"] for row in fit(config, Run(config))] == [row["epoch"] for row in history]
    assert not Run(config).partial.exists()


def test_what_a_kill_within_finish_left_does_not_stop_the_next(config):
    run, _ = train(config)
    left = run.path.with_name(f".{run.path.name}.old.partial")
    left.mkdir()
    (left / "model.pt").write_bytes(b"old")
    anew, _ = train(config.replace(resume=False))
    assert anew.finished and not left.exists()


@pytest.mark.usefixtures("each_epoch")
def test_a_damaged_checkpoint_is_passed_over_and_said_so(config):
    stopped = fit(config, Run(config))
    list(itertools.islice(stopped, 2))
    stopped.close()
    file = Run(config).partial / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    run, rows = train(config)
    assert run.notes == [
        "checkpoint.pt is damaged and was passed over",
        "continued after epoch 1 from checkpoint.previous.pt",
    ]
    assert len(rows) == 3


def test_a_finished_run_is_shown_not_trained(config, monkeypatch):
    rows = train(config)[1]
    monkeypatch.setattr(loop, "train", None)
    run, shown = train(config)
    assert [r["loss"] for r in shown] == pytest.approx([r["loss"] for r in rows], rel=1e-5)
    assert "already finished" in run.notes[0]


def test_two_processes_on_one_run_are_refused(config):
    with Run(config).lock(), pytest.raises(ConfigError, match="being written by process"):
        next(fit(config, Run(config)))


@pytest.mark.usefixtures("each_epoch")
def test_a_loss_that_is_not_finite_stops_the_run(config, monkeypatch):
    run = Run(config.replace(epochs=5))
    training = fit(run.config, run)
    next(training)
    monkeypatch.setattr(losses, "batch_entropy", lambda p: p.sum((-2, -1)) * float("nan"))
    with pytest.raises(Diverged, match=r"^loss is nan at epoch 2, step 0"):
        list(training)
    assert find(config.results_dir) == [] and not run.finished
    metrics = json.loads((run.partial / "metrics.json").read_text())
    assert metrics["status"] == "diverged" and metrics["epochs"] == 1
    assert run.load_checkpoint()[0]["at"]["epoch"] == 1  # the last good one is kept


def test_weights_that_the_last_step_made_infinite_stop_the_run(config, monkeypatch):
    def break_weights(method, step, steps):
        if step == steps - 1:
            next(method.parameters()).data.fill_(torch.inf)

    monkeypatch.setattr(METHODS["crlc"], "after_step", break_weights)
    run = Run(config)
    with pytest.raises(Diverged, match="^the weights are not finite after epoch"):
        list(fit(config, run))
    metrics = json.loads((run.partial / "metrics.json").read_text())
    assert metrics["status"] == "diverged" and metrics["epochs"] == config.epochs - 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 301}, "batch_size is 301, more than the 300 images"),
        ({"n_clusters": 301}, "n_clusters is 301, more than the 300 images"),
        ({"device": "cuda"}, "device is 'cuda', but torch finds no CUDA"),
        (
            {"method": "pcl", "prototypes": "20 301", **PLAIN},
            "prototypes is '20 301': more than the 300 images",
        ),
        (
            {"method": "deepcluster", "pseudo_clusters": 301, **PLAIN},
            "pseudo_clusters is 301, more than the 300 images",
        ),
        (
            {"method": "deepcluster", "n_clusters": 31, **PLAIN},
            "pseudo_clusters is 310, more than the 300 images",
        ),
    ],
)
def test_data_that_settings_do_not_fit(config, change, message):
    if torch.cuda.is_available() and "device" in change:
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ConfigError, match=message) as caught:
        list(fit(config.replace(**change)))
    assert "\n" not in str(caught.value) and find(config.results_dir) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_device_that_is_not_there_is_said_before_anything_is_done(config, monkeypatch, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(data, "load", None)  # data that is asked for would raise another error
    monkeypatch.setattr(launch, "torchrun", None)  # as would processes
    with pytest.raises(ConfigError, match="device is 'cuda', but torch finds no CUDA"):
        list(fit(config.replace(device="cuda", processes=processes)))
    assert not Path(config.results_dir).exists()


def test_what_shall_follow_a_run_is_asked_before_its_data(config, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(data, "load", None)
    with pytest.raises(ConfigError, match="the package tensorboard is not installed"):
        list(fit(config.replace(tensorboard=True)))
    assert not Path(config.results_dir).exists()
    run = Run(config)
    run.path.mkdir(parents=True)
    (run.path / "metrics.json").write_text('{"scores": {}, "data": {}}')  # finished
    monkeypatch.setattr(data, "digest", None)
    with pytest.raises(ConfigError, match="the package tensorboard is not installed"):
        list(fit(config.replace(tensorboard=True)))


def test_the_device_of_a_setting(config, monkeypatch):
    for there, found in ((False, ["cpu", "cpu"]), (True, ["cuda", "cpu", "cuda"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        names = ("auto", "cpu", "cuda")[: len(found)]
        assert [devices.find_device(config.replace(device=n)).type for n in names] == found


def test_peak_memory_is_in_mebibytes(monkeypatch):
    monkeypatch.setattr(devices.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 << 20))
    for platform, expected in (("linux", 3 << 10), ("darwin", 3)):
        monkeypatch.setattr(devices.sys, "platform", platform)
        assert devices.peak_memory(torch.device("cpu")) == expected


def test_a_results_dir_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="results_dir.*cannot be written"):
        list(fit(config.replace(results_dir=str(tmp_path / "file"))))


@pytest.mark.usefixtures("each_epoch")
def test_a_disk_that_fills_up_ends_in_a_sentence_and_loses_nothing(config, monkeypatch):
    run = Run(config)
    training = fit(config, run)
    next(training)
    monkeypatch.setattr(
        os,
        "fsync",
        lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    with pytest.raises(
        ConfigError,
        match="cannot be written any more: No space left on device; "
        "the last whole checkpoint is kept",
    ):
        list(training)
    monkeypatch.undo()
    assert [r["epoch"] for r in train(config)[1]] == [1, 2, 3]


@pytest.mark.usefixtures("each_epoch")
@pytest.mark.parametrize("fatal", range(11))
def test_dying_at_any_rename_loses_nothing(config, tmp_path, monkeypatch, fatal):
    """The process dies at one rename, of a checkpoint or of the finished run, and is started
    again."""
    whole, rows = train(config.replace(results_dir=str(tmp_path / "whole")))
    real, renames = Path.replace, itertools.count()

    def replace(self, target):
        if next(renames) == fatal:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    try:
        list(fit(config, Run(config)))
        assert fatal == 10, (
            "three epochs rename ten times: 1, 2 and 2 for checkpoints, 1 for the run, and 4 to "
            "tell how far it is: at the start and after each checkpoint"
        )
    except KeyboardInterrupt:
        monkeypatch.undo()
    run, continued = train(config)
    assert len(continued) == len(rows) and bool(run.notes) == (fatal > 1)
    assert (
        run.json("metrics.json")["weights_sha256"] == whole.json("metrics.json")["weights_sha256"]
    )
    assert sorted(p.name for p in run.path.iterdir()) == sorted(
        p.name for p in whole.path.iterdir()
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"method": "deepcluster", "pseudo_clusters": 20},
        {"method": "pcl", "prototypes": "5 20", "prototype_warmup": 0, "queue_size": 256},
        {"method": "propos", "prototype_warmup": 0},
    ],
    ids=["crlc", "deepcluster", "pcl", "propos"],
)
def test_labels_do_not_reach_training(config, tmp_path, change):
    """The same images with shuffled labels give the same weights."""
    own = {k: v for k, v in PLAIN.items() if change}
    config = config.replace(**own, **change, epochs=2, kmeans_starts=1)
    train(config)
    path = tmp_path / "data" / "digits.npz"
    content = dict(np.load(path))
    del content["sha256"]
    write_cached(
        path, **{**content, "labels": np.random.default_rng(0).permutation(content["labels"])}
    )
    shuffled = Run(config.replace(results_dir=str(tmp_path / "shuffled")))
    list(fit(shuffled.config, shuffled))
    a, b = (r.json("metrics.json") for r in (Run(config), shuffled))
    assert a["weights_sha256"] == b["weights_sha256"] and a["scores"] != b["scores"]


def test_prototypes_that_never_come_are_said(config):
    for warmup, said in (
        (2, ["prototype_warmup is 2 and epochs 2: no prototype ever enters the loss"]),
        (1, []),
    ):
        run = Run(config.replace(**PLAIN, method="propos", epochs=2, prototype_warmup=warmup))
        list(fit(run.config, run))
        assert run.notes == said


def test_zero_epochs_evaluate_the_untrained_network(config):
    run, rows = train(config.replace(epochs=0))
    assert rows == [] and "lowest_loss_head" not in run.json("metrics.json")["scores"]
    assert results.history(results.load(config.results_dir)).empty


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adam", "learning_rate": 1e-3},
        {"normalize": False},
        {"n_clusters": 7},
        {"precision": "bfloat16"},
        {"trace_images": 0},
    ],
)
def test_a_setting_reaches_the_run(config, change):
    run, _ = train(config.replace(epochs=1, **change))
    other, _ = train(config.replace(epochs=1, results_dir=config.results_dir + "/other"))
    a, b = (r.json("metrics.json") for r in (run, other))
    assert (a["weights_sha256"] == b["weights_sha256"]) == ("trace_images" in change)
    assert a["precision"] == change.get("precision", "float32")
    assert a["data"]["n_clusters"] == change.get("n_clusters", 10)
    assert ("many_to_one_acc" in a["scores"]["first_head"]) == ("n_clusters" in change)
    with np.load(run.path / "traces.npz") as traces:
        assert len(traces["images"]) == change.get("trace_images", 5)


def test_on_a_test_part_moments_and_neighbours_are_of_the_training_part(config):
    """No image that is scored shapes what it is scored with."""
    change = {"method": "simclr", "split": "test", "epochs": 1, "limit": 150, **PLAIN}
    run, _ = train(config.replace(**change))
    train_part, test_part = data.load(config).parts("test", 150)
    with np.load(run.path / "apply.npz") as kept:
        for name, value in zip(("mean", "std"), data.moments(train_part)):
            np.testing.assert_array_equal(kept[name].ravel(), value.numpy())
    trained = Trained(run.path, config.data_dir)
    bank, asked = (
        trained.method.outputs(trained.augment.clean(part.pixels))["backbone"]
        for part in (train_part, test_part)
    )
    known = knn_accuracy(bank, train_part.labels, asked, test_part.labels)
    assert run.json("metrics.json")["knn_acc"] == known


def test_the_rate_of_a_run_is_the_schedules(config):
    change = {"schedule": "cosine", "warmup_epochs": 1, "cosine_period": 6, "epochs": 4}
    _, rows = train(config.replace(**change, limit=64, batch_size=32))
    rates = [learning_rate("cosine", 0.4, 2 * e - 1, 8, 2, 12) for e in (1, 2, 3, 4)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)


def test_an_epochs_row_has_the_means_of_its_steps():
    named = {"loss": torch.zeros(()), "head_losses": torch.zeros(3), "entropy": torch.zeros(())}
    terms, row = torch.tensor([[1.0, 10, 20, 30, 5], [3, 30, 20, 10, 7]]), {}
    assert keeping.record(named, terms, row, 1).tolist() == [20, 20, 20]
    assert row == {"loss": 2.0, "entropy": 6.0}


def test_the_last_epoch_is_evaluated_whatever_the_interval(config):
    run, rows = train(config.replace(evaluate_every=2))
    assert [row.get("aligned_average_acc") is not None for row in rows] == [False, True, True]
    scores = run.json("metrics.json")["scores"]
    assert rows[-1]["aligned_average_acc"] == scores["aligned_average"]["acc"]


@pytest.mark.parametrize(
    "minutes, expected",
    [
        (0, [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2)]),
        (2.5, [(0, 3), (1, 2), (2, 1)]),
        (4, [(1, 0), (2, 0)]),
        (7, [(1, 3)]),
        (100, []),
    ],
)
def test_checkpoints_are_minutes_apart_and_one_is_at_the_end(
    config, monkeypatch, minutes, expected
):
    """By this clock a step takes a minute, and nothing else any time; an epoch has four steps."""
    saved, save, now = [], Run.save_checkpoint, [0.0]

    def save_checkpoint(run, state):
        saved.append((state["at"]["epoch"], len(state["at"]["terms"])))
        save(run, state)

    def on_step(step, steps):
        now[0] += 60

    monkeypatch.setattr(Run, "save_checkpoint", save_checkpoint)
    monkeypatch.setattr(keeping, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    run = Run(config.replace(checkpoint_minutes=minutes))
    run.on_step = on_step
    list(fit(run.config, run))
    assert saved[: len(expected)] == expected and saved[-1] == (3, 0)
    assert len(saved) == len(expected) + 1 + (minutes == 0)  # (2, 3), too


def test_weight_decay_on_weights_only(config):
    method = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    for decay, expected in (("weights", [5e-4, 0.0]), ("all", [5e-4])):
        groups = build_optimizer(config.replace(decay=decay), method).param_groups
        assert [g["weight_decay"] for g in groups] == expected


def test_a_predictor_has_a_rate_of_its_own(config):
    """Its groups, and no others, are multiplied and stay at the peak; nothing of the target network
    is there."""
    config = config.replace(
        method="byol", n_heads=10, predictor_rate=3.0, predictor_schedule="constant"
    )
    method = METHODS["byol"](config, backbones.build(config, 1), 10, 300)
    groups = build_optimizer(config, method).param_groups
    predictor = {id(p) for p in method.predictor.parameters()}
    for g in groups:
        predicts = {id(p) for p in g["params"]} <= predictor
        assert predicts or not {id(p) for p in g["params"]} & predictor
        assert (g["times"], g["constant"]) == ((3.0, True) if predicts else (1.0, False))
        assert all((p.dim() > 1) == (g["weight_decay"] > 0) for p in g["params"])
    held = [id(p) for g in groups for p in g["params"]]
    trained = [
        *method.backbone.parameters(),
        *method.projector.parameters(),
        *method.predictor.parameters(),
    ]
    assert sorted(held) == sorted(map(id, trained)) and len(set(held)) == len(held)
    same = config.replace(predictor_schedule="same")
    assert not any(g["constant"] for g in build_optimizer(same, method).param_groups)


@pytest.mark.parametrize("schedule", ["same", "constant"])
def test_the_predictors_rate_through_a_run(config, monkeypatch, schedule):
    """SimSiam's stays at the peak to the last step, while the rest follows a cosine down to
    nothing."""
    optimizers, seen = [], []
    real_build, real_step = loop.build_optimizer, torch.optim.SGD.step
    monkeypatch.setattr(
        loop, "build_optimizer", lambda *args: optimizers.append(real_build(*args)) or optimizers[0]
    )

    def step(self, *args, **kwargs):
        seen.append({(g["times"], g["constant"]): g["lr"] for g in self.param_groups})
        return real_step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    rate = {
        "predictor_rate": 2.0,
        "predictor_schedule": schedule,
        "schedule": "cosine",
        "learning_rate": 0.1,
        "epochs": 2,
    }
    train(config.replace(method="simsiam", n_heads=10, **rate))
    predictor, rest = (2.0, schedule == "constant"), (1.0, False)
    assert len(seen) == 2 * (300 // 64) and set(seen[0]) == {predictor, rest}
    assert seen[0][rest] == pytest.approx(0.1) and seen[-1][rest] == pytest.approx(0)
    assert seen[0][predictor] == pytest.approx(0.2) and seen[-1][predictor] == pytest.approx(
        0.2 if schedule == "constant" else 0
    )


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "adam", "learning_rate": 1e-3}])
def test_a_renewed_top_layer_has_no_momentum(config, monkeypatch, optimizer):
    """DeepCluster's classifier is new in each epoch: the last one's momentum is not its own, nor
    are Adam's moments and its count of steps. All else keeps its."""
    found = []
    real = loop.build_optimizer

    def build(config, method):
        optimizer = real(config, method)
        before_epoch, order = method.before_epoch, method.order

        def note(when):
            state = {
                f"{name} {key}": kept.abs().sum().item()
                for name, p in method.named_parameters()
                for key, kept in optimizer.state.get(p, {}).items()
            }
            found.append(
                (when, state, method.top.weight.detach().clone(), list(method.parameters()))
            )

        # the momentum is emptied after before_epoch and before the images are drawn
        method.before_epoch = lambda *args: note("before") or before_epoch(*args)
        method.order = lambda *args: note("after") or order(*args)
        return optimizer

    monkeypatch.setattr(loop, "build_optimizer", build)
    train(
        config.replace(
            method="deepcluster",
            **PLAIN,
            pseudo_clusters=20,
            epochs=2,
            **{"learning_rate": 0.05, **optimizer},
        )
    )
    assert [when for when, *_ in found] == ["before", "after"] * 2
    before, after = found[2], found[3]
    assert (
        len(before[1]) == len(before[3]) * (3 if optimizer else 1) and min(before[1].values()) > 0
    )
    assert after[1] == {
        name: 0 if name.startswith("top.") else kept for name, kept in before[1].items()
    }
    assert not torch.equal(before[2], after[2]) and after[2].std().item() == pytest.approx(
        0.01, rel=0.2
    )


def test_draw_order(config):
    generator = torch.Generator().manual_seed(0)
    config = config.replace(batch_size=4)
    order, left = draw_order(config, 10, 2, generator, torch.empty(0, dtype=torch.long))
    assert order.shape == (8,) and len(order.unique()) == 8
    endless, left = config.replace(sampler="endless"), torch.empty(0, dtype=torch.long)
    seen = []
    for _ in range(5):
        order, left = draw_order(endless, 10, 2, generator, left)
        seen.append(order)
    counts = torch.cat(seen).bincount(minlength=10)
    assert counts.tolist() == [4] * 10  # 40 draws of 10 images: none is ever dropped


def test_table_reads_finished_runs_only(config):
    run, _ = train(config)
    other = config.replace(seed=1)
    stopped = fit(other, Run(other))
    next(stopped)
    stopped.close()
    rows = results.load(config.results_dir)
    assert len(rows) == 1 and rows.loc[0, "seed"] == 0
    assert (
        rows.loc[0, "aligned_average_acc"]
        == run.json("metrics.json")["scores"]["aligned_average"]["acc"]
    )
    json.dumps(run.json("provenance.json"))


def test_digits_are_learnt(config):
    """In 8 epochs of the default settings, without labels, well beyond k-means on pixels in the
    features."""
    run, rows = train(
        config.replace(limit=0, epochs=8, width=16, n_heads=5, head_hidden=64, evaluate_every=8)
    )
    scores = run.json("metrics.json")["scores"]
    assert scores["aligned_average"]["acc"] > 0.55 and scores["kmeans_pixels"]["acc"] > 0.7
    assert rows[-1]["loss"] < rows[0]["loss"] - 3


@pytest.mark.parametrize("split, n_train, n_eval", [("all", 60, 40), ("test", 50, 10)])
def test_images_without_labels_are_trained_on_and_never_scored(tmp_path, split, n_train, n_eval):
    """STL-10's unlabelled images, on either split; a test part stays out of training."""
    rng, parts = np.random.default_rng(0), np.repeat([0, 1, 2], [30, 10, 20])
    labels = np.where(parts == 2, -1, rng.integers(0, 3, 60))
    images = rng.integers(0, 256, (60, 3, 96, 96))
    made = dict(images=images, labels=labels, split=parts, classes=list("abc"))
    write_cached(tmp_path / "stl10_unlabelled.npz", **made)
    settings = {**QUICK, "dataset": "stl10_unlabelled", "split": split, "limit": 0, "epochs": 1}
    settings |= dict(augmentation="images", view_size=16, batch_size=10, data_dir=str(tmp_path))
    config = Config.from_params({**settings, "results_dir": str(tmp_path / "results")})
    run, rows = train(config)
    metrics = run.json("metrics.json")
    assert (metrics["data"]["n_train"], metrics["data"]["n_eval"]) == (n_train, n_eval)
    assert 0 <= rows[0]["knn_acc"] == metrics["knn_acc"]
    with np.load(run.path / "embeddings.npz") as stored:
        assert stored["labels"].min() >= 0 and len(stored["embedding"]) == n_eval
