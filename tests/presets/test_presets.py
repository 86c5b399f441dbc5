"""What each preset that aims at a figure makes of its settings, against the code that made the
figure: its real network, its start, its views, its rate, its precision and its evaluation.

The facts stand here as numbers, by hand and not from the presets. The training step, the optimiser
and the heads are in test_released.py.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp, kstest
from test_released import AIMING, PRESETS
from torch import nn
from torchvision import transforms
from torchvision.transforms import functional as tv

from reproduce import augment
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.evaluation.probes import knn_accuracy
from reproduce.methods import METHODS
from reproduce.methods.data_and_network import FOLDERS
from reproduce.networks import backbones
from reproduce.runs.yaml_files import read_settings
from reproduce.schedules import learning_rate
from reproduce.train import uses_bfloat16

each_preset = pytest.mark.parametrize("path", AIMING, ids=lambda path: path.stem)


def config_of(path):
    settings = read_settings(path)
    named = {"folder": "images"} if settings["dataset"] in FOLDERS else {}
    return Config.from_params({**settings, **named})


# ---- networks: ResNets as (blocks, first kernel, its stride, ReLU after it, max-pool), and how the
# convolutions start

R18, R34 = (2, 2, 2, 2), (3, 4, 6, 3)
CIFAR18, CIFAR34 = (R18, 3, 1, True, None), (R34, 3, 1, True, None)
IMAGENET34 = (R34, 7, 2, True, (3, 2, 1))
LIGHTLY = (R18, 3, 1, False, None)  # the children of its network in a row: no ReLU between
IIC = (R34, 3, 1, True, (2, 2, 1))
PARAMETERS = {
    CIFAR18: 11_168_832,
    LIGHTLY: 11_168_832,
    CIFAR34: 21_276_992,  # as counted in the released code of CRLC
    IIC: 21_276_992,
    IMAGENET34: 21_284_672,
    "alexnet": sum(o * (i * k * k + 2) for i, o, k in ((2, 96, 11), (96, 256, 5), (256, 384, 3),
                   (384, 384, 3), (384, 256, 3))) + 4096 * (256 * 6 * 6 + 1) + 4096 * 4097,
}  # fmt: skip
NETWORKS = {
    **dict.fromkeys(("cifar10-paper", "cifar20-paper"), (CIFAR34, "fan_out")),
    **dict.fromkeys(("stl10-paper", "tiny_imagenet-paper"), (CIFAR34, "fan_out")),
    **dict.fromkeys(("imagenet10-paper", "imagenet_dogs-paper"), (IMAGENET34, "fan_out")),
    "cifar10-course": (IMAGENET34, "fan_out"),
    **dict.fromkeys(("cifar10-cc", "cifar20-cc", "stl10-cc"), (IMAGENET34, "fan_out")),
    **dict.fromkeys(("imagenet10-cc", "imagenet_dogs-cc"), (IMAGENET34, "fan_out")),
    "cifar10-cc-32": (CIFAR34, "fan_out"),
    **dict.fromkeys(("cifar10-propos", "cifar20-propos"), (CIFAR18, "first")),
    **dict.fromkeys(("imagenet10-propos", "imagenet_dogs-propos"), (IMAGENET34, "fan_out")),
    **dict.fromkeys(("cifar10-byol-kmeans", "cifar10-moco-kmeans"), (CIFAR18, "first")),
    **dict.fromkeys(("cifar10-pcl", "cifar10-moco-knn"), (CIFAR18, "first")),
    "cifar10-simsiam-kmeans": (CIFAR34, "first"),
    **dict.fromkeys(("cifar10-simclr", "cifar10-byol-knn"), (LIGHTLY, "torch")),
    "cifar10-simsiam-knn": (LIGHTLY, "torch"),
    "cifar10-deepcluster": (IIC, "fan_out"),
    "imagenet-deepcluster": ("alexnet", "fan_out"),
}


def norm(x, state, name):
    entries = (
        state[f"{name}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, *entries)


def resnet(state, x, blocks, kernel, stride, relu, pool):
    """In evaluation, from a state dict under torchvision's names."""
    x = norm(F.conv2d(x, state["conv1.weight"], None, stride, kernel // 2), state, "bn1")
    x = F.relu(x) if relu else x
    x = F.max_pool2d(x, *pool) if pool else x
    for stage, n in enumerate(blocks, 1):
        for i in range(n):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], None, stride, 1)
            y = F.conv2d(
                F.relu(norm(y, state, f"{name}.bn1")), state[f"{name}.conv2.weight"], None, 1, 1
            )
            if stride == 2:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], None, 2)
                x = norm(x, state, f"{name}.downsample.1")
            x = F.relu(x + norm(y, state, f"{name}.bn2"))
    return x.mean((2, 3))


