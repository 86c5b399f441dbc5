"""The blocks of the campaign: which runs they hold, in which order, and one of them through
papermill."""

import itertools
import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from reproduce import fit
from reproduce.__main__ import main
from reproduce.config import Config
from reproduce.data import sets as data
from reproduce.files import ROOT
from reproduce.loop import keeping
from reproduce.loop.keeping import Keeper
from reproduce.methods import METHODS
from reproduce.runs import flops
from reproduce.runs.directory import Run
from reproduce.runs.provenance import source_tree
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError
from reproduce.sweeps import campaign
from reproduce.sweeps import sweep as driver
from reproduce.sweeps.launch import Outcome


def changed(a, b):
    """The settings in which two configurations differ."""
    a, b = a.identity(), b.identity()
    return {k for k in a if a[k] != b[k]}


def test_block_1_goes_from_the_course_to_the_authors_one_factor_at_a_time():
    path = campaign.star_of({**campaign.blocks()["1"][2], "grid": {}}, {})
    assert (path[0].entropy, path[0].stem, path[0].normalize, path[0].decay) == (
        "sample",
        "imagenet",
        False,
        "all",
    )
    assert [changed(a, b) for a, b in zip(path, path[1:])] == [
        {"entropy", "entropy_smoothed"},
        {"stem"},
        {"crop_scale", "jitter", "normalize"},
        {"head_bias", "head_init", "decay", "logit_clamp"},
    ]
    # what is left between the path's end and the authors' preset is the block's own scale and three
    # points that are no factor of it
    authors = campaign.star_of({"settings": "cifar10-paper"}, {})[0]
    assert changed(path[-1], authors) == {
        "precision",
        "backbone",
        "epochs",
        "evaluate_every",
        "lambda1",
        "batchnorm_split",
        "sampler",
    }
    configs = campaign.block("1", {})
    ends = [configs[:3], configs[3:6]]  # before all else, with three seeds
    assert [[c.seed for c in end] for end in ends] == [[0, 1, 2]] * 2
    assert [{c.replace(seed=0).hash() for c in end} for end in ends] == [
        {path[0].hash()},
        {path[-1].hash()},
    ]
    assert [c.seed for c in configs[6:]] == [0, 1, 2] * 3 + [0] * 6


def test_every_block_is_made_of_valid_settings_with_equal_epochs_and_split():
    for name, n in (("ten", 4), ("1", 21), ("2", 8), ("3", 4), ("4", 8)):
        configs = campaign.block(name, {})
        assert len(configs) == n and {c.dataset for c in configs} == {"cifar10"}
        if name in "12":
            assert len({c.epochs for c in configs}) == 1 and {c.split for c in configs} == {"test"}
    both = [{c.hash() for c in campaign.block(name, {})} for name in "12"]
    assert len(both[0] & both[1]) == 1  # the authors' end, which is run once for both


def test_the_levers_are_committed_runs_of_the_preset_with_a_single_change():
    baseline, *tried = campaign.block("levers", {})
    runs = (ROOT / "results" / "cifar10" / "crlc").glob("*_seed-0_*/metrics.json")
    assert {c.hash() for c in tried} <= {path.parent.name.rpartition("_")[2] for path in runs}
    views = {c.epochs * c.n_views for c in tried}  # of each image
    assert len(tried) == 7 and views == {baseline.epochs * baseline.n_views}


def test_the_block_for_digits_holds_the_committed_runs_and_no_other():
    runs = (ROOT / "results" / "digits").glob("*/*/config.json")
    committed = {path.parent.name.rpartition("_")[2] for path in runs}
    assert committed == {config.hash()[:8] for config in campaign.block("digits", {})}


