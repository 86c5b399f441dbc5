"""From features to clusters in seconds: CRLC's heads, k-means, or HDBSCAN."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce import metrics
from reproduce.config import Config
from reproduce.evaluation import probes
from reproduce.kmeans import KMeans
from reproduce.loop import threads
from reproduce.loop.optimizers import build_optimizer, set_rate
from reproduce.methods import METHODS
from reproduce.own_images.clusterer import squared_distances
from reproduce.settings import ConfigError, Settings, machine, setting

NOWHERE = "belongs nowhere"  # what HDBSCAN puts into no cluster: the last one's name
STARTS = 5  # of k-means, which are compared


@dataclass(frozen=True)
class Grouping(Settings):
    """How the images of a folder become clusters without training a network."""

    folder: str = machine("", "the images")
    weights: str = setting(
        "photos",
        "the network: photos, imagenet, timm:NAME, torchvision:NAME, hub:REPO:ENTRY, a run, a file",
    )
    features: str = setting("", "a file .npy [N, D] of features instead of a network")
    names: str = setting("", "which files the rows of features are of, one a line")
    image_size: int = setting(0, "side of the images that the network sees; 0: its own", (0, 1024))
    bad_images: str = machine("skip", "unreadable images: skip them, or stop", "skip stop")
    letterbox: bool = setting(False, "see whole images between bars, not their centre squares")
    n_clusters: int = setting(0, "K, the number of clusters; 0: chosen by stability", (0, 100_000))
    grouping: str = setting(
        "heads",
        "heads: CRLC's, with neighbours as views; kmeans; spherical; hdbscan, on UMAP",
        "heads kmeans spherical hdbscan",
    )
    seed: int = setting(0, "seed of heads, starts and maps", (0, 2**31 - 1))
    n_heads: int = setting(10, "H, clustering heads", (2, 1000))
    neighbours: int = setting(20, "n: the second view is one of the n nearest images", (1, 10_000))
    lambda1: float = setting(2.0, "weight of the entropy, which favours equal sizes", (0, None))
    steps: int = setting(400, "steps of the heads", (1, 1_000_000))
    axes: int = setting(128, "principal axes of the features that the heads see", (1, 65_536))
    min_size: int = setting(
        0, "hdbscan: images of a cluster; 0: a hundredth, at least 5", (0, None)
    )
    results_dir: str = machine("", "where runs go; empty: results/local of the repository")
    data_dir: str = machine("", "where features are kept; empty: data of the repository")

    @property
    def method(self) -> str:
        return self.grouping

    def refusals(self):
        if self.n_clusters == 1:
            yield "n_clusters is 1: it must be at least 2, or 0 to have it chosen"
        if self.names and not self.features:
            yield f"names is {self.names!r}, but features is empty: it says what their rows are of"
        if self.grouping == "hdbscan" and self.n_clusters:
            yield f"n_clusters is {self.n_clusters}, but grouping is 'hdbscan', which finds it"


@dataclass
class Grouped:
    """Clusters of N images."""

    model: nn.Module  # features [N, D] -> probabilities [N, K], also of new images
    probabilities: Tensor  # [N, K]
    votes: np.ndarray  # [V, N], clusters by each head or by other starts, numbered alike
    names: dict[int, str] = field(default_factory=dict)

    @property
    def voters(self) -> str:
        """What cast the votes, as ``judge`` calls it."""
        return "heads" if self.model.kind == "heads" else "clusterings"

    @property
    def sizes(self) -> np.ndarray:
        """int64 ``[K]``, images of each cluster."""
        return np.bincount(self.clusters, minlength=self.probabilities.shape[1])

    @property
    def clusters(self) -> np.ndarray:
        """int64 ``[N]``, the most probable of each image."""
        return self.probabilities.argmax(-1).numpy()


def group(features: np.ndarray, settings: Grouping) -> Grouped:
    """Clusters of features ``[N, D]`` by the settings, whose n_clusters is not 0 but for HDBSCAN;
    ConfigError where there are fewer images than clusters."""
    x = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    check(len(x), settings)
    if settings.grouping == "hdbscan":
        return by_density(x, settings)
    return by_heads(x, settings) if settings.grouping == "heads" else by_kmeans(x, settings)


def check(n: int, settings: Grouping) -> None:
    """ConfigError where n images cannot be clustered so."""
    if settings.n_clusters > n:
        raise ConfigError(f"n_clusters is {settings.n_clusters}, more than the {n} images")
    if n < 4:
        raise ConfigError(f"folder {settings.folder!r} has {n} images: clusters need 4 or more")


# ---- CRLC's heads


class Heads(nn.Module):
    """The heads of ``by_heads``. mean ``[D]`` and axes ``[D, A]``: where features of length one are
    seen from; w1 ``[H, A, hidden]``, b1, w2 ``[H, hidden, K]``, b2: two layers, whose clusters are
    numbered alike."""

    kind = "heads"

    def __init__(self, **tensors: Tensor):
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def by_head(self, features: Tensor) -> Tensor:
        """``[N, D]`` -> ``[H, N, K]``"""
        z = (F.normalize(features, dim=-1) - self.mean) @ self.axes
        hidden = F.relu(z @ self.w1 + self.b1)
        return (hidden @ self.w2 + self.b2).softmax(-1)

    def forward(self, features: Tensor) -> Tensor:
        return self.by_head(features).mean(0)


def by_heads(x: Tensor, settings: Grouping) -> Grouped:
    """CRLC's clustering heads on features that stay as they are. The second view of an image is one
    of its nearest, as in SCAN (Van Gansbeke et al., ECCV 2020); the heads see the features of
    length one on their first principal axes. The heads stand in the order of their losses, and are
    averaged after their clusters are aligned with those of the first."""
    mean, axes = principal(x, settings.axes)
    z = (F.normalize(x, dim=-1) - mean) @ axes
    near = seen_by_heads(x, settings, settings.n_clusters)
    method, losses = trained_heads(z, near, settings)
    first, _, second = method.heads
    order = losses.argsort()
    w1, w2 = first.weight.detach()[order], second.weight.detach()[order]
    b1, b2 = (layer.bias.detach().view(len(w1), 1, -1)[order] for layer in (first, second))
    model = Heads(mean=mean, axes=axes, w1=w1, b1=b1, w2=w2, b2=b2)
    alike = metrics.head_order(model.by_head(x))  # [H, K]
    model.w2 = w2.gather(-1, alike[:, None].expand_as(w2)).contiguous()
    model.b2 = b2.gather(-1, alike[:, None]).contiguous()
    by_head = model.by_head(x)
    return Grouped(model, by_head.mean(0), by_head.argmax(-1).numpy())


def seen_by_heads(x: Tensor, settings: Grouping, k: int) -> Tensor:
    """The numbers ``[N, n]`` of the images that an image's second view is of; of few images for
    each of K clusters fewer, which are more likely to be of the same."""
    few = max(1, len(x) // (4 * k))
    return probes.neighbours(x, min(settings.neighbours, few, len(x) - 1))


@threads.one()
def trained_heads(z: Tensor, near: Tensor, settings: Grouping) -> tuple[nn.Module, Tensor]:
    """The method with its heads, and the loss of each ``[H]``. z: ``[N, A]``, near: ``[N, n]``."""
    n, batch = len(z), min(256, len(z))
    config = Config.from_params(
        {
            "method": "crlc",
            "lambda1": settings.lambda1,
            "lambda2": 0.0,  # of a contrast that would train the backbone
            "n_heads": settings.n_heads,
            "head_hidden": 128,
            "n_clusters": settings.n_clusters,
            "batch_size": max(2, batch),
            "optimizer": "adam",
            "learning_rate": 0.003,
            "weight_decay": 1e-4,
            "epochs": 1,
        }
    )
    backbone = nn.Identity()
    backbone.n_features = z.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        method = METHODS["crlc"](config, backbone, settings.n_clusters, n)
    method.projector.requires_grad_(False)
    optimizer = build_optimizer(config, method)
    generator = torch.Generator().manual_seed(settings.seed)

    def drawn(index: Tensor) -> tuple[Tensor, Tensor]:
        beside = torch.randint(near.shape[1], (len(index),), generator=generator)
        return z[index], z[near[index, beside]]

    order = torch.empty(0, dtype=torch.long)
    for step in range(settings.steps):
        if len(order) < batch:
            order = torch.randperm(n, generator=generator)
        index, order = order[:batch], order[batch:]
        set_rate(optimizer, config, step, settings.steps)
        loss = method.loss(drawn(index), index)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    some = torch.randperm(n, generator=generator)[:4096]
    with torch.no_grad():
        return method, method.loss(drawn(some), some)["head_losses"]


def principal(x: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """The mean ``[D]`` of features ``[N, D]`` of length one, and their first principal axes
    ``[D, at most axes]``, over one number: on all axes together the variance is one."""
    x = F.normalize(x, dim=-1).double()
    mean = x.mean(0)
    centred, (n, d) = x - mean, x.shape
    covariance = (centred.mT @ centred / n).numpy()
    last = [max(0, d - min(axes, n)), d - 1]
    variance, directions = scipy.linalg.eigh(covariance, subset_by_index=last)
    scale = np.sqrt(max(variance.sum() / len(variance), 1e-30))
    return mean.float(), torch.from_numpy(directions[:, ::-1] / scale).float()


# ---- k-means


class Centroids(nn.Module):
    """The memberships of fuzzy c-means (Bezdek, 1981, m = 2) with k-means' centroids ``[K, D]``, in
    proportion to 1 / squared distance. cosine: of features of length one."""

    kind = "centroids"

    def __init__(self, centroids: Tensor, cosine: Tensor):
        super().__init__()
        self.register_buffer("centroids", centroids)
        self.register_buffer("cosine", cosine)

    def seen(self, features: Tensor) -> Tensor:
        """Features ``[N, D]`` where the centroids are."""
        return torch.where(self.cosine, F.normalize(features, dim=-1), features)

    def forward(self, features: Tensor) -> Tensor:
        closeness = 1 / squared_distances(self.seen(features), self.centroids)
        return closeness / closeness.sum(-1, keepdim=True)


def by_kmeans(x: Tensor, settings: Grouping) -> Grouped:
    """k-means on the features, or on features of length one ("spherical")."""
    metric = "cosine" if settings.grouping == "spherical" else "euclidean"
    kmeans = KMeans(settings.n_clusters, metric=metric, random_state=settings.seed).fit(x)
    model = Centroids(kmeans.cluster_centers_, torch.tensor(metric == "cosine"))
    probabilities = model(x)
    votes = restarts(x, probabilities.argmax(-1), settings.n_clusters, STARTS, metric)
    return Grouped(model, probabilities, votes)


def restarts(
    features: Tensor, cluster: Tensor, k: int, n: int = STARTS, metric: str = "euclidean"
) -> np.ndarray:
    """``[n, M]``: k-means from n other single starts, numbered to agree with ``cluster``."""
    votes = []
    for start in range(n):
        kmeans = KMeans(min(k, len(features)), n_init=1, metric=metric, random_state=1000 + start)
        other = kmeans.fit_predict(features)
        both = F.one_hot(torch.stack([cluster, other]), k).float()
        votes.append(metrics.align_heads(both)[1].argmax(-1).numpy())
    return np.stack(votes)


# ---- HDBSCAN


class Nearest(nn.Module):
    """A vote among all images that were clustered, each with the weight exp(cosine / 0.01): the
    nearest few decide, and each of them for itself. reference ``[M, D]`` of length one, label
    ``[M]``; images that belong nowhere, if there are any, are the last cluster."""

    kind = "nearest"

    def __init__(self, reference: Tensor, label: Tensor):
        super().__init__()
        self.register_buffer("reference", reference)
        self.register_buffer("label", label)
        self.n_clusters = int(label.max()) + 1

    def seen(self, features: Tensor) -> Tensor:
        return features

    def forward(self, features: Tensor) -> Tensor:
        member = F.one_hot(self.label, self.n_clusters).to(features.dtype)
        parts = F.normalize(features, dim=-1).split(1024)
        return torch.cat([(part @ self.reference.T / 0.01).softmax(-1) @ member for part in parts])


def by_density(x: Tensor, settings: Grouping) -> Grouped:
    """HDBSCAN (Campello et al., 2013) on five coordinates of UMAP, or on the features where these
    are at most ten: K is found. Images in no dense region belong nowhere; if there are any, they
    are the last cluster."""
    from sklearn.cluster import HDBSCAN

    least = settings.min_size or max(5, len(x) // 100)
    if least > len(x) // 2:
        raise ConfigError(f"min_size is {least}, but there are {len(x)} images")
    clusterings = []
    for seed in (settings.seed, settings.seed + 1):
        placed = x.numpy()
        if x.shape[1] > 10:
            placed = umap(placed, 5, seed, near=min(30, len(x) - 1), apart=0.0)
        clusterings.append(HDBSCAN(min_cluster_size=least, copy=True).fit_predict(placed))
    label, other = (torch.from_numpy(f.astype(np.int64)) for f in clusterings)
    k = int(label.max()) + 1
    if k < 2:
        few = f"finds {k} clusters of {least} images or more"
        raise ConfigError(f"grouping is 'hdbscan', which {few}: name a K, or a smaller min_size")
    names = {k: NOWHERE} if (label < 0).any() else {}
    label[label < 0] = k
    model = Nearest(F.normalize(x, dim=-1), label)
    votes = np.stack([label.numpy(), alike(label, other)])
    return Grouped(model, model(x), votes, names)


def alike(label: Tensor, other: Tensor) -> np.ndarray:
    """Another clustering ``[N]``, -1 for none, in the numbers of this one: each of its clusters is
    the one that it shares most images with."""
    row = np.unique(other.numpy(), return_inverse=True)[1]  # -1 may be among them, or not
    return metrics.contingency(label.numpy(), row).argmax(1)[row]


def umap(x: np.ndarray, d: int, seed: int, near: int = 15, apart: float = 0.1) -> np.ndarray:
    """float32 ``[N, d]``: coordinates by UMAP on the first 50 principal axes."""
    import warnings

    import umap as library

    mean, axes = principal(torch.from_numpy(x), 50)
    z = ((F.normalize(torch.from_numpy(x), dim=-1) - mean) @ axes).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one thread, for the same map again
        init = "spectral" if len(x) > 50 else "random"
        made = library.UMAP(
            n_components=d, n_neighbors=near, min_dist=apart, init=init, random_state=seed
        )
        return made.fit_transform(z).astype(np.float32)


KINDS = {"heads": Heads, "centroids": Centroids, "nearest": Nearest}
