"""One frozen dataclass holds every setting of a run, under the papers' names.

A setting is checked once, before anything is loaded, and a wrong one is answered by one sentence
that names the parameter, the value and what is allowed. papermill itself only logs an unknown
parameter and runs with the default, which is how a sweep over ``lamda1`` finishes without one
difference; here it is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

LEAST_SIDE = {  # pixels that a backbone needs, by its name and by (name, stem)
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "alexnet"), 16),
    "vgg16": 32,
    **{(name, "imagenet"): 32 for name in ("resnet18", "resnet34", "resnet50")},
    ("alexnet", "imagenet"): 64,
    "compact": 8,
    ("compact", "imagenet"): 16,
}


class ConfigError(ValueError):
    """A setting, or a file that a setting names, cannot be used."""

    def _render_traceback_(self):
        """In a notebook the sentence stands alone: the frames below it are of no use to its reader."""
        return [f"{type(self).__name__}: {self}"]


def setting(default, why, choices=None, low=None, high=None, identity=True, group=None, only=None):
    """A dataclass field with its reason, its range, whether it changes what a run computes, and the methods
    that know it (``only``, in words; None: all)."""
    return dataclasses.field(
        default=default,
        metadata=dict(
            why=why,
            choices=choices,
            low=low,
            high=high,
            identity=identity,
            group=group,
            only=only and only.split(),
        ),
    )


@dataclass(frozen=True)
class Config:
    # ---- data
    dataset: str = setting(
        "digits",
        "which images",
        choices=("digits", "cifar10", "cifar20", "stl10", "folder"),
        group="data",
    )
    folder: str = setting(
        "", "for dataset 'folder': <folder>/{train,test}/<class>/* or images without classes"
    )
    image_size: int = setting(
        0,
        "side in pixels to which a folder's images are resized; 0: the data set's own (folder: 64)",
        low=0,
        high=1024,
    )
    bad_images: str = setting(
        "stop",
        "when some images of a folder cannot be read: stop and name them, or skip and count them",
        choices=("stop", "skip"),
    )
    split: str = setting(
        "all",
        "test: train on the training part, score on the test part; all: train and score on both",
        choices=("test", "all"),
    )
    limit: int = setting(
        0, "use only so many images of each part, for a quick look; 0: every image", low=0
    )
    n_clusters: int = setting(0, "K; 0: the number of classes of the data set", low=0, high=100_000)
    # ---- method and loss
    method: str = setting(
        "crlc",
        "one file in reproduce/methods/",
        choices=("crlc", "simclr", "moco", "byol", "simsiam", "pcl", "cc", "propos", "deepcluster"),
        group="method and loss",
    )
    lambda1: float = setting(
        1.0,
        "weight of the entropy, averaged over the views, that CRLC maximises",
        low=0,
        only="crlc",
    )
    entropy: str = setting(
        "batch",
        "entropy of the mean over the batch, or of each sample (the course's reading)",
        choices=("batch", "sample"),
        only="crlc",
    )
    entropy_smoothed: bool = setting(
        False, "take that entropy of the smoothed probabilities", only="crlc"
    )
    lambda2: float = setting(10.0, "weight of the feature contrast", low=0, only="crlc")
    temperature: float = setting(
        0.1, "of the contrast between images", low=1e-3, high=100, only="crlc simclr moco pcl cc"
    )
    cluster_temperature: float = setting(
        1.0,
        "of the contrast between clusters (CC) or their prototypes (ProPos)",
        low=1e-3,
        high=100,
        only="cc propos",
    )
    critic: str = setting(
        "log_dot",
        "of the probability contrast",
        choices=("log_dot", "dot", "neg_l2", "neg_js"),
        only="crlc",
    )
    smoothing: float = setting(
        0.01,
        "gamma: p -> (1 - gamma) p + gamma / K inside the probability contrast",
        low=0,
        high=1,
        only="crlc",
    )
    logit_clamp: float = setting(
        25.0, "logits beyond this are pulled back; 0: never", low=0, only="crlc"
    )
    logit_clamp_weight: float = setting(0.01, "how hard they are pulled back", low=0, only="crlc")
    queue_size: int = setting(
        1024,
        "keys of earlier batches that serve as negatives",
        low=1,
        high=10_000_000,
        only="moco pcl",
    )
    ema: float = setting(
        0.99,
        "the target network keeps this share of itself at each step",
        low=0,
        high=1,
        only="moco byol pcl propos",
    )
    ema_schedule: str = setting(
        "constant",
        "of that share: constant, or a ramp that ends at 1",
        choices=("constant", "ramp"),
        only="moco byol pcl propos",
    )
    shuffle_keys: bool = setting(
        False,
        "the target network's batch is shuffled before batch norm is split, so that its statistics "
        "cannot tell which key belongs to which query",
        only="moco byol pcl propos",
    )
    directions: str = setting(
        "own",
        "the two directions of a symmetric loss: own is the sum for BYOL and ProPos, else the mean",
        choices=("own", "sum", "mean"),
        only="moco byol simsiam pcl propos",
    )
    alignment_weight: float = setting(
        1.0,
        "of the squared distance 2 - 2 cos of prediction and target; 0.5: the negative cosine",
        low=0,
        high=1000,
        only="byol propos",
    )
    prototypes: str = setting(
        "20 40 80", "numbers of clusters, each a granularity of the prototypes", only="pcl"
    )
    prototype_weight: float = setting(
        0.1, "weight of the contrast with, or between, prototypes", low=0, only="pcl propos"
    )
    prototype_warmup: int = setting(
        10, "epochs before prototypes enter the loss", low=0, only="pcl propos"
    )
    sigma: float = setting(
        0.001,
        "standard deviation of the noise that makes a neighbour in the projection space",
        low=0,
        high=10,
        only="propos",
    )
    pseudo_clusters: int = setting(
        0,
        "k of the k-means that makes pseudo-labels; 0: ten times n_clusters",
        low=0,
        high=1_000_000,
        only="deepcluster",
    )
    pca: int = setting(
        256,
        "principal axes, whitened, that this k-means sees; at most all of them",
        low=1,
        high=65_536,
        only="deepcluster",
    )
    quotas: bool = setting(
        False,
        "an epoch takes the same number of images from each pseudo-cluster, none twice where it has "
        "enough; False: cluster and image are drawn anew each time",
        only="deepcluster",
    )
    # ---- network
    backbone: str = setting(
        "small",
        "small: four convolutions, for digits; compact: nine, for photographs on a CPU",
        choices=("small", "compact", "resnet18", "resnet34", "resnet50", "alexnet", "vgg16"),
        group="network",
    )
    width: int = setting(
        32,
        "channels of the first layers of the small and the compact backbone",
        low=1,
        high=1024,
    )
    stem: str = setting(
        "cifar",
        "first layer: for small images (3x3 stride 1; compact: 4x4 stride 2), or that for ImageNet "
        "(7x7 stride 2 with max-pool; AlexNet: 11x11 stride 4)",
        choices=("cifar", "imagenet"),
    )
    sobel: bool = setting(
        False, "the network sees two edge filters of the gray image instead of colours"
    )
    weights: str = setting(
        "",
        "where the backbone starts: a run's directory, a file with a state dict, imagenet "
        "(torchvision's, for ResNets); empty: from nothing",
    )
    freeze: bool = setting(
        False, "keep the backbone as it started, train the heads alone", only="crlc cc pcl propos"
    )
    n_heads: int = setting(10, "H, clustering heads on one backbone", low=1, high=1000, only="crlc")
    head_hidden: int = setting(
        128,
        "hidden width of every head and projector",
        low=1,
        high=65_536,
        only="crlc simclr moco byol simsiam pcl cc propos",
    )
    head_bias: bool = setting(True, "linear layers of the heads have a bias", only="crlc")
    head_init: str = setting(
        "kaiming",
        "kaiming: uniform with gain sqrt(2), zero bias; torch: the library's default",
        choices=("kaiming", "torch"),
        only="crlc",
    )
    projection_dim: int = setting(
        128,
        "width of the contrasted features",
        low=2,
        high=65_536,
        only="crlc simclr moco byol simsiam pcl cc propos",
    )
    projector_layers: int = setting(
        2,
        "linear layers of the projector; 1: no hidden layer",
        low=1,
        high=3,
        only="simclr moco byol simsiam pcl propos",
    )
    projector_norm: str = setting(
        "own",
        "batch norm after the projector's last layer: own is a plain one for SimSiam, else none; "
        "affine: with scale and shift",
        choices=("own", "none", "plain", "affine"),
        only="simclr moco byol simsiam pcl propos",
    )
    predictor_hidden: int = setting(
        256, "hidden width of the predictor", low=1, high=65_536, only="byol simsiam propos"
    )
    predictor_init: str = setting(
        "torch",
        "of the predictor: the library's default, or normal: deviation 0.01, biases 0",
        choices=("torch", "normal"),
        only="byol simsiam propos",
    )
    views: str = setting(
        "together",
        "all views through the network in one pass, or apart: one batch norm for each",
        choices=("together", "apart"),
    )
    batchnorm_split: int = setting(
        1, "batch norm over 1/n of the batch, as on n devices", low=1, high=64
    )
    # ---- augmentation
    augmentation: str = setting(
        "digits",
        "digits: affine, gamma, contrast, noise; images: crop, flip, jitter, grayscale, blur",
        choices=("digits", "images", "none"),
        group="augmentation",
    )
    n_views: int = setting(
        2,
        "views of each image; more than 2: CRLC's contrasts are averaged over their pairs",
        low=1,
        high=16,
        only="crlc deepcluster",
    )
    view_size: int = setting(
        0, "images: side of the views, also in evaluation; 0: the images' own", low=0, high=8192
    )
    rotation: float = setting(15.0, "digits: up to so many degrees either way", low=0, high=180)
    zoom: float = setting(0.1, "digits: scale within 1 +- this", low=0, high=0.9)
    shear: float = setting(10.0, "digits: up to so many degrees either way", low=0, high=60)
    shift: float = setting(0.06, "digits: up to this share of the side", low=0, high=1)
    gamma: float = setting(0.3, "digits: exponent within exp(+- this)", low=0, high=3)
    contrast: float = setting(0.3, "digits: factor within 1 +- this", low=0, high=1)
    noise: float = setting(
        0.1, "digits: standard deviation of Gaussian noise on pixels in 0..1", low=0, high=1
    )
    crop_scale: float = setting(
        0.2, "images: least share of the area that a random crop keeps", low=0.001, high=1
    )
    flip: float = setting(0.5, "images: probability of a horizontal flip", low=0, high=1)
    jitter: float = setting(
        0.4, "images: brightness, contrast, saturation; a quarter of it for hue", low=0, high=2
    )
    jitter_p: float = setting(0.8, "images: probability of the colour jitter", low=0, high=1)
    grayscale: float = setting(0.2, "images: probability of grayscale", low=0, high=1)
    blur: float = setting(0.0, "images: probability of a Gaussian blur", low=0, high=1)
    normalize: bool = setting(
        True, "subtract the data set's channel means, divide by its deviations"
    )
    # ---- optimisation
    epochs: int = setting(
        60, "passes over the training images", low=0, high=1_000_000, group="optimisation"
    )
    batch_size: int = setting(64, "images, each seen in two views", low=2)
    optimizer: str = setting("sgd", "sgd has momentum and no Nesterov", choices=("sgd", "adam"))
    learning_rate: float = setting(0.4, "the peak, where the schedule has one", low=0, high=1000)
    schedule: str = setting(
        "onecycle",
        "of the learning rate over the steps",
        choices=("constant", "cosine", "onecycle"),
    )
    predictor_rate: float = setting(
        1.0,
        "times the learning rate, for the predictor",
        low=0,
        high=1000,
        only="byol simsiam propos",
    )
    predictor_schedule: str = setting(
        "same",
        "the predictor's rate follows the schedule, or stays at the peak",
        choices=("same", "constant"),
        only="byol simsiam propos",
    )
    warmup_epochs: int = setting(0, "linear warm-up before a cosine schedule", low=0)
    cosine_period: int = setting(
        0,
        "epochs in which a cosine schedule goes from the peak to 0; 0: all after the warm-up",
        low=0,
    )
    momentum: float = setting(0.9, "of sgd; beta1 of adam", low=0, high=0.9999)
    top_momentum: bool = setting(
        True, "DeepCluster's top layer, new each epoch, has momentum too", only="deepcluster"
    )
    weight_decay: float = setting(5e-4, "L2", low=0, high=10)
    decay: str = setting(
        "weights",
        "weights: tensors of two dimensions and more; all: biases and batch norm too",
        choices=("weights", "all"),
    )
    sampler: str = setting(
        "epoch",
        "epoch: a permutation each, last part batch dropped; endless: permutations joined",
        choices=("epoch", "endless"),
    )
    # ---- evaluation
    evaluate_every: int = setting(
        2,
        "epochs between evaluations; labels are used for evaluation only",
        low=1,
        group="evaluation",
    )
    cluster_space: str = setting(
        "own",
        "which features k-means clusters: own is the projection for PCL and ProPos, else the "
        "backbone; the projection is the target network's where there is one, online the other's",
        choices=("own", "backbone", "projection", "online"),
    )
    knn_space: str = setting(
        "backbone",
        "which features nearest neighbours are looked for in",
        choices=("backbone", "projection", "online"),
    )
    kmeans_metric: str = setting(
        "euclidean",
        "of k-means, in evaluation and for the prototypes of PCL and ProPos; cosine: spherical",
        choices=("euclidean", "cosine"),
    )
    kmeans_starts: int = setting(10, "of that k-means; the best by inertia", low=1, high=1000)
    kmeans_iterations: int = setting(100, "of that k-means, at most", low=1, high=10_000)
    trace_images: int = setting(
        32, "images whose class probabilities are kept at each evaluation", low=0, high=10_000
    )
    # ---- the run
    seed: int = setting(
        0, "of initialisation, sampling and augmentation", low=0, high=2**31 - 1, group="the run"
    )
    precision: str = setting(
        "auto",
        "auto: bfloat16 on CUDA and, but for the small backbone, on CPUs that compute in it; else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: bool = setting(False, "torch.compile the network")
    device: str = setting(
        "auto", "auto: CUDA where there is one", choices=("auto", "cpu", "cuda"), identity=False
    )
    resume: bool = setting(
        True, "continue an interrupted run, show a finished one; False: train anew", identity=False
    )
    tensorboard: bool = setting(
        False, "write TensorBoard's event files into the run directory", identity=False
    )
    wandb: str = setting(
        "", "a project of Weights & Biases that the run reports to; empty: none", identity=False
    )
    results_dir: str = setting(
        "", "where run directories go; empty: results/local of the repository", identity=False
    )
    data_dir: str = setting(
        "", "where data sets are kept; empty: data of the repository", identity=False
    )

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "Config":
        """Check every parameter and return the configuration; raise ConfigError on the first wrong one.

        >>> Config.from_params({"lambda1": 0.3}).lambda1
        0.3
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values = {}
        for name, value in params.items():
            if name not in fields:
                raise ConfigError(unknown(name, fields))
            values[name] = validate(fields[name], value)
        config = cls(**values)
        for broken in config.contradictions():
            raise ConfigError(broken)
        return config

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> "Config":
        """The configuration in a notebook's variables (pass ``globals()`` before assigning others).

        Everything that papermill could have injected is looked at, so that a mistyped ``-p`` is found.
        """
        ipython = {"In", "Out", "exit", "quit"}
        plain = (bool, int, float, str, list, dict, tuple, set, type(None))
        known = {f"_{f.name}" for f in dataclasses.fields(cls)}  # no name of IPython's own
        return cls.from_params(
            {
                name: value
                for name, value in namespace.items()
                if isinstance(value, plain)
                and name not in ipython
                and (not name.startswith("_") or name in known)
            }
        )

    def contradictions(self):
        """Yield a sentence for each pair of settings that cannot go together."""
        if self.dataset == "folder" and not self.folder:
            yield "folder is empty, but dataset is 'folder': name the folder of images, as in -p folder my_images"
        if self.folder and self.dataset != "folder":
            yield f"folder is {self.folder!r}, but dataset is {self.dataset!r}: add -p dataset folder"
        if self.image_size and self.dataset != "folder":
            yield f"image_size is {self.image_size}, but only dataset 'folder' is resized, not {self.dataset!r}"
        if self.image_size == 1:
            yield "image_size is 1: it must be at least 2, or 0 for 64 pixels"
        if self.bad_images == "skip" and self.dataset != "folder":
            yield f"bad_images is 'skip', but only a folder has images to skip, not dataset {self.dataset!r}"
        for f in dataclasses.fields(self):
            if (
                f.metadata["only"]
                and self.method not in f.metadata["only"]
                and getattr(self, f.name) != f.default
            ):
                yield (
                    f"{f.name} is {short_repr(getattr(self, f.name))}, but method is {self.method!r}, which does not know it; "
                    f"it is for {', '.join(f.metadata['only'])}"
                )
        side = self.view_side
        if self.view_size and self.augmentation != "images":
            yield (
                f"view_size is {self.view_size}, but augmentation is {self.augmentation!r}: "
                "only the random crop of 'images' makes views of another size"
            )
        if side > 8 * self.side:
            yield (
                f"view_size is {self.view_size}, more than 8 times the side of the images "
                f"of {self.dataset!r}, {self.side}"
            )
        resnet = self.backbone in ("resnet18", "resnet34", "resnet50") and self.stem == "imagenet"
        if self.weights == "imagenet" and (not resnet or self.sobel):
            yield (
                f"weights is 'imagenet', but backbone is {self.backbone!r}, stem {self.stem!r} and "
                f"sobel {self.sobel}: torchvision's weights are for resnet18, resnet34 and resnet50 "
                f"with stem 'imagenet', without sobel"
            )
        if self.weights == "imagenet" and self.dataset == "digits":
            yield "weights is 'imagenet', but dataset is 'digits', whose images have one channel of three"
        if self.freeze and not self.weights:
            yield "freeze is True, but weights is empty: the backbone would stay as random as it began"
        if self.stem == "imagenet" and self.backbone in ("small", "vgg16"):
            yield f"stem is 'imagenet', but backbone is {self.backbone!r}, which has no such stem: choose a resnet, alexnet or stem 'cifar'"
        least = LEAST_SIDE.get((self.backbone, self.stem), LEAST_SIDE.get(self.backbone, 1))
        if side < least:
            yield (
                f"backbone is {self.backbone!r} and stem is {self.stem!r}, but "
                + (
                    f"view_size is {side}"
                    if self.view_size
                    else f"the images of {self.dataset!r} are {side} x {side}"
                )
                + f": it needs {least} pixels, 'small' does not"
            )
        if self.n_views == 1 and self.method != "deepcluster":
            yield f"n_views is 1, but method is {self.method!r}, which compares views: it must be at least 2"
        if self.method in ("moco", "pcl") and self.queue_size % (2 * self.batch_size):
            yield (
                f"queue_size is {self.queue_size}, which is not a multiple of {2 * self.batch_size}: each step adds the keys of both views "
                f"of batch_size {self.batch_size}"
            )
        if self.method == "pcl" and not self.granularities:
            yield f"prototypes is {self.prototypes!r}: it must be whole numbers of at least 2 with spaces between, as '250 500 1000'"
        if self.n_clusters == 1:
            yield "n_clusters is 1: it must be at least 2, or 0 for the number of classes"
        passes = self.batchnorm_split * (2 if self.views == "apart" else 1)
        if self.batch_size % self.batchnorm_split or 2 * self.batch_size // passes < 2:
            yield f"batchnorm_split is {self.batchnorm_split}, which does not divide batch_size {self.batch_size} into equal parts of two images or more"
        if self.warmup_epochs and self.schedule != "cosine":
            yield f"warmup_epochs is {self.warmup_epochs}, but schedule is {self.schedule!r}: only 'cosine' has a warm-up"
        if self.cosine_period and self.schedule != "cosine":
            yield f"cosine_period is {self.cosine_period}, but schedule is {self.schedule!r}: only 'cosine' has a period"
        if 0 < self.cosine_period < self.epochs - self.warmup_epochs:
            yield (
                f"cosine_period is {self.cosine_period}, less than the {self.epochs - self.warmup_epochs} "
                "epochs after the warm-up: the rate would rise again"
            )
        if self.shuffle_keys and self.batchnorm_split == 1:
            yield "shuffle_keys is True, but batchnorm_split is 1: a batch that is not split has one statistic in any order"
        if not self.top_momentum and self.optimizer != "sgd":
            yield f"top_momentum is False, but optimizer is {self.optimizer!r}: only 'sgd' can leave it out"
        for name in ("cluster_space", "knn_space"):
            space = getattr(self, name)
            if space == "projection" and self.method == "deepcluster":
                yield f"{name} is 'projection', but method is 'deepcluster', which has no projector: choose 'backbone'"
            if space == "online" and self.method not in ("moco", "byol", "pcl", "propos"):
                yield (
                    f"{name} is 'online', but method is {self.method!r}, which has one network: "
                    "choose 'projection' or 'backbone'"
                )
        if self.warmup_epochs > self.epochs:
            yield f"warmup_epochs is {self.warmup_epochs}, more than epochs, {self.epochs}"
        if self.smoothing == 0 and self.critic == "log_dot" and self.logit_clamp == 0:
            yield "smoothing and logit_clamp are both 0: the logarithm of the log_dot critic would reach -inf; set one of them"

    @property
    def granularities(self) -> list[int]:
        """The numbers in ``prototypes``; none if it is not made of whole numbers of at least 2."""
        words = self.prototypes.split()
        numbers = [int(w) for w in words if w.isdecimal() and w.isascii() and len(w) < 10]
        return numbers if len(numbers) == len(words) and min(numbers, default=0) >= 2 else []

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return (
            {"digits": 8, "cifar10": 32, "cifar20": 32, "stl10": 96}.get(self.dataset)
            or self.image_size
            or 64
        )

    @property
    def view_side(self) -> int:
        """Side of the views in pixels: what the network sees."""
        return self.view_size or self.side

    def identity(self) -> dict:
        """The settings that change what a run computes, in alphabetical order."""
        return {
            f.name: getattr(self, f.name)
            for f in sorted(dataclasses.fields(self), key=lambda f: f.name)
            if f.metadata["identity"]
        }

    def hash(self) -> str:
        """Eight hexadecimal digits over ``identity()``. A setting that is added later and left at its
        default does not change the hash of earlier runs: defaults are left out."""
        default = Config().identity()
        changed = {k: v for k, v in self.identity().items() if v != default[k]}
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]

    @classmethod
    def parameter_cell(cls) -> str:
        """The source of the notebooks' parameters cell: ``name: type = default  # why``, as papermill reads it."""
        lines = []
        for f in dataclasses.fields(cls):
            if f.metadata["group"]:
                lines += [""] * bool(lines) + [f"# {f.metadata['group']}"]
            choices = f" ({' | '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
            default = json.dumps(f.default) if isinstance(f.default, str) else repr(f.default)
            lines.append(f"{f.name}: {f.type} = {default}  # {f.metadata['why']}{choices}")
        return "\n".join(lines)

    def replace(self, **changes) -> "Config":
        """A checked copy with some settings changed."""
        return Config.from_params({**dataclasses.asdict(self), **changes})


