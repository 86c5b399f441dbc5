"""EfficientNet-Lite0, its batch norms folded away."""

import pytest
import torch
import torch.nn.functional as F

from reproduce.networks import efficientnet
from reproduce.networks.efficientnet import EPSILON, STAGES, EfficientNetLite0


def random_state():
    """Tensors by the names and in the shapes of the wheel."""
    state, channels, i = {}, 32, 0

    def conv_bn(conv, norm, out, inside, kernel):
        state[f"{conv}.weight"] = torch.randn(out, inside, kernel, kernel) / (inside**0.5 * kernel)
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.rand(out) + 0.5, torch.randn(out)
        state[f"{norm}.running_mean"] = torch.randn(out)
        state[f"{norm}.running_var"] = torch.rand(out) + 0.1

    conv_bn("_conv_stem", "_bn0", 32, 3, 3)
    for expansion, kernel, _, n, width in STAGES:
        for _ in range(n):
            block, wide = f"_blocks.{i}", expansion * channels
            if expansion > 1:
                conv_bn(f"{block}._expand_conv", f"{block}._bn0", wide, channels, 1)
            conv_bn(f"{block}._depthwise_conv", f"{block}._bn1", wide, 1, kernel)
            conv_bn(f"{block}._project_conv", f"{block}._bn2", width, wide, 1)
            channels, i = width, i + 1
    conv_bn("_conv_head", "_bn1", 1280, channels, 1)
    return state


def as_published(state, x):
    """The network with batch norms, layer by layer, padded as TensorFlow's "SAME"."""

    def conv(x, name, norm, kernel=1, stride=1, groups=1):
        zeros = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = F.pad(x, (zeros // 2, zeros - zeros // 2) * 2)
        y = F.conv2d(x, state[f"{name}.weight"].double(), stride=stride, groups=groups)
        mean, variance, weight, bias = (
            state[f"{norm}.{part}"].double().view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (variance + EPSILON).sqrt() * weight + bias

    x, i = conv(x.double(), "_conv_stem", "_bn0", 3, 2).clamp(0, 6), 0
    for expansion, kernel, stride, n, _ in STAGES:
        for first in (True, *[False] * (n - 1)):
            block, y = f"_blocks.{i}", x
            if expansion > 1:
                y = conv(y, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
            filtered = f"{block}._depthwise_conv", f"{block}._bn1", kernel, stride if first else 1
            y = conv(y, *filtered, groups=y.shape[1]).clamp(0, 6)
            y = conv(y, f"{block}._project_conv", f"{block}._bn2")
            x, i = y if first else x + y, i + 1
    return conv(x, "_conv_head", "_bn1").clamp(0, 6).mean((-2, -1))


@pytest.mark.parametrize("side", [32, 33, 50])
def test_folded_it_computes_what_it_did_with_batch_norms(side):
    state, x = random_state(), torch.randn(2, 3, side, side)
    found = EfficientNetLite0(state)(x)
    assert found.shape == (2, 1280) and not found.requires_grad
    torch.testing.assert_close(found.double(), as_published(state, x), atol=1e-3, rtol=1e-3)


def test_the_wheel_s_tensors_know_a_photograph():
    """Its own classifier, which features leave out, says what a photograph shows."""
    import numpy as np
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_images

    from reproduce.networks.weights import read_state

    state = read_state(efficientnet.weights_file())
    net, (mean, std) = EfficientNetLite0(state), efficientnet.MOMENTS
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    pixels = np.stack([np.asarray(ImageOps.fit(image, (224, 224))) for image in images])
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean[0]) / std[0]
    logits = net(x) @ state["_fc.weight"].T + state["_fc.bias"]
    # ImageNet's palace, and daisy, the nearest that it has to a dahlia
    assert logits.argmax(-1).tolist() == [698, 985]
