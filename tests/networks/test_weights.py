"""Starting from trained weights, and training heads alone."""

import json
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from reproduce.__main__ import main
from reproduce.config import Config
from reproduce.data import sets as data
from reproduce.methods import METHODS
from reproduce.networks import backbones
from reproduce.networks.weights import load_backbone
from reproduce.runs.directory import Run
from reproduce.runs.provenance import provenance
from reproduce.runs.trained import Trained
from reproduce.settings import ConfigError
from reproduce.train import fit

TINY = dict(limit=32, epochs=1, batch_size=16, width=4, head_hidden=8, projection_dim=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    base = tmp_path_factory.mktemp("weights")
    return {"results_dir": str(base / "runs"), "data_dir": str(base / "data")}


def trained(place, **settings):
    run = Run(Config.from_params({**TINY, **place, **settings}))
    list(fit(run.config, run))
    return run.path


def backbone_of(path, prefix="backbone."):
    state = torch.load(path / "model.pt", weights_only=True)
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def labels_of(path):
    return json.loads((path / "provenance.json").read_text())["labels"]


def test_unknown_labels_stay_unknown_in_the_runs_that_follow(place, tmp_path):
    torch.save(backbone_of(trained(place, method="simclr")), tmp_path / "weights.pt")
    second = trained(place, method="cc", weights=str(tmp_path / "weights.pt"))
    third = trained(place, method="cc", weights=str(second))
    assert labels_of(second) == labels_of(third) and labels_of(third).startswith("unknown")


@pytest.mark.parametrize("method", ["crlc", "propos"])
def test_a_frozen_backbone_stays_to_the_bit(place, method):
    first = trained(place, method="simclr")
    path = trained(place, method=method, weights=str(first), freeze=True)
    before, after = backbone_of(first), backbone_of(path)
    assert before.keys() == after.keys() and len(before) > 10
    assert all(torch.equal(before[k], after[k]) for k in before)
    if method == "propos":
        target = backbone_of(path, "target.0.")
        assert all(torch.equal(before[k], target[k]) for k in before)
    free = backbone_of(trained(place, method=method, weights=str(first)))
    assert not all(torch.equal(before[k], free[k]) for k in before)
    with np.load(path / "apply.npz") as a, np.load(first / "apply.npz") as b:
        assert np.array_equal(a["mean"], b["mean"])
    assert labels_of(path) == "evaluation only"


@pytest.fixture(scope="module")
def first(place):
    return str(trained(place, method="simclr"))


@pytest.mark.parametrize("method, n_views, freeze", [("crlc", 3, True), ("cc", 2, False)])
def test_views_of_neighbours(place, method, n_views, freeze, monkeypatch):
    """The first view is of the image itself, each other one of one of its nearest, all of which
    have their turn; an image is never its own neighbour. A frozen backbone's views are features."""
    first = str(trained(place, method="simclr", normalize=False))
    settings = dict(method=method, n_views=n_views, weights=first, freeze=freeze, neighbours=3)
    settings |= dict(augmentation="none", normalize=False, epochs=20, evaluate_every=20)
    config = Config.from_params({**TINY, **place, **settings})
    images = data.load(config).parts("all", config.limit)[0].pixels
    known = Trained(first, place["data_dir"]).method.backbone(images / 255)
    similar = torch.nn.functional.cosine_similarity(known[:, None].double(), known.double(), dim=-1)
    nearest = similar.fill_diagonal_(-1).argsort(descending=True)[:, :3].tolist()
    shown = known if freeze else images.flatten(1) / 255
    drawn = {}  # the neighbours that each image was shown with

    def loss(self, views, index):
        if index.device.type == "meta":  # where operations are counted
            return before(self, views, index)
        exact = dict(compute_mode="donot_use_mm_for_euclid_dist")
        distances = [torch.cdist(view.flatten(1), shown, **exact) for view in views]
        assert max(d.min(1).values.max() for d in distances) < 1e-3
        i, *others = (d.argmin(1).tolist() for d in distances)
        assert i == index.tolist() and len(others) == n_views - 1
        for other in others:
            for image, neighbour in zip(i, other):
                drawn.setdefault(image, []).append(neighbour)
        return before(self, views, index)

    before = METHODS[method].loss
    monkeypatch.setattr(METHODS[method], "loss", loss)
    list(fit(config))
    assert len(drawn) == len(images)
    for image, others in drawn.items():
        assert set(others) <= set(nearest[image])
    assert sum(len(set(others)) == 3 for others in drawn.values()) > 0.9 * len(images)


def test_a_frozen_backbone_looks_at_whole_images_once(place, first, monkeypatch):
    """Heads that are given its features learn what heads behind the backbone learn."""
    still = "rotation zoom shear shift gamma contrast noise".split()  # views like the images
    settings = dict(weights=first, freeze=True, neighbours=3, epochs=1, evaluate_every=1, limit=96)
    seen, losses = [], []
    before = METHODS["crlc"].loss

    def loss(self, views, index):
        seen.append(views[0].dim())
        return before(self, views, index)

    monkeypatch.setattr(METHODS["crlc"], "loss", loss)
    for how in (dict(augmentation="none"), dict.fromkeys(still, 0.0)):
        config = Config.from_params({**TINY, **place, **settings, **how})
        losses.append([row["loss"] for row in fit(config)])
    assert set(seen) == {2, 4}
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_neighbours_go_on_where_a_run_was_stopped(place, first, tmp_path):
    """In mid-epoch, with a backbone that has learned meanwhile: neighbours are those of its
    start."""
    settings = {**TINY, **place, "weights": first, "neighbours": 3, "epochs": 3, "limit": 96}
    settings |= dict(checkpoint_minutes=0, evaluate_every=3)
    shas = []
    for folder, stop in ((tmp_path / "whole", 0), (tmp_path / "stopped", 9)):
        run = Run(Config.from_params({**settings, "results_dir": str(folder)}))

        def interrupt(step, total):
            if step == stop:
                raise KeyboardInterrupt

        run.on_step = interrupt
        if stop:
            with pytest.raises(KeyboardInterrupt):
                list(fit(run.config, run))
            run.on_step = None
        rows = list(fit(run.config, run))
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        shas.append(run.json("metrics.json")["weights_sha256"])
    assert shas[0] == shas[1]


def test_more_neighbours_than_there_are(place, first):
    with pytest.raises(ConfigError, match="neighbours is 32, more than the 31 other images"):
        trained(place, weights=first, neighbours=32)


def test_images_are_normalised_as_those_of_the_start_were(place):
    first = trained(place, method="simclr", normalize=False)
    assert trained(place, method="cc", weights=str(first), normalize=False)
    with pytest.raises(
        ConfigError, match="normalize is True, but .* had False: add -p normalize False"
    ):
        trained(place, method="cc", weights=str(first), normalize=True)


def test_a_directory_with_a_backbone_alone(place, first, tmp_path):
    """A run whose model.pt is gone starts others from its backbone.pt."""
    copied = tmp_path / "run"
    shutil.copytree(first, copied)
    assert main(["export", str(copied), str(copied / "backbone.pt")]) == 0
    (copied / "model.pt").unlink()
    config = Config.from_params({**TINY, **place, "weights": str(copied)})
    backbone, whole = backbones.build(config, 1), backbone_of(Path(first))
    assert load_backbone(config, backbone) is not None
    for name, value in backbone.state_dict().items():
        stored = whole[name].bfloat16() if value.is_floating_point() else whole[name]
        assert torch.equal(value, stored.half().to(value.dtype)), name


def test_a_state_dict_is_read_with_the_prefixes_of_wrappers(tmp_path):
    config = Config.from_params(dict(width=4, weights=str(tmp_path / "w.pt")))
    source, backbone = backbones.build(config, 1), backbones.build(config, 1)
    state = source.state_dict()
    for wrapped in (
        state,
        {"state_dict": {f"module.backbone.{k}": v for k, v in state.items()}},
        {f"backbone.{k}": v for k, v in state.items()} | {"heads.0.weight": torch.zeros(3)},
        # MoCo
        {
            "epoch": 200,
            "state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}
            | {f"module.encoder_k.{k}": v + 1 for k, v in state.items()}
            | {"module.encoder_q.fc.0.weight": torch.zeros(3), "module.queue": torch.zeros(2, 3)},
        },
        # SimSiam, DINO, BYOL, Lightning, torch.compile
        {"state_dict": {f"module.encoder.{k}": v for k, v in state.items()}},
        {"student": {f"module.backbone.{k}": v for k, v in state.items()}, "teacher": {}},
        {f"online_encoder.net.{k}": v for k, v in state.items()},
        {"state_dict": {f"model.backbone.{k}": v for k, v in state.items()}},
        {"model": {f"_orig_mod.{k}": v for k, v in state.items()}},
        # CC, MoCo v3, SimCLR, DINO's teacher alone
        {
            "net": {f"resnet.{k}": v for k, v in state.items()}
            | {"instance_projector.0.weight": torch.zeros(3)}
        },
        {
            "state_dict": {f"module.base_encoder.{k}": v for k, v in state.items()}
            | {f"module.momentum_encoder.{k}": v + 1 for k, v in state.items()}
            | {"module.predictor.0.weight": torch.zeros(3)}
        },
        {f"convnet.{k}": v for k, v in state.items()} | {"projection_head.0.bias": torch.ones(2)},
        {"teacher": {f"backbone.{k}": v for k, v in state.items()}, "epoch": 100},
        {
            "state_dict": {f"student.backbone.{k}": v for k, v in state.items()}
            | {f"teacher.backbone.{k}": v + 1 for k, v in state.items()}
        },
    ):
        torch.save(wrapped, tmp_path / "w.pt")
        torch.nn.init.zeros_(backbone.stem[0].weight)
        assert load_backbone(config, backbone) is None
        assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    assert provenance(config)["labels"].startswith("unknown in the weights")


@pytest.mark.parametrize("source", ["photos", "timm:resnet18", "torchvision:resnet18", "hub:a:b"])
def test_a_network_that_gives_features_alone_is_for_clusters(source, capsys):
    words = ["train", "-p", "dataset", "folder", "-p", "folder", "gone", "-p", "weights", source]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"python -m reproduce clusters FOLDER K -p weights {source} takes" in said
    assert said.count("\n") == 1


def test_weights_that_do_not_fit_end_in_a_sentence(place, tmp_path):
    file = tmp_path / "w.pt"

    def sentence(**settings):
        config = Config.from_params({**TINY, **place, "weights": str(file), **settings})
        with pytest.raises(ConfigError) as error:
            list(fit(config))
        assert "\n" not in str(error.value) and str(error.value).startswith("weights: ")
        return str(error.value)

    assert "is not there: name the directory of a run" in sentence()
    file.write_bytes(b"no weights")
    assert "is no file of weights" in sentence()
    for content in ([1, 2], {0: torch.zeros(1)}):
        torch.save(content, file)
        assert "must hold a state dict" in sentence()
    small = backbones.build(Config(width=8), 1).state_dict()
    torch.save(small, file)
    assert "stem.0.weight is [8, 1, 3, 3] there, and [4, 1, 3, 3] here" in sentence()
    assert "conv1.weight is missing there" in sentence(
        dataset="folder", folder=str(paint(tmp_path)), n_clusters=2, backbone="resnet18"
    )
    torch.save({**backbones.build(Config(width=4), 1).state_dict(), "x": torch.zeros(1)}, file)
    assert "which has no x" in sentence()
    state = backbones.build(Config(width=4), 1).state_dict()
    torch.save({**state, "x": torch.zeros(1), "y": torch.zeros(1)}, file)
    assert sentence().endswith("which has no x and 1 more")
    state["stem.0.weight"][0] = float("nan")
    torch.save(state, file)
    assert "are not finite: stem.0.weight holds NaN or infinity" in sentence()


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(weights="imagenet", backbone="small"), "torchvision's weights are for resnet18"),
        (dict(weights="imagenet", backbone="resnet18"), "torchvision's weights are for resnet18"),
        (dict(freeze=True), "weights is empty"),
        (dict(freeze=True, weights="x", method="byol"), "which does not know it"),
        (dict(neighbours=5), "neighbours is 5, but weights is empty"),
        (dict(neighbours=5, weights="x", method="byol"), "which does not know it"),
    ],
)
def test_contradictions(settings, said):
    params = {"dataset": "folder", "folder": "f", **settings}
    with pytest.raises(ConfigError, match=said):
        Config.from_params(params)


