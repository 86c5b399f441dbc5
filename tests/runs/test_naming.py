"""What a new run's directory is called, and that a run is found under whatever name it has."""

import itertools
import json
import os
from pathlib import Path

import pytest

from reproduce import Config, ConfigError, fit
from reproduce.__main__ import main
from reproduce.files import NOTEBOOKS, ROOT, read_json
from reproduce.runs import directory, naming, status
from reproduce.runs.directory import Run
from reproduce.runs.yaml_files import read_settings
from reproduce.sweeps import campaign, launch, sweep

RESULTS = str(ROOT / "results")
TINY = dict(epochs=3, limit=96, batch_size=32, width=4, n_heads=2, head_hidden=8, trace_images=5)


def of(preset="", **settings):
    given = read_settings(NOTEBOOKS / "settings" / f"{preset}.yaml") if preset else {}
    return Config.from_params({**given, **settings})


def said(config):
    """A name without its hash."""
    name, _, code = naming.run_name(config).rpartition("_")
    assert code == config.hash()
    return name


# ---- the name of a new run

BATCH, SAMPLE = "lambda1-1_entropy-batch", "lambda1-1_entropy-sample"
HEADS = "lambda1-2_entropy-batch_weights"
FIRST = "results/cifar10/crlc/lambda1-2_entropy-batch_seed-0_eb7e10b1"


@pytest.mark.parametrize(
    "config, name",
    [
        (of(), f"{BATCH}_seed-0"),
        (of("digits-quick", lambda1=0.3, seed=3), "lambda1-0.3_entropy-batch_seed-3"),
        (of("cifar10-course", seed=2001), f"{SAMPLE}_seed-2001"),
        (of("cifar10-course", stem="cifar"), f"{SAMPLE}_stem-cifar_seed-0"),
        (of("cifar10-byol-knn", learning_rate=0.1), "learning_rate-0.1_seed-0"),
        (of(method="byol", learning_rate=1e-6), "learning_rate-1e-06_seed-0"),
        (of("digits-course", views="together"), f"{SAMPLE}_views-together_seed-0"),
        (of("folder", folder="/a/my images/"), f"{BATCH}_folder-my-images_seed-0"),
        (of("folder", folder="to_20301231"), f"{BATCH}_folder-to_20301231_seed-0"),
        (of("cifar10-cpu-heads", weights=FIRST), f"{HEADS}-eb7e10b1_seed-0"),
        (of("cifar10-cpu-heads", weights="../a/own_net.pt"), f"{HEADS}-own_net.pt_seed-0"),
    ],
)
def test_a_name_says_what_differs_from_the_preset(config, name):
    assert said(config) == name


def test_machine_settings_name_nothing():
    here = dict(device="cpu", threads=2, checkpoint_minutes=0, tensorboard=True, data_dir="d")
    assert naming.run_name(of("cifar10-byol-knn", **here)) == naming.run_name(
        of("cifar10-byol-knn")
    )


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """Writes a preset into a folder of presets of their own, which is read anew."""
    folder = tmp_path / "presets"
    folder.mkdir()
    monkeypatch.setattr(naming, "PRESETS", folder)

    def write(name, text):
        (folder / f"{name}.yaml").write_text(text)
        naming.presets.cache_clear()

    naming.presets.cache_clear()
    yield write
    naming.presets.cache_clear()


def test_the_nearest_preset_is_the_one_that_leaves_the_fewest_differences(presets):
    config = of(epochs=9, width=8, momentum=0.8, learning_rate=0.1, flip=0.1)
    every = "epochs-9_flip-0.1_learning_rate-0.1_momentum-0.8_width-8"
    assert said(config) == f"{BATCH}_{every}_seed-0", "the defaults"
    presets(
        "c", "{width: 8, momentum: 0.8, lambda1: 9, entropy: sample, seed: 5}"
    )  # these count not
    assert said(config) == f"{BATCH}_epochs-9_flip-0.1_learning_rate-0.1_seed-0"
    presets("b", "{width: 8, epochs: 9, device: cpu}")  # as near: the first by name
    assert said(config) == f"{BATCH}_flip-0.1_learning_rate-0.1_momentum-0.8_seed-0"
    presets("d", "{width: 8, epochs: 9, momentum: 0.8, learning_rate: 1e-1}")  # to YAML a text
    assert said(config) == f"{BATCH}_flip-0.1_seed-0"
    for other in ("dataset: cifar10", "method: byol"):
        presets(
            "a", f"{{width: 8, epochs: 9, momentum: 0.8, learning_rate: 0.1, flip: 0.1, {other}}}"
        )
        assert said(config) == f"{BATCH}_flip-0.1_seed-0", other
    assert said(of()) == f"{BATCH}_seed-0", "the defaults are as near as any"


