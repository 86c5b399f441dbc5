"""The notebooks are the product: they are executed, and they are kept clean."""

import ast
import base64
import io
import json
import re
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
import torchvision
from nbclient import NotebookClient
from PIL import Image
from test_project import ABSOLUTE

from reproduce import ConfigError, data, fit
from reproduce.config import Config, readers
from reproduce.files import ROOT
from reproduce.methods import METHODS
from reproduce.methods.data_and_network import FOLDERS
from reproduce.report import claims, pages, parameters, plots, results
from reproduce.runs.directory import Run, find
from reproduce.runs.executed import PHOTOGRAPH
from reproduce.runs.yaml_files import read_settings

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRESETS = sorted((ROOT / "notebooks" / "settings").glob("*.yaml"))


def papermill(tmp_path, *words, notebook="train", cwd=None):
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / f"{notebook}.ipynb"),
        str(tmp_path / "out.ipynb"),
        "--no-progress-bar",
    ]
    return subprocess.run([*command, *words], capture_output=True, text=True, cwd=cwd or tmp_path)


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_kept_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(path)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    assert words > 100, "a notebook is prose around its outputs"
    for cell in cells:
        assert not cell.outputs and cell.execution_count is None
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(lines) <= 12, cell.source
            assert all(len(line) <= 100 for line in lines), cell.source
        assert not re.search(r"^\s*[!%]|^class |" + ABSOLUTE, cell.source, re.M), cell.source


@pytest.mark.parametrize("path", pages.notebooks(), ids=lambda p: p.stem)
def test_every_cell_of_a_report_runs_on_the_committed_runs(path, tmp_path, monkeypatch):
    kept = ROOT / "figures" / "embeddings.npz"  # UMAP takes a minute
    shutil.copy(kept, tmp_path)
    monkeypatch.setattr(plots, "folder", lambda *_: tmp_path)
    shown = []
    namespace = {"display": shown.append}
    for cell in code_cells(path):
        exec(compile(cell.source, f"{path.name}, {cell.id}", "exec"), namespace)
    plt.close("all")
    saved = {file.name for file in tmp_path.glob("*.png")}
    assert saved <= {file.name for file in kept.parent.glob("*.png")}


@pytest.mark.parametrize("path", pages.notebooks(), ids=lambda p: p.stem)
def test_a_committed_page_is_of_the_notebook_as_it_is(path):
    """``make pages`` was run after the last change."""
    executed = nbformat.read(ROOT / "results" / path.name, as_version=4).cells
    executed = [c for c in executed if "injected-parameters" not in c.metadata.get("tags", [])]
    cells = nbformat.read(path, as_version=4).cells
    assert [c.source for c in executed] == [c.source for c in cells]


INTERVAL = re.compile(
    r"(?:([+-]?[\d.]+)(?: points?| %)?(?: of (?:ACC|kNN))? )?\[(-?[\d.]+), (-?[\d.]+)\]"
)


def intervals(text):
    """The intervals in a text, each with the number before it, "" if there is none."""
    return {(d.lstrip("+"), *ends) for d, *ends in INTERVAL.findall(text.replace("−", "-"))}


def negative(numbers):
    return tuple(f"-{x}".replace("--", "") if x else x for x in numbers)


def test_every_interval_in_the_prose_is_in_a_table():
    """To the digit, of a page or of the claims; a loss may be told without its minus. Where the
    prose says the difference before the interval, it is the table's."""
    known, texts = intervals("\n".join(claims.measure(results.load())["shown"])), {}
    for path in pages.notebooks():
        cells = nbformat.read(ROOT / "results" / path.name, as_version=4).cells
        shown = [o.get("data", {}) for cell in cells for o in cell.get("outputs", [])]
        known |= intervals(" ".join(o.get("text/plain", "") for o in shown))
        texts[path.stem] = "".join(c.source for c in cells if c.cell_type == "markdown")
    for name in ("README", "CHANGELOG"):
        texts[name] = (ROOT / f"{name}.md").read_text(encoding="utf-8")
    known |= {(negative([d]) + negative(ends[::-1])) for d, *ends in known}
    ends = {tuple(known_ends) for _, *known_ends in known}
    missing = {
        (name, d, *told)
        for name, text in texts.items()
        for d, *told in intervals(text)
        if ((d, *told) not in known if d else tuple(told) not in ends)
    }
    assert known and not missing


