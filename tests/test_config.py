"""A wrong setting is answered by one sentence that names it; a right one leaves a hash that means
it."""

import argparse
import dataclasses
import json
import math
import types

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from papermill import cli as papermill_cli

from reproduce import __main__ as command
from reproduce.config import Config, readers
from reproduce.files import ROOT
from reproduce.methods import METHODS
from reproduce.methods.pcl import granularities
from reproduce.runs.yaml_files import read_settings, read_yaml
from reproduce.settings import ConfigError, Settings, read_word, setting, together, types_of
from reproduce.sweeps import sweep

FIELDS, KINDS = {f.name: f for f in dataclasses.fields(Config)}, types_of(Config)
FOLDER = dict(dataset="folder", folder="my_images")


def of_type(kind):
    return [name for name in FIELDS if KINDS[name] is kind]


def refused(params, *words):
    """The one line with which the parameters are refused."""
    with pytest.raises(ConfigError) as caught:
        Config.from_params(params)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


# ---- names


@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("lamda1", "lambda1"),
        ("lambda_1", "lambda1"),
        ("learning_Rate", "learning_rate"),
        ("batchsize", "batch_size"),
        ("n_head", "n_heads"),
        ("Seed", "seed"),
        ("entropy_smooth", "entropy_smoothed"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, meant):
    refused({wrong: 1}, repr(wrong), f"did you mean {meant!r}?")


@pytest.mark.parametrize("wrong", ["xyzzyq", "", "0", 3, None, ("a",)])
def test_a_name_like_no_other_is_answered_with_all(wrong):
    message = refused({wrong: 1}, f"unknown parameter {wrong!r}")
    assert "known are: " in message and all(name in message for name in FIELDS)


# ---- types


@pytest.mark.parametrize("name", of_type(bool))
@pytest.mark.parametrize("value", ["yes", "on", "TRUE", "None", "", 0, 1, "1", 1.0, None, []])
def test_a_switch_takes_true_and_false_only(name, value):
    refused({name: value}, f"{name} must be true or false", repr(value), type(value).__name__)


@pytest.mark.parametrize("name", of_type(str))
@pytest.mark.parametrize("value", [1, 0.5, True, None, ["crlc"], b"crlc"])
def test_a_text_takes_texts_only(name, value):
    refused({name: value}, f"{name} must be a text", repr(value), type(value).__name__)


@pytest.mark.parametrize("name", of_type(int) + of_type(float))
@pytest.mark.parametrize(
    "value",
    ["", "one", "0x10", "1:30", "true", True, False, None, [1], {"a": 1}, 1j]
    + ["nan", "9" * 5000, math.nan, math.inf, -math.inf],
)
def test_a_number_takes_numbers_only(name, value):
    noun = "whole number" if KINDS[name] is int else "number"
    shown = repr(value)[:30]
    refused({name: value}, f"{name} must be a {noun}", shown, type(value).__name__)


WORDS = {  # of the command line, with what they say
    ("seed", "010"): 10,
    ("seed", "1_000"): 1000,
    ("epochs", "1e2"): 100,
    ("lambda1", "1e-1"): 0.1,
    ("lambda1", ".5"): 0.5,
    ("learning_rate", "5e-4"): 0.0005,
    ("sobel", "true"): True,
    ("sobel", "True"): True,
    ("normalize", "false"): False,
    ("weights", "true"): "true",
    ("weights", ""): "",
}


@pytest.mark.parametrize("name, word", WORDS)
def test_a_word_says_the_same_on_every_road(name, word, tmp_path):
    """papermill's ``-p`` and ours, a grid, and a settings file where YAML leaves the word a
    text."""
    said = argparse.Namespace(settings=None, parameter=[(name, word)])
    roads = {
        "papermill": Config.from_notebook({name: papermill_cli._resolve_type(word)}),
        "-p": Config.from_params(command.given(said)),
    }
    if word:
        roads["--grid"], *_ = sweep.expand({}, sweep.parse_grid([f"{name}={word}"]))
    (tmp_path / "a.yaml").write_text(json.dumps({name: word}))  # quoted
    roads["-f"] = Config.from_params(read_settings(tmp_path / "a.yaml"))
    for road, config in roads.items():
        value = getattr(config, name)
        assert value == WORDS[name, word] and type(value) is KINDS[name], road