def alexnet(net, x):
    """In evaluation, behind Sobel's filters of the gray image."""
    kinds = ((nn.Conv2d, []), (nn.BatchNorm2d, []), (nn.Linear, []))
    for layer in net.modules():
        for kind, found in kinds:
            found += [layer] * isinstance(layer, kind)
    (_, convolutions), (_, norms), (_, linear) = kinds
    gray, edge = x.mean(1, keepdim=True), torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    x = F.conv2d(gray, torch.stack([edge, edge.T])[:, None], padding=1)
    for i, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
        x = F.conv2d(x, convolutions[i].weight, None, stride, padding)
        x = F.relu(norms[i](x))
        x = F.max_pool2d(x, 3, 2) if i in (0, 1, 4) else x
    x = F.relu(F.linear(x.flatten(1), linear[0].weight, linear[0].bias))
    return F.linear(x, linear[1].weight, linear[1].bias)


@each_preset
@torch.no_grad()
def test_the_network_is_that_of_the_released_code(path):
    """Its parameters, its features with the same weights, and the deviations it starts with."""
    config, (known, start) = config_of(path), NETWORKS[path.stem]
    torch.manual_seed(0)
    net = backbones.build(config, 3).eval()
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[known]
    for i, conv in enumerate(m for m in net.modules() if isinstance(m, nn.Conv2d)):
        fan_in, fan_out = (n * conv.weight[0, 0].numel() for n in conv.weight.shape[1::-1])
        std = {"fan_out": (2 / fan_out) ** 0.5, "torch": (3 * fan_in) ** -0.5}
        std |= {"first": std["fan_out" if i else "torch"]}
        tolerance = 4 / (2 * conv.weight.numel()) ** 0.5
        assert conv.weight.std().item() == pytest.approx(std[start], rel=tolerance)
    for layer in net.modules():  # statistics and weights that matter
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.bias):
                tensor.normal_(0, 0.3)
            for tensor in (layer.running_var, layer.weight):
                tensor.uniform_(0.5, 1.5)
    side = 224 if known == "alexnet" else 64 if known == IMAGENET34 else 32
    x = torch.randn(2, 3, side, side)
    theirs = alexnet(net, x) if known == "alexnet" else resnet(net.state_dict(), x, *known)
    torch.testing.assert_close(net(x), theirs, rtol=1e-3, atol=1e-4 * float(theirs.std()))
    assert theirs.std() > 0


@pytest.mark.parametrize(
    "name, std, bias", [("paper", (2 / 512) ** 0.5, 0), ("course", (1 / 3 / 512) ** 0.5, None)]
)
def test_crlcs_heads_start_as_in_either_code(name, std, bias):
    """Uniform, with the gain sqrt(2) and biases of zero, or torch's default and without biases."""
    config = config_of(PRESETS / f"cifar10-{name}.yaml")
    small = backbones.Small(3, 256)
    heads = METHODS["crlc"](config, small, 10, 20).heads
    assert [tuple(heads[i].weight.shape) for i in (0, 2)] == [(10, 512, 512), (10, 512, 10)]
    for layer in (heads[0], heads[2]):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert layer.weight.abs().max().item() <= 3**0.5 * std
        assert layer.bias is None if bias is None else (layer.bias == bias).all()


def test_deepclusters_wide_layer():
    """4,096 units on a ResNet's features; AlexNet has its own."""
    wide = {}
    for data in ("cifar10", "imagenet"):
        config = config_of(PRESETS / f"{data}-deepcluster.yaml")
        wide[data] = METHODS["deepcluster"](config, backbones.Small(3, 256), 10, 20).wide
    assert isinstance(wide["imagenet"], nn.Identity)
    assert tuple(wide["cifar10"].weight.shape) == (4096, 512)
    assert wide["cifar10"].weight.std().item() == pytest.approx(0.01, rel=0.01)


# ---- views: side, least area, jitter, hue, probabilities of jitter, grayscale and blur, kernel of
# the blur, whether normalised. A crop of one size has its side for the least area.


