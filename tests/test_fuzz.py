"""Parameters of any kind, by every road: each gives a configuration that survives being stored, or
one line that names the culprit."""

import argparse
import dataclasses
import json
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reproduce import __main__ as command
from reproduce.config import Config
from reproduce.runs.directory import Run
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError, read_word, types_of
from reproduce.sweeps import sweep

FIELDS, KINDS = {f.name: f for f in dataclasses.fields(Config)}, types_of(Config)
EXAMPLES = settings(max_examples=500, deadline=None, derandomize=True, database=None)

TRAPS = [  # what papermill, YAML and a hurried hand make of a value
    "false",
    "False",
    "True",
    "yes",
    "null",
    "None",
    "~",
    "",
    " ",
    "5e-4",
    "5.0e-4",
    "1_000",
    "0x10",
    "0o17",
    "010",
    "1:30",
    "nan",
    ".nan",
    "inf",
    ".inf",
    "-.inf",
    "1e400",
    "2020-01-01",
    "2020-13-45",
    "0001-01-01 00:00:00+23:59",
    "[0,1]",
    "[0",
    "{a: 1}",
    "{",
    "a: b: c",
    "&a [*a]",
    "*a",
    "!!bool x",
    "!!int ''",
    "!!timestamp x",
    "!!python/object:os.system x",
    "%TAG",
    "=",
    "<<",
    "'",
    '"',
    "\t",
    "\0",
    "\n",
    "\x85",
    "\u2028",
    "\ud800",
    "\udcff",
    "ü",
    "日本",
    "a" * 5000,
    "9" * 5000,
    "[" * 20,
    "~no-such-user/x",
    "$HOME",
    "../..",
    "/dev/null",
    "x" * 300,
    "-1",
    "1",
    "0",
    "1.5",
    "lambda1",
    "crlc",
    "log_dot",
]
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 600),
    st.floats(),
    st.floats(0, 1),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from([5000, -5000]).map(
        lambda digits: (1 if digits > 0 else -1) * 10 ** abs(digits)
    ),  # made late: no one can print them
    st.sampled_from(TRAPS),
    st.sampled_from([10**400, -(10**400), 2**63, 2**64, 1e308, -0.0, 5e-324, 1j, (), ("a",)]),
)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def fitting(f):
    """Values that a field takes when nothing stands against them."""
    low, high = f.metadata["low"], f.metadata["high"]
    return {
        bool: st.booleans,
        str: lambda: st.sampled_from(f.metadata["choices"] or ("", "a", "ü/ b")),
        int: lambda: st.integers(low, high),
        float: lambda: (
            st.floats(low, high, allow_infinity=False) | st.sampled_from([low, f.default])
        ),
    }[KINDS[f.name]]()


@st.composite
def near(draw):
    """A field's name as a hurried hand types it."""
    name = draw(st.sampled_from(sorted(FIELDS)))
    at = draw(st.integers(0, len(name) - 1))
    return draw(
        st.sampled_from(
            [
                name[:at] + name[at + 1 :],
                name[:at] + name[at] + name[at:],
                name.upper(),
                name.replace("_", "-"),
                f" {name}",
                f"_{name}",
                name + "\n",
            ]
        )
    )


fields = {
    name: st.tuples(st.just(name), st.one_of(*[fitting(f)] * 3, values))
    for name, f in FIELDS.items()
}
named = st.one_of(
    *[st.one_of(*fields.values())] * 6,
    st.tuples(near(), values),
    st.tuples(st.text(max_size=8) | st.integers() | st.none() | st.booleans(), values),
)
params = st.lists(named, max_size=5).map(dict)
mild = st.lists(
    st.one_of(*[st.tuples(st.just(name), fitting(f)) for name, f in FIELDS.items()]), max_size=2
).map(dict)


def outcome(make, *culprits):
    """The configuration, or None after one line that names one of the culprits. Anything else is
    raised."""
    try:
        config = make()
    except ConfigError as error:
        said = str(error)
        assert said and len(said.splitlines()) == 1 and len(said) < 1500, said
        assert (
            any(
                str(c) in said or repr(c) in said or repr(c)[:70] in said
                for c in culprits
                if not too_long(c)
            )
            or "thousands of digits" in said
        ), (said, culprits)
        said.encode()
        return None
    return config


def too_long(number) -> bool:
    return isinstance(number, int) and abs(number) >= 10**4000


def stands(config):
    """It survives being stored in every way that the project has, and a run can be looked for with
    it."""
    assert isinstance(config, Config)
    stored = dataclasses.asdict(config)
    assert Config.from_params(stored) == config
    assert Config.from_params(json.loads(json.dumps(stored))).hash() == config.hash()
    changed = {name: value for name, value in stored.items() if value != FIELDS[name].default}
    assert Config.from_params(yaml.safe_load(yaml.safe_dump(changed))).hash() == config.hash()
    cell = "\n".join(
        f"{name}: {KINDS[name].__name__} = {value!r}" for name, value in changed.items()
    )
    exec(cell, namespace := {})
    assert Config.from_notebook(namespace) == config
    assert isinstance(Run(config).finished, bool)