def test_the_block_for_a_cpu_leads_from_the_course_to_the_preset():
    """Equal scale in every run, the path ends where the preset is, and both ends come first."""
    authors, course, path, from_authors, from_course, grid, *_ = campaign.blocks()["cpu"]
    end = Config.from_params(read_settings(campaign.PRESETS / "cifar10-cpu.yaml"))
    ends = [campaign.star_of(star, {})[0].hash() for star in (authors, course)]
    path = [config.hash() for config in campaign.star_of(path, {})]
    assert path[-1] == ends[0] == end.hash() and path[0] == ends[1] and len(path) == 5
    configs = campaign.block("cpu", {})
    assert [c.hash() for c in configs[:2]] == ends
    scale = (
        "dataset split limit backbone width view_size n_views epochs batch_size schedule".split()
    )
    assert len({tuple(getattr(c, k) for k in scale) for c in configs}) == 1
    # 5 on the path, 3 alone from either end (the fourth is on the path), 7 more of the grid, 8
    # seeds
    assert len(configs) == len({c.hash() for c in configs}) == 5 + 3 + 3 + 7 + 8
    assert len(campaign.block("cpu", {"seed": 1})) == 18
    # the block "hour" is both ends for longer, then two seeds more of each
    longer = [c.replace(epochs=4, evaluate_every=2) for c in campaign.block("hour", {})]
    assert [c.hash() for c in longer[:2]] == ends
    assert [c.seed for c in longer] == [0, 0, 1, 2, 1, 2]
    assert {c.replace(seed=0).hash() for c in longer} == {*ends}
    factors = {k for star in (from_authors, from_course) for one in star["one"] for k in one}
    assert factors == changed(end, campaign.star_of(course, {})[0])
    assert len(campaign.star_of(grid, {})) == 8


def test_changes_reach_every_run_and_unknown_blocks_none():
    assert all(
        (c.limit, c.epochs) == (300, 2) for c in campaign.block("1", {"limit": 300, "epochs": 2})
    )
    with pytest.raises(ConfigError, match="block is '5': it must be one of ten, 1, 2, 3, 4, cpu"):
        campaign.block("5", {})
    with pytest.raises(ConfigError, match="^stem cannot be given to a block whose runs differ"):
        campaign.block("1", {"stem": "cifar"})
    with pytest.raises(ConfigError, match="unknown parameter 'limmit'"):
        campaign.block("1", {"limmit": 300})


def few_images(path):
    """A data set of CIFAR-10's name and shape, with 40 images to train on."""
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for n in (40, 20)]
    labels = [rng.integers(0, 4, len(x)) for x in parts]
    data.write_cached(path / "cifar10.npz", **data.joined(parts, labels, list("abcd")))


def test_a_block_is_run_and_the_next_call_skips_what_is_finished(tmp_path, monkeypatch, capsys):
    """Through papermill, as on the GPU; only the images are others and few."""
    path = campaign.blocks()["1"][2]
    star = {**path, "path": path["path"][:1], "grid": {}}
    monkeypatch.setattr(campaign, "blocks", lambda: {"1": [star]})
    few_images(tmp_path)
    words = [
        "campaign",
        "1",
        "--minutes",
        "5",
        "-p",
        "results_dir",
        str(tmp_path / "runs"),
        "-p",
        "data_dir",
        str(tmp_path),
    ]
    for name, value in {
        "limit": 20,
        "epochs": 2,
        "batch_size": 8,
        "backbone": "compact",
        "view_size": 16,
        "width": 2,
        "n_heads": 2,
        "evaluate_every": 2,
    }.items():
        words += ["-p", name, str(value)]
    assert main(words) == 0
    assert "2 finished" in capsys.readouterr().out
    runs = sorted((tmp_path / "runs" / "cifar10" / "crlc").glob("[!.]*"))
    settings = [json.loads((run / "config.json").read_text()) for run in runs]
    assert sorted(s["entropy"] for s in settings) == ["batch", "sample"] and {
        s["epochs"] for s in settings
    } == {2}
    assert all(
        (run / file).exists()
        for run in runs
        for file in ("metrics.json", "train.ipynb", "train.html")
    )
    began = [(run / "metrics.json").stat().st_mtime_ns for run in runs]
    assert main(words) == 0
    assert "2 skipped" in capsys.readouterr().out
    assert [(run / "metrics.json").stat().st_mtime_ns for run in runs] == began


# ---- runs that start from one another


def test_block_ten_is_a_chain_with_growing_views_and_new_heads():
    *grown, heads = configs = campaign.block("ten", {})
    assert [c.view_size for c in configs] == [16, 24, 32, 32]
    assert not configs[0].weights and heads.freeze and not any(c.freeze for c in grown)
    for before, config in zip(configs, configs[1:]):
        assert campaign.chained([before, config])
        assert (ROOT / config.weights).resolve() == Run(before).path
        # what the weights must fit
        for name in ("backbone", "stem", "width", "normalize", "seed"):
            assert getattr(before, name) == getattr(config, name)
    assert {c.batch_size for c in configs} == {512} and {c.views for c in grown} == {"together"}
    again = campaign.block("ten", {"seed": 1})
    assert not {c.weights for c in again} & {c.weights for c in configs[1:]}
    assert not campaign.chained(campaign.block("F", {}))  # whose weights are committed runs