def views(side, least, jitter=0.4, jitter_p=0.8, gray=0.2, blur=0.0, kernel=0, normalized=True):
    return dict(
        side=side,
        least=least,
        jitter=jitter,
        p=(jitter_p, gray, blur),
        kernel=kernel,
        normalized=normalized,
    )


CIFAR, PLAIN = views(32, 0.08), dict(jitter=0.0, jitter_p=0.0, gray=0.0)
PHOTOS = views(96, 0.2, blur=0.5, kernel=9, normalized=False)
STRONG, BLUR = dict(jitter=0.8, normalized=False), dict(blur=0.5, kernel=23)
VIEWS = {
    **dict.fromkeys(("cifar10-paper", "cifar20-paper"), views(32, 0.2)),
    **dict.fromkeys(("stl10-paper", "imagenet10-paper", "imagenet_dogs-paper"), PHOTOS),
    "tiny_imagenet-paper": {**PHOTOS, "side": 64, "kernel": 7},
    "cifar10-course": views(32, 0.08, **STRONG),
    **dict.fromkeys(("cifar10-cc", "cifar20-cc"), views(224, 0.08, normalized=False)),
    "cifar10-cc-32": views(32, 0.08, normalized=False),
    "stl10-cc": views(224, 0.08, **STRONG),
    **dict.fromkeys(("imagenet10-cc", "imagenet_dogs-cc"), views(224, 0.08, **STRONG, **BLUR)),
    **dict.fromkeys(("cifar10-propos", "cifar20-propos", "cifar10-byol-kmeans"), CIFAR),
    **dict.fromkeys(("imagenet10-propos", "imagenet_dogs-propos"), views(224, 0.08, **BLUR)),
    **dict.fromkeys(("cifar10-simsiam-kmeans", "cifar10-moco-kmeans", "cifar10-pcl"), CIFAR),
    **dict.fromkeys(("cifar10-simclr", "cifar10-byol-knn", "cifar10-moco-knn"), CIFAR),
    "cifar10-simsiam-knn": views(32, 0.2),  # SimSiam's transform in lightly, not SimCLR's
    "cifar10-deepcluster": views(32, 20, jitter_p=1.0, gray=0.0, normalized=False),
    "imagenet-deepcluster": views(224, 0.08, **PLAIN),
}  # fmt: skip
STORED = {"cifar": 32, "stl10": 96, "tiny": 64, "image": 256}
N = 3000


@each_preset
def test_views_are_drawn_as_in_the_released_code(path, monkeypatch):
    """Areas, ratios and places of crops, flips, factors of the jitter, deviations of the blur: as
    torchvision draws them. What is done to an image at all: by its probability, each for itself."""
    config, facts = config_of(path), VIEWS[path.stem]
    seen = {}

    def crop(x, box, flip, side=0):
        seen.update(box=box.double(), flip=flip, side=side or x.shape[-1])
        return x.new_zeros(len(x), 3, 1, 1)

    def jitter(x, factors, order):
        seen["factors"] = factors
        return x + 1

    def blur(x, sigma):
        seen["sigma"] = sigma
        return x + 4

    for name, f in (
        ("resized_crop", crop),
        ("color_jitter", jitter),
        ("to_gray", lambda x: x + 2),
        ("gaussian_blur", blur),
    ):
        monkeypatch.setattr(augment, name, f)
    stored = STORED[next(k for k in STORED if config.dataset.startswith(k))]
    assert config.augmentation == "images" and config.side == stored
    assert config.n_views == (1 if config.method == "deepcluster" else 2)
    aug = Augment(config, torch.zeros(3), torch.ones(3))
    generator = torch.Generator().manual_seed(0)
    done = aug.images(torch.zeros(1, 3, stored, stored).expand(N, -1, -1, -1), generator)[
        :, 0, 0, 0
    ]
    assert seen["side"] == facts["side"]

    torch.manual_seed(0)
    image = torch.empty(3, stored, stored)
    if facts["least"] > 1:  # one size
        draw = transforms.RandomCrop.get_params
        theirs = [draw(image, (facts["least"],) * 2) for _ in range(N)]
    else:
        draw = transforms.RandomResizedCrop.get_params
        theirs = [draw(image, (facts["least"], 1.0), (3 / 4, 4 / 3)) for _ in range(N)]
    theirs = torch.tensor(theirs, dtype=torch.float64).T
    for of in (lambda b: b[2] * b[3], lambda b: b[3] / b[2], lambda b: b[0], lambda b: b[1]):
        assert ks_2samp(of(seen["box"]), of(theirs)).pvalue > 1e-3
    assert seen["flip"].double().mean() == pytest.approx(0.5, abs=0.04)

    bits = [(done.int() >> i) % 2 for i in range(3)]
    for i, p in enumerate(facts["p"]):
        assert bits[i].double().mean() == pytest.approx(p, abs=0.04 * (0 < p < 1))
        for j in range(i):
            both = (bits[i] * bits[j]).double().mean()
            assert both == pytest.approx(p * facts["p"][j], abs=0.04)
    if facts["p"][0]:
        j = facts["jitter"]
        ranges = [(max(0, 1 - j), 1 + j)] * 3 + [(-j / 4, j / 4)]
        for factor, (low, high) in zip(seen["factors"], ranges):
            assert kstest(factor, "uniform", (low, high - low)).pvalue > 1e-3
    if facts["p"][2]:
        assert kstest(seen["sigma"], "uniform", (0.1, 1.9)).pvalue > 1e-3
    assert ("sigma" in seen, "factors" in seen) == (facts["p"][2] > 0, facts["p"][0] > 0)