def test_which_intervals_a_text_has():
    text = "loses 5.2 points [−1.0, 2.5], a gap [1, 2] (0.3 [0.1, 0.5]), 3.1 % of kNN [0.4, 9.9]"
    assert intervals(text) == {
        ("5.2", "-1.0", "2.5"),
        ("", "1", "2"),
        ("0.3", "0.1", "0.5"),
        ("3.1", "0.4", "9.9"),
    }
    assert negative(["5.2", "-1.0", ""]) == ("-5.2", "1.0", "")


def test_the_parameters_cell_is_the_dataclass():
    cell = next(
        c
        for c in code_cells(ROOT / "notebooks" / "train.ipynb")
        if "parameters" in c.metadata.get("tags", [])
    )
    assert cell.source == parameters.cell()
    namespace = {}
    exec(cell.source, namespace)
    assert Config.from_notebook(namespace) == Config()


def test_papermill_explains_every_parameter(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "--help-notebook",
            str(ROOT / "notebooks" / "train.ipynb"),
        ],
        capture_output=True,
        text=True,
    )
    explained = re.findall(
        r"^  (\w+): (?:int|float|str|bool) \(default (.*?)\)\s+\S", done.stdout, re.M
    )
    assert {name for name, _ in explained} == set(Config.__dataclass_fields__), done.stdout


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_a_preset_is_valid(path):
    checked(path)


def checked(path):
    settings = read_settings(path)
    named = {"folder": "images"} if settings.get("dataset") in FOLDERS else {}
    return Config.from_params({**settings, **named})


OTHERS = [path for path in PRESETS if "method: crlc" not in path.read_text()]


def test_every_method_has_a_preset():
    aiming = [p for p in OTHERS if p.stem.startswith("cifar10-") and "# Target" in p.read_text()]
    methods = {read_settings(p)["method"] for p in aiming}
    assert methods == set(METHODS) - {"crlc"}


@pytest.mark.parametrize(
    "path", [p for p in OTHERS if "# Target" in p.read_text()], ids=lambda p: p.stem
)
def test_a_preset_says_where_each_setting_is_from(path):
    method = checked(path).method
    for line in path.read_text().splitlines():
        assert line.startswith("#") or re.search(r" # \S", line), line
    own = {
        name
        for name in Config.__dataclass_fields__
        if method in readers(name) and len(readers(name)) < len(METHODS)
    }
    assert own - {"freeze", "neighbours", "vote_neighbours"} <= set(read_settings(path)), (
        "a setting that only some methods know is not left to the default for digits"
    )


def test_digits_quick_is_the_default():
    assert (
        Config.from_params(read_settings(ROOT / "notebooks" / "settings" / "digits-quick.yaml"))
        == Config()
    )


def test_the_two_cifar_presets_differ_in_the_listed_points():
    paper, course = (
        Config.from_params(
            read_settings(ROOT / "notebooks" / "settings" / f"cifar10-{n}.yaml")
        ).identity()
        for n in ("paper", "course")
    )
    assert {k for k in paper if paper[k] != course[k]} == {
        "entropy",
        "entropy_smoothed",
        "stem",
        "lambda1",
        "crop_scale",
        "jitter",
        "normalize",
        "split",
        "head_bias",
        "head_init",
        "decay",
        "logit_clamp",
        "batchnorm_split",
        "sampler",
        "evaluate_every",
    }


