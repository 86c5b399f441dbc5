"""Sizes of maps and features, and that every weight learns."""

import numpy as np
import pytest
import torch
import torchvision
from scipy import ndimage
from torch import nn

from reproduce.config import Config
from reproduce.networks import backbones


def built(channels=3, **settings):
    side = settings.pop("side", 32)
    return backbones.build(
        Config.from_params({"dataset": "folder", "folder": "x", "image_size": side, **settings}),
        channels,
    )


def map_size(net, side, channels=3):
    """Height and width of what the last stage of a ResNet gives."""
    sizes = []
    handle = net.layer4.register_forward_hook(
        lambda module, inputs, output: sizes.append(tuple(output.shape[-2:]))
    )
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
    assert {k: v.shape for k, v in cifar.state_dict().items()} == {
        **theirs,
        "conv1.weight": (64, 3, 3, 3),
    }


@pytest.mark.parametrize(
    "stem, side, maps",
    [("cifar", 24, (12, 6, 3)), ("cifar", 16, (8, 4, 2)), ("imagenet", 24, (6, 3, 2))],
)
def test_compact_has_three_stages_and_two_stems(stem, side, maps):
    net, found = (
        built(backbone="compact", width=8, stem=stem, view_size=side, augmentation="images"),
        [],
    )
    for stage in (net.stage1, net.stage2, net.stage3):
        stage.register_forward_hook(lambda module, inputs, output: found.append(output.shape[1:]))
    assert net(torch.rand(2, 3, side, side)).shape == (2, net.n_features) == (2, 32)
    assert [tuple(shape) for shape in found] == [(8 * 2**i, n, n) for i, n in enumerate(maps)]
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == 9
    kernel = net.stem[0][0].weight
    assert kernel.shape == (8, 3, *((4, 4) if stem == "cifar" else (7, 7)))


@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (1, 2), (2, 1), (3, 3), (2, 5)])
def test_a_convolution_as_one_product(height, width):
    """On a small map: values, both gradients and the layout of torch's own."""
    ours = backbones.Conv3x3(3, 5, 3, 1, 1, bias=False).double()
    theirs = nn.Conv2d(3, 5, 3, 1, 1, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, height, width, dtype=torch.float64)
    layout = torch.channels_last
    found = []
    for conv in (ours.to(memory_format=layout), theirs.to(memory_format=layout)):
        seen = x.clone(memory_format=layout).requires_grad_()
        out = conv(seen)
        out.square().sum().backward()
        assert out.is_contiguous(memory_format=layout)
        found.append((out.detach(), seen.grad, conv.weight.grad))
    for mine, expected in zip(*found):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side, convolved", [(16, 7), (24, 9)])
def test_compact_computes_its_last_maps_of_2x2_as_products(side, convolved, monkeypatch):
    calls, whole = [], nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda c, x: calls.append(c) or whole(c, x))
    built(backbone="compact", width=8, view_size=side, augmentation="images")(
        torch.rand(2, 3, side, side)
    )
    assert len(calls) == convolved


@pytest.mark.parametrize(
    "stem, side, expected",
    [("cifar", 96, (12, 12)), ("imagenet", 96, (3, 3)), ("cifar", 16, (2, 2))],
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
    assert len(convolutions) == 4 and all(
        c.kernel_size == (3, 3) and c.bias is None for c in convolutions
    )
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
    "settings",
    [
        dict(backbone="small", side=8),
        dict(backbone="small", side=8, sobel=True),
        dict(backbone="resnet18"),
        dict(backbone="resnet18", stem="imagenet"),
        dict(backbone="alexnet", side=16),
    ],
)
def test_every_weight_learns(settings):
    net = built(1, **settings)
    x = torch.rand(4, 1, settings.get("side", 32), settings.get("side", 32))
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


# ---- DeepCluster's networks

# side of the map after each convolution, and of the one that the wide layers see
PLAIN = [
    ("alexnet", "cifar", 32, [32, 15, 7, 7, 7], 3),
    ("alexnet", "cifar", 16, [16, 7, 3, 3, 3], 1),
    ("alexnet", "imagenet", 64, [15, 7, 3, 3, 3], 1),
    ("alexnet", "imagenet", 224, [55, 27, 13, 13, 13], 6),
    ("alexnet", "imagenet", 448, [111, 55, 27, 27, 27], 6),
    ("vgg16", "cifar", 32, [32] * 2 + [16] * 2 + [8] * 3 + [4] * 3 + [2] * 3, 1),
    ("vgg16", "cifar", 64, [64] * 2 + [32] * 2 + [16] * 3 + [8] * 3 + [4] * 3, 2),
    ("vgg16", "cifar", 224, [224] * 2 + [112] * 2 + [56] * 3 + [28] * 3 + [14] * 3, 7),
]


