"""One's own images, from a folder to a page."""

import csv
import json
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from test_apply import METHODS, paint
from test_features import colours  # noqa: F401  a fixture

import reproduce
from reproduce.__main__ import main
from reproduce.config import Config
from reproduce.data import sets as data
from reproduce.files import NOTEBOOKS
from reproduce.own_images import choose, look, stability, tables
from reproduce.own_images.featured import is_featured
from reproduce.runs.directory import Run
from reproduce.runs.renewed import OF_RUNS
from reproduce.settings import ConfigError
from reproduce.train import fit


def settings_for(base, folder, method, **changes):
    common = dict(dataset="folder", folder=str(folder), image_size=8, width=4, method=method)
    places = dict(results_dir=str(base / "runs"), data_dir=str(base / "data"))
    small = {"n_clusters": 2, "epochs": 1, "batch_size": 8, **METHODS[method]}
    return Config.from_params({**common, **places, **small, **changes})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    base = tmp_path_factory.mktemp("clusters")
    folder = paint(base / "images")
    copied = folder / "train" / "side0" / "00.png"
    (copied.parent / "90.png").write_bytes(copied.read_bytes())  # a duplicate
    return base, folder


def trained(place, method, **changes):
    run = Run(settings_for(*place, method, **changes))
    if not run.finished:
        list(fit(run.config, run))
    return run.path


def looked_at(place, path, **more):
    return look.look(str(path), data_dir=str(place[0] / "data"), **more)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_looked_at(place, method):
    path = trained(place, method)
    found = looked_at(place, path)
    with open(path / "assignments.csv", newline="") as file:
        rule = "aligned_average" if method == "crlc" else "kmeans_embedding"
        known = {row["file"]: int(row[rule]) for row in csv.DictReader(file)}
    assert dict(zip(found.table["file"], found.table["cluster"])) == known
    assert found.sizes.tolist() == np.bincount(list(known.values()), minlength=2).tolist()
    assert found.votes.shape == ((3 if method == "crlc" else 5), 25)
    assert found.table["agree"].between(0, 1).all()
    k = int(found.sizes.argmax())
    sure, unsure = found.typical(k, 4), found.doubtful(k, 4)
    assert (np.diff(found.table["probability"][sure]) <= 0).all()
    assert found.table["margin"][unsure].max() <= found.table["margin"][sure].min()
    pairs = look.near_duplicates(found, 3)
    names = {tuple(sorted(p)) for p in zip(pairs["file_a"], pairs["file_b"])}
    assert ("train/side0/00.png", "train/side0/90.png") in names and pairs["alike"].max() > 0.999
    assert (pairs["a"] < pairs["b"]).all()
    few = looked_at(place, path, at_most=5)
    assert list(few.table["file"]) == [list(known)[i] for i in (0, 6, 12, 18, 24)]
    assert few.sizes.sum() == 25


def test_a_trained_run_has_what_one_on_features_has(place):
    path = trained(place, "crlc")
    said = look.complete(str(path), str(place[0] / "data"))
    features = np.load(path / "features.npy")
    assert features.shape[0] == 25 and features.dtype == np.float32 and not is_featured(path)
    assert json.loads((path / "verdict.json").read_text())["sentence"] == said.sentence
    with open(path / "duplicates.csv", newline="") as file:
        same = [row["file"] for row in csv.DictReader(file) if row["kind"] == "the same file"]
    assert {*same} == {"train/side0/00.png", "train/side0/90.png"}


def cell_of(title: str) -> str:
    """The code below a title of clusters.ipynb."""
    cells = nbformat.read(NOTEBOOKS / "clusters.ipynb", as_version=4).cells
    (i,) = (i for i, cell in enumerate(cells) if cell.source.startswith(f"## {title}"))
    return cells[i + 1].source


MORE = [(kind, i, j) for kind in ("file", "scene") for i in range(3) for j in range(3)]


