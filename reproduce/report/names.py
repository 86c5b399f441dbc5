"""One dictionary of plain names: for settings, their values, rules, data sets, methods, columns.

Tables, figures, runs.html and the titles of pages take their words from here. A setting that is
not named has its own name with spaces, so ``learning_rate`` needs no entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reproduce import methods

RULES = {
    "first_head": "first head",
    "mean_of_heads": "mean of heads",
    "lowest_loss_head": "lowest-loss head",
    "aligned_average": "aligned average",
    "neighbour_vote": "vote of neighbours",
    "best_head_oracle": "best head (oracle)",
    "best_epoch_and_head_oracle": "best epoch and head (oracle)",
    "kmeans_embedding": "k-means on features",
    "kmeans_pixels": "k-means on pixels",
}
DATA = {
    "digits": "digits",
    **{f"cifar{n}": f"CIFAR-{n}" for n in (10, 20, 100)},
    "svhn": "SVHN",
    "stl10": "STL-10",
    "stl10_unlabelled": "STL-10 with unlabelled",
    "imagenet10": "ImageNet-10",
    "imagenet_dogs": "ImageNet-Dogs",
    "tiny_imagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet",
}
METHODS = {name.lower(): name for name in methods.NAMES}
PAGES = {  # in the order in which they are read
    "differences": "Fifteen differences",
    "details": "What each is worth",
    "entropy": "Entropy",
    "longer": "Longer training",
    "embeddings": "Clusters",
    "methods": "Nine methods",
    "pflop": "Accuracy for arithmetic",
    "report": "Claims and limits",
    "scale": "Scale",
    "benchmark": "Speed",
}
SETTINGS = {
    "lambda1": "λ1",
    "lambda2": "λ2",
    "n_heads": "heads",
    "n_views": "views of an image",
    "n_clusters": "K",
    "entropy_smoothed": "smoothing in the entropy",
    "smoothing": "γ",
    "critic": "critic",
    "crop_scale": "smallest crop",
    "normalize": "normalisation",
    "decay": "weight decay on",
    "logit_clamp": "clamp of the logits",
    "head_bias": "bias in the heads",
    "head_init": "start of the heads",
    "view_size": "pixels of a view",
    "eval_size": "pixels in evaluation",
    "evaluate_every": "epochs between evaluations",
    "batchnorm_split": "parts of a batch norm",
    "jitter_p": "share of jittered views",
    "pseudo_clusters": "pseudo-clusters",
    "weights": "start",
    "freeze": "frozen backbone",
    "limit": "images at most",
    "pca": "whitened axes",
    "neighbour_weight": "share of neighbours as positives",
    "neighbour_queue": "projections among which neighbours are sought",
    "neighbour_from": "share of the run before neighbours are positives",
    "ema": "rate of the target network",
}
PHRASES = {  # a setting with its value, where the name before the value does not say it
    "n_heads": "{} heads",
    "n_views": "{} views of an image",
    "views": "views pass {}",
    "epochs": "trained for {} epochs",
    "evaluate_every": "scored every {} epochs",
    "view_size": "views of {} pixels",
    "eval_size": "scored at {} pixels",
    "batch_size": "batches of {}",
    "pseudo_clusters": "{} pseudo-clusters",
    "neighbour_weight": "neighbours as positives in {} of the feature contrast",
    "neighbour_queue": "neighbours among {} projections",
    "neighbour_from": "neighbours after {} of the run",
}
VALUES: dict[str, dict[Any, str]] = {
    "method": METHODS,
    "entropy": {"batch": "of the batch mean", "sample": "of each sample"},
    "stem": {"cifar": "for small images", "imagenet": "for ImageNet"},
    "decay": {"weights": "weights only", "all": "every parameter"},
    "head_init": {"kaiming": "Kaiming", "torch": "torch's default"},
    "critic": {
        "log_dot": "logarithm of the dot product",
        "dot": "dot product",
        "neg_l2": "minus the squared distance",
        "neg_js": "minus the Jensen-Shannon divergence",
    },
}
COLUMNS = {
    "acc": "ACC",
    "nmi": "NMI",
    "ari": "ARI",
    "knn": "kNN",
    "knn_acc": "kNN",
    "std": "deviation",
    "low": "from",
    "high": "to",
    "size": "n",
    "kmeans": "k-means on features",
    "scored_by": "scored by",
    "nats": "entropy, nats",
    "share_of_product": "share of a matrix product",
    "times_lightly": "times lightly's",
}
COUNTS = {"n", "seeds", "runs", "settings", "collapsed", "in use"}  # columns of whole numbers
GROUPS: dict[str, dict[str, Any]] = {  # settings that change together, the largest groups first
    "the authors' heads, weight decay and clamp": {
        "head_bias": True,
        "head_init": "kaiming",
        "decay": "weights",
        "logit_clamp": 25.0,
    },
    "CENG501's heads and weight decay, no clamp": {
        "head_bias": False,
        "head_init": "torch",
        "decay": "all",
        "logit_clamp": 0.0,
    },
    "the authors' crop, jitter and normalisation": {
        "crop_scale": 0.2,
        "jitter": 0.4,
        "normalize": True,
    },
    "CENG501's crop and jitter, no normalisation": {
        "crop_scale": 0.08,
        "jitter": 0.8,
        "normalize": False,
    },
    "the authors' entropy (batch mean, λ1 2)": {
        "entropy": "batch",
        "entropy_smoothed": False,
        "lambda1": 2.0,
    },
    "CENG501's entropy (each sample, λ1 1)": {
        "entropy": "sample",
        "entropy_smoothed": True,
        "lambda1": 1.0,
    },
    "entropy of the batch mean": {"entropy": "batch", "entropy_smoothed": False},
    "entropy of each sample, smoothed": {"entropy": "sample", "entropy_smoothed": True},
    "the authors' start of the heads, with bias": {"head_init": "kaiming", "head_bias": True},
    "CENG501's start of the heads, no bias": {"head_init": "torch", "head_bias": False},
}
COURSE = {  # CENG501's settings on the small network of cifar10-cpu
    "preset": "cifar10-course",
    "split": "test",
    "backbone": "compact",
    "width": 64,
    "view_size": 16,
    "n_views": 4,
    "epochs": 4,
    "batch_size": 128,
    "schedule": "onecycle",
    "learning_rate": 0.3,
    "evaluate_every": 2,
    "precision": "auto",
}
NIGHT = "cifar10-cpu-night, weights cifar10-cpu-night, epochs 36"
COURSE_45 = (
    "cifar10-course, split test, backbone compact, width 64, view_size 16, epochs 45, "
    "batch_size 128, learning_rate 0.3, schedule onecycle, precision auto, n_views 4"
)
HEADS = {"preset": "cifar10-cpu-heads"}
STARTS: dict[str, dict[str, Any]] = {  # a plain name for a preset, or for one with changes
    "CENG501's settings, 4 epochs": COURSE,
    "the authors' settings, 4 epochs": {"preset": "cifar10-cpu"},
    "CENG501's settings, 45 epochs": {**COURSE, "epochs": 45, "evaluate_every": 5},
    "the authors' settings, 45 epochs": {
        "preset": "cifar10-cpu",
        "epochs": 45,
        "evaluate_every": 5,
    },
    "new heads after 45 epochs of the authors' settings": HEADS,
    "new heads after 45 epochs of CENG501's settings": {
        **HEADS,
        "stem": "imagenet",
        "weights": COURSE_45,
        "view_size": 16,
        "normalize": False,
    },
    "the preset for an hour": {"preset": "cifar10-cpu-hour"},
    "new heads after the preset for an hour": {**HEADS, "weights": "cifar10-cpu-hour"},
    "24 more epochs with larger views": {"preset": "cifar10-cpu-night"},
    "36 epochs after those 24": {
        "preset": "cifar10-cpu-night",
        "weights": "cifar10-cpu-night",
        "epochs": 36,
    },
    "new heads after 24 more epochs": {**HEADS, "weights": "cifar10-cpu-night", "view_size": 32},
    "new heads after 36 epochs after those 24": {**HEADS, "weights": NIGHT, "view_size": 32},
    "the recipe of equal compute": {"preset": "cifar10-cpu-methods"},
    "CRLC as its authors train it": {"preset": "cifar10-paper"},
    "CENG501's reproduction": {"preset": "cifar10-course"},
    "CENG501's settings": {"preset": "digits-course"},
    "the recipe for digits": {"preset": "digits-quick"},
    "the authors' settings": {"preset": "digits-quick", "views": "apart"},
    "the recipe for a folder": {"preset": "folder"},
    "the recipe for a folder on a GPU": {"preset": "folder-gpu"},
}


def word(name: Any) -> Any:
    """The plain name of a setting, a rule or a column of a table; other text as it is."""
    if not isinstance(name, str):
        return name
    for known in (COLUMNS, SETTINGS, RULES):
        if name in known:
            return known[name]
    rule, _, score = name.rpartition("_")
    if rule in RULES and score in COLUMNS:
        return RULES[rule] + ("" if score == "acc" else f", {COLUMNS[score]}")
    return name.replace("_", " ")


def value(setting: Any, given: Any) -> Any:
    """The plain name of a setting's value: ``value("entropy", "batch")`` is "of the batch mean"."""
    if isinstance(given, (bool, np.bool_)):
        return "yes" if given else "no"
    return VALUES.get(setting, {}).get(given, given) if isinstance(given, str) else given


