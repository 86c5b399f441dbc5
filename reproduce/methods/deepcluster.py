"""DeepCluster: deep clustering for unsupervised learning of visual features (Caron et al., ECCV
2018).

k-means on the features makes pseudo-labels, a classifier learns them, and again. The numbers of two
clusterings have nothing to do with each other, so the classifier's top layer starts anew with each.

Every view of an image is classified: with ``n_views`` 2 a step of B images is one of 2B in the
paper."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproduce.kmeans import Blocks, KMeans, plainly
from reproduce.losses import at_least_float32
from reproduce.methods import groups
from reproduce.methods.base import Backbone, Method
from reproduce.metrics import nmi
from reproduce.processes import gather_rows
from reproduce.settings import setting


class DeepCluster(Method):
    @dataclass(frozen=True)
    class Settings(groups.Views):
        """DeepCluster's pseudo-labels and the layer that learns them."""

        pseudo_clusters: int = setting(
            0, "number of pseudo-labels, k of k-means; 0: ten times n_clusters", (0, 1_000_000)
        )
        pca: int = setting(
            256,
            "most whitened principal axes of the features for k-means; 0: the features as they are",
            (0, 65_536),
        )
        wide: int = setting(
            0,
            "units of a layer after the backbone, clustered before its ReLU; 0: no such layer",
            (0, 65_536),
        )
        quotas: bool = setting(False, "draw equally many images of each pseudo-label")
        top_momentum: bool = setting(
            True, "the top layer, which is new in each epoch, has momentum too"
        )

        def refusals(self):
            if not self.top_momentum and self.optimizer != "sgd":
                yield f"top_momentum is False, but optimizer is {self.optimizer!r}: only for 'sgd'"

        def misfits(self, n_images: int, n_clusters: int):
            k = self.pseudo_clusters or 10 * n_clusters
            if k > n_images:
                yield f"pseudo_clusters is {k}, more than the {n_images} images to train on"

    spaces = ("backbone",)
    pseudo_labels: Tensor  # [N], of all training images; -1 before the first epoch

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone)
        self.k = config.pseudo_clusters or 10 * n_clusters
        self.unit_length = config.pca > 0  # as the features that make its pseudo-labels
        self.wide: nn.Module = nn.Identity()
        if config.wide:
            self.wide = wide = nn.Linear(backbone.n_features, config.wide)
            nn.init.normal_(wide.weight, std=0.01)
            nn.init.zeros_(wide.bias)
        # the features are taken before the network's last ReLU, which therefore stands here
        self.top = nn.Linear(config.wide or backbone.n_features, self.k)
        self.renewed = tuple(self.top.parameters())
        self.register_buffer("pseudo_labels", torch.full((n_images,), -1))

    def before_epoch(self, epoch: int, extract) -> dict:
        """Cluster all training images, start the top layer anew."""
        before = self.pseudo_labels
        features = extract(self.features)
        if self.config.pca:
            features = whitened(features, self.config.pca, sharded=True)
        seed = self.config.seed + epoch
        kmeans = KMeans(self.k, n_init=1, max_iter=20, random_state=seed, sharded=True)
        self.pseudo_labels = gather_rows(kmeans.fit_predict(features))
        nn.init.normal_(self.top.weight, std=0.01)
        nn.init.zeros_(self.top.bias)
        again = None if (before < 0).any() else nmi(before.cpu(), self.pseudo_labels.cpu())
        return {"reassigned_nmi": again, "pseudo_clusters": len(self.pseudo_labels.unique())}

    def order(self, n: int, generator: torch.Generator) -> Tensor:
        """n images, drawn uniformly over the clusters that are not empty: a huge cluster, to which
        every image could be assigned without a loss, weighs no more than a small one.

        quotas: the same number from each, as in the released code, none twice where a cluster has
        more; otherwise cluster and image are drawn anew for each of the n."""
        by_cluster = self.pseudo_labels.argsort(stable=True)
        size = self.pseudo_labels.bincount()
        size = size[size > 0]
        random: Any = dict(generator=generator, device=by_cluster.device)
        if self.config.quotas:
            each = n // len(size) + 1
            drawn = torch.cat(
                [
                    members[torch.randperm(len(members), **random)[:each]]
                    if len(members) > each
                    else members[torch.randint(len(members), (each,), **random)]
                    for members in by_cluster.split(size.tolist())
                ]
            )
            return drawn[torch.randperm(len(drawn), **random)[:n]]
        first = size.cumsum(0) - size
        u = torch.rand(2, n, **random)
        cluster = (u[0] * len(size)).long().clamp_(max=len(size) - 1)
        within = (u[1] * size[cluster]).long().minimum(size[cluster] - 1)
        return by_cluster[first[cluster] + within]

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        logits = self.top(F.relu(self.wide(self.encode(views))))
        labels = self.pseudo_labels[index].repeat(len(views))
        return {"loss": F.cross_entropy(at_least_float32(logits), labels)}

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        return {"backbone": self.features(images)}

    def features(self, images: Tensor) -> Tensor:
        return self.wide(self.backbone(images))


@plainly()
def whitened(features, axes: int, sharded: bool = False) -> Tensor:
    """Features ``[N, D]`` on their first principal axes, each with variance 1, then of length one:
    ``[N, at most axes]``. Axes without variance are left out; features that are all one become a
    column of zeros. axes: at least 1. sharded: each process gives its own share of the features,
    and the axes are those of all. ValueError if features have another shape or are not finite."""
    x = Blocks(features, sharded=sharded, dtype=torch.float64)
    covariance = x.shared(sum(block.mT @ block for block in x))[:-1, :-1] / x.total
    variance, directions = torch.linalg.eigh(covariance)  # the largest last
    variance = variance.clamp_min(1e-30)
    n_axes = max(1, min(axes, int((variance > 1e-7 * variance[-1]).sum())))
    directions = directions[:, -n_axes:] / variance[-n_axes:].sqrt()
    return torch.cat(
        [F.normalize(block[:, :-1] @ directions, dim=-1).to(features.dtype) for block in x]
    )