@pytest.mark.parametrize("name, stem, side, maps, last", PLAIN)
def test_alexnet_and_vgg16(name, stem, side, maps, last):
    """Five and thirteen convolutions with batch norm, then 4096 features; shapes only."""
    with torch.device("meta"):
        net = built(backbone=name, stem=stem, side=side).eval()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == len(net.probed) == {"alexnet": 5, "vgg16": 13}[name]
    assert [c.out_channels for c in convolutions] == [
        m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    assert [c.out_channels for c in convolutions] == (
        [96, 256, 384, 384, 256]
        if name == "alexnet"
        else [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    )
    kernels = [c.kernel_size[0] for c in convolutions]
    assert kernels == (
        [11 if stem == "imagenet" else 3, 5, 3, 3, 3] if name == "alexnet" else [3] * 13
    )
    seen = {}
    modules = dict(net.named_modules())
    for layer, module in net.probed.items():
        modules[module].register_forward_hook(
            lambda m, i, o, layer=layer: seen.update({layer: o.shape[-1]})
        )
    assert (
        net(torch.rand(2, 3, side, side, device="meta")).shape == (2, 4096)
        and net.n_features == 4096
    )
    assert list(seen.values()) == maps and list(seen) == [f"conv{i + 1}" for i in range(len(maps))]
    wide = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [w.in_features for w in wide] == [convolutions[-1].out_channels * last**2, 4096]
    if (
        name == "vgg16"
    ):  # but for the batch norm in place of biases, and the classes, the network is torchvision's
        with torch.device("meta"):
            theirs = torchvision.models.vgg16_bn().features
        assert [c.weight.shape for c in convolutions] == [
            m.weight.shape for m in theirs if isinstance(m, nn.Conv2d)
        ]


def test_features_are_taken_before_the_last_relu():
    """Negative values reach k-means, where a ReLU would have put zeros. Dropout is for training
    only."""
    net, x = built(1, backbone="alexnet", side=16), torch.rand(8, 1, 16, 16)
    assert not torch.equal(net(x), net(x))
    features = net.eval()(x)
    assert torch.equal(features, net(x)) and isinstance(net.wide[-1], nn.Linear)
    assert 0.2 < (features < 0).float().mean() < 0.8


@pytest.mark.parametrize("name, first", [("alexnet", True), ("vgg16", False)])
def test_dropout_is_where_deepclusters_networks_have_it(name, first):
    """AlexNet: before each of the two wide layers; VGG-16: between them only."""
    kinds = [type(layer).__name__ for layer in built(3, backbone=name, side=32).wide]
    assert kinds == ["Dropout"] * first + ["Linear", "ReLU", "Dropout", "Linear"]


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_is_scipys(channels):
    """Of the channels' mean, with zeros around the image; scipy's kernel is the other way round."""
    x = torch.rand(3, channels, 9, 11, dtype=torch.float64)
    out = backbones.Sobel(channels)(x)
    assert out.shape == (3, 2, 9, 11)
    for image, edges in zip(x.mean(1).numpy(), out.numpy()):
        for axis, edge in ((1, edges[0]), (0, edges[1])):
            np.testing.assert_allclose(
                edge, -ndimage.sobel(image, axis, mode="constant"), atol=1e-12
            )
    flat = backbones.Sobel(channels)(torch.full((1, channels, 5, 5), 0.7))
    assert flat[..., 1:-1, 1:-1].abs().max() < 1e-6
    assert not backbones.Sobel(channels).state_dict() and not list(
        backbones.Sobel(channels).parameters()
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name, side", [("small", 8), ("resnet18", 16)])
def test_sobel_stands_before_any_network(name, side, channels):
    """The network sees two channels; a colour of the same brightness changes nothing."""
    net = built(channels, backbone=name, side=side, sobel=True).eval()
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == 2
    x = torch.rand(2, channels, side, side)
    features = net(x)
    assert features.shape == (2, net.n_features)
    torch.testing.assert_close(net(x.flip(1)), features)
    plain = net[1]
    torch.testing.assert_close(features, plain(net[0](x)))
    assert (features - net(x.flip(-1))).abs().max() > 1e-4


@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize(
    "name, n", [("small", 4), ("resnet18", 5), ("resnet50", 5), ("alexnet", 5), ("vgg16", 13)]
)
def test_probed_layers_exist(name, n, sobel):
    """And follow one another from the first convolution on."""
    with torch.device("meta"):
        net = built(backbone=name, sobel=sobel)
    modules = [module for module, _ in net.named_modules()]
    places = [modules.index(module) for module in net.probed.values()]
    assert len(places) == n and places == sorted(places) and list(net.probed)[0] == "conv1"