def test_the_hashes_of_a_chain_are_the_same_wherever_the_repository_lies(tmp_path, monkeypatch):
    found = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        found.append([c.hash() for c in campaign.block("ten", {"results_dir": "runs"})])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("stars", "changes", "sentence"),
    [
        ([{"name": "b"}], {}, "weights is '@a': the stars before it with a name are: @b$"),
        ([], {}, "weights is '@a': the stars before it with a name are: none$"),
        ([{"name": "a"}], {"weights": "x"}, "weights cannot be given to a block whose runs start"),
    ],
)
def test_a_wrong_start_is_one_sentence(monkeypatch, stars, changes, sentence):
    preset = {"settings": "digits-quick"}
    last = {**preset, "with": {"weights": "@a"}}
    monkeypatch.setattr(
        campaign, "blocks", lambda: {"X": [*({**preset, **s} for s in stars), last]}
    )
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        campaign.block("X", changes)


def test_a_star_may_start_from_several_runs_and_from_another_block(monkeypatch):
    preset, weights = {"settings": "digits-quick"}, {"with": {"weights": "@a"}}
    stars = [{**preset, "name": "a", "grid": {"seed": [0, 1]}}]
    last = {**preset, **weights, "grid": {"method": ["simclr", "byol"]}}
    for blocks in ({"X": [*stars, last]}, {"a": stars, "X": [last]}):
        monkeypatch.setattr(campaign, "blocks", lambda blocks=blocks: blocks)
        configs = campaign.block("X", {"results_dir": "runs"})[-4:]
        starts = [Run(c).path for c in campaign.star_of(stars[0], {"results_dir": "runs"})]
        assert [(Path(c.weights).absolute(), c.method) for c in configs] == [
            (path, method) for path in starts for method in ("simclr", "byol")
        ]


def test_the_ablation_takes_equal_arithmetic_and_one_lever_out_at_a_time():
    cells = {cell.name: Config.from_params(cell.settings) for cell in campaign.cells("ablation")}
    cost = {name: flops.of_epochs(c, c.epochs, 3, 10, 50_000) for name, c in cells.items()}
    assert len(cells) == 8 and max(cost.values()) < 1.15 * min(cost.values()) < 0.25
    every = cells["MNDVPG"]
    assert changed(cells["none"], every) == {
        *"optimizer muon_rate negatives covariance_weight projector_batchnorm".split(),
        *"projection_dim view_size view_sizes epochs evaluate_every".split(),
    }
    without = {
        "NDVPG": "optimizer muon_rate",
        "MVPG": "negatives",
        "MNVPG": "negatives",
        "MNDPG": "covariance_weight",
        "MNDVG": "projector_batchnorm projection_dim",
        "MNDVP": "view_size view_sizes epochs evaluate_every",
    }
    for name, names in without.items():
        assert changed(cells[name], every) == {*names.split()}, name
    # each claim is on two of the cells
    hashes = {c.hash() for c in cells.values()}
    claims = yaml.safe_load(campaign.CLAIMS.read_text(encoding="utf-8"))
    for claim in (c for c in claims if c.get("block") == "ablation"):
        for side in ("ours", "against"):
            named = dict(claim[side])
            preset = read_settings(campaign.PRESETS / f"{named.pop('preset')}.yaml")
            assert Config.from_params({**preset, **named}).hash() in hashes, claim["id"]
    short = Config.from_params(read_settings(campaign.PRESETS / "cifar10-cpu-seven.yaml"))
    assert changed(short, every) == {*"view_size view_sizes epochs evaluate_every".split()}


def test_candidates_of_an_hour_and_a_night_stay_within_their_arithmetic():
    for name, runs, most in (("hour-levers", 3, 0.9), ("night-levers", 2, 4.0)):
        *networks, heads = campaign.block(name, {})
        assert [c.freeze for c in networks] == [False] * runs + [True] * (3 * runs - 1)
        cost = [flops.of_epochs(c, c.epochs, 3, 10, 50_000) for c in (networks[0], heads)]
        assert sum(cost) < most


