"""Plain names: each stands for a setting that there is, and every committed setting has its own."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from reproduce.config import Config
from reproduce.files import ROOT
from reproduce.methods import METHODS
from reproduce.report import names, notebook, results
from reproduce.runs.yaml_files import read_settings
from reproduce.sweeps import campaign

FIELDS = Config.__dataclass_fields__


def test_what_has_a_name_is_a_setting_and_its_values_are_allowed():
    settings = {*names.SETTINGS, *names.PHRASES, *names.VALUES}
    settings |= {name for group in names.GROUPS.values() for name in group}
    assert settings <= {*FIELDS}
    for name, values in names.VALUES.items():
        choices = FIELDS[name].metadata["choices"]
        assert {*values} <= {*choices} if choices else {*values} == {*METHODS}, name
    assert {*names.METHODS} == {*METHODS}
    assert len({*names.RULES.values()}) == len(names.RULES)


def test_ceng501s_settings_are_those_of_the_campaign():
    preset, star = names.COURSE["preset"], campaign.blocks()["A"]
    given = {k: v for k, v in names.COURSE.items() if k != "preset"}
    assert (preset, given) == (star["settings"], star["with"])


def test_a_group_that_names_a_side_has_its_settings():
    sides = {"the authors'": "cifar10-paper", "CENG501's": "cifar10-course"}
    for name, group in names.GROUPS.items():
        for side, preset in sides.items():
            if name.startswith(side):
                known = results.presets()[preset]
                assert group == {key: known[key] for key in group}, name


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"preset": "digits-quick"}, "the recipe for digits"),
        ({"preset": "digits-quick", "lambda1": 0.3}, "the recipe for digits; λ1 0.3"),
        (
            {"preset": "digits-quick", "neighbour_weight": 0.5},
            "the recipe for digits; neighbours as positives in 0.5 of the feature contrast",
        ),
        ({"preset": "digits-quick", "method": "byol"}, "BYOL; the recipe for digits"),
        ({"preset": "cifar10-cpu"}, "the authors' settings, 4 epochs"),
        ({**names.COURSE, "stem": "cifar"}, "CENG501's settings, 4 epochs; stem for small images"),
        (
            {**names.COURSE, "entropy": "batch", "entropy_smoothed": False, "lambda1": 2.0},
            "CENG501's settings, 4 epochs; the authors' entropy (batch mean, λ1 2)",
        ),
        (
            {**names.HEADS, "n_heads": 50},
            "new heads after 45 epochs of the authors' settings; 50 heads",
        ),
        ({"preset": "cifar10-byol-knn", "epochs": 7}, "cifar10-byol-knn; trained for 7 epochs"),
    ],
)
def test_a_setting_in_words(changed, words):
    run = {**results.presets()[changed["preset"]], **changed, "seed": 0}
    method = "BYOL; " if changed["preset"] == "cifar10-byol-knn" else ""
    assert results.in_words(run) == method + words


def test_every_committed_setting_has_words_of_its_own():
    runs = results.load(under_way=True).drop_duplicates("setting")
    words = [(run["data"], results.in_words(run)) for run in runs.to_dict("records")]
    assert len({*words}) == len(words) > 80
    text = "\n".join(said for _, said in words)
    assert "_" not in text and "True" not in text and "False" not in text
    assert max(said.count(",") for _, said in words) <= 5, "groups have one name"
    assert "new heads after 45 epochs of CENG501's settings" in text.splitlines()
    assert "SimCLR; the recipe of equal compute; learning rate 0.3" in text.splitlines()


def test_the_command_of_a_run_gives_its_settings_again():
    """Of every tenth committed run: parsed as papermill does, it is the same run."""
    for path in list(results.load()["path"])[::10]:
        config = json.loads((Path(path) / "config.json").read_text())
        words = shlex.split(results.command(config))
        given = read_settings(ROOT / words[words.index("-f") + 1])
        for i in (i for i, word in enumerate(words) if word == "-p"):
            kind = type(FIELDS[words[i + 1]].default)
            text = words[i + 2]
            given[words[i + 1]] = text == "True" if kind is bool else kind(text)
        assert Config.from_params(given).hash() == path.rpartition("_")[2]


def test_a_table_is_shown_in_plain_words():
    index = pd.MultiIndex.from_tuples([("batch", 0.1), ("sample", 2.0)])
    table = pd.DataFrame(
        {
            "aligned_average_acc": [0.5, np.nan],
            "n": [3.0, np.nan],
            "normalize": [True, False],
            "method": ["byol", None],
            "share": [1.0, 2.0],
        },
        index.rename(["entropy", "lambda1"]),
    )
    text = names.plain(table).to_string(na_rep="")
    for bad in ("NaN", "True", "False", "_acc", "None", "lambda1", "3.0"):
        assert bad not in text.split(), bad
    shown = names.plain(table)
    assert [*shown.columns] == ["aligned average", "n", "normalisation", "method", "share"]
    assert [*shown.index] == [("of the batch mean", 0.1), ("of each sample", 2.0)]
    assert [*shown["normalisation"]] == ["yes", "no"] and shown["method"].iloc[0] == "BYOL"
    assert "1.0" in text, "a share is no count"
    counted = names.plain(pd.DataFrame({0.1: pd.array([3, None], dtype="Int64")}))
    assert [*counted[0.1]] == [3, ""]
    series = names.plain(pd.Series([1.0, 2.0], ["lambda2", "knn_acc"], name="acc"))
    assert [*series.index] == ["λ2", "kNN"] and [*series["ACC"]] == [1.0, 2.0]


def test_plain_tables_outside_a_notebook_only_set_the_decimals():
    with pd.option_context("display.float_format", None, "display.max_colwidth", 50):
        notebook.plain_tables(2)
        assert pd.DataFrame({"x": [1 / 3]}).to_string().split()[-1] == "0.33"
        assert pd.DataFrame({"x": [-0.001, -1]}).to_string().split()[2::2] == ["0.00", "-1.00"]


def test_rows_have_their_names_and_no_numbers(monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell)
    with pd.option_context("display.float_format", None, "display.max_colwidth", 50):
        notebook.plain_tables()
        numbered = pd.DataFrame({"x": [7.0, 8.0]})
        tables = {"numbered": numbered, "epoch": numbered.rename_axis("epoch")}
        tables |= {"named": numbered.set_axis(["a", "b"]), "from 1": numbered.set_axis(range(1, 3))}
        shown = {k: shell.display_formatter.format(table)[0] for k, table in tables.items()}
    assert shown["numbered"]["text/plain"].split() == ["x", "7.0", "8.0"]
    assert "<th>0</th>" not in shown["numbered"]["text/html"]
    assert shown["named"]["text/plain"].split() == ["x", "a", "7.0", "b", "8.0"]
    assert "<th>a</th>" in shown["named"]["text/html"]
    assert "<th>1</th>" in shown["epoch"]["text/html"]
    assert "<th>2</th>" in shown["from 1"]["text/html"]