def test_the_page_of_figures_has_the_copies_of_the_list(place, tmp_path, capsys, monkeypatch):
    """Also of images that it does not draw."""
    path = shutil.copytree(trained(place, "crlc"), tmp_path / "run")
    sheets, real = [], look.sheet
    monkeypatch.setattr(look, "sheet", lambda *words: sheets.append(words) or real(*words))
    look.complete(str(path), str(place[0] / "data"))

    def shown(at_most=4000):
        sheets.clear()
        found = looked_at(place, path, at_most=at_most)
        exec(cell_of("Near-duplicates"), {"found": found, "look": look, "plt": plt, "per_row": 4})
        plt.close("all")
        return capsys.readouterr().out, look.near_duplicates(found, 4)

    said, pairs = shown()
    twice = ["the same file", "train/side0/00.png", "train/side0/90.png"]
    assert pairs[["kind", "file_a", "file_b"]].values.tolist()[0] == twice
    assert said.startswith("1 copy of the same file in 1 group, ") and len(sheets) == 1
    said, pairs = shown(2)
    assert pairs.loc[0, ["a", "b"]].tolist() == [0, -1] and not sheets
    lines = (path / "duplicates.csv").read_text().splitlines()
    more = [f"the same {kind},{i},{kind}{i}{j}.png,9,0.5" for kind, i, j in MORE]
    (path / "duplicates.csv").write_text("\n".join([lines[0], *more]))
    said, pairs = shown()
    assert pairs["file_a"].tolist() == ["file00.png", "scene00.png", "file10.png", "scene10.png"]
    (path / "duplicates.csv").write_text(f"{lines[0]}\n")
    said, pairs = shown()
    assert said.startswith("no image is there twice, ") and not len(pairs) and not sheets
    (path / "duplicates.csv").unlink()
    said, pairs = shown()
    assert said.startswith("the most similar pairs") and len(pairs) == 4 and sheets


