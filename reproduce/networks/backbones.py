"""Networks from images to features. ResNets are torchvision's but for their first layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce.config import Config


def build(config: Config, channels: int) -> nn.Module:
    """The backbone of a configuration: images ``[N, channels, H, W]`` -> ``[N, n_features]``.

    ``.n_features`` is that width; ``.probed`` names the layers that a linear probe looks at, and
    their modules."""
    seen = 2 if config.sobel else channels
    if config.backbone == "small":
        net = Small(seen, config.width)
    elif config.backbone == "compact":
        net = Compact(config.stem, seen, config.width)
    elif config.backbone in LAYERS:
        net = ConvNet(config.backbone, config.stem, seen, config.view_side)
    else:
        net = resnet(config.backbone, config.stem, seen)
    if config.conv_init != "kaiming":
        convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
        for conv in convolutions[: 1 if config.conv_init == "torch_first" else None]:
            conv.reset_parameters()
    return Filtered(Sobel(channels), net) if config.sobel else net


class Small(nn.Module):
    """A residual net of four 3x3 convolutions, for images of about 8 x 8: seconds on a CPU."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.n_features = 2 * width
        self.probed = {"conv1": "stem", "conv2": "inner.0", "conv3": "inner.2", "conv4": "last"}
        self.stem = conv_bn(channels, width)
        self.inner = nn.Sequential(conv_bn(width, width), nn.ReLU(True), conv_bn(width, width))
        self.last = conv_bn(width, 2 * width)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(F.relu(x + self.inner(x)), 2)
        return F.relu(self.last(x)).mean((-2, -1))


class Compact(nn.Module):
    """A residual net of nine convolutions for photographs of 16 to 64 pixels on a CPU: all its
    arithmetic lies in wide 3x3 convolutions, so that it runs at nearly the speed of a matrix
    product.

    Three stages of ``width``, 2 and 4 times as many channels, a residual block each. stem 'cifar':
    4x4 stride 2; 'imagenet': 7x7 stride 2 and max-pool, which leaves a quarter of the pixels."""

    def __init__(self, stem: str, channels: int, width: int):
        super().__init__()
        self.n_features = 4 * width
        self.probed = {"conv1": "stem.0", **{f"stage{i}": f"stage{i}" for i in (1, 2, 3)}}
        first = {"cifar": (4, 1), "imagenet": (7, 3)}[stem]  # kernel, padding
        pool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.stem = nn.Sequential(conv_bn(channels, width, *first, stride=2), nn.ReLU(True), pool)
        self.stage1 = Residual(width)
        self.stage2 = halving(width)
        self.stage3 = halving(2 * width)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.stage3(self.stage2(self.stage1(self.stem(x)))).mean((-2, -1))


def halving(width: int) -> nn.Sequential:
    """A stage with half the side and twice the channels."""
    wide = 2 * width
    return nn.Sequential(conv_bn(width, wide, stride=2), nn.ReLU(True), Residual(wide))