@pytest.mark.parametrize("name, word", [("seed", "1.5"), ("lambda1", "0x10"), ("sobel", "yes")])
def test_a_wrong_word_has_the_same_sentence_on_every_road(name, word):
    said = argparse.Namespace(settings=None, parameter=[(name, word)])
    sentences = set()
    for params in (command.given(said), {name: papermill_cli._resolve_type(word)}):
        with pytest.raises(ConfigError) as caught:
            Config.from_params(params)
        sentences.add(str(caught.value))
    assert len(sentences) == 1


@pytest.mark.parametrize("name", of_type(int))
def test_a_whole_number_takes_no_part(name):
    low = FIELDS[name].metadata["low"]
    refused({name: low + 2.5}, f"{name} must be a whole number", f"{low + 2.5}")


def test_numbers_become_the_fields_type():
    config = Config.from_params({"n_heads": 3.0, "lambda1": 2, "epochs": 1e2})
    assert (config.n_heads, config.lambda1, config.epochs) == (3, 2.0, 100)
    assert (
        type(config.n_heads) is int and type(config.lambda1) is float and type(config.epochs) is int
    )


@pytest.mark.parametrize("name", of_type(int) + of_type(float))
def test_huge_numbers_are_refused_or_kept(name):
    """10^400 is no float, and -10^400 below every range."""
    m, huge = FIELDS[name].metadata, 10**400
    refused({name: -huge}, name)
    if m["high"] is not None or KINDS[name] is float:
        refused({name: huge}, name)
    refused({name: -1e300}, name)


@pytest.mark.parametrize("name", ["folder", "results_dir", "data_dir"])
def test_a_path_has_no_null_byte(name):
    refused({**FOLDER, name: "a\0b"}, f"{name} must be a text without null bytes")


# ---- ranges and choices


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.metadata["choices"]])
def test_choices(name):
    choices = FIELDS[name].metadata["choices"]
    message = refused({name: "no such"}, f"{name} must be one of", "'no such'")
    assert all(choice in message for choice in choices) and FIELDS[name].default in choices
    refused({name: choices[0].upper() + " "}, f"{name} must be one of")


@pytest.mark.parametrize("name", of_type(int) + of_type(float))
def test_ranges(name):
    """Both ends are allowed, what lies beyond is not, and the sentence says so."""
    f = FIELDS[name]
    low, high = f.metadata["low"], f.metadata["high"]
    below = low - 1 if KINDS[f.name] is int else math.nextafter(low, -math.inf)
    refused({name: below}, f"{name} must be", f"{low:g}" if KINDS[f.name] is float else str(low))
    ends = [low]
    if high is not None:
        above = high + 1 if KINDS[f.name] is int else math.nextafter(high, math.inf)
        refused(
            {name: above}, f"{name} must be", f"{high:g}" if KINDS[f.name] is float else str(high)
        )
        ends.append(high)
    for end in ends:
        try:
            assert getattr(Config.from_params({name: end}), name) == end
        except (
            ConfigError
        ) as error:  # refused for going ill with another setting, not for its range
            assert f"{name} must be" not in str(error)
    assert f.default >= low and (high is None or f.default <= high)


def test_every_setting_says_why():
    assert all(f.metadata["why"] and "\n" not in f.metadata["why"] for f in FIELDS.values())
    assert all(
        KINDS[name] in (bool, int, float, str) and type(f.default) is KINDS[name]
        for name, f in FIELDS.items()
    )


# ---- settings that cannot go together: the refused, its words, and a near neighbour that is fine