def test_k_is_chosen_by_the_features_of_a_run_that_had_one(place, tmp_path, monkeypatch):
    """As the refusal of ``auto`` for scans says."""
    monkeypatch.setattr(stability, "STEPS", 3)
    monkeypatch.setattr(stability.stability, "__defaults__", (None, range(2, 5), None))
    base, folder = place
    places = {"results_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}
    run = str(trained(place, "crlc"))
    found = reproduce.cluster(folder, "auto", weights=run, steps=3, **places)
    assert found.stability["K"].tolist() == [2, 3, 4] and len(found) == 25


def test_other_images_than_it_was_trained_on(place, tmp_path):
    """A folder that has changed since says what to do about it, unless its images are still in the
    file that was made of them."""
    folder = paint(tmp_path / "images")
    run = Run(settings_for(tmp_path, folder, "crlc"))
    list(fit(run.config, run))
    (folder / "train" / "side0" / "00.png").unlink()
    assert len(look.look(str(run.path), data_dir=str(tmp_path / "data")).table) == 24
    with pytest.raises(ConfigError, match="other images than are there now: -p resume False"):
        look.look(str(run.path), data_dir=str(tmp_path / "elsewhere"))


def test_other_starts_of_k_means_vote_with_the_numbers_of_the_first():
    cluster = torch.arange(60) % 3
    features = torch.randn(60, 4) * 0.01 + 10 * torch.eye(3, 4)[cluster]
    votes = look.restarts(features, cluster, 3)
    assert votes.shape == (5, 60) and (votes == cluster.numpy()).mean() > 0.8


def test_the_images_are_cached_where_they_were_for_the_run(place, tmp_path, monkeypatch):
    path = trained(place, "crlc")
    monkeypatch.setattr(data, "ROOT", tmp_path / "no")
    (tmp_path / "here").mkdir()
    given = {"run_dir": str(path), "at_most": 9, "per_row": 3, "on_map": 9}
    look.from_notebook({**given, "data_dir": str(tmp_path / "here")})
    assert list((tmp_path / "here").glob("folder-*.npz")) and not (tmp_path / "no").exists()


def test_runs_of_other_seeds_and_other_k_are_found(place, capsys):
    path = trained(place, "crlc")
    trained(place, "crlc", seed=1)
    trained(place, "crlc", n_clusters=3)
    trained(place, "crlc", lambda1=0.5)
    found = looked_at(place, path)
    runs = look.related(found)
    assert runs[["K", "seed"]].values.tolist() == [[2, 0], [2, 1], [3, 0]]
    for i, (file, content) in enumerate(
        [("config.json", "{"), ("config.json", "{}"), ("metrics.json", "{}"), ("model.pt", "x")]
    ):
        damaged = path.with_name(f"damaged {i}")
        shutil.copytree(path, damaged)
        (damaged / file).write_text(content)
    assert len(look.related(found)) == 3
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert [f"damaged {i}" in line for i, line in zip((0, 2, 3), said)] == [True] * 3, said
    for i in range(4):
        shutil.rmtree(path.with_name(f"damaged {i}"))
    assert runs["between_heads"].between(-1, 1).all()
    assert look.agreement([[0, 0, 1, 1], [1, 1, 0, 0]]) == 1
    assert np.isnan(look.agreement([[0, 1]]))


@pytest.mark.parametrize(
    "n, size, mode, gpu, expected",
    [
        (40, (30, 28), "L", False, ("digits", 28, 0, "compact", 200, 8)),
        (40, (90, 70), "L", False, ("images", 64, 32, "compact", 200, 8)),
        (300, (40, 50), "RGB", False, ("images", 40, 32, "compact", 200, 64)),
        (300, (40, 50), "RGB", True, ("images", 40, None, "resnet18", 500, 64)),
    ],
)
def test_settings_go_by_images_and_device(tmp_path, n, size, mode, gpu, expected):
    rng = np.random.default_rng(0)
    for i in range(n):
        shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / f"{i:03d}.png")
    settings, said = choose.choose(str(tmp_path), {"n_clusters": 3, "seed": 4}, gpu)
    config = Config.from_params(settings)
    wanted = ("augmentation", "image_size", "view_size", "backbone", "epochs", "batch_size")
    assert tuple(settings.get(name) for name in wanted) == expected
    assert config.seed == 4 and f"{n} files of {'grey' if mode == 'L' else 'colour'} images" in said
    start = choose.choose(str(tmp_path), {"n_clusters": 3, "weights": "imagenet"}, gpu)[0]
    assert Config.from_params(start).freeze
    assert start["epochs"] == {(300, False): 67, (300, True): 67, (40, False): 200}[n, gpu]
    free = choose.choose(str(tmp_path), {"weights": "imagenet", "method": "byol"}, gpu)[0]
    assert not Config.from_params({**free, "n_clusters": 3}).freeze
    assert "7 epochs" in choose.choose(str(tmp_path), {"epochs": 7}, gpu)[1]
    Config.from_params(choose.choose(str(tmp_path), {"n_clusters": 3, "epochs": 2}, gpu)[0])


