"""Each preset's training step against the released code's, written out naively in float64.

The network is small and the batch is eight images, but every other setting is the preset's own:
what the released code does (its weights and averages, its batch norm a device, its shuffle, its
queue, its optimiser) is written here by hand, as number or as loop, so that a changed line of a
preset or of a method fails. Two steps: the second loss also tells whether weights, target and queue
moved rightly.
"""

import copy
import csv
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_losses import (
    loop_alignment,
    loop_entropy,
    loop_feature_contrast,
    loop_info_nce,
    loop_prototype_contrast,
    loop_prototype_scattering,
)
from torch import nn

from reproduce import Config, fit
from reproduce.evaluation.probes import knn_accuracy
from reproduce.files import ROOT
from reproduce.loop.optimizers import build_optimizer
from reproduce.methods import METHODS
from reproduce.methods.data_and_network import SIDES
from reproduce.networks import backbones
from reproduce.report.results import DATA
from reproduce.runs.directory import Run
from reproduce.runs.trained import Trained
from reproduce.runs.yaml_files import read_settings
from reproduce.schedules import learning_rate

B, K, N, D = 16, 3, 40, 5
INDEX = torch.tensor([3, 0, 7, 12, 25, 39, 8, 1, 2, 30, 31, 33, 4, 6, 9, 38])
PRESETS = ROOT / "notebooks" / "settings"
AIMING = [path for path in sorted(PRESETS.glob("*.yaml")) if "# Target" in path.read_text()]
SMALL = dict(
    dataset="digits",
    augmentation="digits",
    backbone="small",
    stem="cifar",
    width=3,
    batch_size=B,
    view_size=0,
    sobel=False,
    head_hidden=7,
    projection_dim=D,
    predictor_hidden=4,
    queue_size=3 * 2 * B,
    prototypes="2 3",
    pseudo_clusters=4,
    wide=6,
    crop="random",
    conv_init="kaiming",
    image_size=0,
    n_heads=2,
)


def made(name, warm=True, **changes):
    """The method of a preset, small, in float64; as after its warm-up, with prototypes by hand."""
    name = name if "-" in name and name.split("-")[0] in SIDES else f"cifar10-{name}"
    settings = read_settings(PRESETS / f"{name}.yaml")
    small = {k: v for k, v in SMALL.items() if settings.get(k) or k in ("width", "dataset")}
    config = Config.from_params({**settings, **small, **changes})
    torch.manual_seed(0)
    method = METHODS[config.method](config, backbones.build(config, 1), K, N).double().train()
    for p in method.parameters():  # away from where it starts: a target of its own, no zero biases
        p.data += 0.05 * torch.randn_like(p)
    if config.method == "crlc":  # logits beyond 25
        method.heads[-1].weight.data *= 100
    method.warm = warm
    for buffer, k in (("cluster", K), ("pseudo_labels", 4)):
        if hasattr(method, buffer):
            getattr(method, buffer).random_(k)
    if hasattr(method, "phi"):
        method.cluster.random_(2)
        method.prototypes = F.normalize(torch.randn(5, D, dtype=torch.float64), dim=-1)
        method.phi = 0.1 + torch.rand(5, dtype=torch.float64)
    return method