@EXAMPLES
@given(params | mild)
def test_any_parameters(params):
    """As a mapping, and as the variables of a notebook: what papermill injects are Python's plain
    values, and no mistyped name is passed over."""
    if config := outcome(lambda: Config.from_params(params), *params):
        stands(config)
        for name, value in params.items():
            said = value
            if isinstance(value, str) and KINDS[name] is not str:
                said = read_word({"true": "True", "false": "False"}.get(value, value))
            assert getattr(config, name) == said and type(getattr(config, name)) is KINDS[name]
    injected = {
        k: v
        for k, v in params.items()
        if isinstance(k, str)
        and isinstance(v, (bool, int, float, str, list, dict, tuple, type(None)))
    }
    own = {"__name__": "__main__", "_i1": "x", "In": [""], "Out": {}, "Config": Config}
    if config := outcome(lambda: Config.from_notebook({**own, **injected}), *injected):
        assert all(name in FIELDS or name.startswith("_") for name in injected)
        assert config == Config.from_params({k: v for k, v in injected.items() if k in FIELDS})


line = st.builds(
    "{}: {}".format,
    st.sampled_from(sorted(FIELDS)) | near(),
    st.sampled_from(TRAPS) | st.text(max_size=12) | st.floats().map(repr) | st.integers().map(str),
)


def dumped(params) -> str:
    try:
        return yaml.dump(params, allow_unicode=True)
    except ValueError:  # a number of thousands of digits
        return "seed: " + "9" * 5000


file_texts = st.one_of(
    st.lists(line, max_size=4).map("\n".join),
    params.map(dumped),
    mild.map(yaml.safe_dump),
    st.text(max_size=40),
    st.sampled_from(
        TRAPS
        + [
            "a: &a [1]\n"
            + "".join(
                f"k{i}: &k{i} [*a{', *a' * 9}]\n".replace("a", f"k{i - 1}" if i else "a")
                for i in range(12)
            ),
            "&a {lambda1: *a}",
            "lambda1: 1\n\tseed: 2",
        ]
    ),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "settings.yaml"


@EXAMPLES
@given(file_texts | st.binary(max_size=40))
def test_any_settings_file(settings_file, content):
    settings_file.write_bytes(content)
    read = outcome(lambda: read_settings(settings_file), settings_file)
    if read is not None and (config := outcome(lambda: Config.from_params(read), *read)):
        stands(config)


@settings(EXAMPLES, max_examples=1000)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(FIELDS)) | near() | st.text(max_size=5),
            st.sampled_from(TRAPS)
            | st.text(max_size=12)
            | st.integers().map(str)
            | plain.map(lambda v: "?" if too_long(v) else str(v)),
        ),
        max_size=3,
    )
)
def test_any_words_of_the_command_line(pairs):
    names = [name for name, _ in pairs]
    said = argparse.Namespace(settings=None, parameter=pairs)
    if config := outcome(lambda: Config.from_params(command.given(said)), *names):
        stands(config)
    words = ["=".join(pair) for pair in pairs]
    for config in outcome(lambda: sweep.expand({}, sweep.parse_grid(words)), *names, "grid") or []:
        stands(config)
    for config in (
        outcome(
            lambda: sweep.expand({}, {}, [sweep.parse_one(word) for word in words]), *names, "one"
        )
        or []
    ):
        stands(config)


def test_a_bomb_of_aliases_is_answered_at_once(settings_file):
    """Nine lists of nine lists of nine...: a file of a kilobyte whose value no one can print."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)
    ]
    settings_file.write_text("\n".join(lines) + "\nlambda1: *a11\n")
    with pytest.raises(ConfigError, match="unknown parameter 'a0'"):
        Config.from_params(read_settings(settings_file))
    with pytest.raises(ConfigError, match="lambda1 must be a number"):
        Config.from_params({"lambda1": read_settings(settings_file)["lambda1"]})


def test_a_thousand_brackets(settings_file):
    settings_file.write_text("lambda1: " + "[" * 1500)
    with pytest.raises(ConfigError, match="is not YAML"):
        read_settings(settings_file)


@pytest.mark.parametrize(
    "words",
    [
        ["--grid", "lambda1=0,one"],
        ["--grid", "lambda1=1", "--one", "lambda1=2"],
        ["--one", "seed=1,seed=2"],
        ["-p", "lambda1", "{"],
        ["--grid", "seed=!!bool x"],
    ],
)
def test_the_command_answers_in_one_line(words, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("epochs: 1\n")
    assert command.main(["sweep", str(tmp_path / "s.yaml"), *words]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("error: ")
        and said.count("\n") == 1
        and ("lambda1" in said or "seed" in said)
    )


@pytest.mark.parametrize(
    "name, value",
    [("logit_clamp", 1e300), ("lambda1", 10**39), ("limit", 2**63), ("batch_size", 1e19)],
)
def test_a_number_fits_into_a_tensor(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be .* that fits into (32|64) bits"):
        Config.from_params({name: value})


def test_places_that_cannot_be(tmp_path):
    for place in ("~no-such-user/x", "x" * 5000, os.fsdecode(b"\xff")):
        assert not Run(Config.from_params({"results_dir": place})).finished
    with pytest.raises(ConfigError, match="results_dir must be a text that UTF-8 can hold"):
        Config.from_params({"results_dir": "\ud800"})