def test_a_large_grey_photograph_is_not_taken_for_a_drawing(tmp_path):
    """A JPEG is decoded at a smaller size, which is not its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 640), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    settings, said = choose.choose(str(tmp_path), {}, False)
    assert settings["augmentation"] == "images" and "of about 512 pixels" in said


def test_a_hundred_thousand_images_get_few_epochs(tmp_path, monkeypatch):
    Image.new("RGB", (80, 80), "red").save(tmp_path / "a.png")
    listed = [(tmp_path / "a.png", -1, 0)] * 100_000
    monkeypatch.setattr(choose, "list_folder", lambda folder: (listed, []))
    assert choose.choose(str(tmp_path), {}, False)[0]["epochs"] == 5
    assert choose.choose(str(tmp_path), {}, True)[0]["epochs"] == 30


def test_from_a_folder_to_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "map_of", lambda x, near, cosine: x[:, :2])  # UMAP takes seconds
    folder = paint(tmp_path / "images")
    words = ["clusters", str(folder), "2"]
    for name, value in (("results_dir", "runs"), ("data_dir", "data")):
        words += ["-p", name, str(tmp_path / value)]
    words += ["-p", "epochs", "1", "-p", "width", "4", "-p", "method", "byol"]
    with monkeypatch.context() as without:  # once is enough
        for made in ("execute", "to_html"):
            without.setattr(f"reproduce.report.pages.{made}", lambda *words, **named: None)
        assert main(words) == 0
    said = capsys.readouterr().out
    assert "24 files of colour images of about 8 pixels" in said and "clusters.html" in said
    (run,) = (tmp_path / "runs" / "folder" / "byol").iterdir()
    assert {path.name for path in run.iterdir()} <= OF_RUNS | {"page"}, "else it would outlive it"
    (run / "names.yaml").write_text("0: bright\n1: dark\n")
    assert main(words) == 0
    assert "already finished" in capsys.readouterr().out
    assert "page/index.html" in said and "reproduce sort" in said
    assert list((run / "page" / "thumbs").glob("*.jpg")) and (run / "page/index.html").exists()
    page = (run / "clusters.html").read_text(encoding="utf-8")
    assert 'aria-label="Pages"' not in page and 'index.html"' not in page, "there is none yet"
    assert page.count("<img") >= 4 and "bright" in page and "TqdmWarning" not in page
    assert "no image is there twice" in page
    with open(run / "clusters.csv", newline="") as file:
        assert {row["name"] for row in csv.DictReader(file)} <= {"bright", "dark"}
    changed = {"format": 1, "names": {"0": "all"}, "merged": {"1": 0}, "moved": {"no.png": 0}}
    (tmp_path / "saved.json").write_text(json.dumps(changed))
    more = ["-o", str(tmp_path / "out"), "--edits", str(tmp_path / "saved.json")]
    with monkeypatch.context() as without:
        without.setattr("reproduce.report.pages.execute", lambda *words, **named: None)
        without.setattr("reproduce.report.pages.to_html", lambda *words, **named: None)
        assert main([*words, *more]) == 0
    assert "'no.png'" in capsys.readouterr().out, "it is gone"
    for table in (tmp_path / "out" / "clusters.csv", run / "clusters.csv"):
        with open(table, newline="") as file:
            assert {row["name"] for row in csv.DictReader(file)} == {"all"}
    page = (tmp_path / "out" / "page" / "index.html").read_text(encoding="utf-8")
    assert '"base":"../../images/"' in page and '"names":{"0":"all"}' in page
    for out, said in ((folder / "out", "lies in the folder"), (tmp_path / "saved.json", "is a")):
        assert main([*words, "-o", str(out)]) == 2
        assert said in capsys.readouterr().err and not (folder / "out").exists()


@pytest.mark.parametrize("trained", [True, False])
def test_a_folder_as_people_have_it(tmp_path, capsys, monkeypatch, colours, trained):  # noqa: F811
    """Nested, with files that cannot be read, a video and what a system left; by a network that is
    trained on it, and by the features of another."""
    monkeypatch.setattr(tables, "map_of", lambda x, near, cosine: x[:, :2])
    folder = tmp_path / "photos"
    paint(folder / "2023" / "01")
    for i in range(12, 24):
        shutil.move(next((folder / "2023").rglob(f"{i:02d}.png")), folder)
    (folder / "2024" / "02").mkdir(parents=True)
    (folder / "2024" / "02" / "cut.jpg").write_bytes(b"x")
    (folder / "2024" / "film.mp4").write_bytes(b"x")
    (folder / "raw.CR2").write_bytes(b"x")
    shutil.copytree(folder / "2023", folder / "__MACOSX" / "2023")
    shutil.copy(folder / "12.png", folder / "2024" / "again.png")
    for made in ("execute", "to_html"):
        monkeypatch.setattr(f"reproduce.report.pages.{made}", lambda *words, **named: None)
    words = ["clusters", str(folder), "2", "-p", "results_dir", str(tmp_path / "runs")]
    words += ["-p", "data_dir", str(tmp_path / "data")]
    words += ["-p", "epochs", "1", "-p", "width", "4"] if trained else ["-p", "steps", "9"]
    assert main(words) == 0
    said = capsys.readouterr().out
    left_out = [
        "left out: 1 file that cannot be read: '2024/02/cut.jpg'",
        "left out: 1 video: '2024/film.mp4'",
        "left out: 1 RAW photograph: 'raw.CR2'",
    ]
    assert all(f"note:   {note}\n" in said for note in left_out) and "26 files of colour" in said
    assert "\ncopies: 1 copy of the same file in 1 group, " in said
    (run,) = (tmp_path / "runs").glob("folder/crlc/*" if trained else "own_images/photos/*")
    found = reproduce.Clusters.load(run)
    assert found.notes == left_out and look.look(str(run)).notes == left_out
    page = (run / "page" / "index.html").read_text(encoding="utf-8")
    assert json.loads(page.partition('id="data">')[2].partition("<")[0])["notes"] == left_out
    with open(run / "clusters.csv", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert len(names) == 25 and all((folder / name).is_file() for name in names)
    with open(run / "assignments.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == names


def test_wrong_input_ends_in_a_sentence(place, tmp_path, capsys):
    base, folder = place
    places = ["-p", "results_dir", str(tmp_path / "r"), "-p", "data_dir", str(tmp_path / "d")]
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_1.HEIC").write_bytes(b"no image")
    for where, k, said in (
        (tmp_path / "empty", "2", "holds no image"),
        (tmp_path / "gone", "2", "does not exist"),
        (tmp_path / "bad", "2", "can be read as an image ('a.png': damaged, or not one of"),
        (tmp_path / "phone", "2", "can be read as an image ('IMG_1.HEIC': "),
        (folder, "26", "more than the 25 images"),
        (folder, "1", "n_clusters is 1"),
    ):
        assert main(["clusters", str(where), k, *places]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    gone = str(tmp_path / "gone.json")
    assert main(["clusters", str(folder), "2", "--edits", gone, *places]) == 2
    said = f"error: clusters.json: {gone!r} cannot be read: No such file or directory\n"
    assert capsys.readouterr().err == said
    with pytest.raises(SystemExit):
        main(["clusters", str(folder), "five", *places])
    assert "K must be a whole number or auto, got 'five'" in capsys.readouterr().err
    given = {"run_dir": "", "at_most": 10, "per_row": 3, "on_map": 5}
    for wrong, said in (
        ({"per_row": 0}, "per_row must be a whole number of at least 1"),
        ({"at_most": 1}, "at_most must be a whole number of at least 2"),
        ({"data_dir": 3}, "data_dir must be a text"),
        ({"rows": 3}, "unknown parameter 'rows'"),
        ({"run_dir": str(tmp_path)}, "not the directory of a finished run"),
    ):
        with pytest.raises(ConfigError, match=said):
            look.from_notebook({**given, **wrong})


def test_the_pictures_can_be_drawn(place):
    found = looked_at(place, trained(place, "crlc"))
    k = int(found.sizes.argmax())
    found.names = {k: "left"}
    fig = look.sheet(found, [(found.title(k), np.arange(3), "white"), ("b", [1], "0.6")], ["x"])
    assert fig.axes[0].get_ylabel() == "left" and sum(bool(ax.images) for ax in fig.axes) == 4
    fig, ax = plt.subplots()
    xy = torch.rand(25, 2).numpy()
    look.draw_thumbnails(found, xy, np.arange(25), ax, cells=3)
    assert 4 <= len(ax.images) <= 9
    plt.close("all")