def test_a_preset_without_a_method_is_of_all_of_them(presets):
    config = of(method="byol", width=8, momentum=0.8, learning_rate=0.1)
    assert said(config) == "learning_rate-0.1_momentum-0.8_width-8_seed-0"
    presets("a", "{width: 8, momentum: 0.8}")
    assert said(config) == "learning_rate-0.1_seed-0"
    presets("b", "{width: 8, momentum: 0.8, learning_rate: 0.1, method: moco}")
    assert said(config) == "learning_rate-0.1_seed-0"


def test_presets_that_cannot_be_read_change_nothing(presets):
    presets("good", "{epochs: 9, width: 8}")
    config = of(epochs=9, width=8, flip=0.1)
    before = naming.run_name(config)
    presets("a", "epochs: [")
    presets("b", "epoch: 9\nwidth: 8\nflip: 0.1")  # there is no such setting
    presets("c", "epochs: many\nwidth: 8\nflip: 0.1")
    presets("d", "- epochs")
    presets("e", "1: 2")
    (naming.PRESETS / "f.yaml").write_bytes(b"\xff\xfe\x00")
    (naming.PRESETS / "g.yaml").mkdir()
    (naming.PRESETS / "h.yaml").symlink_to("nowhere")
    assert naming.run_name(config) == before
    presets("good", "")
    assert naming.run_name(config) != before, "it was read before"


def test_presets_are_read_once_and_only_for_a_new_name(presets, tmp_path, monkeypatch):
    presets("a", "epochs: 9")
    presets("b", "epochs: 10")
    read = []
    monkeypatch.setattr(naming, "read_settings", lambda file: read.append(file.stem) or {})
    known, new = (of(results_dir=str(tmp_path), seed=seed) for seed in (0, 1))
    (tmp_path / "digits" / "crlc" / f"old_{known.hash()}").mkdir(parents=True)
    Run(known)
    assert not read
    Run(new), Run(new), Run(known)
    assert read == ["a", "b"]


HOSTILE = [
    "/../a/..",
    "/",
    "a\n{b}$(rm -rf *)/\udcff'é\"[z]`;&|\x7f",
    "-rf",
    "~",
    ".hidden",
    "写" * 80,
    "x" * 255,
    "{undefined}",
    " . ",
    "हिन्दी फोटो",
]


@pytest.mark.parametrize("folder", HOSTILE)
def test_a_folder_of_any_name_gives_a_name_that_is_one(folder, tmp_path):
    config = of("folder", folder=folder, n_clusters=8, results_dir=str(tmp_path))
    run = Run(config)
    name = run.path.name
    assert run.path.parent == tmp_path / "folder" / "crlc" and name.startswith(f"{BATCH}_folder-")
    assert name.endswith(f"_n_clusters-8_seed-0_{config.hash()}")
    wrong = set("/\\:*?\"'<>|{}[]()$&;`~!# \n\x7f")
    assert not wrong & {*name} and name.isprintable()
    assert all(part.strip(".") and part[-1] != "-" for part in name.split("_"))
    with run.lock():
        assert Run(config).path == run.path and [*run.path.parent.iterdir()] == [run.partial]


def test_a_name_that_is_too_long_leaves_its_longest_parts_out():
    many = dict(epochs=61, batch_size=32, width=16, learning_rate=0.1, head_hidden=32, n_heads=3)
    many |= dict(momentum=0.8, weight_decay=1e-5, evaluate_every=7, kmeans_iterations=50)
    config = of("folder", folder="x" * 300, stem="imagenet", backbone="resnet18", **many)
    name = naming.run_name(config)
    assert 100 < len(name.encode()) <= 120 and name.endswith(f"_seed-0_{config.hash()}")
    assert name.startswith(BATCH)
    parts = [f"{k}-{v:g}" for k, v in many.items()] + ["stem-imagenet", "backbone-resnet18"]
    kept = [part for part in parts if f"_{part}_" in name]
    assert len(kept) > 4 and "folder" not in name
    assert max(map(len, kept)) <= min(len(part) for part in parts if part not in kept)
    words = "写" * 24  # 72 bytes
    short = of("folder", folder=words, n_clusters=8, head_hidden=32, batch_size=4)
    assert len(naming.run_name(short).encode()) <= 120


