"""Sizes of maps and features, and that every weight learns."""

import pytest
import torch
import torchvision
from torch import nn

from reproduce import backbones
from reproduce.config import Config


def built(channels=3, **settings):
    side = settings.pop("side", 32)
    return backbones.build(
        Config.from_params({"dataset": "folder", "folder": "x", "image_size": side, **settings}), channels
    )


def map_size(net, side, channels=3):
    """Height and width of what the last stage of a ResNet gives."""
    sizes = []
    handle = net.layer4.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[-2:])))
    with torch.no_grad():
        features = net.eval()(torch.rand(2, channels, side, side, device=net.conv1.weight.device))
    handle.remove()
    assert features.shape == (2, net.n_features)
    return sizes[0]


@pytest.mark.parametrize("name, width", [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_resnet_stems(name, width):
    with torch.device("meta"):  # shapes only
        cifar, imagenet = built(backbone=name, stem="cifar"), built(backbone=name, stem="imagenet")
        theirs = torchvision.models.get_model(name).state_dict()
    assert cifar.n_features == imagenet.n_features == width
    assert map_size(cifar, 32) == (4, 4) and map_size(imagenet, 32) == (1, 1)
    # but for the first layer the network is torchvision's, and imagenet's is that too
    theirs = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in imagenet.state_dict().items()} == theirs
    assert {k: v.shape for k, v in cifar.state_dict().items()} == {**theirs, "conv1.weight": (64, 3, 3, 3)}


@pytest.mark.parametrize(
    "stem, side, expected", [("cifar", 96, (12, 12)), ("imagenet", 96, (3, 3)), ("cifar", 16, (2, 2))]
)
def test_maps_of_other_sides(stem, side, expected):
    with torch.device("meta"):
        net = built(backbone="resnet18", stem=stem, side=side)
    assert map_size(net, side) == expected


@pytest.mark.parametrize("stem, kernel", [("cifar", 3), ("imagenet", 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_is_kaiming_normal(stem, kernel, channels):
    """Of fan-out, as torchvision initialises the other convolutions."""
    net = built(channels, backbone="resnet18", stem=stem)
    assert net.conv1.weight.shape == (64, channels, kernel, kernel) and net.conv1.bias is None
    expected = (2 / (64 * kernel**2)) ** 0.5
    assert net.conv1.weight.std().item() == pytest.approx(expected, rel=0.1)
    assert net.layer1[0].conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    map_size(net, 32, channels)


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_small(side, channels):
    net = built(channels, backbone="small", width=6, side=side)
    assert net.n_features == 12 and net(torch.rand(4, channels, side, side)).shape == (4, 12)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 4 and all(c.kernel_size == (3, 3) and c.bias is None for c in convolutions)
    wide = built(channels, backbone="small", width=48, side=side)
    for c in (m for m in wide.modules() if isinstance(m, nn.Conv2d)):
        assert c.weight.std().item() == pytest.approx((2 / (9 * c.out_channels)) ** 0.5, rel=0.1)


def test_small_is_residual():
    """With its inner branch silent the net is stem, pool, last layer."""
    net = built(1, backbone="small", width=4, side=8).eval()
    nn.init.zeros_(net.inner[-1][1].weight)
    x = torch.rand(3, 1, 8, 8)
    expected = net.last(nn.functional.max_pool2d(net.stem(x).relu(), 2)).relu().mean((2, 3))
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(
    "settings", [dict(backbone="small", side=8), dict(backbone="resnet18"), dict(backbone="resnet18", stem="imagenet")]
)
def test_every_weight_learns(settings):
    net = built(1, **settings)
    x = torch.rand(4, 1, settings.get("side", 32), settings.get("side", 32))
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
