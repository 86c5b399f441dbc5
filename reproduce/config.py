"""One frozen dataclass holds every setting of a run, under the papers' names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.files import is_packed, read_index
from reproduce.settings import (
    Settings,
    machine,
    setting,
    short_repr,
)

LEAST_SIDE = {  # pixels that a backbone needs, by its name and by (name, stem)
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "alexnet"), 16),
    "vgg16": 32,
    **{(name, "imagenet"): 32 for name in ("resnet18", "resnet34", "resnet50")},
    ("alexnet", "imagenet"): 64,
    "compact": 8,
    ("compact", "imagenet"): 16,
}
SIDES = {
    "digits": 8,
    **dict.fromkeys(("cifar10", "cifar20", "cifar100", "svhn"), 32),
    **dict.fromkeys(("stl10", "stl10_unlabelled"), 96),
    "tiny_imagenet": 64,
    **dict.fromkeys(("imagenet10", "imagenet_dogs", "imagenet"), 256),
}
FOLDERS = ("folder", "imagenet10", "imagenet_dogs", "tiny_imagenet", "imagenet")  # of images
METHODS = "crlc simclr moco byol simsiam pcl cc propos deepcluster"
PROJECTED = "crlc simclr moco byol simsiam pcl cc propos"  # methods with heads or projectors
EMA = "moco byol pcl propos"  # methods with a target network
PREDICTING = "byol simsiam propos"  # methods with a predictor
PROJECTING = "simclr moco byol simsiam pcl propos"  # methods with a projector, no heads
PAIRED = "moco byol simsiam pcl propos"  # methods that compare each view with the other's target


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of a run; make one with ``from_params``, which checks it."""

    # ---- data
    dataset: str = setting(
        "digits",
        "which images; the ImageNets from a folder of them",
        f"digits cifar10 cifar20 cifar100 svhn stl10 stl10_unlabelled {' '.join(FOLDERS)}",
    )
    folder: str = setting(
        "", "<folder>/{train,test}/<class>/*, images without classes, or a packed data set"
    )
    image_size: int = setting(
        0, "side in pixels of a folder's images, resized; 0: 64 or, of ImageNet, 256", (0, 1024)
    )
    bad_images: str = setting(
        "stop", "at unreadable images of a folder: name them and stop, or skip them", "stop skip"
    )
    split: str = setting(
        "all", "test: train on the training part, score on the test part; all: on both", "test all"
    )
    limit: int = setting(0, "use only so many images of each part; 0: every image", (0, None))
    n_clusters: int = setting(0, "K; 0: the number of classes of the data set", (0, 100_000))
    # ---- method and loss
    method: str = setting("crlc", "one file in reproduce/methods/", METHODS)
    lambda1: float = setting(
        1.0, "weight of the entropy (its mean over the views), maximised", (0, None), only="crlc"
    )
    entropy: str = setting(
        "batch", "of the batch's mean, or of each sample (the course)", "batch sample", only="crlc"
    )
    entropy_smoothed: bool = setting(False, "that entropy of smoothed probabilities", only="crlc")
    lambda2: float = setting(10.0, "weight of the feature contrast", (0, None), only="crlc")
    temperature: float = setting(
        0.1, "of the contrast between images", (1e-3, 100), only="crlc simclr moco pcl cc"
    )
    cluster_temperature: float = setting(
        1.0, "of the contrast of clusters (CC), prototypes (ProPos)", (1e-3, 100), only="cc propos"
    )
    critic: str = setting(
        "log_dot", "of the probability contrast", "log_dot dot neg_l2 neg_js", only="crlc"
    )
    smoothing: float = setting(
        0.01, "gamma: the contrast sees (1 - gamma) p + gamma / K", (0, 1), only="crlc"
    )
    logit_clamp: float = setting(
        25.0, "logits beyond this are pulled back; 0: never", (0, None), only="crlc"
    )
    logit_clamp_weight: float = setting(0.01, "how hard they are pulled", (0, None), only="crlc")
    queue_size: int = setting(
        1024, "keys of earlier batches that serve as negatives", (1, 10_000_000), only="moco pcl"
    )
    ema: float = setting(0.99, "share that the target network keeps at each step", (0, 1), only=EMA)
    ema_schedule: str = setting(
        "constant", "of that share: constant, or a ramp that ends at 1", "constant ramp", only=EMA
    )
    shuffle_keys: bool = setting(
        False, "shuffle the target network's batch before batch norm is split", only=EMA
    )
    directions: str = setting(
        "own",
        "of a symmetric loss; own: sum for BYOL and ProPos, else mean",
        "own sum mean",
        only=PAIRED,
    )
    alignment_weight: float = setting(
        1.0, "of 2 - 2 cos(prediction, target); 0.5: 1 - cos", (0, 1000), only="byol propos"
    )
    prototypes: str = setting("20 40 80", "numbers of clusters, one per granularity", only="pcl")
    prototype_weight: float = setting(
        0.1, "weight of the contrast with, or between, prototypes", (0, None), only="pcl propos"
    )
    prototype_warmup: int = setting(10, "epochs without prototypes", (0, None), only="pcl propos")
    sigma: float = setting(
        0.001, "deviation of the noise that makes a projection's neighbour", (0, 10), only="propos"
    )
    misassigned: bool = setting(
        False,
        "prototypes of batchnorm_split devices' rows under other images' labels, as released",
        only="propos",
    )
    pseudo_clusters: int = setting(
        0, "k of its k-means; 0: ten times n_clusters", (0, 1_000_000), only="deepcluster"
    )
    pca: int = setting(
        256,
        "whitened axes for k-means, at most; 0: the features as they are",
        (0, 65_536),
        only="deepcluster",
    )
    wide: int = setting(
        0,
        "units of a layer on the backbone, clustered before its ReLU; 0: none",
        (0, 65_536),
        only="deepcluster",
    )
    quotas: bool = setting(False, "equally many images per pseudo-cluster", only="deepcluster")
    # ---- network
    backbone: str = setting(
        "small",
        "small: 4 convolutions, for digits; compact: 9, for photographs on a CPU",
        "small compact resnet18 resnet34 resnet50 alexnet vgg16",
    )
    width: int = setting(32, "channels of the first layers of small and compact", (1, 1024))
    stem: str = setting(
        "cifar",
        "first layer: 3x3 (compact: 4x4 stride 2), in ResNets also without ReLU or with pool, or "
        "that for ImageNet",
        "cifar imagenet cifar_no_relu cifar_pool",
    )
    conv_init: str = setting(
        "kaiming",
        "of convolutions: kaiming (normal, fan-out), or torch's default, for all or the first",
        "kaiming torch torch_first",
    )
    sobel: bool = setting(False, "the network sees two edge filters of the gray image, no colours")
    weights: str = setting(
        "", "the backbone's start: a run's directory, a state dict's file or imagenet; empty: anew"
    )
    freeze: bool = setting(
        False, "keep the backbone as it started, train the heads alone", only="crlc cc pcl propos"
    )
    neighbours: int = setting(
        0,
        "views but the first show one of so many nearest images, by the start's features; 0: none",
        (0, 10_000),
        only="crlc cc",
    )
    n_heads: int = setting(10, "H, clustering heads on one backbone", (1, 1000), only="crlc")
    head_hidden: int = setting(
        128, "hidden width of every head and projector", (1, 65_536), only=PROJECTED
    )
    head_bias: bool = setting(True, "linear layers of the heads have a bias", only="crlc")
    head_init: str = setting(
        "kaiming", "kaiming with gain sqrt(2), or torch's default", "kaiming torch", only="crlc"
    )
    projection_dim: int = setting(128, "width of contrasted features", (2, 65_536), only=PROJECTED)
    projector_layers: int = setting(
        2, "linear layers of the projector; 1: no hidden layer", (1, 3), only=PROJECTING
    )
    projector_norm: str = setting(
        "own",
        "batch norm at the projector's end; own: plain for SimSiam, else none",
        "own none plain affine",
        only=PROJECTING,
    )
    predictor_hidden: int = setting(
        256, "hidden width of the predictor", (1, 65_536), only=PREDICTING
    )
    predictor_init: str = setting(
        "torch", "torch's, or normal: deviation 0.01, no bias", "torch normal", only=PREDICTING
    )
    views: str = setting(
        "together", "views in one pass of the network, or one batch norm for each", "together apart"
    )
    batchnorm_split: int = setting(1, "batch norm over 1/n of the batch, as on n devices", (1, 64))
    # ---- augmentation
    augmentation: str = setting(
        "digits",
        "digits: affine, gamma, contrast, noise; images: crop, flip, colours, blur",
        "digits images none",
    )
    n_views: int = setting(
        2, "views of each image; of 3 or more, all pairs count", (1, 16), only="crlc deepcluster"
    )
    view_size: int = setting(
        0, "side of the views, also in evaluation, but for digits; 0: the images' own", (0, 8192)
    )
    eval_size: int = setting(0, "images: side in evaluation, where it is not the views'", (0, 8192))
    rotation: float = setting(15.0, "digits: up to so many degrees either way", (0, 180))
    zoom: float = setting(0.1, "digits: scale within 1 +- this", (0, 0.9))
    shear: float = setting(10.0, "digits: up to so many degrees either way", (0, 60))
    shift: float = setting(0.06, "digits: up to this share of the side", (0, 1))
    gamma: float = setting(0.3, "digits: exponent within exp(+- this)", (0, 3))
    contrast: float = setting(0.3, "digits: factor within 1 +- this", (0, 1))
    noise: float = setting(0.1, "digits: standard deviation of the noise on pixels in 0..1", (0, 1))
    crop: str = setting(
        "random",
        "images: of random area and ratio; fixed: squares, the centre in evaluation",
        "random fixed",
    )
    crop_scale: float = setting(
        0.2, "images: least share of the area in a random crop, or that of a fixed one", (0.001, 1)
    )
    flip: float = setting(0.5, "images: probability of a horizontal flip", (0, 1))
    jitter: float = setting(0.4, "images: brightness, contrast, saturation; hue a quarter", (0, 2))
    jitter_p: float = setting(0.8, "images: probability of the colour jitter", (0, 1))
    grayscale: float = setting(0.2, "images: probability of grayscale", (0, 1))
    blur: float = setting(0.0, "images: probability of a Gaussian blur", (0, 1))
    normalize: bool = setting(True, "subtract the data set's channel means, divide by deviations")
    # ---- optimisation
    epochs: int = setting(60, "passes over the training images", (0, 1_000_000))
    batch_size: int = setting(64, "images in a batch, each in n_views views", (2, None))
    optimizer: str = setting("sgd", "sgd has momentum and no Nesterov", "sgd adam")
    learning_rate: float = setting(0.4, "the peak, where the schedule has one", (0, 1000))
    schedule: str = setting("onecycle", "of the learning rate", "constant cosine onecycle")
    predictor_rate: float = setting(
        1.0, "times the learning rate, for the predictor", (0, 1000), only=PREDICTING
    )
    predictor_schedule: str = setting(
        "same", "its rate follows the schedule, or is the peak", "same constant", only=PREDICTING
    )
    warmup_epochs: int = setting(0, "linear warm-up before a cosine schedule", (0, None))
    cosine_period: int = setting(
        0, "epochs from the peak of a cosine schedule to 0; 0: all after the warm-up", (0, None)
    )
    momentum: float = setting(0.9, "of sgd; beta1 of adam", (0, 0.9999))
    top_momentum: bool = setting(
        True, "DeepCluster's top layer, new each epoch, has momentum too", only="deepcluster"
    )
    weight_decay: float = setting(5e-4, "L2", (0, 10))
    decay: str = setting(
        "weights", "weights: tensors of 2 dimensions and more; all: every parameter", "weights all"
    )
    sampler: str = setting(
        "epoch", "one permutation per epoch without a part batch, or endless", "epoch endless"
    )
    # ---- evaluation
    evaluate_every: int = setting(2, "epochs between evaluations, where labels are used", (1, None))
    cluster_space: str = setting(
        "own",
        "features for k-means; own: projection for PCL and ProPos, else backbone",
        "own backbone projection online",
    )
    knn_space: str = setting(
        "backbone",
        "features in which nearest neighbours are looked up",
        "backbone projection online",
    )
    kmeans_metric: str = setting(
        "euclidean", "in evaluation and for prototypes; cosine: spherical", "euclidean cosine"
    )
    kmeans_starts: int = setting(10, "of that k-means; the best by inertia", (1, 1000))
    kmeans_iterations: int = setting(100, "of that k-means, at most", (1, 10_000))
    trace_images: int = setting(32, "images whose probabilities each evaluation keeps", (0, 10_000))
    # ---- the run
    seed: int = setting(0, "of initialisation, sampling and augmentation", (0, 2**31 - 1))
    precision: str = setting(
        "auto", "auto: bfloat16 where it is fast; on CPUs not for 'small'", "auto float32 bfloat16"
    )
    compile: bool = setting(False, "torch.compile the network")
    device: str = machine("auto", "auto: CUDA where there is one", "auto cpu cuda")
    workers: int = machine(0, "processes that read packed images ahead; 0: none", (0, 256))
    processes: int = machine(1, "that share each batch, as torchrun starts them here", (1, 1024))
    checkpoint_minutes: float = machine(
        10.0, "between checkpoints within an epoch; each epoch ends with one", (0, 10_000)
    )
    resume: bool = machine(True, "continue an interrupted run, show a finished one; False: anew")
    tensorboard: bool = machine(False, "write TensorBoard's event files into the run directory")
    wandb: str = machine("", "a project of Weights & Biases that the run reports to; empty: none")
    results_dir: str = machine(
        "", "where run directories go; empty: results/local of the repository"
    )
    data_dir: str = machine("", "where data sets are kept; empty: data of the repository")

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A packed data set says its images' side itself; then it stands in the settings, too."""
        folder = Path(os.path.expanduser(values.get("folder", "")))
        if values.get("folder") and not values.get("image_size") and is_packed(folder):
            return {**values, "image_size": read_index(folder)["side"]}
        return values

    def contradictions(self):
        """Yield a sentence for each pair of settings that cannot go together."""
        folder, side, least = self.dataset in FOLDERS, self.view_side, self.least_side
        in_a_pass = self.batch_size * (1 if self.views == "apart" else min(2, self.n_views))
        data = f"dataset is {self.dataset!r}"
        if folder and not self.folder:
            yield f"folder is empty, but {data}: name the images, as in -p folder my_images"
        if self.folder and not folder:
            yield f"folder is {self.folder!r}, but {data}: add -p dataset folder"
        if self.image_size and not folder:
            yield f"image_size is {self.image_size}, but {data}: only a folder's images are resized"
        if self.bad_images == "skip" and not folder:
            yield f"bad_images is 'skip', but {data}: only a folder has images to skip"
        if self.workers and not folder:
            yield f"workers is {self.workers}, but {data}: only packed images are read by workers"
        for f in dataclasses.fields(self):
            methods, value = f.metadata["only"], getattr(self, f.name)
            if methods and self.method not in methods and value != f.default:
                yield (
                    f"{f.name} is {short_repr(value)}, but method is {self.method!r}, "
                    f"which does not know it; it is for {', '.join(methods)}"
                )
        both = {
            "view_size": (side, "'images' or 'none'"),
            "eval_size": (self.eval_size, "'images'"),
        }
        for name, (seen, known) in both.items():
            if getattr(self, name) and repr(self.augmentation) not in known:
                what = f"{name} is {seen}, but augmentation is {self.augmentation!r}"
                yield f"{what}: it is for {known} only"
            if seen > 8 * self.side:
                yield (
                    f"{name} is {seen}, more than 8 times the side of the images "
                    f"of {self.dataset!r}, {self.side}"
                )
        resnet = self.backbone in ("resnet18", "resnet34", "resnet50") and self.stem == "imagenet"
        if self.weights == "imagenet" and (not resnet or self.sobel):
            yield (
                f"weights is 'imagenet', but backbone is {self.backbone!r}, stem {self.stem!r} and "
                f"sobel {self.sobel}: torchvision's weights are for resnet18, 34 and 50 "
                f"with stem 'imagenet', without sobel"
            )
        if self.crop == "fixed" and self.augmentation != "images":
            what = f"crop is 'fixed', but augmentation is {self.augmentation!r}"
            yield f"{what}: it is for 'images' only"
        if self.weights == "imagenet" and self.dataset == "digits":
            yield "weights is 'imagenet', but dataset is 'digits', whose images have one channel"
        if self.freeze and not self.weights:
            yield "freeze is True, but weights is empty: the backbone would stay random"
        if self.neighbours and not self.weights:
            yield (
                f"neighbours is {self.neighbours}, but weights is empty: "
                "a random network's features have no neighbours"
            )
        if self.stem == "imagenet" and self.backbone in ("small", "vgg16"):
            yield (
                f"stem is 'imagenet', but backbone is {self.backbone!r}, which has no such stem: "
                "choose a resnet, compact, alexnet or stem 'cifar'"
            )
        if self.stem.startswith("cifar_") and not self.backbone.startswith("resnet"):
            yield (
                f"stem is {self.stem!r}, but backbone is {self.backbone!r}, which has no such "
                "stem: choose a resnet or stem 'cifar'"
            )
        if side < least or 0 < self.eval_size < least:
            sizes = ["eval_size"] if side >= least else ["view_size", "image_size"]
            given = [name for name in sizes if getattr(self, name)]
            images = f"the images of {self.dataset!r} are {side} x {side}"
            seen = f"{given[0]} is {getattr(self, given[0])}" if given else images
            network = f"backbone is {self.backbone!r} and stem is {self.stem!r}"
            yield f"{network}, but {seen}: the least is {least} pixels ('small': 2)"
        if self.n_views == 1 and self.method != "deepcluster":
            yield f"n_views is 1, but method is {self.method!r}, which compares views: at least 2"
        if self.method in ("moco", "pcl") and self.queue_size % (2 * self.batch_size):
            yield (
                f"queue_size is {self.queue_size}, which is not a multiple of "
                f"{2 * self.batch_size}: each step adds both views of batch_size {self.batch_size}"
            )
        if self.method == "pcl" and not self.granularities:
            yield (
                f"prototypes is {self.prototypes!r}: it must be whole numbers of at least 2 "
                "with spaces between, as '250 500 1000'"
            )
        if self.n_clusters == 1:
            yield "n_clusters is 1: it must be at least 2, or 0 for the number of classes"
        if self.batch_size % self.batchnorm_split or in_a_pass // self.batchnorm_split < 2:
            yield (
                f"batchnorm_split is {self.batchnorm_split}, which does not divide batch_size "
                f"{self.batch_size} into equal parts of two images or more"
            )
        for name, what in (("warmup_epochs", "warm-up"), ("cosine_period", "period")):
            if getattr(self, name) and self.schedule != "cosine":
                yield (
                    f"{name} is {getattr(self, name)}, but schedule is {self.schedule!r}: "
                    f"only 'cosine' has a {what}"
                )
        if 0 < self.cosine_period < self.epochs - self.warmup_epochs:
            yield (
                f"cosine_period is {self.cosine_period}, less than the "
                f"{self.epochs - self.warmup_epochs} epochs after the warm-up: "
                "the rate would rise again"
            )
        if self.shuffle_keys and self.batchnorm_split == 1:
            yield (
                "shuffle_keys is True, but batchnorm_split is 1: a batch that is not split has "
                "one statistic in any order"
            )
        if self.misassigned and self.batchnorm_split == 1:
            yield (
                "misassigned is True, but batchnorm_split is 1: the rows of one device are in the "
                "order of their labels"
            )
        if not self.top_momentum and self.optimizer != "sgd":
            yield f"top_momentum is False, but optimizer is {self.optimizer!r}: only for 'sgd'"
        for name in ("cluster_space", "knn_space"):
            space, why = getattr(self, name), ""
            if space == "projection" and self.method == "deepcluster":
                why = "has no projector: choose 'backbone'"
            if space == "online" and self.method not in EMA.split():
                why = "has one network: choose 'projection' or 'backbone'"
            if why:
                yield f"{name} is {space!r}, but method is {self.method!r}, which {why}"
        yield from self.not_for(self.processes)
        if self.warmup_epochs > self.epochs:
            yield f"warmup_epochs is {self.warmup_epochs}, more than epochs, {self.epochs}"
        if self.smoothing == 0 and self.critic == "log_dot" and self.logit_clamp == 0:
            yield (
                "smoothing and logit_clamp are both 0: the logarithm of the log_dot critic "
                "would reach -inf; set one of them"
            )

    def not_for(self, processes: int):
        """Yield a sentence for each setting that so many processes cannot have."""
        there = f"but there are {processes} processes"
        if self.batch_size % processes:
            yield f"batch_size is {self.batch_size}, {there}: they must divide it into equal parts"
        if self.batchnorm_split > 1 and self.batchnorm_split % processes:
            yield (
                f"batchnorm_split is {self.batchnorm_split}, {there}: it must be 1 (batch norm "
                f"over the whole batch), {processes} or a multiple of {processes}"
            )
        if self.compile and processes > 1:
            yield f"compile is True, {there}: torch.compile is for one process"

    @property
    def granularities(self) -> list[int]:
        """The numbers in ``prototypes``; none if it is not made of whole numbers of at least 2."""
        words = self.prototypes.split()
        numbers = [int(w) for w in words if w.isdecimal() and w.isascii() and len(w) < 10]
        return numbers if len(numbers) == len(words) and min(numbers, default=0) >= 2 else []

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.image_size or SIDES.get(self.dataset, 64)

    @property
    def view_side(self) -> int:
        """Side of the views in pixels: what the network sees in training."""
        return self.view_size or self.side

    @property
    def least_side(self) -> int:
        """The smallest side that the backbone can take."""
        return LEAST_SIDE.get((self.backbone, self.stem), LEAST_SIDE.get(self.backbone, 2))

    def identity(self) -> dict:
        """The settings that change what a run computes, in alphabetical order."""
        return {
            f.name: getattr(self, f.name)
            for f in sorted(dataclasses.fields(self), key=lambda f: f.name)
            if f.metadata["identity"]
        }

    def changed(self) -> dict:
        """The settings that are not the default."""
        default = Config()
        pairs = dataclasses.asdict(self).items()
        return {name: value for name, value in pairs if value != getattr(default, name)}

    def hash(self) -> str:
        """Eight hexadecimal digits over ``identity()`` without defaults, so that a setting which is
        added later does not change the hash of earlier runs."""
        default = Config().identity()
        changed = {k: v for k, v in self.identity().items() if v != default[k]}
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]

    def replace(self, **changes) -> "Config":
        """A checked copy with some settings changed."""
        return Config.from_params({**dataclasses.asdict(self), **changes})