def test_ten_minutes_rehearsed_and_a_block_that_is_cut_off(tmp_path, monkeypatch, capsys):
    """The very command, with few images and a tiny network; each run starts from the one before. An
    epoch takes 90 seconds by the clock that checkpoints go by."""
    now, end = itertools.count(step=0.01), Keeper.end_of_epoch
    epochs = []  # that have ended
    clock = SimpleNamespace(perf_counter=lambda: 90 * len(epochs) + next(now))
    monkeypatch.setattr(keeping, "time", clock)
    ended = lambda keeper, *words: (end(keeper, *words), epochs.append(1))[0]  # noqa: E731
    monkeypatch.setattr(Keeper, "end_of_epoch", ended)
    few_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = {
        "results_dir": "runs",
        "data_dir": str(tmp_path),
        "limit": 40,
        "epochs": 2,
        "batch_size": 8,
        "backbone": "compact",
        "width": 2,
        "n_heads": 2,
        "evaluate_every": 1,
    }
    words = ["campaign", "ten", "--keep", "none"]
    for name, value in given.items():
        words += ["-p", name, str(value)]
    assert main([*words, "--jobs", "2"]) == 2
    assert "jobs is 2, but runs of block ten start from one another" in capsys.readouterr().err
    runs, cut = [Run(config) for config in campaign.block("ten", given)], [1]

    def here(config, *_):  # the test above goes through papermill
        rows = fit(config, Run(config))
        next(rows)
        if config == runs[1].config and cut:
            rows.close()
            raise RuntimeError(f"cut off {cut.pop()}")
        assert len(list(rows)) == 1
        return Outcome()

    monkeypatch.setattr(driver, "run_notebook", here)
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "1 finished" in said and "3 failed" in said and len(runs[0].history()) == 2
    assert f"weights: '{runs[2].config.weights}' is not there" in said
    (row,) = runs[1].load_checkpoint()[0]["at"]["history"]  # what a cut-off run is worth
    assert row["epoch"] == 1 and "knn_acc" in row
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "3 finished" in said and "1 skipped" in said
    assert runs[1].history()[0]["loss"] == pytest.approx(row["loss"], rel=1e-4)
    assert [part["epochs"] for part in runs[1].json("provenance.json")["parts"]] == [0, 1]
    for before, run in zip(runs, runs[1:]):
        assert run.json("config.json")["weights"] == str(before.path.relative_to(tmp_path))
    frozen, kept = ({**torch.load(run.path / "model.pt")} for run in runs[2:])
    same = [name for name in frozen if name.startswith("backbone.")]
    assert same and all(torch.equal(frozen[name], kept[name]) for name in same)


# ---- designs


def hashes(cell):
    return [Config.from_params({**cell.settings, "seed": seed}).hash() for seed in cell.seeds]


def test_what_a_design_says_was_run_before_is_committed():
    made = {path.parent.name.rpartition("_")[2] for path in ROOT.glob("results/*/*/*/config.json")}
    for name, cells in (("B", 8), ("A", 16), ("D", 8)):
        found = campaign.cells(name)
        assert len(found) == cells
        for cell in found:
            before = [h for h, seed in zip(hashes(cell), cell.seeds) if seed < 1000]
            assert made.issuperset(before), (name, cell.name)


def test_block_b_is_the_course_table_at_the_course_settings():
    cells = {cell.name: cell for cell in campaign.cells("B")}
    course = campaign.block("cpu", {})[1]
    assert course.hash() in hashes(cells["entropy sample, lambda1 1.0"])
    for cell in cells.values():
        config = Config.from_params(cell.settings)
        assert changed(config, course) <= {"lambda1", "entropy", "entropy_smoothed"}
        assert len(cell.seeds) == 8
        # the sample's entropy is smoothed, as CENG501's; the batch's is not, as the authors'
        assert config.entropy_smoothed == (config.entropy == "sample")
    assert sorted({cell.settings["lambda1"] for cell in cells.values()}) == [0.1, 0.3, 1.0, 2.0]
    assert sum(seed >= 1000 for cell in cells.values() for seed in cell.seeds) == 56


def test_block_a_is_every_combination_between_both_ends():
    cells = {cell.name: cell for cell in campaign.cells("A")}
    authors, course = campaign.block("cpu", {})[:2]
    assert authors.hash() in hashes(cells["ESXH"]) and course.hash() in hashes(cells["none"])
    assert {len(cell.seeds) for cell in cells.values()} == {3, 8}
    shared = {cell.name: cell.seeds for cell in campaign.cells("B")}
    assert cells["E"].seeds == shared["entropy batch, lambda1 2.0"]  # one setting, the same runs
    assert cells["none"].seeds == shared["entropy sample, lambda1 1.0"]
    new = [seed for cell in cells.values() for seed in cell.seeds if seed >= 2000]
    assert len(new) == len({*new}) == 15 + 3 + 5