class Released:
    """What the released code has in memory, beside ours: a copy of the same start."""

    def __init__(self, method):
        self.net = copy.deepcopy(method)
        self.online = nn.Sequential(
            self.net.backbone, getattr(self.net, "projector", nn.Identity())
        )
        self.velocity = {}

    def on_devices(self, n, network, views, together=False, order=None):
        """A network on n devices, each of which holds its part of the batch and its own batch norm;
        the first one's running statistics are kept. order: which images lie where."""
        order = torch.arange(len(views[0])) if order is None else order
        out = [[None] * len(order) for _ in views]
        for d, rows in enumerate(order.view(n, -1)):
            statistics = {k: b.clone() if d else b for k, b in network.named_buffers()}
            state = {**dict(network.named_parameters()), **statistics}
            for batch in [range(len(views))] if together else [[v] for v in range(len(views))]:
                images = torch.cat([views[v][rows] for v in batch])
                found = torch.func.functional_call(network, state, images)
                for v, part in zip(batch, found.chunk(len(batch))):
                    for row, vector in zip(rows.tolist(), part):
                        out[v][row] = vector
        return [torch.stack(view) for view in out]

    def keys(self, n, views, shuffled, together=False):
        order = torch.randperm(len(views[0])) if shuffled else None
        with torch.no_grad():
            return self.on_devices(n, self.net.target, views, together, order)

    def sgd(self, loss, rate, decay, predictor=1.0, constant=(), still=("nothing",), least=0):
        """torch's SGD: decay on tensors of so many dimensions and more, velocity v <- .9 v + g,
        weights w <- w - rate v. In the second step a cosine has come half-way, but for the parts
        that keep their rate."""
        named = {k: p for k, p in self.net.named_parameters() if p.requires_grad}
        for (name, p), g in zip(named.items(), torch.autograd.grad(loss, [*named.values()])):
            g = g + decay * p.detach() * (p.dim() >= least)
            if not name.startswith(still):
                self.velocity[name] = g = 0.9 * self.velocity.get(name, 0) + g
            scale = predictor if name.startswith("predictor") else 1.0
            half = 1.0 if name.startswith(constant) or self.step == 0 else 0.5
            p.data -= rate * scale * half * g

    def adam(self, loss, rate):
        named = {k: p for k, p in self.net.named_parameters() if p.requires_grad}
        self.velocity["t"] = t = self.velocity.get("t", 0) + 1
        for (name, p), g in zip(named.items(), torch.autograd.grad(loss, [*named.values()])):
            m, v = self.velocity.get(name, (0, 0))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.velocity[name] = m, v
            p.data -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    def follow(self, m):
        """The target network: k <- m k + (1 - m) q, every weight."""
        for k, q in zip(self.net.target.parameters(), self.online.parameters()):
            k.data = m * k.data + (1 - m) * q.data

    def enqueue(self, k1, k2):
        new = F.normalize(torch.cat([k1, k2]), dim=-1)
        self.net.queue = torch.cat([new, self.net.queue])[: len(self.net.queue)]


def cosine(a, b):
    return sum((x @ y) / (x.norm() * y.norm()) for x, y in zip(a, b)) / len(a)


def info_nce(queries, keys, queue, t):
    """MoCo's: a query's own key against the queue; the batch's other keys are no negatives."""
    unit, total = (lambda x: x / x.norm()), 0.0
    for q, k in zip(queries, keys):
        logits = torch.stack([unit(q) @ unit(k), *(unit(q) @ unit(n) for n in queue)]) / t
        total = total - logits[0] + logits.exp().sum().log()
    return total / len(queries)


# ---- one step of each released code: loss, update, target, queue


def crlc(r, views, devices, lambda1, batch, limit, least):
    """Ten times the contrast of features; of each head, the contrast of smoothed probabilities, an
    entropy, which is maximised, and a hundredth of the pull on large logits."""
    features = r.on_devices(devices, r.net.backbone, views)
    z1, z2 = (r.net.projector(f)[0] for f in features)
    logits = [r.net.heads(f) for f in features]  # each view [H, B, K]
    total = 0.0
    for own in zip(*logits):
        p = [x.softmax(-1) for x in own]
        smoothed = [0.99 * x + 0.01 / K for x in p]
        total = total + loop_info_nce([*smoothed[0], *smoothed[1]], lambda p, q: torch.log(p @ q))
        if batch:
            entropy = sum(loop_entropy(x.mean(0)) for x in p) / 2
        else:
            entropy = sum(loop_entropy(row) for x in smoothed for row in x) / (2 * B)
        total = total - lambda1 * entropy
        large = [x for x in torch.cat(own).flatten().abs() if limit and x > limit]
        for value in large:
            total = total + 0.01 * (value - limit).detach() * value / (2 * B)
        assert large or not limit
    loss = 10 * loop_feature_contrast(z1, z2, 0.1) + total / len(logits[0])
    yield loss
    r.sgd(loss, 0.1, 5e-4, constant=("",), least=least)


def paper(r, views):
    """Two GPUs; "1" for each of two views; no decay on biases and batch norms."""
    yield from crlc(r, views, devices=2, lambda1=2, batch=True, limit=25, least=2)


