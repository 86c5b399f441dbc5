"""Interrupted runs leave behind what whole ones do, and digests tell what differs."""

import copy
import json
import sys

import digests
import pytest


@pytest.mark.parametrize("name", [*digests.METHODS, "neighbours", "packed"])
def test_an_interruption_at_a_chosen_moment_changes_nothing(name, tmp_path):
    """After the first epoch, and after the second step of the second, in which the prototypes of
    PCL and ProPos have entered the loss."""
    found = digests.collect([f"{name}/"], tmp_path)
    assert {f"{name}/whole", f"{name}/within"} <= set(found)
    assert digests.unequal_ways(found) == []
    assert not [parts["error"] for parts in found.values() if "error" in parts]
    if name in ("pcl", "propos"):
        term = "prototype_contrast" if name == "pcl" else "prototype_scattering"
        entered = [float(value) > 0 for value in found[f"{name}/within"]["history"][term]]
        assert entered == [False, True, True]


def test_committed_runs_keep_their_hashes():
    """Each is at the end of a directory's name, which ``hashes`` asserts."""
    found = digests.hashes()
    assert len(found["runs"]) > 300 and len(found["presets"]) > 30


def test_a_comparison_names_run_and_part(tmp_path, capsys, monkeypatch):
    whole = {"loss": ["3", "2"], "epoch": ["1", "2"]}
    a = {"byol/whole": {"history": whole, "model.pt": {"top": "x"}}, "crlc/whole": {}}
    b = copy.deepcopy(a)
    del b["crlc/whole"]
    b["byol/whole"]["history"]["knn_acc"] = ["", "0.5"]

    def compared(a, b):
        for name, content in {"a.json": a, "b.json": b}.items():
            (tmp_path / name).write_text(json.dumps(content))
        files = [str(tmp_path / name) for name in ("a.json", "b.json")]
        monkeypatch.setattr(sys, "argv", ["digests.py", "compare", *files])
        return digests.main(), capsys.readouterr().out

    status, said = compared(a, b)
    assert status == 0 and "0 differences" in said
    assert "crlc/whole: only in the first" in said
    assert "byol/whole: history: only in the second: 1 of 3: knn_acc" in said
    b["byol/whole"]["history"]["loss"][1] = "2.1"
    status, said = compared(a, b)
    assert status == 1 and 'DIFFERS: byol/whole: history: loss: ["3", "2"] and' in said
    assert compared(a, {"byol/whole": {"error": {"ValueError": "x"}}})[0] == 1
    assert compared(a, {})[0] == 1, "nothing was compared"