CIFAR = dict(dataset="cifar10", backbone="resnet18")
GROWING = dict(CIFAR, augmentation="images", epochs=5, view_sizes="16x3 24x2")
CONTRADICTIONS = [
    (dict(dataset="folder"), ["folder is empty"], FOLDER),
    (
        dict(folder="x"),
        ["folder is 'x'", "dataset is 'digits'"],
        dict(folder="x", dataset="folder"),
    ),
    (dict(FOLDER, image_size=1), ["image_size is 1:", "least is 2"], dict(FOLDER, image_size=2)),
    (
        dict(bad_images="skip"),
        ["bad_images is 'skip'", "'digits'"],
        dict(FOLDER, bad_images="skip"),
    ),
    (dict(image_size=32), ["image_size is 32", "'digits'"], dict(FOLDER, image_size=32)),
    *(
        (
            dict(dataset="cifar10", backbone="compact", stem=stem),
            [f"stem is '{stem}'", "backbone is 'compact'", "a resnet"],
            dict(CIFAR, stem=stem),
        )
        for stem in ("cifar_no_relu", "cifar_pool")
    ),
    (
        dict(CIFAR, crop="fixed"),
        ["crop is 'fixed'", "augmentation is 'digits'"],
        dict(CIFAR, crop="fixed", augmentation="images"),
    ),
    (
        dict(method="propos", misassigned=True),
        ["misassigned is True", "batchnorm_split is 1"],
        dict(method="propos", misassigned=True, batchnorm_split=4),
    ),
    (
        dict(dataset="cifar10", stem="imagenet"),
        ["stem is 'imagenet'", "backbone is 'small'"],
        dict(CIFAR, stem="imagenet"),
    ),
    (
        dict(CIFAR, augmentation="images", view_size=257),
        ["view_size is 257", "more than 8 times", "32"],
        dict(CIFAR, augmentation="images", view_size=256),
    ),
    (
        dict(CIFAR, augmentation="images", eval_size=257),
        ["eval_size is 257", "more than 8 times", "32"],
        dict(CIFAR, augmentation="images", eval_size=256),
    ),
    (
        dict(CIFAR, augmentation="images", eval_size=15),
        ["backbone is 'resnet18'", "eval_size is 15", "least is 16"],
        dict(CIFAR, augmentation="images", eval_size=16),
    ),
    (
        dict(CIFAR, augmentation="none", eval_size=16),
        ["eval_size is 16", "'none'", "'images'"],
        dict(CIFAR, augmentation="images", eval_size=16),
    ),
    *(
        (dict(GROWING, view_sizes=text), [f"view_sizes is {text!r}", "as '16x30 24x15'"], GROWING)
        for text in ("16", "16x", "x3", "16x3-24x2", "0x5", "16x0 24x5", " ", "٣x3", "16x3;24x2")
    ),
    (
        dict(GROWING, epochs=6),
        ["view_sizes is '16x3 24x2', which are 5 epochs", "epochs is 6"],
        dict(GROWING, epochs=6, view_sizes="16x3,24x3"),
    ),
    (
        dict(GROWING, view_sizes="15x3 24x2"),
        ["view_sizes is '15x3 24x2'", "15 pixels", "16 to 256", "'resnet18'"],
        dict(GROWING, view_sizes="16x3 24x2"),
    ),
    (
        dict(GROWING, view_sizes="16x3 257x2"),
        ["257 pixels", "16 to 256"],
        dict(GROWING, view_sizes="16x3 256x2"),
    ),
    (
        dict(GROWING, view_size=16),
        ["view_sizes is", "view_size is 16", "one of the two"],
        dict(GROWING, view_sizes="", view_size=16),
    ),
    (
        dict(GROWING, augmentation="none"),
        ["view_sizes is", "augmentation is 'none'"],
        dict(GROWING, augmentation="none", view_sizes=""),
    ),
    (
        dict(GROWING, backbone="alexnet"),
        ["view_sizes is", "'alexnet'", "one size"],
        dict(GROWING, backbone="compact"),
    ),
    (
        dict(eval_flip=True),
        ["eval_flip is True", "augmentation is 'digits'"],
        dict(eval_flip=True, augmentation="images"),
    ),
    (
        dict(eval_batchnorm="measured", processes=2),
        ["eval_batchnorm is 'measured'", "2 processes"],
        dict(eval_batchnorm="measured"),
    ),
    (
        dict(eval_batchnorm="measured", weights="a", freeze=True),
        ["freeze is True", "eval_batchnorm is 'measured'"],
        dict(eval_batchnorm="measured", weights="a"),
    ),
    (
        dict(CIFAR, view_size=16),
        ["view_size is 16", "augmentation is 'digits'"],
        dict(CIFAR, view_size=16, augmentation="images"),
    ),
    (
        dict(CIFAR, augmentation="images", backbone="compact", stem="imagenet", view_size=15),
        ["backbone is 'compact'", "view_size is 15", "least is 16"],
        dict(CIFAR, augmentation="images", backbone="compact", stem="imagenet", view_size=16),
    ),
    (
        dict(CIFAR, backbone="small", augmentation="images", view_size=1),
        ["view_size is 1:", "least is 2"],
        dict(CIFAR, backbone="small", augmentation="images", view_size=2),
    ),
    (
        dict(FOLDER, image_size=31, backbone="resnet18", stem="imagenet"),
        ["stem is 'imagenet'", "image_size is 31"],
        dict(FOLDER, image_size=32, backbone="resnet18", stem="imagenet"),
    ),
    (
        dict(backbone="resnet34"),
        ["backbone is 'resnet34'", "8 x 8"],
        dict(CIFAR, backbone="resnet34"),
    ),
    (
        dict(FOLDER, image_size=15, backbone="resnet18"),
        ["backbone is 'resnet18'", "image_size is 15"],
        dict(FOLDER, image_size=16, backbone="resnet18"),
    ),
    (dict(n_clusters=1), ["n_clusters is 1"], dict(n_clusters=2)),
    (
        dict(batch_size=100, batchnorm_split=3),
        ["batchnorm_split is 3", "batch_size 100"],
        dict(batch_size=102, batchnorm_split=3),
    ),
    (
        dict(batch_size=4, batchnorm_split=4, views="apart"),
        ["batchnorm_split is 4", "two images"],
        dict(batch_size=8, batchnorm_split=4, views="apart"),
    ),
    (
        dict(method="deepcluster", n_views=1, batch_size=8, batchnorm_split=8),
        ["batchnorm_split is 8", "two images"],
        dict(method="deepcluster", n_views=2, batch_size=8, batchnorm_split=8),
    ),
    (
        dict(batch_size=129, batchnorm_split=2),
        ["batchnorm_split is 2", "batch_size 129"],
        dict(batch_size=130, batchnorm_split=2),
    ),
    (
        dict(warmup_epochs=1),
        ["warmup_epochs is 1", "'onecycle'"],
        dict(warmup_epochs=1, schedule="cosine"),
    ),
    (
        dict(warmup_epochs=1, schedule="constant"),
        ["warmup_epochs is 1", "'constant'"],
        dict(warmup_epochs=1, schedule="cosine"),
    ),
    (
        dict(warmup_epochs=11, epochs=10, schedule="cosine"),
        ["warmup_epochs is 11", "epochs, 10"],
        dict(warmup_epochs=10, epochs=10, schedule="cosine"),
    ),
    (
        dict(cosine_period=100),
        ["cosine_period is 100", "'onecycle'"],
        dict(cosine_period=100, schedule="cosine"),
    ),
    (
        dict(cosine_period=49, epochs=60, warmup_epochs=10, schedule="cosine"),
        ["cosine_period is 49", "less than the 50 epochs", "rise again"],
        dict(cosine_period=50, epochs=60, warmup_epochs=10, schedule="cosine"),
    ),
    (
        dict(optimizer="muon", width=3),
        ["optimizer is 'muon'", "width is 3", "at least 4"],
        dict(optimizer="muon", width=4),
    ),
    (
        dict(optimizer="muon", weights="a", freeze=True),
        ["freeze is True", "optimizer is 'muon'"],
        dict(weights="a", freeze=True),
    ),
    (
        dict(muon_rate=0.5),
        ["muon_rate is 0.5", "optimizer is 'sgd'"],
        dict(muon_rate=0.5, optimizer="muon"),
    ),
    (
        dict(neighbour_queue=1024),
        ["neighbour_queue is 1024", "neighbour_weight is 0"],
        dict(neighbour_queue=1024, neighbour_weight=0.5),
    ),
    (
        dict(neighbour_from=0.5),
        ["neighbour_from is 0.5", "neighbour_weight is 0"],
        dict(neighbour_from=0.5, neighbour_weight=0.5),
    ),
    (
        dict(covariance_weight=0.5, lambda2=0),
        ["covariance_weight is 0.5", "lambda2 is 0"],
        dict(covariance_weight=0.5, lambda2=1),
    ),
    (
        dict(neighbour_weight=0.5, lambda2=0),
        ["neighbour_weight is 0.5", "lambda2 is 0"],
        dict(neighbour_weight=0.5, lambda2=1),
    ),
    (
        dict(neighbour_weight=0.5, neighbour_queue=100),
        ["neighbour_queue is 100", "multiple of 64"],
        dict(neighbour_weight=0.5, neighbour_queue=128),
    ),
    (
        dict(method="byol", shuffle_keys=True),
        ["shuffle_keys is True", "batchnorm_split is 1"],
        dict(method="byol", shuffle_keys=True, batchnorm_split=2),
    ),
    (
        dict(method="deepcluster", top_momentum=False, optimizer="adam"),
        ["top_momentum is False", "'adam'"],
        dict(method="deepcluster", top_momentum=False),
    ),
    (
        dict(n_views=1),
        ["n_views is 1", "'crlc'", "at least 2"],
        dict(method="deepcluster", n_views=1),
    ),
    (dict(kmeans_metric="manhattan"), ["kmeans_metric", "euclidean, cosine"], dict()),
    *(
        (
            {"method": method, name: space},
            [f"{name} is {space!r}", repr(method)],
            {"method": "moco", name: space},
        )
        for name in ("cluster_space", "knn_space")
        for method, space in (
            ("deepcluster", "projection"),
            ("deepcluster", "online"),
            ("simsiam", "online"),
            ("crlc", "online"),
        )
    ),
    (
        dict(smoothing=0, logit_clamp=0),
        ["smoothing and logit_clamp are both 0", "log_dot"],
        dict(smoothing=0, logit_clamp=0, critic="dot"),
    ),
    (
        dict(method="moco", queue_size=1000),
        ["queue_size is 1000", "multiple of 128", "batch_size 64"],
        dict(method="moco", queue_size=1280),
    ),
    (  # of both views' keys: a multiple of the batch is not enough
        dict(method="pcl", batch_size=64, queue_size=64 * 3),
        ["queue_size is 192", "multiple of 128"],
        dict(method="pcl", batch_size=64, queue_size=64 * 2),
    ),
    (
        dict(dataset="cifar10", backbone="vgg16", stem="imagenet"),
        ["stem is 'imagenet'", "'vgg16'"],
        dict(dataset="cifar10", backbone="vgg16"),
    ),
    (
        dict(FOLDER, image_size=31, backbone="vgg16"),
        ["backbone is 'vgg16'", "image_size is 31", "least is 32"],
        dict(FOLDER, image_size=32, backbone="vgg16"),
    ),
    (
        dict(backbone="vgg16"),
        ["backbone is 'vgg16'", "8 x 8"],
        dict(dataset="cifar10", backbone="vgg16"),
    ),
    (
        dict(FOLDER, image_size=15, backbone="alexnet"),
        ["backbone is 'alexnet'", "image_size is 15", "least is 16"],
        dict(FOLDER, image_size=16, backbone="alexnet"),
    ),
    (
        dict(FOLDER, image_size=63, backbone="alexnet", stem="imagenet"),
        ["stem is 'imagenet'", "image_size is 63", "least is 64"],
        dict(FOLDER, image_size=64, backbone="alexnet", stem="imagenet"),
    ),
    (
        dict(dataset="cifar10", backbone="alexnet", stem="imagenet"),
        ["'alexnet'", "32 x 32"],
        dict(dataset="cifar10", backbone="alexnet"),
    ),
    *(
        (
            dict(method="pcl", prototypes=text),
            [f"prototypes is {text!r}", "at least 2"],
            dict(method="pcl", prototypes="2 30"),
        )
        for text in ("", " ", "ten", "10,20", "10 1", "0", "-5", "2.5", "1e3", "٣", "²", "9" * 10)
    ),
]


