"""A finished run on images that it has never seen."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from reproduce.__main__ import main
from reproduce.config import Config
from reproduce.data.folder import read_image
from reproduce.data.sets import load, moments
from reproduce.metrics import head_order
from reproduce.own_images.apply import apply, batches
from reproduce.own_images.clusterer import Clusterer, read_names
from reproduce.own_images.export import prepare
from reproduce.runs.directory import Run
from reproduce.settings import ConfigError
from reproduce.train import fit

SMALL = {"head_hidden": 8, "projection_dim": 8}
METHODS = {
    "crlc": {"n_heads": 3, **SMALL},
    "byol": {"predictor_hidden": 8, **SMALL},
    "propos": {"predictor_hidden": 8, **SMALL},
    "deepcluster": {"pseudo_clusters": 4, "kmeans_metric": "cosine"},
}
KINDS = {
    **METHODS,
    "crlc, at another side": {
        "n_heads": 3,
        "view_size": 6,
        "augmentation": "images",
        "seed": 2,  # one whose heads tell the two sides apart after an epoch
        **SMALL,
    },
}


def paint(folder, n=24):
    """Squares that are bright at the left or at the right, in folders of either kind."""
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(0, 60, (8, 8, 3), np.uint8)
        pixels[:, 4 * (i % 2) : 4 * (i % 2) + 4] += 180
        part = folder / ("train" if i < n - 6 else "test") / f"side{i % 2}"
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(part / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of every kind on one folder: {method: run directory}."""
    base = tmp_path_factory.mktemp("apply")
    folder, runs = paint(base / "images"), {}
    for method, settings in KINDS.items():
        common = dict(dataset="folder", folder=str(folder), image_size=8, width=4)
        common["method"] = method.split(",")[0]
        places = dict(results_dir=str(base / "runs"), data_dir=str(base / "data"))
        config = Config.from_params(
            {**common, **places, "n_clusters": 4, "epochs": 1, "batch_size": 8, **settings}
        )
        run = Run(config)
        list(fit(config, run))
        runs[method] = run.path
    return base, folder, runs


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", KINDS)
def test_the_training_folder_gets_the_clusters_of_the_run(made, method, tmp_path):
    base, folder, runs = made
    rule = "aligned_average" if method.startswith("crlc") else "kmeans_embedding"
    known = [(r["file"], r[rule]) for r in rows(runs[method] / "assignments.csv")]
    assert len({cluster for _, cluster in known}) > 1
    for size in (1, 5, 256):
        out, features = tmp_path / f"{size}.csv", tmp_path / f"{size}.npy"
        found = apply(str(runs[method]), str(folder), str(out), str(features), size)
        assert [(r["file"], r["cluster"]) for r in rows(out)] == known
        assert found["sizes"] == np.bincount([int(c) for _, c in known]).tolist()
        embedding = np.load(features)
        assert embedding.dtype == np.float32 and len(embedding) == len(known)
        stored = np.load(runs[method] / "embeddings.npz")["embedding"]
        np.testing.assert_allclose(embedding, stored, atol=2e-2, rtol=2e-2)
    one, all_ = (
        [[float(r[c]) for c in list(r)[3:-1]] for r in rows(tmp_path / f"{size}.csv")]
        for size in (1, 256)
    )
    np.testing.assert_allclose(one, all_, atol=2e-3)  # a processor's last digits
    for row in rows(tmp_path / "5.csv"):
        assert 0 <= float(row["margin"]) <= float(row["probability"]) <= 1
        assert ("distance" in row) == (not method.startswith("crlc"))
        assert row["path"] == os.path.join(folder.resolve(), row["file"]) and row["name"] == ""