def test_the_fraction_of_block_c_tells_all_pairs_of_factors_apart():
    """Resolution V: the columns of main effects and of interactions of two are orthogonal."""
    cells = campaign.cells("C")
    signs = np.array([[1 if level else -1 for level in cell.levels.values()] for cell in cells])
    pairs = [signs[:, i] * signs[:, j] for i in range(8) for j in range(i)]
    columns = np.column_stack([np.ones(64), signs, *pairs])
    np.testing.assert_array_equal(columns.T @ columns, 64 * np.eye(1 + 8 + 28))


def test_nine_methods_by_one_recipe_cost_the_same():
    """What is the same for all is, and the rate is searched at the same three values."""
    cells = campaign.cells("rates")
    assert len(cells) == 27 and {cell.levels["learning_rate"] for cell in cells} == {0.1, 0.3, 1.0}
    same = "backbone width view_size batch_size crop_scale jitter optimizer schedule decay limit"
    configs = [Config.from_params(cell.settings) for cell in cells]
    assert len({tuple(getattr(c, name) for name in same.split()) for c in configs}) == 1
    assert {c.method for c in configs} == {*METHODS}
    authors = campaign.block("cpu", {})[0]
    assert authors.hash() in [h for cell in cells for h in hashes(cell)]


def test_a_generated_level_is_the_product_of_the_others():
    for cell in campaign.cells("D"):
        assert math.prod(1 if level else -1 for level in cell.levels.values()) == 1


def test_no_two_cells_of_a_design_share_a_new_seed_and_the_order_is_drawn():
    configs = campaign.block("B", {})
    new = [config.seed for config in configs if config.seed >= 1000]
    assert len({*new}) == len(new) and new != sorted(new)
    assert [c.seed for c in campaign.block("B", {})] == [c.seed for c in configs]


DESIGN = {
    "settings": "digits-quick",
    "factors": {"E": {0: {}, 1: {"entropy": "sample"}}},
    "runs": 2,
    "seeds": 100,
    "order": 1,
}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"seeds": 1, "before": 2, "runs": 4}, "block X, cell 'none': seed 1 stands there twice"),
        ({"sedes": 1}, "block X: unknown entry 'sedes'"),
    ],
)
def test_a_wrong_design_is_one_sentence(monkeypatch, entry, sentence):
    monkeypatch.setattr(campaign, "blocks", lambda: {"X": {**DESIGN, **entry}})
    with pytest.raises(ConfigError, match=sentence):
        campaign.cells("X")


def test_a_block_of_stars_has_no_cells_and_factors_cannot_be_changed():
    with pytest.raises(
        ConfigError, match="block 'cpu' has no cells: it must be one of B, A, rates, C, D, ablation"
    ):
        campaign.cells("cpu")
    for name in ("lambda1", "seed"):
        with pytest.raises(ConfigError, match=f"^{name} cannot be given to a block"):
            campaign.block("B", {name: 1})


def repository(path, claims):
    """A git repository whose HEAD has these claims."""
    (path / "notebooks").mkdir()
    file = path / "notebooks" / "claims.yaml"
    file.write_text(claims)
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-q", "-m", "claims"]):
        subprocess.run(["git", "-C", str(path), *words], check=True)
    return file


def test_a_design_runs_only_with_committed_claims_and_by_one_code(tmp_path, monkeypatch):
    design = {**DESIGN, "with": {"results_dir": str(tmp_path / "runs")}}
    monkeypatch.setattr(campaign, "blocks", lambda: {"X": design})
    file = repository(tmp_path, "- {id: a, block: X, sentence: it is so}\n")
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    monkeypatch.setattr(campaign, "CLAIMS", file)
    configs = campaign.block("X", {})
    campaign.check("X", configs)
    committed = file.read_text()
    for text in ("[]\n", "- {id: a, block: X, sentence: it is not}\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="^block X: its claims are not committed: write them"):
            campaign.check("X", configs)
    file.write_text(committed)
    run = Run(configs[0])
    run.path.mkdir(parents=True)
    run.path.joinpath("metrics.json").write_text("{}")
    for source, commit in ((source_tree(), "this"), ("other", "abc")):
        made = {"source": source, "git": {"commit": commit}}
        run.path.joinpath("provenance.json").write_text(json.dumps(made))
        if commit == "this":
            campaign.check("X", configs)
    with pytest.raises(ConfigError, match=f"^block X: its run {run.path.name} was made by .* abc:"):
        campaign.check("X", configs)