def paint(folder):
    from PIL import Image

    (folder / "images").mkdir()
    for i in range(32):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:02d}.png")
    return folder / "images"


def test_imagenet(place, tmp_path, monkeypatch):
    settings = dict(dataset="folder", folder=str(paint(tmp_path)), image_size=32, n_clusters=2)
    settings |= dict(backbone="resnet18", stem="imagenet", weights="imagenet", freeze=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def offline(*words, **named):
        raise URLError("no route to host")

    with monkeypatch.context() as patched:
        patched.setattr("torch.hub.download_url_to_file", offline)
        with pytest.raises(ConfigError, match="resnet18-.*pth cannot be downloaded .no route"):
            trained(place, **settings)
    fake = resnet18().state_dict()
    checkpoints = tmp_path / "hub" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    torch.save(fake, checkpoints / "resnet18-f37072fd.pth")
    path = trained(place, **settings)
    found = backbone_of(path)
    assert all(torch.equal(found[k], fake[k]) for k in found) and len(found) == len(fake) - 2
    with np.load(path / "apply.npz") as stored:
        assert stored["mean"].tolist() == pytest.approx([0.485, 0.456, 0.406])
        seen = Trained(path, place["data_dir"]).augment.mean.flatten()  # in linear evaluation too
        assert seen.tolist() == stored["mean"].tolist()
    origin = json.loads((path / "provenance.json").read_text())
    assert origin["labels"].startswith("ImageNet's 1,000 classes")
    again = Config.from_params({**TINY, **place, **settings, "weights": str(path)})
    assert provenance(again)["labels"].startswith("ImageNet's 1,000 classes")


def test_a_run_says_which_backbone_it_has(place):
    first = trained(place, method="simclr", normalize=False)
    path = trained({**place, "width": 32}, method="crlc", weights=str(first), freeze=True, width=4)
    given = {k: v for k, v in {**TINY, **place}.items() if k != "width"}
    config = Config.from_params({**given, "weights": str(first), "freeze": True})
    assert (config.width, config.normalize) == (4, False)
    assert Run(config).path == path, "as when all of it is given"
    with pytest.raises(ConfigError, match="do not fit backbone 'small'"):
        list(fit(config.replace(width=8), None))


# ---- weights in a directory that is not what it was


def directory(folder, channels=3, **settings):
    """A directory as a run on images with so many channels leaves it, as far as weights go."""
    config = Config(**{"width": 4, **settings})
    folder.mkdir()
    state = backbones.build(config, channels).state_dict()
    torch.save({f"backbone.{k}": v for k, v in state.items()}, folder / "model.pt")
    said = {"width": 4, "normalize": config.normalize, **settings}
    (folder / "config.json").write_text(json.dumps(said))
    np.savez(folder / "apply.npz", mean=np.zeros(channels, "f4"), std=np.ones(channels, "f4"))
    return folder


def test_weights_of_colour_images_are_not_for_digits(place, tmp_path):
    """With sobel a network takes two channels of either."""
    start = directory(tmp_path / "colour", sobel=True)
    own = {**TINY, **place, "method": "simclr", "weights": str(start)}
    with pytest.raises(ConfigError, match="weights: .* 3 channels, but data set 'digits' has 1"):
        next(fit(Config.from_params(own)))


def test_a_damaged_directory_of_weights_is_a_sentence(place, tmp_path):
    start = directory(tmp_path / "grey", channels=1)
    own = {**TINY, **place, "method": "simclr", "weights": str(start)}
    config = Config.from_params(own)
    for content in (b"", b"PK", (start / "apply.npz").read_bytes()[:-9]):
        (start / "apply.npz").write_bytes(content)
        with pytest.raises(ConfigError, match="weights: .*apply.npz' is damaged"):
            next(fit(config))
    for value, said in ((3, "backbone must be"), ([], "backbone must be"), ("x", "backbone must")):
        (start / "config.json").write_text(json.dumps({"backbone": value}))
        with pytest.raises(ConfigError, match=f"weights: .*config.json' is of no run: {said}"):
            Config.from_params(own)


@pytest.mark.usefixtures("each_epoch")
def test_a_run_goes_on_from_the_weights_it_began_with(place, tmp_path):
    start = directory(tmp_path / "grey", channels=1)
    own = {**TINY, **place, "epochs": 2, "method": "simclr", "weights": str(start), "seed": 5}
    config = Config.from_params(own)
    rows = fit(config)
    next(rows)
    next(rows)
    rows.close()
    kept = (start / "model.pt").read_bytes()
    torch.manual_seed(1)
    shutil.rmtree(start)
    directory(start, channels=1)
    with pytest.raises(ConfigError, match="begun from other weights than .* put those back, or"):
        next(fit(config))
    (start / "model.pt").write_bytes(kept)
    assert [row["epoch"] for row in fit(config)] == [1, 2]
