"""Networks from images to features. Definitions are torchvision's; only the first layer is ours."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reproduce.config import Config


def build(config: Config, channels: int) -> nn.Module:
    """The backbone of a configuration; ``.n_features`` is the width of its output ``[N, n_features]``."""
    if config.backbone == "small":
        return Small(channels, config.width)
    return resnet(config.backbone, config.stem, channels)


class Small(nn.Module):
    """A residual net of four 3x3 convolutions, for images of about 8 x 8: trains in seconds on a CPU."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.n_features = 2 * width
        self.stem = conv_bn(channels, width)
        self.inner = nn.Sequential(conv_bn(width, width), nn.ReLU(inplace=True), conv_bn(width, width))
        self.last = conv_bn(width, 2 * width)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(F.relu(x + self.inner(x)), 2)
        return F.relu(self.last(x)).mean((-2, -1))


def conv_bn(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))


def resnet(name: str, stem: str, channels: int) -> nn.Module:
    """torchvision's ResNet without its classifier.

    stem 'imagenet': 7x7 stride 2 and max-pool, as defined there. stem 'cifar': 3x3 stride 1, no pool,
    which keeps a 32 x 32 image at a 4 x 4 final map; the other stem leaves 1 x 1.
    """
    import torchvision

    net = torchvision.models.get_model(name, weights=None)
    if stem == "cifar":
        net.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.n_features = net.fc.in_features
    net.fc = nn.Identity()
    return net
