"""The settings that every run has, whatever its method.

One dataclass for each room: data, network, augmentation, optimisation, evaluation, the run. Each
builds on the one before, and refuses what cannot go together in it.
"""

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.files import is_packed, read_index, read_json
from reproduce.settings import Settings, machine, setting

LEAST_SIDE: dict[Any, int] = {  # pixels that a backbone needs, by its name and by (name, stem)
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


@dataclass(frozen=True)
class Data(Settings):
    """Which images are clustered."""

    dataset: str = setting(
        "digits",
        "the data set; the ImageNets are read from folder",
        f"digits cifar10 cifar20 cifar100 svhn stl10 stl10_unlabelled {' '.join(FOLDERS)}",
    )
    folder: str = setting(
        "",
        "where images lie: as {train,test}/<class>/*, as <class>/*, without classes, or packed",
    )
    image_size: int = setting(
        0,
        "side in pixels to which a folder's images are resized; 0: 64, of an ImageNet 256",
        (0, 1024),
    )
    bad_images: str = setting(
        "stop",
        "what to do with unreadable images of a folder: name them and stop, or skip them",
        "stop skip",
    )
    letterbox: bool = setting(
        False, "a folder's images whole, between white bars, not their centre squares"
    )
    split: str = setting(
        "all", "test: train on the training part, score on the test part; all: on both", "test all"
    )
    limit: int = setting(0, "use at most this many images of each part; 0: all", (0, None))
    n_clusters: int = setting(
        0, "K, the number of clusters; 0: that of the data set's classes", (0, 100_000)
    )

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A packed data set says its images' side itself; then it stands in the settings, too."""
        folder = Path(os.path.expanduser(values.get("folder", "")))
        if values.get("folder") and not values.get("image_size") and is_packed(folder):
            return {**values, "image_size": read_index(folder)["side"]}
        return values

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.image_size or SIDES.get(self.dataset, 64)

    def refusals(self):
        data = f"but dataset is {self.dataset!r}"
        if self.n_clusters == 1:
            yield "n_clusters is 1: it must be at least 2, or 0 for the number of classes"
        if self.letterbox and (self.dataset not in FOLDERS or is_packed(Path(self.folder))):
            yield f"letterbox is True, {data}: it is for a folder of image files, not packed"
        if self.dataset in FOLDERS:
            if not self.folder:
                yield f"folder is empty, {data}: name the images, as in -p folder my_images"
            return
        if self.folder:
            yield f"folder is {self.folder!r}, {data}: add -p dataset folder"
        if self.image_size:
            yield f"image_size is {self.image_size}, {data}: only a folder's images are resized"
        if self.bad_images == "skip":
            yield f"bad_images is 'skip', {data}: only a folder has images to skip"


@dataclass(frozen=True)
class Network(Data):
    """The backbone, and how views pass through it."""

    backbone: str = setting(
        "small",
        "network from images to features; small: 4 convolutions, for digits; compact: 9, for "
        "photographs on a CPU",
        "small compact resnet18 resnet34 resnet50 alexnet vgg16",
    )
    width: int = setting(32, "channels of the first layers of small and compact", (1, 1024))
    stem: str = setting(
        "cifar",
        "first layer: 3x3 for small images (compact: 4x4 with stride 2), in ResNets also without "
        "ReLU or with pooling, or as for ImageNet",
        "cifar imagenet cifar_no_relu cifar_pool",
    )
    conv_init: str = setting(
        "kaiming",
        "start of the convolutions: kaiming (normal, fan-out), or torch's default for all or for "
        "the first",
        "kaiming torch torch_first",
    )
    sobel: bool = setting(False, "the network sees two edge filters of the grey image, no colours")
    weights: str = setting(
        "",
        "where the backbone starts: a run's directory, a file with a state dict, or imagenet; "
        "empty: at random",
    )
    views: str = setting(
        "together",
        "together: all views in one pass of the network; apart: one pass and one batch norm each",
        "together apart",
    )
    batchnorm_split: int = setting(
        1, "equal parts of a batch, each with its own batch norm, as on as many devices", (1, 64)
    )

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A run that the backbone starts from says which it is, and how its images were read."""
        values = super().completed(values)
        path = Path(os.path.expanduser(values.get("weights") or ""))
        if not values.get("weights") or not (path / "config.json").exists():
            return values
        before = read_json(path / "config.json", "weights")
        names = ["backbone", "width", "stem", "sobel", "normalize"]
        if values.get("dataset") == before.get("dataset") == "folder":
            names += ["image_size", "letterbox"]
        return {name: before[name] for name in names if name in before} | values

    @property
    def least_side(self) -> int:
        """The smallest side that the backbone can take."""
        return LEAST_SIDE.get((self.backbone, self.stem), LEAST_SIDE.get(self.backbone, 2))

    def refusals(self):
        resnet = self.backbone in ("resnet18", "resnet34", "resnet50") and self.stem == "imagenet"
        if self.weights == "imagenet" and (not resnet or self.sobel):
            yield (
                f"weights is 'imagenet', but backbone is {self.backbone!r}, stem {self.stem!r} and "
                f"sobel {self.sobel}: torchvision's weights are for resnet18, 34 and 50 "
                f"with stem 'imagenet', without sobel"
            )
        if self.weights == "imagenet" and self.dataset == "digits":
            yield "weights is 'imagenet', but dataset is 'digits', whose images have one channel"
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


def phases(view_sizes: str) -> list[tuple[int, int]]:
    """``"16x30 24x15"`` -> [(16, 30), (24, 15)]: sides and epochs; [] where it is not so."""
    words = view_sizes.replace(",", " ").split()
    each = [re.fullmatch("([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", word) for word in words]
    return [(int(m[1]), int(m[2])) for m in each if m] if all(each) else []


@dataclass(frozen=True)
class Augmentation(Network):
    """Random views."""

    augmentation: str = setting(
        "digits",
        "of the views; digits: affine, gamma, contrast, noise; images: crop, flip, colours, blur",
        "digits images none",
    )
    view_size: int = setting(
        0,
        "images, none: side of the views in pixels, also in evaluation; 0: as the images",
        (0, 8192),
    )
    view_sizes: str = setting(
        "",
        "images: views that grow; their sides, and the epochs of each, as '16x30 24x15'; empty: "
        "view_size in every epoch",
    )
    eval_size: int = setting(0, "images: side in pixels in evaluation; 0: as the views", (0, 8192))
    eval_batchnorm: str = setting(
        "running",
        "statistics of batch norm in evaluation; running: of the views in training, measured: "
        "anew, of whole training images as evaluation sees them",
        "running measured",
    )
    rotation: float = setting(
        15.0, "digits: rotation by at most this many degrees, either way", (0, 180)
    )
    zoom: float = setting(0.1, "digits: scale within 1 +- this", (0, 0.9))
    shear: float = setting(10.0, "digits: shear by at most this many degrees, either way", (0, 60))
    shift: float = setting(
        0.06, "digits: shift by at most this share of the side, either way", (0, 1)
    )
    gamma: float = setting(0.3, "digits: exponent of the grey levels within exp(+- this)", (0, 3))
    contrast: float = setting(0.3, "digits: factor of the contrast within 1 +- this", (0, 1))
    noise: float = setting(0.1, "digits: standard deviation of the noise on pixels in 0..1", (0, 1))
    crop: str = setting(
        "random",
        "images: crops of random area and ratio, or fixed: squares, in evaluation from the centre",
        "random fixed",
    )
    crop_scale: float = setting(
        0.2, "images: least share of the area that a random crop shows, or a fixed one", (0.001, 1)
    )
    flip: float = setting(0.5, "images: probability of a horizontal flip", (0, 1))
    jitter: float = setting(
        0.4,
        "images: strength of the jitter of brightness, contrast, saturation; hue: a quarter",
        (0, 2),
    )
    jitter_p: float = setting(0.8, "images: probability of the colour jitter", (0, 1))
    grayscale: float = setting(0.2, "images: probability of grayscale", (0, 1))
    blur: float = setting(0.0, "images: probability of a Gaussian blur", (0, 1))
    normalize: bool = setting(
        True, "subtract the data set's mean of each channel, divide by its standard deviation"
    )

    @property
    def phases(self) -> list[tuple[int, int]]:
        """The values of ``view_size`` one after the other, and the epochs of each, which do not
        count in the last."""
        return phases(self.view_sizes) or [(self.view_size, 0)]

    def view_size_in(self, epoch: int) -> int:
        """``view_size`` in an epoch, counted from 1."""
        last = itertools.accumulate(epochs for _, epochs in self.phases)
        sizes = (size for (size, _), end in zip(self.phases, last) if epoch <= end)
        return next(sizes, self.phases[-1][0])

    @property
    def view_side(self) -> int:
        """Side of the views in pixels: what the network sees in training, at the end of it."""
        return self.phases[-1][0] or self.side

    def refusals(self):
        yield from self.growth()
        both = {
            "view_size": (self.view_side, "'images' or 'none'"),
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
        if self.crop == "fixed" and self.augmentation != "images":
            what = f"crop is 'fixed', but augmentation is {self.augmentation!r}"
            yield f"{what}: it is for 'images' only"
        side, least = self.view_side, self.least_side
        if side < least or 0 < self.eval_size < least:
            sizes = ["eval_size"] if side >= least else ["view_size", "image_size"]
            given = [name for name in sizes if getattr(self, name)]
            images = f"the images of {self.dataset!r} are {side} x {side}"
            what = f"{given[0]} is {getattr(self, given[0])}" if given else images
            network = f"backbone is {self.backbone!r} and stem is {self.stem!r}"
            yield f"{network}, but {what}: the least is {least} pixels ('small': 2)"

    def growth(self):
        """Yield a sentence for whatever is wrong with ``view_sizes``."""
        said, sides = f"view_sizes is {self.view_sizes!r}", phases(self.view_sizes)
        if self.view_sizes and not sides:
            yield f"{said}: it must be sides and epochs of at least 1, as '16x30 24x15'"
        if not sides:
            return
        if self.augmentation != "images":
            yield f"{said}, but augmentation is {self.augmentation!r}: it is for 'images' only"
        if self.view_size:
            yield f"{said}, but view_size is {self.view_size}: name one of the two"
        if self.backbone in ("alexnet", "vgg16"):
            yield f"{said}, but backbone is {self.backbone!r}, which is made for one size"
        least, most = self.least_side, 8 * self.side
        for side in (side for side, _ in sides if not least <= side <= most):
            network = f"backbone {self.backbone!r} with stem {self.stem!r}"
            yield f"{said}, but {side} pixels are not {least} to {most}, which {network} can take"


@dataclass(frozen=True)
class Optimisation(Augmentation):
    """The steps: how many, and how far each goes."""

    epochs: int = setting(60, "passes over the training images", (0, 1_000_000))
    batch_size: int = setting(64, "images in a batch, each shown in n_views views", (2, None))
    optimizer: str = setting(
        "sgd",
        "sgd, with momentum that is not Nesterov's, adam, or muon on 3x3 convolutions beside sgd",
        "sgd adam muon",
    )
    muon_rate: float = setting(
        0.25, "muon: the convolutions' learning rate, as a multiple of learning_rate", (0, 1000)
    )
    learning_rate: float = setting(
        0.4, "learning rate; its peak where the schedule has one", (0, 1000)
    )
    schedule: str = setting("onecycle", "course of the learning rate", "constant cosine onecycle")
    warmup_epochs: int = setting(0, "epochs of linear warm-up before a cosine schedule", (0, None))
    cosine_period: int = setting(
        0, "epochs from the peak of a cosine schedule to 0; 0: all after the warm-up", (0, None)
    )
    momentum: float = setting(0.9, "momentum of sgd, beta1 of adam", (0, 0.9999))
    weight_decay: float = setting(5e-4, "weight decay, as an L2 penalty", (0, 10))
    decay: str = setting(
        "weights",
        "what weight_decay acts on: tensors of 2 dimensions and more, or every parameter",
        "weights all",
    )
    sampler: str = setting(
        "epoch",
        "order of the images; epoch: a new permutation in each, without its last part batch; "
        "endless: one permutation after another",
        "epoch endless",
    )

    def refusals(self):
        muon = "optimizer is 'muon', which is for 3x3 convolutions of more than 3 channels"
        if self.optimizer == "muon" and self.backbone == "small" and self.width <= 3:
            yield f"{muon}, but width is {self.width}: it must be at least 4"
        if self.optimizer != "muon" and self.muon_rate != EveryRun.muon_rate:
            yield f"muon_rate is {self.muon_rate}, but optimizer is {self.optimizer!r}"
        grown = sum(epochs for _, epochs in phases(self.view_sizes))
        if grown not in (0, self.epochs):
            what = f"view_sizes is {self.view_sizes!r}, which are {grown} epochs"
            yield f"{what}, but epochs is {self.epochs}: they must be as many"
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
        if self.warmup_epochs > self.epochs:
            yield f"warmup_epochs is {self.warmup_epochs}, more than epochs, {self.epochs}"


@dataclass(frozen=True)
class Evaluation(Optimisation):
    """What evaluation measures, and how."""

    evaluate_every: int = setting(2, "epochs between evaluations, where labels are used", (1, None))
    cluster_space: str = setting(
        "own",
        "features for k-means; own: projection for PCL and ProPos, backbone for the others",
        "own backbone projection online",
    )
    knn_space: str = setting(
        "backbone",
        "features in which nearest neighbours are looked up",
        "backbone projection online",
    )
    kmeans_metric: str = setting(
        "euclidean",
        "distance of k-means in evaluation and for prototypes; cosine: spherical k-means",
        "euclidean cosine",
    )
    kmeans_starts: int = setting(
        10,
        "starts of k-means in evaluation and for prototypes; the best by inertia counts",
        (1, 1000),
    )
    kmeans_iterations: int = setting(
        100, "most iterations of k-means from each of kmeans_starts", (1, 10_000)
    )
    eval_flip: bool = setting(
        False, "features and probabilities are means over an image and its mirror image"
    )
    trace_images: int = setting(
        32, "number of images whose probabilities each evaluation keeps", (0, 10_000)
    )

    def refusals(self):
        if self.eval_flip and self.augmentation == "digits":
            what = "but augmentation is 'digits', whose images are not mirrored"
            yield f"eval_flip is True, {what}: it is for 'images' and 'none'"


@dataclass(frozen=True)
class EveryRun(Evaluation):
    """The run itself: its seed, its machine, what it leaves behind."""

    seed: int = setting(0, "seed of initialisation, sampling and augmentation", (0, 2**31 - 1))
    precision: str = setting(
        "auto",
        "numbers in the network; auto: bfloat16 where it is fast, on a CPU not for small",
        "auto float32 bfloat16",
    )
    compile: bool = setting(False, "compile the network with torch.compile")
    device: str = machine("auto", "where to compute; auto: on CUDA if it is there", "auto cpu cuda")
    threads: int = machine(
        0,
        "threads on a processor; 0: one for a small run, for others what steps at its start say",
        (0, 1024),
    )
    workers: int = machine(0, "processes that read packed images ahead; 0: none", (0, 256))
    processes: int = machine(
        1, "processes of this machine that share each batch; torchrun starts them", (1, 1024)
    )
    checkpoint_minutes: float = machine(
        10.0, "minutes between checkpoints; 0: one after each step", (0, 10_000)
    )
    resume: bool = machine(True, "continue an interrupted run, show a finished one; False: anew")
    tensorboard: bool = machine(False, "write TensorBoard's event files into the run directory")
    wandb: str = machine("", "project of Weights & Biases that the run reports to; empty: none")
    results_dir: str = machine(
        "", "where run directories go; empty: results/local of the repository"
    )
    data_dir: str = machine("", "where data sets are kept; empty: data of the repository")

    def refusals(self):
        if self.workers and self.dataset not in FOLDERS:
            yield (
                f"workers is {self.workers}, but dataset is {self.dataset!r}: "
                "only packed images are read by workers"
            )
        yield from self.not_for(self.processes)

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
        if self.eval_batchnorm == "measured" and processes > 1:
            yield f"eval_batchnorm is 'measured', {there}: it is for one process"
        if self.compile and processes > 1:
            yield f"compile is True, {there}: torch.compile is for one process"
