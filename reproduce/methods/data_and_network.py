"""The settings of every run that say which images it sees, by which network, and in which views.

Each dataclass builds on the one before, and refuses what cannot go together in it."""

import dataclasses
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce.files import is_packed, read_index, read_json
from reproduce.settings import ConfigError, Settings, setting, short_repr, types_of, validate

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
        if self.letterbox and (
            self.dataset not in FOLDERS or is_packed(Path(os.path.expanduser(self.folder)))
        ):
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
        if not values.get("weights") or not os.path.exists(path / "config.json"):
            return values
        before = read_json(path / "config.json", "weights")
        names = ["backbone", "width", "stem", "sobel", "normalize"]
        if values.get("dataset") == before.get("dataset") == "folder":
            packed = is_packed(Path(os.path.expanduser(values.get("folder", ""))))
            names += [] if packed else ["image_size", "letterbox"]
        fields = {f.name: f for f in dataclasses.fields(cls)}
        kinds = types_of(cls)  # type: ignore[arg-type]
        known = {name: before[name] for name in names if name in before}
        try:
            known = {name: validate(fields[name], kinds[name], v) for name, v in known.items()}
        except ConfigError as error:
            where = f"weights: {short_repr(str(path / 'config.json'))} is of no run"
            raise ConfigError(f"{where}: {error}") from None
        return known | values

    @property
    def least_side(self) -> int:
        """The smallest side that the backbone can take."""
        return LEAST_SIDE.get((self.backbone, self.stem), LEAST_SIDE.get(self.backbone, 2))

    def refusals(self):
        if gives_features_alone(self.weights):
            how = f"python -m reproduce clusters FOLDER K -p weights {self.weights}"
            yield (
                f"weights is {short_repr(self.weights)}, whose features {how} takes: training "
                "starts from the directory of a run, a file with a state dict, or 'imagenet'"
            )
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


def gives_features_alone(weights: str) -> bool:
    """Whether ``weights`` names a network that ``clusters`` takes features of, and that no training
    here starts from."""
    named = weights == "photos" or weights.startswith(("timm:", "torchvision:", "hub:"))
    return named and not os.path.exists(os.path.expanduser(weights))


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
        "images of three channels: strength of the jitter of brightness, contrast, saturation; "
        "hue: a quarter",
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