def course(r, views):
    """One GPU; the entropy of each sample; decay on everything."""
    yield from crlc(r, views, devices=1, lambda1=1, batch=False, limit=None, least=0)


def propos(r, views, warm=True):
    """Four devices, target shuffled over them. ((-2 cos) + (-2 cos)) / 2 with noise of .001, and a
    tenth of the scattering, of whose gradient a gather loses three quarters."""
    q1, q2 = r.on_devices(4, r.online, views)
    k1, k2 = r.keys(4, views, shuffled=True)
    q = torch.cat([q1, q2])
    noisy = (q + 0.001 * torch.randn_like(q) if warm else q).chunk(2)
    p1, p2 = r.on_devices(4, r.net.predictor, noisy)
    loss = (loop_alignment(p1, k2) + loop_alignment(p2, k1)) / 2
    if warm:
        own = r.net.cluster[INDEX]
        scattering = (
            loop_prototype_scattering(q1, k2, own, 0.5)
            + loop_prototype_scattering(q2, k1, own, 0.5)
        ) / 2
        loss = loss + 0.1 / 4 * scattering
    yield loss
    r.sgd(loss, 0.1, 5e-4, predictor=10.0)
    r.follow(0.996)


def propos_v2(r, views, warm=True):
    """Both views in one pass. What a device has made of both its views is gathered device by device
    and cut into two halves, which stand for the two views; the labels are gathered in the images'
    order, so that most rows have another image's."""
    q = torch.cat(r.on_devices(4, r.online, views, together=True))
    k1, k2 = r.keys(4, views, shuffled=True, together=True)
    noisy = (q + 0.001 * torch.randn_like(q) if warm else q).chunk(2)
    p1, p2 = r.on_devices(4, r.net.predictor, noisy, together=True)
    loss = (loop_alignment(p1, k2) + loop_alignment(p2, k1)) / 2
    if warm:
        q1, q2 = q.chunk(2)
        own, gathered_q, gathered_k, gathered_own = r.net.cluster[INDEX], [], [], []
        for device in range(4):
            held = range(device * B // 4, (device + 1) * B // 4)
            gathered_q += [q1[i] for i in held] + [q2[i] for i in held]
            gathered_k += [k2[i] for i in held] + [k1[i] for i in held]
            gathered_own += [own[i] for i in held]
        own = torch.stack(gathered_own)
        for half in (slice(0, B), slice(B, None)):
            scattering = loop_prototype_scattering(gathered_q[half], gathered_k[half], own, 0.5)
            loss = loss + 0.1 / 4 * scattering / 2
    yield loss
    r.sgd(loss, 0.05, 5e-4, predictor=10.0)
    r.follow(1 - (1 - 0.996) * (1 + math.cos(math.pi * r.step)) / 2)


def byol_kmeans(r, views):
    """ProPos without noise and prototypes, and with a target that slows down to a standstill."""
    q = r.on_devices(4, r.online, views)
    k1, k2 = r.keys(4, views, shuffled=True)
    p1, p2 = r.on_devices(4, r.net.predictor, q)
    loss = 0.5 * (-2 * cosine(p1, k2) - 2 * cosine(p2, k1)) + 2  # 2: ours is a distance
    yield loss
    r.sgd(loss, 0.1, 5e-4, predictor=10.0)
    r.follow(1 - (1 - 0.996) * (1 + math.cos(math.pi * r.step)) / 2)


def byol_knn(r, views):
    q = r.on_devices(1, r.online, views)
    k1, k2 = r.keys(1, views, shuffled=False)
    p1, p2 = r.on_devices(1, r.net.predictor, q)
    loss = 0.5 * (-cosine(p1, k2) - cosine(p2, k1)) + 1
    yield loss
    r.sgd(loss, 0.24, 5e-4)
    r.follow(0.99)


def simsiam_knn(r, views):
    z1, z2 = z = r.on_devices(1, r.online, views)
    p1, p2 = r.on_devices(1, r.net.predictor, z)
    loss = 0.5 * (-cosine(p1, z2.detach()) - cosine(p2, z1.detach()))
    yield loss
    r.sgd(loss, 0.06, 5e-4)  # the predictor's rate decays with the rest


def simsiam_kmeans(r, views):
    """Both views in one pass on each device, and a predictor whose rate never decays."""
    z1, z2 = z = r.on_devices(4, r.online, views, together=True)
    p1, p2 = r.on_devices(4, r.net.predictor, z, together=True)
    loss = -cosine(p1, z2.detach()) / 2 - cosine(p2, z1.detach()) / 2
    yield loss
    r.sgd(loss, 0.06, 5e-4, constant=("predictor",))


def moco_knn(r, views, n=8, rate=0.06, decay=5e-4):
    """The sum of both directions, not their mean."""
    q1, q2 = r.on_devices(n, r.online, views)
    k1, k2 = r.keys(n, views, shuffled=True)
    loss = info_nce(q1, k2, r.net.queue, 0.1) + info_nce(q2, k1, r.net.queue, 0.1)
    yield loss
    r.sgd(loss, rate, decay)
    r.follow(0.99)
    r.enqueue(k1, k2)


def moco_kmeans(r, views):
    yield from moco_knn(r, views, n=4, rate=0.1, decay=1e-4)


def pcl(r, views, warm=True):
    """MoCo, and a hundredth of the prototypes' term: mean over granularities, sum over
    directions."""
    q1, q2 = r.on_devices(4, r.online, views)
    k1, k2 = r.keys(4, views, shuffled=True)
    loss = info_nce(q1, k2, r.net.queue, 0.1) + info_nce(q2, k1, r.net.queue, 0.1)
    for q in (q1, q2) if warm else ():
        for first, last, granularity in ((0, 2, 0), (2, 5, 1)):
            own = r.net.cluster[granularity, INDEX]
            prototypes, phi = r.net.prototypes[first:last], r.net.phi[first:last]
            loss = loss + 0.01 * loop_prototype_contrast(q, prototypes, phi, own) / 2
    yield loss
    r.sgd(loss, 0.1, 1e-4)
    r.follow(0.99)
    r.enqueue(k1, k2)


def simclr(r, views):
    z1, z2 = r.on_devices(1, r.online, views)
    loss = loop_feature_contrast(z1, z2, 0.5)
    yield loss
    r.sgd(loss, 0.24, 5e-4)


def cc(r, views):
    """Images at .5, clusters at 1, and log K - H for each view."""
    h1, h2 = r.on_devices(1, r.net.backbone, views)
    z1, z2 = r.net.projector(h1), r.net.projector(h2)
    p1, p2 = r.net.head(h1).softmax(-1), r.net.head(h2).softmax(-1)
    loss = loop_feature_contrast(z1, z2, 0.5) + loop_feature_contrast([*p1.T], [*p2.T], 1.0)
    for p in (p1, p2):
        loss = loss + math.log(K) - loop_entropy(p.mean(0))
    yield loss
    r.adam(loss, 3e-4)


def cc_32(r, views):
    """The same loss by SCAN's optimiser."""
    yield next(steps := cc(r, views))
    r.adam = lambda loss, rate: r.sgd(loss, 0.4, 1e-4)
    yield from steps


def deepcluster(r, views):
    """One view an image, a wide layer on the network, and Adam."""
    assert len(views) == 1
    features = r.net.backbone(views[0]) @ r.net.wide.weight.T + r.net.wide.bias
    logits = features.clamp_min(0) @ r.net.top.weight.T + r.net.top.bias
    loss = 0.0
    for row, i in zip(logits, INDEX):
        loss = loss - row[r.net.pseudo_labels[i]] + row.exp().sum().log()
    loss = loss / len(logits)
    yield loss
    r.adam(loss, 1e-4)


def imagenet_deepcluster(r, views):
    """The network has a wide layer of its own, and the top layer an optimiser without momentum."""
    r.net.wide.weight, r.net.wide.bias = torch.eye(r.net.backbone.n_features).double(), 0
    r.adam = lambda loss, _: r.sgd(loss, 0.05, 1e-5, constant=("",), still=("top",))
    yield from deepcluster(r, views)


STEPS = {
    f.__name__.replace("_", "-"): f
    for f in (
        paper,
        course,
        propos,
        byol_kmeans,
        byol_knn,
        simsiam_knn,
        simsiam_kmeans,
        moco_knn,
        moco_kmeans,
        pcl,
        simclr,
        cc,
        cc_32,
        deepcluster,
        imagenet_deepcluster,
    )
} | {f"{name}-propos": propos_v2 for name in ("cifar20", "imagenet10", "imagenet_dogs")}


def compare(name, warm=True):
    """Two steps of ours and of theirs: losses, gradients by way of weights, statistics, queue."""
    method = made(name, warm)
    config, r = method.config, Released(method)
    optimizer = build_optimizer(config, method)
    for r.step in range(2):
        views = [*torch.rand(config.n_views, B, 1, 8, 8, dtype=torch.float64)]
        torch.manual_seed(r.step)  # for the shuffle and the noise
        loss = method.loss(views, INDEX)["loss"]
        optimizer.zero_grad()
        loss.backward()
        rate = config.learning_rate * (0.5 if r.step and config.schedule == "cosine" else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["times"] * (config.learning_rate if group["constant"] else rate)
        optimizer.step()
        method.after_step(r.step, 2)
        torch.manual_seed(r.step)
        step = STEPS.get(name) or STEPS[name.partition("-")[2]]
        theirs = step(r, views, **({} if warm else {"warm": False}))
        torch.testing.assert_close(loss, next(theirs), rtol=0, atol=1e-9)
        assert next(theirs, None) is None
        found = method.state_dict()
        for key, value in r.net.state_dict().items():
            torch.testing.assert_close(
                found[key], value, rtol=0, atol=1e-9, msg=lambda text: f"{key}: {text}"
            )


@pytest.mark.parametrize("path", AIMING, ids=lambda path: path.stem)
def test_a_preset_trains_as_the_released_code(path):
    compare(path.stem)


@pytest.mark.parametrize("name", ["propos", "pcl", "cifar20-propos"])
def test_before_the_warm_up_is_over(name):
    """Neither prototypes nor, in ProPos, noise."""
    compare(name, warm=False)


@pytest.mark.parametrize("name", ["propos", "byol-kmeans", "simsiam-kmeans", "moco-kmeans", "pcl"])
def test_the_rate_never_reaches_zero(name):
    """ProPos' cosine has the length of the run, but begins when the warm-up ends."""
    c, steps = Config.from_params(read_settings(PRESETS / f"cifar10-{name}.yaml")), 117
    for epoch, share in ((25, 0.5), (500, 0.578), (800, 0.146), (1000, 0.006)):
        rate = learning_rate(
            c.schedule,
            c.learning_rate,
            epoch * steps - 1,
            c.epochs * steps,
            c.warmup_epochs * steps,
            c.cosine_period * steps,
        )
        assert rate / c.learning_rate == pytest.approx(share, abs=6e-4)


# ---- what no step can tell: the heads, their start, and the evaluation

MLP = ("Linear", "BatchNorm1d", "ReLU", "Linear")
HEADS = {  # the projector's layers, its last batch norm's affine part, the predictor's start
    "propos": (MLP, None, "normal"),
    "byol-kmeans": (MLP, None, "normal"),
    "byol-knn": (MLP, None, "torch"),
    "simsiam-knn": ((*MLP, "BatchNorm1d"), True, "torch"),
    "simsiam-kmeans": ((*MLP, "BatchNorm1d"), True, "torch"),
    "simclr": ((*MLP, "BatchNorm1d"), True, None),
    "moco-knn": (("Linear",), None, None),
    "moco-kmeans": (("Linear", "Identity", "ReLU", "Linear"), None, None),
    "pcl": (("Linear", "Identity", "ReLU", "Linear"), None, None),
    "cc": (("Linear", "Identity", "ReLU", "Linear"), None, None),
    "cc-32": (("Linear", "Identity", "ReLU", "Linear"), None, None),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_heads_are_those_of_the_released_code(name):
    """And SimSiam's own: its last batch norm has no affine part."""
    layers, affine, start = HEADS[name]
    settings = read_settings(PRESETS / f"cifar10-{name}.yaml")
    config = Config.from_params({**settings, "dataset": "cifar10"})
    method = METHODS[config.method](config, backbones.Small(3, 4), 10, 20)
    assert tuple(type(layer).__name__ for layer in method.projector) == layers
    if affine is not None:
        assert method.projector[-1].affine == affine
    if start:
        first, last = method.predictor[0], method.predictor[-1]
        std = 0.01 if start == "normal" else (1 / 3 / first.in_features) ** 0.5
        assert first.weight.std().item() == pytest.approx(std, rel=0.05)
        assert (last.bias == 0).all() == (start == "normal")
    if config.method == "simsiam":
        plain = METHODS["simsiam"](Config.from_params({"method": "simsiam"}), method.backbone, 3, 9)
        assert not plain.projector[-1].affine


@pytest.mark.parametrize(
    "name, space, kmeans, neighbours",
    [
        *((n, "projection", ("cosine", 40, 300), "backbone") for n in ("propos", "byol-kmeans",
          "simsiam-kmeans", "moco-kmeans", "pcl")),
        *((n, "backbone", ("euclidean", 10, 100), "backbone") for n in ("byol-knn", "simsiam-knn",
          "simclr", "cc", "cc-32", "deepcluster")),
        ("moco-knn", "backbone", ("euclidean", 10, 100), "online"),
    ],
)  # fmt: skip
def test_what_is_clustered_and_how(name, space, kmeans, neighbours):
    method = made(name)
    found = method.kmeans(3, 0)
    assert (found.metric, found.n_init, found.max_iter) == kmeans
    assert method.space == space and method.config.knn_space == neighbours


@pytest.mark.parametrize("space", ["backbone", "projection", "online"])
def test_evaluation_looks_where_it_is_told(tmp_path, space):
    """k-means, nearest neighbours and the stored embedding; the training is the same in each."""
    places = {"results_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "data")}
    quick = dict(method="byol", limit=120, epochs=1, width=4, projection_dim=16, kmeans_starts=2)
    config = Config.from_params({**places, **quick, "cluster_space": space, "knn_space": space})
    run = Run(config)
    list(fit(config, run))
    trained = Trained(run.path, config.data_dir)
    images = trained.images.part("all", config.limit)
    out = trained.method.outputs(trained.augment.clean(images.pixels))[space]
    stored, metrics = np.load(run.path / "embeddings.npz"), run.json("metrics.json")
    np.testing.assert_allclose(stored["embedding"], F.normalize(out, dim=-1), atol=2e-3)
    clusters = trained.method.kmeans(10, 0).fit_predict(F.normalize(out, dim=-1))
    assert (stored["kmeans_embedding"] == clusters.numpy()).all()
    labels = images.labels
    assert metrics["knn_acc"] == knn_accuracy(out, labels, out, labels, itself=True)


# ---- a preset and its figure


def published():
    with open(ROOT / "results" / "published.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["preset"]]


@pytest.mark.parametrize("path", AIMING, ids=lambda path: path.stem)
def test_a_preset_names_one_published_figure(path):
    """Its first line says the figure that stands in one row of published.csv, which names it."""
    (row,) = [row for row in published() if path.stem in row["preset"].split()]
    kind, figure = re.match(r"# Target: (ACC|kNN|linear) ([0-9.]+) %", path.read_text()).groups()
    assert row[kind.lower()] == figure
    settings = read_settings(path)
    assert row["dataset"] == DATA[settings["dataset"]]
    assert row["split"] in (settings["split"], "")  # CRLC's is stated for CIFAR-10 alone
    assert row["method"].split()[0].lower().rstrip(",") == settings["method"]


@pytest.mark.parametrize("of", [dict(dataset="imagenet10"), dict(dataset="imagenet_dogs")])
def test_large_images_are_seen_at_224_pixels(of):
    """Stored at 256; CC's blur and jitter are stronger there than for CIFAR."""
    for name in ("cc", "propos"):
        settings = read_settings(PRESETS / f"{of['dataset']}-{name}.yaml")
        config = Config.from_params({**settings, "folder": "images"})
        assert (config.side, config.view_side, config.blur) == (256, 224, 0.5)
        assert (config.backbone, config.stem, config.split) == ("resnet34", "imagenet", "all")
        assert config.jitter == (0.8 if name == "cc" else 0.4)
        assert config.batch_size == 256 and settings["dataset"] == of["dataset"]


def test_every_named_preset_is_there():
    names = [name for row in published() for name in row["preset"].split()]
    assert all((PRESETS / f"{name}.yaml").exists() for name in names)