@pytest.mark.parametrize(
    "side, kernel", sorted({(v["side"], v["kernel"]) for v in VIEWS.values() if v["kernel"]})
)
def test_the_kernel_of_the_blur(side, kernel):
    x = torch.rand(1, 3, side, side)
    theirs = tv.gaussian_blur(x, kernel, 1.7)
    torch.testing.assert_close(
        augment.gaussian_blur(x, torch.tensor([1.7])), theirs, rtol=0, atol=1e-5
    )


@each_preset
def test_images_in_evaluation(path):
    """Whole, in the size that training sees, or the centre where crops have one size; normalised
    where the released code does."""
    config, facts = config_of(path), VIEWS[path.stem]
    images = torch.randint(256, (2, 3, config.side, config.side), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    theirs = images / 255
    if facts["least"] > 1:
        theirs = tv.center_crop(theirs, [facts["least"]] * 2)
    theirs = tv.resize(theirs, [facts["side"]] * 2, antialias=True)
    if facts["normalized"]:
        theirs = tv.normalize(theirs, mean, std)
    torch.testing.assert_close(Augment(config, mean, std).clean(images), theirs, rtol=0, atol=1e-5)


# ---- images, steps and rates


def lightly(e, peak):
    """Once an epoch, torch's cosine to 0."""
    return peak * (1 + math.cos(math.pi * int(e) / 800)) / 2


def propos(e, peak):
    """A line for 50 epochs, then a cosine with the length of the run."""
    return peak * e / 50 if e < 50 else peak * (1 + math.cos(math.pi * (e - 50) / 1000)) / 2


def scan(e, peak, least=0.001):
    """Once an epoch, a cosine to a thousandth."""
    return peak * (least + (1 - least) * (1 + math.cos(math.pi * int(e) / 1000)) / 2)


def constant(e, peak):
    return peak


IMAGES = {
    **dict.fromkeys(("cifar10", "cifar20"), (50_000, 10_000)),
    "stl10": (5_000, 8_000),
    "imagenet10": (13_000, 0),
    "imagenet_dogs": (19_500, 0),
    "tiny_imagenet": (100_000, 10_000),
    "imagenet": (1_281_167, 50_000),
}
# steps of an epoch, epochs, rate, its peak
RATES = {
    **dict.fromkeys(("cifar10-paper", "cifar20-paper"), (97, 2000, constant, 0.1)),
    "stl10-paper": (9, 2000, constant, 0.1),
    "imagenet10-paper": (25, 2000, constant, 0.1),
    "imagenet_dogs-paper": (38, 2000, constant, 0.1),
    "tiny_imagenet-paper": (214, 2000, constant, 0.1),
    "cifar10-course": (117, 2000, constant, 0.1),
    **dict.fromkeys(("cifar10-cc", "cifar20-cc"), (234, 1000, constant, 3e-4)),
    "cifar10-cc-32": (234, 1000, scan, 0.4),
    **dict.fromkeys(("stl10-cc", "imagenet10-cc"), (50, 1000, constant, 3e-4)),
    "imagenet_dogs-cc": (76, 1000, constant, 3e-4),
    **dict.fromkeys(("cifar10-propos", "cifar10-byol-kmeans"), (117, 1000, propos, 0.1)),
    **dict.fromkeys(("cifar10-moco-kmeans", "cifar10-pcl"), (117, 1000, propos, 0.1)),
    "cifar10-simsiam-kmeans": (117, 1000, propos, 0.06),  # its log ends at step 117,001
    "cifar20-propos": (234, 1000, propos, 0.05),
    "imagenet10-propos": (50, 1000, propos, 0.05),
    "imagenet_dogs-propos": (76, 1000, propos, 0.05),
    **dict.fromkeys(("cifar10-simclr", "cifar10-byol-knn"), (97, 800, lightly, 0.24)),
    **dict.fromkeys(("cifar10-simsiam-knn", "cifar10-moco-knn"), (97, 800, lightly, 0.06)),
    "cifar10-deepcluster": (234, 3200, constant, 1e-4),
    "imagenet-deepcluster": (5004, 500, constant, 0.05),
}  # fmt: skip


@each_preset
def test_the_rate_at_chosen_steps(path):
    """As ``train`` counts steps; theirs changes once an epoch, or ours and theirs by one step."""
    c, (steps, epochs, rate, peak) = config_of(path), RATES[path.stem]
    train, test = IMAGES[c.dataset]
    assert (train + test * (c.split == "all")) // c.batch_size == steps
    assert (c.epochs, c.learning_rate) == (epochs, peak)
    for epoch in (0, 1, 10, 49, 51, *(epochs * part // 20 for part in range(1, 20)), epochs - 1):
        sizes = epochs * steps, c.warmup_epochs * steps, c.cosine_period * steps
        ours = learning_rate(c.schedule, c.learning_rate, epoch * steps, *sizes)
        assert ours == pytest.approx(rate(epoch, peak), abs=2e-3 * peak)


# ---- precision and evaluation


@each_preset
def test_the_precision_on_a_gpu_is_the_released_codes(path):
    assert not uses_bfloat16(config_of(path), torch.device("cuda"))


def test_other_presets_take_bfloat16_on_a_gpu():
    assert uses_bfloat16(config_of(PRESETS / "cifar10-cpu.yaml"), torch.device("cuda"))


LAST = "cosine", 40, 300  # ProPos' k-means: 10 starts on each of 4 devices
DEFAULT = "euclidean", 10, 100
BEST = {"paper", "simclr", "byol-knn", "simsiam-knn"}  # the figure is the best epoch's


@each_preset
def test_what_is_scored_and_how_often(path):
    config = config_of(path)
    family = path.stem.partition("-")[2]
    method = METHODS[config.method](config, backbones.Small(3, 4), 10, 2000)
    found = method.kmeans(3, 0)
    ours = family in ("propos", "byol-kmeans", "simsiam-kmeans", "moco-kmeans", "pcl")
    if path.stem != "imagenet-deepcluster":  # whose figure is a linear classifier's
        assert (found.metric, found.n_init, found.max_iter) == (LAST if ours else DEFAULT)
    assert method.space == ("projection" if ours else "backbone")
    as_they_are = path.stem == "cifar10-deepcluster" or config.method in ("cc", "crlc")
    assert method.unit_length != as_they_are
    assert (config.evaluate_every == 1) == (family in BEST)
    tested = {"cifar10-paper", "cifar20-paper", "stl10-paper", "imagenet-deepcluster"}
    tested |= {f"cifar10-{name}" for name in ("simclr", "byol-knn", "simsiam-knn", "moco-knn")}
    assert config.split == ("test" if path.stem in tested else "all")


def test_nearest_neighbours_vote_as_lightlys():
    """200 of them, weighted by exp(cosine / .1), as in MoCo's notebook."""
    torch.manual_seed(0)
    bank, asked = F.normalize(torch.randn(600, 40), dim=1), F.normalize(torch.randn(300, 40), dim=1)
    of_bank, of_asked = (bank[:, :3] + torch.randn(600, 3) / 5).argmax(1), asked[:, :3].argmax(1)

    def votes(k, t):
        right = 0
        for x, label in zip(asked, of_asked):
            near = (bank @ x).topk(k)
            weight = torch.zeros(3).index_add_(0, of_bank[near.indices], (near.values / t).exp())
            right += int(weight.argmax() == label)
        return right / len(asked)

    ours = knn_accuracy(bank, of_bank, asked, of_asked)
    assert ours == votes(200, 0.1)
    assert ours not in (votes(20, 0.1), votes(200, 1.0), votes(400, 0.1))