def test_train_runs_from_elsewhere_and_says_what_came_out(tmp_path):
    done = papermill(
        tmp_path,
        "-p",
        "lambda1",
        "0.3",
        "-p",
        "epochs",
        "2",
        "-p",
        "width",
        "4",
        "-p",
        "limit",
        "300",
        "-p",
        "results_dir",
        "runs",
        "-p",
        "data_dir",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    runs = find(tmp_path / "runs")
    assert len(runs) == 1 and "lambda1-0.3" in runs[0].name
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    said = "\n".join(
        o.get("text", "")
        + o.get("data", {}).get("text/plain", "")
        + o.get("data", {}).get("text/markdown", "")
        for c in notebook.cells
        if c.cell_type == "code"
        for o in c.outputs
    )
    for text in (
        "source ",
        "settings ",
        "epoch    2/2",
        "first head",
        "mean of heads",
        "lowest-loss head",
        "aligned average",
        "oracle",
        "k-means on pixels",
    ):
        assert text in said
    assert (
        sum(
            o.output_type == "display_data"
            for c in notebook.cells
            if c.cell_type == "code"
            for o in c.outputs
        )
        >= 5
    )


def said_in(path):
    """All text that an executed notebook shows."""
    outputs = [o for c in code_cells(path) for o in c.outputs]
    return "\n".join(
        o.get("text", "")
        + o.get("data", {}).get("text/plain", "")
        + o.get("data", {}).get("text/markdown", "")
        for o in outputs
    )


def test_all_cells_can_be_run_again_with_another_weight(tmp_path):
    """As in JupyterLab: a parameter is changed, and everything runs again in the same kernel."""
    notebook = nbformat.read(ROOT / "notebooks" / "train.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = []
    for weight in (0.3, 2.0):
        short = f"lambda1, epochs, limit, results_dir = {weight}, 1, 300, {str(tmp_path)!r}"
        cells = [nbformat.from_dict(cell) for cell in code]
        notebook.cells += [cells[0], nbformat.v4.new_code_cell(short), *cells[1:]]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert sorted(run.name.split("_")[0] for run in find(tmp_path)) == ["lambda1-0.3", "lambda1-2"]


def test_features_without_heads_then_a_linear_classifier_on_every_layer(tmp_path):
    tiny = [
        "-p",
        "method",
        "byol",
        "-p",
        "epochs",
        "2",
        "-p",
        "width",
        "4",
        "-p",
        "limit",
        "300",
        "-p",
        "results_dir",
        "runs",
        "-p",
        "data_dir",
        str(tmp_path),
    ]
    done = papermill(tmp_path, *tiny)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "k-means on features" in said_in(tmp_path / "out.ipynb")
    run = find(tmp_path / "runs")[0]
    done = papermill(
        tmp_path, "-p", "run_dir", str(run), "-p", "epochs", "3", notebook="linear_evaluation"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, probes = said_in(tmp_path / "out.ipynb"), json.loads((run / "probes.json").read_text())
    assert f"loaded {run.name}: byol on digits, epoch 2" in said and "nearest neighbours" in said
    assert (
        list(probes["layers"]) == ["conv1", "conv2", "conv3", "conv4", "features"]
        and probes["epochs"] == 3
    )
    (run / "model.pt").write_bytes(b"")
    cells, namespace = code_cells(ROOT / "notebooks" / "linear_evaluation.ipynb"), {}
    exec(cells[0].source, namespace)
    namespace["run_dir"] = str(run)
    with pytest.raises(ConfigError, match="model.pt"):
        for cell in cells[1:]:
            exec(compile(cell.source, cell.id, "exec"), namespace)


def pictures_in(path):
    return sum(o.output_type == "display_data" for c in code_cells(path) for o in c.outputs)


def test_filters_strongest_images_and_neighbours_of_a_run_on_digits(tmp_path):
    tiny = {"epochs": 2, "width": 4, "limit": 300, "evaluate_every": 1}
    config = Config.from_params({**tiny, "results_dir": str(tmp_path)})
    assert len(list(fit(config))) == 2
    words = ["-p", "run_dir", str(Run(config).path), "-p", "at_most", "200"]
    done = papermill(tmp_path, *words, notebook="features")
    assert done.returncode == 0, done.stderr[-2000:]
    said = said_in(tmp_path / "out.ipynb")
    assert "200 images are looked at\n" in said and "drawn at random" in said
    # filters, four layers, queries, NMI over the epochs, the traced images that stay, NMI over k
    assert pictures_in(tmp_path / "out.ipynb") == 1 + 4 + 1 + 1 + 1 + 1


COMMITTED = ROOT / "results/cifar10/crlc/lambda1-2_entropy-batch_seed-0_3ed3a3cd"


def test_a_committed_network_is_shown_ones_own_images(tmp_path):
    """Its data set is not read, and needs not be there."""
    rng = np.random.default_rng(0)
    for i, name in enumerate("ab" * 15):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 99, (40, 40, 3), np.uint8)
        pixels[..., name == "a"] += 100
        Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    words = ["-p", "run_dir", str(COMMITTED), "-p", "data_dir", str(tmp_path / "empty")]
    words += ["-p", "images", str(tmp_path / "images")]
    done = papermill(tmp_path, *words, notebook="features")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "crlc on cifar10, epoch 45" in said_in(tmp_path / "out.ipynb")
    assert pictures_in(tmp_path / "out.ipynb") == 1 + 4 + 1 + 1 + 1


def test_photographs_of_a_data_set_are_not_shown(tmp_path, monkeypatch):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), np.uint8))
    labels, classes = torch.arange(60) % 10, tuple("abcdefghij")
    sha256 = json.loads((COMMITTED / "metrics.json").read_text())["data"]["sha256"]
    images = data.Images("cifar10", pixels, labels, torch.ones(60).byte(), classes, sha256)
    monkeypatch.setattr(data, "load", lambda config, sha256: images)
    monkeypatch.chdir(ROOT)
    cells = code_cells(ROOT / "notebooks" / "features.ipynb")
    namespace, drawn = {}, []
    exec(cells[0].source.replace('run_dir: str = ""', f"run_dir = {str(COMMITTED)!r}"), namespace)
    monkeypatch.setattr(torchvision.utils, "make_grid", lambda x, **_: drawn.append(x) or x[0])
    for cell in cells[1:]:
        exec(compile(cell.source, cell.id, "exec"), namespace)
    plt.close("all")
    assert not namespace["shown"] and [len(x) for x in drawn] == [64]  # the filters
    assert list(namespace["purity"])[-1] == "drawn at random" and len(namespace["found"]) == 9


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["-p", "lamda1", "0.3"], "unknown parameter 'lamda1': did you mean 'lambda1'?"),
        (["-p", "dataset", "folder", "-p", "folder", "nowhere"], "'nowhere' does not exist"),
    ],
)
def test_a_wrong_parameter_ends_in_one_sentence(tmp_path, words, sentence):
    done = papermill(tmp_path, *words, "-p", "results_dir", str(tmp_path / "runs"))
    assert done.returncode != 0
    assert sentence in done.stderr.strip().splitlines()[-1], done.stderr[-1500:]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_folder_without_labels_has_clusters_and_no_scores(tmp_path, on_disk):
    from reproduce.data import packed

    (tmp_path / "images").mkdir()
    for i in range(40):
        colour = np.zeros((20, 20, 3), np.uint8)
        colour[..., i % 3] = 200
        Image.fromarray(colour).save(tmp_path / "images" / f"{i:02d}.png")
    if on_disk:
        (tmp_path / "images").rename(tmp_path / "source")
        packed.pack(tmp_path / "source", tmp_path / "images", 16)
    done = papermill(
        tmp_path,
        "-f",
        str(ROOT / "notebooks" / "settings" / "folder.yaml"),
        "-p",
        "folder",
        "images",
        "-p",
        "n_clusters",
        "3",
        "-p",
        "image_size",
        "16",
        "-p",
        "backbone",
        "small",
        "-p",
        "width",
        "4",
        "-p",
        "epochs",
        "6",
        "-p",
        "batch_size",
        "20",
        "-p",
        "results_dir",
        "runs",
        "-p",
        "data_dir",
        "cache",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = find(tmp_path / "runs")[0]
    assert '"scores": {}' in (run / "metrics.json").read_text()
    assert "acc" not in (run / "history.csv").read_text().splitlines()[0]
    assert len((run / "assignments.csv").read_text().splitlines()) == 41


def captions(source):
    """What a cell gives ``plots.save`` as the caption, as it stands in the code."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    saves = [n for n in calls if ast.unparse(n.func) == "plots.save"]
    return [ast.unparse(save.args[2]) for save in saves]


@pytest.mark.parametrize("path", pages.notebooks(), ids=lambda p: p.stem)
def test_each_figure_that_is_kept_has_a_caption_that_ends_as_a_sentence(path):
    """And is drawn and kept in one cell: what is open at the end of a cell is shown once more."""
    said = ""
    for cell in code_cells(path):
        said += f"{cell.source}\n"
        names = captions(cell.source)
        for name in names:
            given = re.findall(rf"^ *{name} = (\(.*?\)|f?\".*?\")$", said, re.S | re.M)[-1]
            assert name == "caption" and re.search(r"[.}]\"\)?$", given), cell.source
        draws = r"plt\.subplots\(|sns\.(relplot|displot)\(|figures\.single_images\("
        assert bool(names) == bool(re.search(draws, cell.source)), cell.source


def test_no_committed_run_of_a_data_set_of_photographs_shows_them():
    """Pages of a machine's own runs may; a picture with so many colours is no drawing."""
    for path in (ROOT / "results").rglob("train.ipynb"):
        where = path.relative_to(ROOT / "results").parts
        if where[0] in ("local", "digits"):
            continue
        for cell in code_cells(path):
            for png in (o.get("data", {}).get("image/png") for o in cell.outputs):
                if png:
                    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
                    assert picture.getcolors(PHOTOGRAPH), (path, cell.id)