@pytest.mark.parametrize("params, words, neighbour", CONTRADICTIONS)
def test_contradictions(params, words, neighbour):
    refused(params, *words)
    assert not list(Config.from_params(neighbour).contradictions())


OF_SOME = [name for name in FIELDS if 0 < len(readers(name)) < len(METHODS)]


@pytest.mark.parametrize("name", OF_SOME)
def test_a_setting_that_the_method_does_not_know(name):
    """It is refused, with the methods that know it; at its default it says nothing, and all know
    the others."""
    f, value = FIELDS[name], another(FIELDS[name])
    methods, knowing = FIELDS["method"].metadata["choices"], readers(name)
    assert set(knowing) < set(methods)
    for method in methods:
        if method in knowing:
            assert not any(
                "does not know it" in s
                for s in dataclasses.replace(
                    Config(), method=method, **{name: value}
                ).contradictions()
            )
        else:
            refused(
                {"method": method, name: value},
                f"{name} is ",
                f"method is {method!r}",
                "does not know it",
                ", ".join(knowing),
            )
            Config.from_params({"method": method, name: f.default})


@pytest.mark.parametrize(
    "name, methods",
    [
        ("lambda1", "crlc"),
        ("temperature", "crlc simclr moco pcl cc"),
        ("head_hidden", "crlc simclr moco byol simsiam pcl cc propos"),
        ("projector_norm", "simclr moco byol simsiam pcl propos"),
        ("ema", "moco byol pcl propos"),
        ("predictor_rate", "byol simsiam propos"),
        ("directions", "moco byol simsiam pcl propos"),
        ("n_views", "crlc deepcluster"),
        ("neighbours", "crlc cc"),
        ("neighbour_weight", "crlc"),
        ("freeze", "crlc pcl cc propos"),
        ("queue_size", "moco pcl"),
        ("cluster_temperature", "cc propos"),
        ("prototype_weight", "pcl propos"),
        ("alignment_weight", "byol propos"),
        ("seed", " ".join(METHODS)),
        ("method", ""),
    ],
)
def test_who_reads_a_setting_follows_from_the_classes(name, methods):
    assert readers(name) == methods.split()