# ---- a run is found by its hash


@pytest.fixture
def config(tmp_path):
    places = {"results_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "data")}
    return Config.from_params({**TINY, **places})


def renamed(config, path):
    """The directory as a version named it that told of no other setting."""
    old = path.with_name(path.name.replace(naming.run_name(config), old_name(config)))
    assert old != path
    return path.rename(old)


def old_name(config):
    return f"lambda1-1_entropy-batch_seed-{config.seed}_{config.hash()}"


@pytest.mark.usefixtures("each_epoch")
def test_a_run_that_was_begun_under_another_name_goes_on_to_the_same_bits(config, tmp_path):
    whole = Run(config.replace(results_dir=str(tmp_path / "whole")))
    list(fit(whole.config, whole))
    begun = Run(config)
    stopped = fit(config, begun)
    list(itertools.islice(stopped, 1))
    stopped.close()
    old = renamed(config, begun.partial)
    run = Run(config)
    assert run.partial == old and status.state(run) == ("stopped", "at epoch 1 of 3")
    list(fit(config, run))
    assert run.notes == ["continued after epoch 1 from checkpoint.pt"]
    assert run.path.name == old_name(config) and [*run.path.parent.iterdir()] == [run.path]
    same = [one.json("metrics.json")["weights_sha256"] for one in (run, whole)]
    assert same[0] == same[1] and whole.path.name == naming.run_name(config)


def test_committed_runs_are_found_and_named_by_what_differs():
    """Those that others start from keep the names that the setting ``weights`` of these holds."""
    committed = directory.find()
    configs = {path: read_json(path / "config.json") for path in committed}
    starts = {Path(config["weights"]).name for config in configs.values() if config.get("weights")}
    assert len(starts) > 10 and starts < {path.name for path in committed}
    for path in committed:
        config = Config.from_params({**configs[path], "results_dir": RESULTS})
        assert path.name == naming.run_name(config) or path.name in starts
    for path in committed[::12]:
        run = Run(Config.from_params({**configs[path], "results_dir": RESULTS}))
        assert run.path == path and run.finished


def test_a_finished_run_of_another_name_is_shown_skipped_and_listed(config, capsys, monkeypatch):
    made = Run(config)
    rows = list(fit(config, made))
    old = renamed(config, made.path)
    before = (old / "metrics.json").read_bytes()
    run = Run(config)
    assert [row["epoch"] for row in fit(config, run)] == [row["epoch"] for row in rows]
    assert run.path == old and "already finished" in run.notes[0]
    monkeypatch.setattr(sweep, "run_notebook", None)
    (row,) = sweep.sweep([config], keep="none")
    assert (row["status"], row["path"]) == ("skipped", old)
    words = [w for k, v in config.changed().items() for w in ("-p", k, str(v))]
    settings = made.path.parent / "s.yaml"
    settings.write_text("")
    for command in (["sweep", str(settings), *words, "--status"], ["status", config.results_dir]):
        capsys.readouterr()
        assert main(command) == 0
        line, last = capsys.readouterr().out.splitlines()
        assert line.startswith(f"finished   digits/crlc/{old.name}  3 epochs in ")
        assert last.startswith("1 finished, 0 running")
    anew = Run(config.replace(resume=False))
    list(fit(anew.config, anew))
    assert anew.path == old and [*old.parent.glob("*seed*")] == [old]
    assert json.loads(before)["weights_sha256"] == run.json("metrics.json")["weights_sha256"]


def test_of_several_directories_the_finished_one_counts_then_one_with_a_checkpoint(config):
    folder = Run(config).path.parent
    code = config.hash()

    def there(name, file=""):
        (folder / f"{name}_{code}{'' if file == 'metrics.json' else '.partial'}").mkdir(
            parents=True
        )
        if file:
            found = next(folder.glob(f"{name}_*"))
            (found / file).write_text("{}")
        run = Run(config)
        assert run.partial.name == f"{run.path.name}.partial"
        return run.path.name.removesuffix(f"_{code}")

    for other in (f".a_{code}.old.partial", f"a_{code}x", f"a{code}", f"a_{code}_b", f"a_{code}.x"):
        (folder / other).mkdir(parents=True)
    (folder / f"0_{code}").write_text("a file")
    assert Run(config).path.name == naming.run_name(config)
    assert there("d") == "d" and there("b") == "b" and there("c") == "b"
    assert there("e", "checkpoint.pt") == "e"
    assert there("f", "metrics.json") == "f"
    assert Run(config.replace(seed=1)).path.name == naming.run_name(config.replace(seed=1))


def test_a_folder_that_cannot_be_looked_into_is_said_where_the_run_is_written(config, monkeypatch):
    config = config.replace(results_dir=f"{config.results_dir}/{'x' * 300}")
    with (
        pytest.raises(ConfigError, match="cannot be written: File name too long"),
        Run(config).lock(),
    ):
        pass

    def closed(*_):  # as Python 3.11 and 3.12 have it, where a folder's own folder is closed
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(directory.Path, "glob", closed)
    assert Run(config).path.name.startswith(f"{BATCH}_")


def test_the_run_of_an_earlier_star_is_found_under_its_name(config, monkeypatch):
    star = {"settings": "digits-quick", "with": TINY, "name": "a"}
    last = {"settings": "digits-quick", "with": {**TINY, "weights": "@a"}}
    monkeypatch.setattr(campaign, "blocks", lambda: {"X": [star, last]})
    changes = {"results_dir": config.results_dir}
    first, new = campaign.block("X", changes)
    assert os.path.basename(new.weights) == naming.run_name(first)
    old = Run(first).path.with_name(old_name(first))
    old.mkdir(parents=True)
    _, second = campaign.block("X", changes)
    assert os.path.basename(second.weights) == old.name
    assert campaign.chained([first, second])


# ---- one name in all processes


def other_name(config):
    return f"another_{config.hash()}"


def test_a_run_that_is_written_under_another_name_is_refused(config, monkeypatch):
    """Two processes, beside other presets, that both found no directory."""
    first, second = Run(config), Run(config)
    second.path = second.path.with_name(other_name(config))
    for one, other in ((first, second), (second, first)):
        with one.lock():
            with pytest.raises(ConfigError) as error, other.lock():
                pass
            assert f"{str(one.path)!r} is the same run, and is being written by process" in str(
                error.value
            )
            assert [*one.path.parent.iterdir()] == [one.partial], "its own is gone"
            assert one.progress() == {}
    with second.lock():
        pass
    (second.partial / "checkpoint.pt").write_bytes(b"kept")
    with first.lock():
        with pytest.raises(ConfigError, match="is the same run"), second.lock():
            pass
        assert (second.partial / "checkpoint.pt").exists(), "nothing is lost"


def test_a_sweeps_child_finds_the_name_that_the_sweep_has_made(config, monkeypatch):
    found = []

    def module(*_):
        with monkeypatch.context() as child:  # which has read other presets
            child.setattr(directory, "run_name", other_name)
            found.append(Run(config).path)
        assert status.state(Run(config)) == ("not begun", "")
        return 1, "not run"

    monkeypatch.setattr(launch, "module", module)
    run = Run(config)
    assert sweep.execute(run, 1).status == "failed"
    assert found == [run.path] and run.path.name == naming.run_name(config)
    assert not [*run.path.parent.iterdir()], "nothing was begun"


def test_a_sweep_says_where_a_run_lies_that_another_process_has_made_meanwhile(config, monkeypatch):
    def run_notebook(config, *_):
        path = Run(config).path.with_name(other_name(config))
        path.mkdir(parents=True)
        (path / "metrics.json").write_text("{}")
        return launch.Outcome()

    monkeypatch.setattr(sweep, "run_notebook", run_notebook)
    (row,) = sweep.sweep([config])
    assert row["path"].name == other_name(config) and row["name"].endswith(other_name(config))


def test_torchruns_processes_find_the_name_that_is_made_before_them(config, monkeypatch):
    found = []

    def torchrun(config, run):
        monkeypatch.setattr(directory, "run_name", other_name)
        found.append(Run(config).path)
        yield {"epoch": 1}

    monkeypatch.setattr(launch, "torchrun", torchrun)
    run = Run(config.replace(processes=2, device="cpu"))
    list(fit(run.config, run))
    assert found == [run.path] and not run.partial.exists()
