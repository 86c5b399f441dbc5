"""The blocks of the campaign: which runs they hold, in which order, and when they stop."""

import pytest

from reproduce import campaign
from reproduce.config import ConfigError


def changed(a, b):
    """The settings in which two configurations differ."""
    a, b = a.identity(), b.identity()
    return {k for k in a if a[k] != b[k]}


def test_block_1_goes_from_the_course_to_the_authors_one_factor_at_a_time():
    path = campaign.block("1", {})[:5]
    assert (path[0].entropy, path[0].stem, path[0].normalize, path[0].decay) == ("sample", "imagenet", False, "all")
    assert [changed(a, b) for a, b in zip(path, path[1:])] == [
        {"entropy", "entropy_smoothed"}, {"stem"}, {"crop_scale", "jitter", "normalize"}, {"head_bias", "head_init", "decay", "logit_clamp"}]
    # what is left between the path's end and the authors' preset is the block's own scale and three points that are no factor of it
    authors = campaign.star_of({"settings": "cifar10-paper"}, {})[0]
    assert changed(path[-1], authors) == {"backbone", "epochs", "evaluate_every", "lambda1", "batchnorm_split", "sampler"}
    assert len({c.hash() for c in campaign.block("1", {})}) == len(campaign.block("1", {}))


def test_every_block_is_made_of_valid_settings_with_equal_epochs_and_split():
    for name, runs in (("1", 11), ("2", 8), ("3", 4), ("4", 8)):
        configs = campaign.block(name, {})
        assert len(configs) == runs and {c.dataset for c in configs} == {"cifar10"}
        if name in "123":
            assert len({c.epochs for c in configs}) == 1 and {c.split for c in configs} == {"test"}


def test_changes_reach_every_run_and_unknown_blocks_none():
    assert all((c.limit, c.epochs) == (300, 2) for c in campaign.block("1", {"limit": 300, "epochs": 2}))
    with pytest.raises(ConfigError, match="block is '5': it must be one of 1, 2, 3, 4, digits"):
        campaign.block("5", {})
    with pytest.raises(ConfigError, match="unknown parameter 'limmit'"):
        campaign.run("1", {"limmit": 300})
    with pytest.raises(ConfigError, match="minutes"):
        campaign.run("1", {}, minutes=0)


def test_no_run_is_started_that_would_end_too_late(monkeypatch, capsys):
    clock, ran = [0.0], []
    monkeypatch.setattr(campaign.time, "monotonic", lambda: clock[0])

    def fake(config, bulky):
        ran.append(config.hash())
        status = "skipped" if len(ran) == 1 else "finished"  # a finished run of an earlier call costs no time
        clock[0] += 0 if status == "skipped" else 300
        return {"name": config.hash(), "status": status, "log": ""}

    monkeypatch.setattr(campaign, "run_notebook", fake)
    rows = campaign.run("2", {}, minutes=16)  # 960 s: three of 300 s fit, a fourth would not
    assert [r["status"] for r in rows] == ["skipped"] + ["finished"] * 3 + ["left for the next call"] * 4
    assert len(ran) == 4