@dataclasses.dataclass(frozen=True)
class Base(Settings):
    a: int = setting(1, "a", (0, None))

    def refusals(self):
        if self.a > 5:
            yield "a is large"


@dataclasses.dataclass(frozen=True)
class Group(Base):
    b: float = setting(1.0, "b", (0, None))

    def refusals(self):
        if self.b > self.a:
            yield "b is larger than a"


@dataclasses.dataclass(frozen=True)
class First(Group):
    c: bool = setting(False, "c")


@dataclasses.dataclass(frozen=True)
class Second(Group):
    d: str = setting("x", "d", "x y")


def test_settings_together_are_flat_and_what_is_shared_is_one():
    flat = together(Base, First, Second)
    assert [f.name for f in dataclasses.fields(flat)] == ["a", "b", "c", "d"]
    assert types_of(flat) == {"a": int, "b": float, "c": bool, "d": str}
    assert flat.from_params({"b": 1, "d": "y"}) == flat(b=1.0, d="y") and flat(a=2).a == 2
    with pytest.raises(ConfigError, match="d must be one of x, y"):
        flat.from_params({"d": "z"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        flat().a = 2


def test_two_settings_of_one_name_are_refused():
    """Even where all about them is the same: one of them would be passed over in silence."""

    @dataclasses.dataclass(frozen=True)
    class Third(Base):
        c: bool = setting(False, "c")

    @dataclasses.dataclass(frozen=True)
    class Other(Settings):
        e: bool = setting(False, "e")

    with pytest.raises(TypeError, match="Third defines 'c' a second time"):
        together(Base, First, Third)
    with pytest.raises(TypeError, match="Other must be a dataclass that inherits Base"):
        together(Base, First, Other)

    class Forgotten(Base):
        e: bool = setting(False, "e")

    with pytest.raises(TypeError, match="Forgotten must be a dataclass"):
        together(Base, First, Forgotten)


def test_each_part_refuses_its_own():
    """None calls the refusals of its base, and all are heard, the general ones first."""
    assert [*First(a=6, b=7.0).contradictions()] == ["a is large", "b is larger than a"]
    with pytest.raises(ConfigError, match="^b is larger than a$"):
        Second.from_params({"b": 2})


@pytest.mark.parametrize("method", METHODS)
def test_what_another_method_would_refuse(method):
    """Its queue does not fit the batch; a method without a queue does not mind."""
    config = dataclasses.replace(Config(), method=method, batch_size=66)
    assert bool([*config.contradictions()]) == (method in ("moco", "pcl"))


def test_an_unknown_method():
    refused(
        {"method": "mocov3"},
        "method must be one of crlc, simclr, moco, byol, simsiam, pcl, cc, propos, deepcluster",
        "'mocov3'",
    )
    assert FIELDS["method"].metadata["choices"] == tuple(METHODS)


@pytest.mark.parametrize(
    "text, numbers",
    [("20 40 80", [20, 40, 80]), ("  7\t9 ", [7, 9]), ("2", [2]), ("1 2", []), ("", []), ("a", [])],
)
def test_granularities(text, numbers):
    assert granularities(text) == numbers


@pytest.mark.parametrize(
    "params, side",
    [({}, 8), (dict(dataset="cifar10"), 32), (FOLDER, 64), (dict(FOLDER, image_size=50), 50)],
)
def test_side(params, side):
    assert Config.from_params(params).side == side


# ---- notebooks and files


def test_from_notebook_takes_what_papermill_could_have_injected():
    import numpy

    namespace = {
        "__name__": "__main__",
        "_i1": "x",
        "_": 3,
        "In": [""],
        "Out": {},
        "exit": "x",
        "quit": "x",
        "Config": Config,
        "numpy": numpy,
        "types": types,
        "get_ipython": lambda: None,
        "config": Config(),
        "lambda1": 0.3,
        "seed": 4,
        "entropy": "sample",
        "normalize": False,
    }
    assert Config.from_notebook(namespace) == Config.from_params(
        {"lambda1": 0.3, "seed": 4, "entropy": "sample", "normalize": False}
    )
    for extra in (
        {"lamda1": 0.3},
        {"lambda3": [1]},
        {"nothing": None},
        {"table": {}},
        {"text": "x"},
        {"flag": True},
    ):
        with pytest.raises(ConfigError, match=f"unknown parameter '{next(iter(extra))}'"):
            Config.from_notebook({**namespace, **extra})
    with pytest.raises(ConfigError, match="lambda1 must be a number"):
        Config.from_notebook({**namespace, "lambda1": None})
    left = {**namespace, "history": [], "lambda1": 2.0}  # a cell run again, after others
    again = Config.from_notebook({**left, "In": ["", "a", "b", "a"]})
    assert again.lambda1 == 2 and again.seed == 4
    with pytest.raises(ConfigError, match="unknown parameter 'history'"):
        Config.from_notebook({**left, "In": ["", "a", "b", "c"]})


def test_read_settings(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "lambda1: 0.3  # help\nentropy: sample\nnormalize: false\nweight_decay: 5.0e-4\n"
    )
    assert read_settings(path) == {
        "lambda1": 0.3,
        "entropy": "sample",
        "normalize": False,
        "weight_decay": 5e-4,
    }
    assert read_settings(str(path)) == read_settings(path)
    path.write_text("# nothing yet\n")
    assert read_settings(path) == {}


@pytest.mark.parametrize(
    "content, words",
    [
        (b"- lambda1\n", "must hold lines 'name: value', got a list"),
        (b"lambda1\n", "got a str"),
        (b"a: [\n", "is not YAML"),
        (b"a: b: c\n", "is not YAML"),
        (b"\xff\xfe\x00\x80", "is not YAML"),
        (b"a: 2020-13-45\n", "is not YAML"),
        (b"a: !!python/object:os.system x\n", "is not YAML"),
        (b"a: 1\nb: 2\n'a': 3\n", "'a' stands twice, in line 1 and in line 3: keep one"),
        (b"a: {b: 1, b: 1}", "'b' stands twice, in line 1 and in line 1"),
        (b"\na: 010\n", "line 2 has 010, which is 8 in YAML: write 8, or '010' in quotes"),
        (b"a: 1:30\n", "line 1 has 1:30, which is 90 in YAML"),
    ],
)
def test_read_settings_refuses(tmp_path, content, words):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert (
        words in str(caught.value)
        and "settings.yaml" in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_no_file_of_the_project_has_a_name_twice_or_a_number_that_is_another_in_yaml():
    """papermill's own reader takes such a preset without a word."""
    files = [*(ROOT / "notebooks").rglob("*.yaml"), ROOT / "environment.yml", ROOT / "CITATION.cff"]
    assert len(files) > 30
    for file in files:
        read_yaml(file.read_text(encoding="utf-8"), file.name)


def test_read_settings_without_a_file(tmp_path):
    for path in (tmp_path / "no such.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            read_settings(path)
        assert path.name in str(caught.value)


# ---- identity


def another(f):
    """A value that a field could have and does not have by default."""
    if KINDS[f.name] is bool:
        return not f.default
    if KINDS[f.name] is str:
        return next((c for c in f.metadata["choices"] or () if c != f.default), "another")
    low, high = f.metadata["low"], f.metadata["high"]
    value = f.default + 1 if KINDS[f.name] is int else f.default * 0.9 + 0.0123
    assert value >= low and (high is None or value <= high) and value != f.default
    return value


@pytest.mark.parametrize("name", FIELDS)
def test_the_hash_changes_with_what_a_run_computes(name):
    f = FIELDS[name]
    changed = dataclasses.replace(Config(), **{name: another(f)})
    where = {"device", "resume", "tensorboard", "wandb", "results_dir", "data_dir"}
    where |= {"workers", "processes", "threads", "checkpoint_minutes"}
    assert (changed.hash() != Config().hash()) == (name not in where) == f.metadata["identity"]
    assert (name in changed.identity()) == (name not in where)


def test_every_setting_has_a_hash_of_its_own():
    hashes = [
        dataclasses.replace(Config(), **{n: another(f)}).hash()
        for n, f in FIELDS.items()
        if f.metadata["identity"]
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_is_of_what_differs_from_the_defaults():
    """So a setting that is added later leaves the hashes of earlier runs as they were: they are
    fixed here."""
    assert Config().hash() == "44136fa3"
    config = Config.from_params({"seed": 3, "lambda1": 0.3})
    assert config.hash() == Config.from_params({"lambda1": 0.3, "seed": 3.0}).hash() == "a2fdeb43"
    spelt_out = Config.from_params({**dataclasses.asdict(Config()), "lambda1": 0.3, "seed": 3})
    assert spelt_out == config and spelt_out.hash() == config.hash()
    assert list(config.identity()) == sorted(config.identity()) and json.dumps(config.identity())
    assert Config.from_params({"lambda2": 1}).hash() == Config.from_params({"lambda2": 1.0}).hash()


def test_a_config_is_frozen_and_replaced():
    config = Config.from_params({"lambda1": 0.3})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lambda1 = 1.0
    changed = config.replace(seed=2, n_heads=4.0)
    assert (changed.lambda1, changed.seed, changed.n_heads, config.seed) == (0.3, 2, 4, 0)
    assert config.replace() == config
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        config.replace(sead=1)
    with pytest.raises(ConfigError, match="lambda1 must be"):
        config.replace(lambda1=-1)


# ---- anything at all


def said_by(value):
    """What a text says where a number or a switch is wanted."""
    if type(value) is not str:
        return value
    return read_word({"true": "True", "false": "False"}.get(value, value))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 600)
    | st.floats()
    | st.floats(0, 1)
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.dates()
    | st.sampled_from(["5e-4", "false", "nan", "\n", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)
fitting = {
    name: st.booleans()
    if KINDS[f.name] is bool
    else st.sampled_from(f.metadata["choices"] or ("", "a"))
    if KINDS[f.name] is str
    else st.integers(f.metadata["low"], f.metadata["high"])
    if KINDS[f.name] is int
    else st.floats(f.metadata["low"], f.metadata["high"], allow_infinity=False)
    for name, f in FIELDS.items()
}
some = st.dictionaries(st.sampled_from(sorted(FIELDS)), st.just(None), max_size=5).flatmap(
    lambda names: st.fixed_dictionaries({name: fitting[name] for name in names})
)
names = st.one_of(*[st.sampled_from(sorted(FIELDS))] * 4, st.text(max_size=12), st.integers())
wild = st.builds(lambda a, b: {**a, **b}, some, st.dictionaries(names, anything, max_size=2))


@hypothesis_settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.one_of(some, wild))
def test_anything_is_a_config_or_one_line(params):
    try:
        config = Config.from_params(params)
    except ConfigError as error:
        message = str(error)
        assert message and len(message.splitlines()) == 1
        assert any(name in message for name in FIELDS)
        assert any(str(name) in message or repr(name) in message for name in params)
        return
    for name, value in params.items():
        said = value if KINDS[name] is str else said_by(value)
        assert getattr(config, name) == said and type(getattr(config, name)) is KINDS[name]
    assert Config.from_params(dataclasses.asdict(config)) == config
    assert (
        Config.from_params(json.loads(json.dumps(dataclasses.asdict(config)))).hash()
        == config.hash()
    )
    assert len(config.hash()) == 8
