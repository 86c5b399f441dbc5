"""The table of the fifteen differences agrees with the preset that numbers them, and its effects
with the settings that were compared."""

import re

import yaml

from reproduce.files import ROOT
from reproduce.report import results
from reproduce.runs.yaml_files import read_settings
from reproduce.sweeps.campaign import CLAIMS

LISTED = read_settings(ROOT / "notebooks" / "differences.yaml")
COURSE = (ROOT / "notebooks" / "settings" / "cifar10-course.yaml").read_text(encoding="utf-8")


def numbered():
    """The settings that the preset numbers: number -> names."""
    found = {}
    for name, number in re.findall(r"^(\w+):.*# (\d+)\b", COURSE, re.M):
        found.setdefault(int(number), set()).add(name)
    return found


def test_every_point_is_there_and_says_what_either_code_does():
    points = LISTED["points"]
    assert [point["number"] for point in points] == [*range(1, 17)]
    assert {*numbered()} == {*range(1, 16)}, "the last is no setting"
    for point in points:
        assert {"point", "paper", "authors", "course", "tested", "group"} < {*point}
        assert point["authors"] and point["course"] and point["tested"]
        assert point["authors"] != point["course"]


def test_a_group_holds_the_points_that_name_it():
    for key, group in LISTED["groups"].items():
        of_group = [p["number"] for p in LISTED["points"] if p["group"] == key]
        assert group["points"] == ", ".join(map(str, of_group))


def test_each_effect_is_of_the_settings_that_the_points_number():
    claims = {claim["id"]: claim for claim in yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))}
    presets = results.presets()

    def full(side):
        changed = {k: v for k, v in side.items() if k not in ("preset", "rule")}
        return {**presets[side.get("preset", "digits-quick")], **changed}

    for key, group in LISTED["groups"].items():
        points = group["points"].split(", ")
        wanted = set() if key == "R" else set().union(*(numbered()[int(n)] for n in points))
        for side in ("added", "taken"):
            claim = claims[group[side]]
            a, b = full(claim["ours"]), full(claim["against"])
            assert {name for name in a if a[name] != b[name]} == wanted, (key, side)
            assert key != "R" or claim["ours"]["rule"] != claim["against"]["rule"]
        assert claims[group["added"]]["against"]["preset"] == "cifar10-course"
