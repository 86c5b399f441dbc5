"""CRLC: clustering by maximising mutual information across views (Do et al., ICCV 2021, arXiv
2107.11635).

One backbone, one projection head for the feature contrast, H clustering heads. The paper's loss is
lambda2 L_FC + L_PC - lambda1 H(mean prediction). What is computed is that of the released code
(clarken92/InfoMaxClustering, ``CRLC._cluster_loss`` in ``dl_pytorch1/models/clustering/crlc.py``),
all heads at once:

    lambda2 FC + mean_heads(PC - lambda1 H + logit_clamp_weight clamp)

FC sees the projections, PC smoothed probabilities, H those as they are, clamp the logits. H is the
mean over the views; the released script for CIFAR-10 weighs it with 2, the paper says lambda1 = 1.

Not CRLC's, and off by default: with ``neighbour_weight`` w, FC becomes (1 - w) FC + w FC', in which
each projection's nearest neighbour among earlier ones stands for it as the positive of the image's
other views (NNCLR, Dwibedi et al., ICCV 2021, arXiv 2104.14548, section 3.2; here without its
predictor).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import losses
from reproduce.methods import groups
from reproduce.methods.base import Backbone, Method, heads_mlp, mlp
from reproduce.settings import setting


class CRLC(Method):
    @dataclass(frozen=True)
    class Settings(
        groups.Projection,
        groups.Contrast,
        groups.Freeze,
        groups.Neighbours,
        groups.Views,
        groups.Vote,
    ):
        """CRLC's loss and heads."""

        lambda1: float = setting(
            1.0, "weight of the entropy, which is maximised (its mean over the views)", (0, None)
        )
        entropy: str = setting(
            "batch",
            "entropy of the mean prediction over a batch, or of each sample's, as in CENG501",
            "batch sample",
        )
        entropy_smoothed: bool = setting(False, "take the entropy of smoothed probabilities")
        lambda2: float = setting(10.0, "weight of the feature contrast", (0, None))
        negatives: str = setting(
            "pair",
            "of the feature contrast; pair: of the same two views, all: of all views, decoupled: "
            "all, without the positive in the denominator (DCL)",
            "pair all decoupled",
        )
        covariance_weight: float = setting(
            0.0, "weight, beside the feature contrast, of the projections' correlations", (0, None)
        )
        neighbour_weight: float = setting(
            0.0,
            "share of the feature contrast whose positives are nearest neighbours among earlier "
            "projections (NNCLR); 0: none",
            (0, 1),
        )
        neighbour_queue: int = setting(
            8192, "projections of earlier images among which neighbours are sought", (1, 10_000_000)
        )
        neighbour_from: float = setting(
            0.33, "share of the epochs that pass before neighbours enter the loss", (0, 1)
        )
        projector_batchnorm: bool = setting(
            False, "batch norm after the hidden layer of the projector"
        )
        critic: str = setting(
            "log_dot", "critic of the probability contrast", "log_dot dot neg_l2 neg_js"
        )
        smoothing: float = setting(
            0.01, "gamma: the probability contrast sees (1 - gamma) p + gamma / K", (0, 1)
        )
        logit_clamp: float = setting(
            25.0, "logits beyond +- this are pulled back; 0: none are", (0, None)
        )
        logit_clamp_weight: float = setting(
            0.01, "weight of the pull on logits beyond logit_clamp", (0, None)
        )
        n_heads: int = setting(10, "H, clustering heads on one backbone", (1, 1000))
        head_bias: bool = setting(True, "linear layers of the heads have a bias")
        head_init: str = setting(
            "kaiming",
            "start of the heads: kaiming with gain sqrt(2), or torch's default",
            "kaiming torch",
        )

        def refusals(self):
            if self.n_views == 1:
                yield "n_views is 1, but method is 'crlc', which compares views: at least 2"
            if self.smoothing == 0 and self.critic == "log_dot" and self.logit_clamp == 0:
                yield (
                    "smoothing and logit_clamp are both 0: the logarithm of the log_dot critic "
                    "would reach -inf; set one of them"
                )
            for name in ("neighbour_queue", "neighbour_from"):
                value, default = getattr(self, name), getattr(CRLC.Settings, name)
                if value != default and not self.neighbour_weight:
                    yield f"{name} is {value}, but neighbour_weight is 0: no neighbour is sought"
            for name in ("neighbour_weight", "covariance_weight"):
                value = getattr(self, name)
                if value and not self.lambda2:
                    yield f"{name} is {value}, but lambda2 is 0: the feature contrast has no weight"
            if self.neighbour_weight and self.neighbour_queue % self.batch_size:
                yield (
                    f"neighbour_queue is {self.neighbour_queue}, which is not a multiple of "
                    f"{self.batch_size}: each step adds one view of batch_size {self.batch_size}"
                )

        def misfits(self, n_images: int, n_clusters: int):
            if self.neighbour_weight and self.neighbour_queue > n_images:
                more = f"more than the {n_images} images to train on"
                yield f"neighbour_queue is {self.neighbour_queue}, {more}: each would find itself"

        def notes(self):
            if self.neighbour_weight and CRLC.cold_epochs(self) >= self.epochs:
                never = f"neighbour_from is {self.neighbour_from} and epochs {self.epochs}"
                yield f"{never}: no neighbour ever enters the loss"

    unit_length = False
    named = ("lambda1", "entropy")
    queue: Tensor  # [Q, D] of length one, the newest first; only with neighbour_weight
    new: Tensor  # [B, D], each image's first view in the step

    def __init__(self, config: Settings, backbone: Backbone, n_clusters: int, n_images: int):
        super().__init__(config, backbone)
        self.n_heads = config.n_heads
        sizes = backbone.n_features, config.head_hidden
        kind = config.head_bias, config.head_init
        if config.projector_batchnorm:
            self.projector = mlp(*sizes, config.projection_dim)
        else:
            self.projector = heads_mlp(1, *sizes, config.projection_dim, *kind)
        self.heads = heads_mlp(config.n_heads, *sizes, n_clusters, *kind)
        if config.neighbour_weight:
            start = torch.randn(config.neighbour_queue, config.projection_dim)
            self.register_buffer("queue", F.normalize(start, dim=-1))

    @classmethod
    def cold_epochs(cls, config) -> int:
        """Those before ``neighbour_from``, to the nearest whole one."""
        if not config.neighbour_weight:
            return config.epochs
        return round(config.neighbour_from * config.epochs)

    def before_epoch(self, epoch: int, extract) -> dict:
        self.warm = epoch > self.cold_epochs(self.config)
        return {}

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        """ "feature_contrast" above 0, "probability_contrast" at least 0, "entropy" from 0 to log K
        nats: scalars, the last two as means over the heads; "head_losses" ``[H]``. With more than
        two views the contrasts are averaged over their pairs. With ``covariance_weight``, lambda2
        weighs the feature contrast and "covariance" together; with ``neighbour_weight``, the share
        of "neighbour_contrast" in it, which is 0 until ``neighbour_from``."""
        c, n = self.config, self.config.n_views
        features = self.encode(views)  # [V B, F]
        i, j = torch.triu_indices(n, n, 1, device=features.device)  # the pairs of views
        z = self.projections(features).unflatten(0, (n, -1))  # [V, B, D]
        logits = losses.at_least_float32(self.heads(features))  # [H, V B, K]
        p = logits.softmax(-1).unflatten(1, (n, -1))  # [H, V, B, K]

        feature_contrast = self.contrast(z)
        smoothed = losses.smooth(p, c.smoothing)
        pairs = losses.probability_contrast(smoothed[:, i], smoothed[:, j], c.critic)
        probability_contrast = pairs.mean(-1)  # [H]
        measure = losses.batch_entropy if c.entropy == "batch" else losses.sample_entropy
        entropy = measure(smoothed if c.entropy_smoothed else p).mean(-1)  # [H]
        head_losses = probability_contrast - c.lambda1 * entropy
        if c.logit_clamp:
            # the mean over all views' images is the mean over the views
            clamp = losses.logit_clamp(logits, c.logit_clamp)
            head_losses = head_losses + c.logit_clamp_weight * clamp
        named = {
            "loss": c.lambda2 * feature_contrast + head_losses.mean(),
            "feature_contrast": feature_contrast,
            "probability_contrast": probability_contrast.mean(),
            "entropy": entropy.mean(),
            "head_losses": head_losses,
        }
        if c.covariance_weight:
            covariance = losses.covariance(z.flatten(0, 1))
            named["covariance"] = covariance
            named["loss"] = named["loss"] + c.lambda2 * c.covariance_weight * covariance
        if c.neighbour_weight:
            self.new = losses.normalized(z[0]).detach()
            named["neighbour_contrast"] = torch.zeros_like(feature_contrast)
            if self.warm:
                nearest = losses.nearest_neighbours(z, self.queue)
                named["neighbour_contrast"] = self.contrast(z, nearest)
                more = named["neighbour_contrast"] - feature_contrast
                named["loss"] = named["loss"] + c.lambda2 * c.neighbour_weight * more
        return named

    def contrast(self, z: Tensor, nearest: Tensor | None = None) -> Tensor:
        """The feature contrast of projections ``[V, B, D]``, as ``negatives`` says, or that of
        their nearest neighbours with them."""
        c = self.config
        if c.negatives != "pair":
            decoupled = c.negatives == "decoupled"
            return losses.views_contrast(z, c.temperature, decoupled, nearest)
        i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)  # the pairs of views
        if nearest is not None:
            nearest = torch.cat([nearest[i], nearest[j]], 1)
        return losses.feature_contrast(z[i], z[j], c.temperature, nearest).mean()

    def after_step(self, step: int, steps: int) -> None:
        """First in, first out, as many as the step has images."""
        if self.config.neighbour_weight:
            self.queue = torch.cat([self.new, self.queue[: -len(self.new)]])

    def projections(self, features: Tensor) -> Tensor:
        """``[N, F]`` -> ``[N, D]``."""
        return self.projector(features).flatten(0, -2)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        return {
            "backbone": features,
            "projection": self.projections(features),
            "probabilities": losses.at_least_float32(self.heads(features)).softmax(-1),
        }
