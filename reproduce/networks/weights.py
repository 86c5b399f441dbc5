"""Starting from trained weights: those of another run, of a file, or torchvision's for ImageNet."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reproduce.config import Config
from reproduce.files import read_json
from reproduce.settings import ConfigError, short_repr

# what wrappers, MoCo, BYOL, CC, DINO, Lightning and others put before the names of a network's
# tensors, the outer before the inner, and the names under which they keep such a dict in a file
PREFIXES = (
    "_orig_mod. module. model. net. encoder_q. base_encoder. online_encoder. online_network. "
    "student. teacher. backbone. encoder. convnet. resnet. trunk."
).split()
STATES = "state_dict model_state_dict model student teacher online_network net".split()
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # moments that torchvision trains with


def load_backbone(config: Config, backbone: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Put ``config.weights`` into the backbone; returns the channel moments ``[C]`` that its images
    were normalised with, None where they are not known. ConfigError if the weights do not fit."""
    if config.weights == "imagenet":
        state, moments = imagenet(config.backbone), tuple(map(torch.tensor, IMAGENET))
    else:
        path = Path(os.path.expanduser(config.weights))
        files = [path / name for name in ("model.pt", "backbone.pt")] if path.is_dir() else [path]
        state = read_state(next((file for file in files if file.is_file()), files[0]))
        moments = moments_of(path)
        if (path / "config.json").exists():
            before = read_json(path / "config.json", "weights").get("normalize", True)
            if before != config.normalize:
                what = f"the images of the run in weights had {before}: add -p normalize {before}"
                raise ConfigError(f"normalize is {config.normalize}, but {what}")
    expected = backbone.state_dict()
    there = {k: list(v.shape) for k, v in state.items() if not k.startswith("fc.")}
    those = f"weights: those of {short_repr(config.weights)}"
    unfit = f"{those} do not fit backbone {config.backbone!r}"
    for name, value in expected.items():
        if there.get(name) != list(value.shape):
            sizes = f"{there.get(name, 'missing')} there, and {list(value.shape)} here"
            same = "backbone, width, stem, sobel and channels must be those of the weights"
            raise ConfigError(f"{unfit}: {name} is {sizes}; {same}")
    if extra := sorted(set(there) - set(expected)):
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise ConfigError(f"{unfit}, which has no {extra[0]}{more}")
    for name in expected:
        if not state[name].isfinite().all():
            raise ConfigError(f"{those} are not finite: {name} holds NaN or infinity")
    backbone.load_state_dict({name: state[name] for name in expected})
    return moments


def moments_of(run: Path) -> tuple[Tensor, Tensor] | None:
    """The channel moments ``[C]`` that a run's images were normalised with, where it has them."""
    if not (run / "apply.npz").exists():
        return None
    try:
        with np.load(run / "apply.npz") as file:
            return torch.from_numpy(file["mean"]), torch.from_numpy(file["std"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        what = "is damaged, so the moments of the run's images are not known"
        raise ConfigError(f"weights: {short_repr(str(run / 'apply.npz'))} {what}") from None


def downloaded(entry) -> dict[str, Tensor]:
    """The state dict of an entry of torchvision's weights, from torch.hub's cache or the network,
    without what torch prints of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        return entry.get_state_dict(progress=False, check_hash=True)


def imagenet(backbone: str) -> dict[str, Tensor]:
    """torchvision's weights, downloaded into torch.hub's cache on first use."""
    import torchvision

    known = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"]
    try:
        return downloaded(known)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        what = f"{known.url} cannot be downloaded ({getattr(error, 'reason', error)})"
        folder = str(Path(torch.hub.get_dir()) / "checkpoints")
        remedy = f"connect to a network once, or copy that file into {folder!r}"
        raise ConfigError(f"weights is 'imagenet', but {what}: {remedy}") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """The backbone's tensors in a file of weights, without the prefixes of ``PREFIXES``: what has
    none of a file where others have it, as MoCo's queue and second encoder, is another part."""
    said = f"weights: {str(path)!r}"
    if not path.is_file():
        choices = "the directory of a run of this machine, a file with a state dict, or 'imagenet'"
        raise ConfigError(f"{said} is not there: name {choices}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever another file makes of the unpickler
        raise ConfigError(f"{said} is no file of weights: {type(error).__name__}") from None
    for key in STATES:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    pairs = state.items() if isinstance(state, dict) else [(None, state)]
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in pairs):
        raise ConfigError(f"{said} must hold a state dict, names and tensors")
    while prefixes := [p for p in PREFIXES if any(name.startswith(p) for name in state)]:
        prefix = prefixes[0]
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state