class Residual(nn.Module):
    """relu(x + conv(relu(conv(x)))), each convolution with its batch norm."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(conv_bn(width, width), nn.ReLU(True), conv_bn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


def conv_bn(channels: int, width: int, kernel=3, padding=1, stride=1) -> nn.Sequential:
    kind = Conv3x3 if (kernel, padding, stride) == (3, 1, 1) else nn.Conv2d
    conv = kind(channels, width, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution, padded by 1. On a map of 1x1 or 2x2, where each pixel sees all others, it
    is one matrix product: four ninths of the arithmetic, less than half the time on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1]
        if side > 2 or x.shape[-2] != side:
            return super().forward(x)
        # autocast would narrow what is stacked: four times as much
        kernel = self.weight.to(x.dtype).permute(0, 2, 3, 1)
        places = range(1, 1 - side, -1)
        seen = [kernel[:, i : i + side, j : j + side] for i in places for j in places]
        dense = torch.stack(seen).flatten(2).flatten(0, 1)  # [pixels x out, pixels x in]
        out = x.permute(0, 2, 3, 1).flatten(1) @ dense.T
        return out.view(-1, side, side, self.out_channels).permute(0, 3, 1, 2)


def kaiming(net: nn.Module) -> None:
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def resnet(name: str, stem: str, channels: int) -> nn.Module:
    """torchvision's ResNet without its classifier.

    stem 'imagenet': 7x7 stride 2 and max-pool, as defined there. stem 'cifar': 3x3 stride 1, no
    pool, which keeps a 32 x 32 image at a 4 x 4 final map; the other stem leaves 1 x 1.
    'cifar_no_relu': the same without the ReLU after the first batch norm, as lightly's benchmark
    takes its network apart. 'cifar_pool': with a max-pool of 2x2 after it, as IIC's."""
    import torchvision

    net = torchvision.models.get_model(name, weights=None)
    if stem != "imagenet":
        net.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.MaxPool2d(2, 2, 1) if stem == "cifar_pool" else nn.Identity()
        if stem == "cifar_no_relu":
            net.relu = nn.Identity()  # each block has its own
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.n_features = net.fc.in_features
    net.fc = nn.Identity()
    net.probed = {"conv1": "bn1", **{f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}}
    return net


# channels of each 3 x 3 convolution (AlexNet's first two: 11 x 11 and 5 x 5); "M": max-pooling
LAYERS = {
    "alexnet": (96, "M", 256, "M", 384, 384, 256, "M"),
    "vgg16": (*[64] * 2, "M", *[128] * 2, "M", *[256] * 3, "M", *([512] * 3 + ["M"]) * 2),
}


class ConvNet(nn.Module):
    """AlexNet or VGG-16 with batch norm, as DeepCluster trains them: convolutions, then two wide
    layers with dropout.

    The output is taken *before* the last ReLU: half of what k-means could tell apart would else be
    zero. side: of the images; fewer pixels than ImageNet's 224 leave a smaller map before the wide
    layers."""

    def __init__(self, name: str, stem: str, channels: int, side: int):
        super().__init__()
        self.n_features, self.probed = 4096, {}
        pool = {"alexnet": 3, "vgg16": 2}[name]
        blocks = []
        for width in LAYERS[name]:
            if width == "M":
                blocks.append(nn.MaxPool2d(pool, 2))
                side = (side - pool) // 2 + 1
                continue
            n = len(self.probed)
            kernel, stride, padding = 3, 1, 1
            if name == "alexnet" and n == 0 and stem == "imagenet":
                kernel, stride, padding = 11, 4, 2
            if name == "alexnet" and n == 1:
                kernel, padding = 5, 2
            conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.probed[f"conv{n + 1}"] = f"convolutions.{len(blocks)}"
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
            channels, side = width, (side + 2 * padding - kernel) // stride + 1
        side = min(side, {"alexnet": 6, "vgg16": 7}[name])
        self.convolutions = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.wide = nn.Sequential(
            *[nn.Dropout(0.5)] * (name == "alexnet"),  # VGG-16's comes between the two layers only
            nn.Linear(channels * side**2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
        )
        for layer in self.wide:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.pool(self.convolutions(x)).flatten(1))


class Sobel(nn.Module):
    """Horizontal and vertical edges of the gray image: ``[N, C, H, W]`` -> ``[N, 2, H, W]``. Colour
    is gone, so that no cluster can be one of a colour."""

    def __init__(self, channels: int):
        super().__init__()
        edge = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        # the gray image is the channels' mean
        kernel = (torch.stack([edge, edge.T]).unsqueeze(1) / channels).repeat(1, channels, 1, 1)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.to(x.dtype), padding=1)


class Filtered(nn.Sequential):
    """A backbone behind a fixed filter."""

    def __init__(self, fixed: nn.Module, net: nn.Module):
        super().__init__(fixed, net)
        self.n_features = net.n_features
        self.probed = {name: f"1.{module}" for name, module in net.probed.items()}
