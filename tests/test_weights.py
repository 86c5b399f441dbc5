"""Starting from trained weights, and training heads alone."""

import json
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from reproduce import backbones
from reproduce.config import Config, ConfigError
from reproduce.runs import Run, provenance
from reproduce.train import fit
from reproduce.trained import Trained
from reproduce.weights import load_backbone

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
    assert json.loads((path / "provenance.json").read_text())["labels"] == "evaluation only"


def test_a_state_dict_is_read_with_the_prefixes_of_wrappers(tmp_path):
    config = Config.from_params(dict(width=4, weights=str(tmp_path / "w.pt")))
    source, backbone = backbones.build(config, 1), backbones.build(config, 1)
    state = source.state_dict()
    for wrapped in (
        state,
        {"state_dict": {f"module.backbone.{k}": v for k, v in state.items()}},
        {f"backbone.{k}": v for k, v in state.items()} | {"heads.0.weight": torch.zeros(3)},
    ):
        torch.save(wrapped, tmp_path / "w.pt")
        torch.nn.init.zeros_(backbone.stem[0].weight)
        assert load_backbone(config, backbone) is None
        assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    assert provenance(config)["labels"].startswith("unknown in the weights")


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
    torch.save([1, 2], file)
    assert "must hold a state dict" in sentence()
    small = backbones.build(Config(width=8), 1).state_dict()
    torch.save(small, file)
    assert "stem.0.weight is [8, 1, 3, 3] there, and [4, 1, 3, 3] here" in sentence()
    assert "conv1.weight is missing there" in sentence(
        dataset="folder", folder=str(paint(tmp_path)), n_clusters=2, backbone="resnet18"
    )
    torch.save({**backbones.build(Config(width=4), 1).state_dict(), "x": torch.zeros(1)}, file)
    assert "which has no x" in sentence()


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(weights="imagenet", backbone="small"), "torchvision's weights are for resnet18"),
        (dict(weights="imagenet", backbone="resnet18"), "torchvision's weights are for resnet18"),
        (dict(freeze=True), "weights is empty"),
        (dict(freeze=True, weights="x", method="byol"), "which does not know it"),
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
