"""The blocks of the campaign: which runs they hold, in which order, and one of them through
papermill."""

import json

import numpy as np
import pytest

from reproduce import campaign, data
from reproduce.__main__ import main
from reproduce.config import Config, ConfigError, read_settings
from reproduce.runs import ROOT


def changed(a, b):
    """The settings in which two configurations differ."""
    a, b = a.identity(), b.identity()
    return {k for k in a if a[k] != b[k]}


def test_block_1_goes_from_the_course_to_the_authors_one_factor_at_a_time():
    path = campaign.block("1", {})[:5]
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
        "backbone",
        "epochs",
        "evaluate_every",
        "lambda1",
        "batchnorm_split",
        "sampler",
    }
    assert len({c.hash() for c in campaign.block("1", {})}) == len(campaign.block("1", {}))


def test_every_block_is_made_of_valid_settings_with_equal_epochs_and_split():
    for name, runs in (("1", 11), ("2", 8), ("3", 4), ("4", 8)):
        configs = campaign.block(name, {})
        assert len(configs) == runs and {c.dataset for c in configs} == {"cifar10"}
        if name in "123":
            assert len({c.epochs for c in configs}) == 1 and {c.split for c in configs} == {"test"}


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
    end = Config.from_params(read_settings(campaign.SETTINGS / "cifar10-cpu.yaml"))
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
    with pytest.raises(
        ConfigError, match="block is '5': it must be one of 1, 2, 3, 4, cpu, hour, levers, digits"
    ):
        campaign.block("5", {})
    with pytest.raises(ConfigError, match="^stem cannot be given to a block whose runs differ"):
        campaign.block("1", {"stem": "cifar"})
    with pytest.raises(ConfigError, match="unknown parameter 'limmit'"):
        campaign.block("1", {"limmit": 300})


def test_a_block_is_run_and_the_next_call_skips_what_is_finished(tmp_path, monkeypatch, capsys):
    """Through papermill, as on the GPU; only the images are others and few."""
    star = {**campaign.blocks()["1"][0], "path": campaign.blocks()["1"][0]["path"][:1]}
    monkeypatch.setattr(campaign, "blocks", lambda: {"1": [star]})
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for n in (40, 20)]
    data.write_cached(
        tmp_path / "cifar10.npz",
        **data.joined(parts, [rng.integers(0, 4, len(x)) for x in parts], list("abcd")),
    )
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