def test_new_16_bit_images_are_read_as_the_runs_own_were(tmp_path):
    folder, new, rng = tmp_path / "scans", tmp_path / "new", np.random.default_rng(0)
    folder.mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 4096, (8, 8), np.uint16)).save(folder / f"{i}.png")
    common = dict(dataset="folder", image_size=8, width=4, method="byol", epochs=1, batch_size=8)
    places = {"results_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}
    more = {**METHODS["byol"], "folder": str(folder), "n_clusters": 2}
    config = Config.from_params({**common, **places, **more})
    run = Run(config)
    list(fit(config, run))
    new.mkdir()  # without the brightest of the run's images
    Image.fromarray(np.asarray(Image.open(folder / "5.png")) // 4).save(new / "dark.png")
    shutil.copy(folder / "3.png", new)
    names, pixels, _ = next(batches(str(new), Clusterer(run.path), 4))
    assert names == ["3.png", "dark.png"]
    assert torch.equal(pixels[0], load(config).pixels[3])
    assert 48 < pixels[1].max() <= 64
    assert "16-bit grey images: the folder's levels" in run.notes[0]


def test_heads_are_put_into_the_order_of_the_run(made, monkeypatch):
    """Three heads that say the same, each with its clusters numbered in its own way."""
    clusterer = Clusterer(made[2]["crlc"])
    p = torch.randn(20, 4).mul(3).softmax(-1)
    heads = torch.stack([p[:, [2, 0, 3, 1]], p, p[:, [1, 2, 3, 0]]])
    clusterer.rank = torch.tensor([1, 0, 2])
    clusterer.order = head_order(heads[clusterer.rank])
    out = {"backbone": torch.zeros(20, 2), "probabilities": heads}
    monkeypatch.setattr(clusterer.method, "outputs", lambda images: out)
    found, _ = clusterer.predict(torch.zeros(20, 3, 8, 8, dtype=torch.uint8))
    torch.testing.assert_close(found, p)


def test_no_training_data_is_needed_and_any_nesting_is_read(made, tmp_path):
    base, folder, runs = made
    nested = tmp_path / "new" / "a" / "b"
    nested.mkdir(parents=True)
    Image.new("L", (30, 20), 200).save(tmp_path / "new" / "z.png")
    Image.new("RGB", (9, 9), "red").save(nested / "x.jpg")
    (nested / "up").symlink_to(tmp_path / "new")
    hidden, images = base / "hidden", base / "images"
    images.rename(hidden)
    try:
        apply(str(runs["crlc"]), str(tmp_path / "new"), str(tmp_path / "o.csv"))
    finally:
        hidden.rename(images)
    assert [r["file"] for r in rows(tmp_path / "o.csv")] == ["z.png", "a/b/x.jpg"]


def test_a_data_file_is_read_too(made, tmp_path, capsys):
    base, folder, runs = made
    (file,) = (base / "data").glob("*.npz")
    assert main(["apply", str(runs["crlc"]), str(file), "-o", str(tmp_path / "o.csv")]) == 0
    known = rows(runs["crlc"] / "assignments.csv")
    assert [r["cluster"] for r in rows(tmp_path / "o.csv")] == [r["aligned_average"] for r in known]
    assert "24 images" in capsys.readouterr().out


def test_names_stand_in_the_table(made, tmp_path):
    base, folder, runs = made
    names = runs["crlc"] / "names.yaml"
    names.write_text("1: bright, right\n")
    try:
        apply(str(runs["crlc"]), str(folder), str(tmp_path / "o.csv"))
        found = {(r["cluster"], r["name"]) for r in rows(tmp_path / "o.csv")}
        assert len(found) > 1 and all((k == "1") == (name != "") for k, name in found)
        for wrong in ("4: cats\n", "cats: 1\n", "1: 5\n"):
            names.write_text(wrong)
            with pytest.raises(ConfigError, match="names.yaml.*'3: cats'"):
                Clusterer(runs["crlc"])
    finally:
        names.unlink()


def test_what_a_person_has_changed_stands_in_the_table(made, tmp_path):
    """Merged clusters are one, also for new images; images are moved in their own folder alone."""
    base, folder, runs = made
    run, own = runs["crlc"], rows(runs["crlc"] / "assignments.csv")
    apply(str(run), str(folder), str(tmp_path / "p.csv"), probabilities=str(tmp_path / "p.npy"))
    p, was = np.load(tmp_path / "p.npy"), [int(row["aligned_average"]) for row in own]
    assert (p.argmax(-1) == was).all()
    merged = {str(k): 0 for k in range(1, 4)}
    changed = {"format": 1, "names": {"0": "all", "4": "=one"}, "merged": merged}
    changed["moved"] = {own[3]["file"]: 4, "gone.png": 4}
    (run / "clusters.json").write_text(json.dumps(changed))
    copied = shutil.copytree(folder, tmp_path / "copied")
    try:
        found = apply(str(run), str(folder), str(tmp_path / "o.csv"))
        other = apply(str(run), str(copied), str(tmp_path / "n.csv"))
        assert read_names(run, 4) == dict.fromkeys(range(4), "all")
    finally:
        (run / "clusters.json").unlink()
    table = rows(tmp_path / "o.csv")
    assert [int(row["cluster"]) for row in table] == [4 * (i == 3) for i in range(len(own))]
    assert {row["name"] for row in table} == {"all", "'=one"}
    assert {float(row["probability"]) for row in table} == {1.0}
    assert found["notes"] == ["clusters.json: 1 of the images that it moves are gone: 'gone.png'"]
    assert {row["cluster"] for row in rows(tmp_path / "n.csv")} == {"0"} and not other["notes"]


def test_images_that_cannot_be_read(made, tmp_path, capsys):
    base, folder, runs = made
    new = tmp_path / "new"
    new.mkdir()
    for i in range(14):
        (new / f"{i:02d}.png").write_bytes(b"no image")
    words = ["apply", str(runs["crlc"]), str(new), "-o", str(tmp_path / "o.csv"), "--batch", "2"]
    assert main(words + ["--skip"]) == 2, "none is left"
    Image.new("RGB", (8, 8)).save(new / "05.png")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "has 13 images that cannot be read (--skip" in said and "and 3 more" in said
    assert not list(tmp_path.glob("*.csv")) and not list(tmp_path.glob(".*"))
    assert main(words + ["--skip"]) == 0
    assert [r["file"] for r in rows(tmp_path / "o.csv")] == ["05.png"]
    assert "13 files that cannot be read: '00.png'" in capsys.readouterr().out


def test_names_of_any_bytes(made, tmp_path):
    base, folder, runs = made
    (tmp_path / "new").mkdir()
    name = os.fsencode(tmp_path / "new") + b"/caf\xe9.png"
    Image.new("RGB", (8, 8)).save(os.fsdecode(name))
    apply(str(runs["crlc"]), str(tmp_path / "new"), str(tmp_path / "o.csv"))
    assert b"\ncaf\xe9.png," in (tmp_path / "o.csv").read_bytes()
    run = Run(Config.from_params({"results_dir": str(tmp_path / "runs")}))
    run.partial.mkdir(parents=True)
    run.write_csv("assignments.csv", [[os.fsdecode(b"caf\xe9.png"), 1]], ["file", "cluster"])
    assert b"\ncaf\xe9.png,1" in (run.partial / "assignments.csv").read_bytes()


def test_wrong_input_ends_in_a_sentence(made, tmp_path, capsys):
    base, folder, runs = made
    (tmp_path / "empty").mkdir()
    run, out = str(runs["crlc"]), str(tmp_path / "o.csv")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("metrics.json", "config.json"):
        (bare / file).write_bytes((runs["crlc"] / file).read_bytes())
    for words, said in (
        (["apply", run, str(tmp_path / "empty"), "-o", out], "holds no image"),
        (["apply", run, str(tmp_path / "gone"), "-o", out], "does not exist"),
        (["apply", run, "digits", "-o", out], r"trained on (3, 8, 8)"),
        (["apply", run, str(folder), "-o", str(tmp_path / "no" / "o.csv")], "there is no folder"),
        (["apply", run, str(folder), "-o", str(tmp_path / "empty")], "is a folder: name a file"),
        (["apply", run, str(tmp_path / "gone.npz"), "-o", out], "does not exist"),
        (["apply", "~nobody/run", str(folder), "-o", out], "not the directory of a finished run"),
        (["apply", str(bare), str(folder), "-o", out], "has no model.pt"),
        (["apply", str(tmp_path), str(folder), "-o", out], "not the directory of a finished run"),
        (["apply", run, str(folder), "-o", out, "--batch", "0"], "batch must be"),
        (["export", run, str(tmp_path / "model.pkl")], "must end in .pt2, .onnx or .pt"),
        (["export", str(bare), str(tmp_path / "model.pt2")], "has no model.pt"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    (bare / "model.pt").write_bytes((runs["crlc"] / "model.pt").read_bytes())
    assert main(["apply", str(bare), str(folder), "-o", out]) == 2
    assert "has no apply.npz" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.csv")) and not list(tmp_path.glob(".*"))


ALONE = """
import json, sys, numpy, torch
sys.modules["reproduce"] = None  # importing it fails
extra = {"clusters.json": ""}
model = torch.export.load(sys.argv[1], extra_files=extra).module()
images = torch.from_numpy(numpy.load(sys.argv[2]))
parts = [model(part) for part in (images, images[:1], images[1:4])]
numpy.savez(sys.argv[3], *[t.numpy() for part in parts for t in part])
assert json.loads(extra["clusters.json"])["names"] == {"0": "left"}
assert not any(name.startswith("reproduce.") for name in sys.modules)
"""


def test_an_exported_program_needs_no_package(made, tmp_path):
    base, folder, runs = made
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    np.save(tmp_path / "images.npy", images.numpy())
    for method, run in runs.items():
        (run / "names.yaml").write_text("0: left\n")
        try:
            assert main(["export", str(run), str(tmp_path / f"{method}.pt2")]) == 0
        finally:
            (run / "names.yaml").unlink()
    for method in ("crlc, at another side", "byol"):
        run = runs[method]
        words = [tmp_path / f"{method}.pt2", tmp_path / "images.npy", tmp_path / "out.npz"]
        command = [sys.executable, "-c", ALONE, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        clusterer = Clusterer(run)
        found = list(np.load(tmp_path / "out.npz").values())
        for part, one in zip((images, images[:1], images[1:4]), zip(found[::2], found[1::2])):
            for ours, theirs in zip(clusterer.predict(part), one):
                np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_export_into_a_folder_that_cannot_be_written(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert main(["export", str(made[2]["crlc"]), str(tmp_path / "model.pt2")]) == 2
    assert f"{str(tmp_path)!r} cannot be written to" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is full")
@pytest.mark.parametrize("words", [["apply"], ["apply", "--embedding"], ["export"]])
def test_a_full_disk_is_one_sentence(made, words, tmp_path, capsys):
    base, folder, runs = made
    full = tmp_path / ("full.pt2" if words == ["export"] else "full")
    full.symlink_to("/dev/full")
    if words == ["export"]:
        line = ["export", str(runs["byol"]), str(full)]
    else:
        out = ["-o", str(full if len(words) == 1 else tmp_path / "a.csv")]
        more = [words[1], str(full)] if len(words) > 1 else []
        line = ["apply", str(runs["byol"]), str(folder), *out, *more]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert said == "error: No space left on device: '/dev/full'\n"
    assert not (tmp_path / "a.csv").exists() and os.path.exists("/dev/full")


def test_onnx_is_an_extra(made, tmp_path, capsys, monkeypatch):
    base, folder, runs = made
    out = tmp_path / "model.onnx"
    real = importlib.util.find_spec
    hide = lambda name, *rest: None if name == "onnxscript" else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    assert main(["export", str(runs["crlc"]), str(out)]) == 2
    assert "onnx" in capsys.readouterr().err and not list(tmp_path.iterdir())
    monkeypatch.undo()
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", str(runs["crlc"]), str(out)]) == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    session = runtime.InferenceSession(str(out))
    ours = Clusterer(runs["crlc"]).predict(torch.from_numpy(images))
    for a, b in zip(ours, session.run(None, {"images": images})):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-4)


def test_probabilities_without_heads_are_memberships(made, tmp_path):
    """Of fuzzy c-means with m = 2: in proportion to 1 / squared distance."""
    clusterer = Clusterer(made[2]["byol"])
    features = torch.randn(50, clusterer.centroids.shape[1])
    distance = torch.cdist(features, clusterer.centroids)
    expected = distance**-2 / (distance**-2).sum(-1, keepdim=True)
    torch.testing.assert_close(clusterer.memberships(features), expected, rtol=1e-3, atol=1e-4)
    apply(str(made[2]["byol"]), str(made[1]), str(tmp_path / "a.csv"), str(tmp_path / "a.npy"))
    near = torch.cdist(torch.from_numpy(np.load(tmp_path / "a.npy")), clusterer.centroids).min(-1)[
        0
    ]
    found = [float(row["distance"]) for row in rows(tmp_path / "a.csv")]
    np.testing.assert_allclose(found, near, atol=2e-3, rtol=2e-2)


def test_the_moments_are_those_of_the_training_part(made):
    from reproduce.data import sets as data

    base, folder, runs = made
    clusterer = Clusterer(runs["crlc"])
    config = clusterer.config.replace(data_dir=str(base / "data"))
    mean, std = moments(data.load(config).part("all"))
    assert torch.equal(clusterer.mean, mean) and torch.equal(clusterer.std, std)


def test_no_name_is_a_formula_and_each_opens_its_file(made, tmp_path):
    base, folder, runs = made
    new = tmp_path / "new"
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "a\rb", "a\nb", 'a,"b', "a<b", "猫 😀"]
    names += ["a\r\nb", " a ", "NA", "\x1f", os.fsdecode(b"caf\xe9")]  # the last is no UTF-8
    for name in names:
        new.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(new / f"{name}.png")
    (runs["crlc"] / "names.yaml").write_text("{0: '=A', 1: '=A', 2: '=A', 3: '=A'}")
    try:
        apply(str(runs["crlc"]), str(new), str(tmp_path / "o.csv"))
    finally:
        (runs["crlc"] / "names.yaml").unlink()
    with open(tmp_path / "o.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = list(csv.DictReader(file))
    assert {(new / row["file"]).resolve(strict=True).stem for row in found} == {*names}
    read = {"encoding_errors": "surrogateescape", "keep_default_na": False}  # as the guide says
    table = pd.read_csv(tmp_path / "o.csv", **read)
    assert table["file"].tolist() == [row["file"] for row in found]
    assert not any(row["file"][0] in "=+-@\t\r\n" for row in found)
    assert {row["name"] for row in found} == {"'=A"} and len(found) == len(names)


@pytest.mark.parametrize("letterbox", [False, True])
def test_the_export_says_how_an_image_is_prepared(tmp_path, letterbox):
    """Its lines give what a run reads: turned by EXIF, transparent, large, grey."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 60, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels[..., :3]).resize((300, 200)).save(tmp_path / "large.jpg")
    for file in tmp_path.iterdir():
        for channels in (3, 1):
            found = {"path": file}
            exec(prepare((channels, 16, 16), letterbox), found)
            expected = read_image(file, 16, letterbox=letterbox)[None]
            if channels == 1:
                expected = expected.mean(1, keepdims=True).round()
            assert found["images"].dtype == torch.uint8
            np.testing.assert_array_equal(found["images"].numpy(), expected)