def change(setting: str, given: Any) -> str:
    """A setting that differs, in words: ``λ1 0.3``, ``no normalisation``, ``stem for ImageNet``."""
    if isinstance(given, (bool, np.bool_)):
        return word(setting) if given else f"no {word(setting)}"
    shown = f"{given:g}" if isinstance(given, float) else value(setting, given)
    return PHRASES.get(setting, f"{word(setting)} {{}}").format(shown)


def changes(differing: Mapping[str, Any]) -> list[str]:
    """Settings that differ, in words, those of a group together; the fewest words that say it."""
    left, groups = dict(differing), []
    for name, group in GROUPS.items():
        if group.items() <= left.items():
            groups.append(name)
            left = {k: v for k, v in left.items() if k not in group}
    return [*groups, *(change(k, v) for k, v in left.items())]


# ---- tables


def plain(table: pd.DataFrame | pd.Series) -> pd.DataFrame:
    """A table as a page shows it: plain names, yes and no, whole numbers of runs, no underscores.
    What is not there is left blank when it is printed (``na_rep=""``)."""
    table = table.to_frame() if isinstance(table, pd.Series) else table
    columns = [label[-1] if isinstance(label, tuple) else label for label in table.columns]
    shown = pd.DataFrame({i: _column(columns[i], table.iloc[:, i]) for i in range(len(columns))})
    return shown.set_axis(_labels(table.index)).set_axis(_labels(table.columns), axis=1)


def _column(name: Any, values: pd.Series) -> pd.Series:
    values = values.reset_index(drop=True)
    whole = pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all()
    if whole and word(name) in COUNTS:
        values = values.astype("Int64")
    elif isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf":
        return values  # what is missing is left blank when it is printed
    blank = values.isna() | (values.astype(object) == "nan")
    shown = ["" if b else value(name, v) for v, b in zip(values, blank)]
    return pd.Series(shown, dtype=object)


def _labels(index: pd.Index) -> pd.Index:
    """Labels of rows or columns under plain names, those of a setting's values, too."""

    def label(name: Any, given: Any) -> Any:
        return value(name, given) if name in VALUES else word(value(name, given))

    names = [word(name) for name in index.names]
    if isinstance(index, pd.MultiIndex):
        rows = [tuple(map(label, index.names, row)) for row in index]
        return pd.MultiIndex.from_tuples(rows, names=names)
    if isinstance(index, pd.RangeIndex) or index.dtype != object and index.dtype != "str":
        return index.rename(names[0])
    return pd.Index([label(index.name, row) for row in index], name=names[0])