def unknown(name: str, known) -> str:
    near = difflib.get_close_matches(short_repr(name).strip("'"), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}"
    return f"unknown parameter {short_repr(name)}: {hint}"


def short_repr(value: Any) -> str:
    """A value in one line of bearable length; of a list in a list in a list, only so much."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 500  # cut below, at the end
    try:
        text = " ".join(short.repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def validate(field: dataclasses.Field, value: Any) -> Any:
    """The value in the field's own type, or ConfigError."""
    name, m, kind = field.name, field.metadata, field.type
    got = f"got {short_repr(value)} ({type(value).__name__})"
    if kind == "bool":
        if not isinstance(value, bool):
            raise ConfigError(
                f"{name} must be True or False (with a capital letter on papermill's command line), {got}"
            )
        return value
    if kind == "str":
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a text, {got}")
        if m["choices"] and value not in m["choices"]:
            raise ConfigError(f"{name} must be one of {', '.join(m['choices'])}; {got}")
        if "\x00" in value:
            raise ConfigError(f"{name} must be a text without null bytes, {got}")
        try:
            os.fsencode(value)
        except UnicodeEncodeError:
            raise ConfigError(f"{name} must be a text that UTF-8 can hold, {got}") from None
        return value
    low, high = m["low"], m["high"]
    if low is not None and high is not None:
        allowed = (
            f"between {low:g} and {high:g}" if kind == "float" else f"between {low} and {high}"
        )
    else:
        allowed = f"of at least {low}" if low is not None else "of any size"
    noun = "a whole number" if kind == "int" else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = (
            " (in YAML write 5.0e-4, not 5e-4)"
            if isinstance(value, str) and "e" in value.lower()
            else ""
        )
        raise ConfigError(f"{name} must be {noun} {allowed}, {got}{hint}")
    whole = isinstance(value, int) or (math.isfinite(value) and value == int(value))
    if not (isinstance(value, int) or math.isfinite(value)) or (kind == "int" and not whole):
        raise ConfigError(f"{name} must be {noun} {allowed}, {got}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ConfigError(f"{name} must be {noun} {allowed}, {got}")
    if abs(value) > (2**63 - 1 if kind == "int" else 3e38):
        raise ConfigError(
            f"{name} must be {noun} {allowed} that fits into {'64' if kind == 'int' else '32'} bits, {got}"
        )
    return (
        int(value) if kind == "int" else float(value) + 0.0
    )  # no -0.0, which would hash apart from 0.0


def read_yaml(text: str, where: str) -> Any:
    """What a YAML text says; ConfigError that begins with ``where`` if it is none."""
    import yaml

    try:
        return yaml.safe_load(text)
    except Exception as error:  # a date that is none is a ValueError, "!!bool x" a KeyError, a thousand brackets a RecursionError
        mark = getattr(error, "problem_mark", None)
        why = " ".join(
            (getattr(error, "problem", None) or str(error) or type(error).__name__).split()
        )
        line = f" in line {mark.line + 1}" if mark and mark.line else ""
        raise ConfigError(f"{where} is not YAML: {why[:200]}{line}") from None


def read_settings(path: str | Path) -> dict:
    """The parameters in a YAML file of settings (a preset)."""
    where = f"settings file {short_repr(str(path))}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    except ValueError as error:  # bytes that are no UTF-8, or a path with a null byte
        raise ConfigError(f"{where} is not YAML: {error}") from None
    settings = read_yaml(text, where)
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{where} must hold lines 'name: value', got a {type(settings).__name__}")
    return settings
