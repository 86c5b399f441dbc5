"""CRLC: clustering by maximising mutual information across views (Do et al., ICCV 2021).

One backbone, one projection head for the feature contrast, H clustering heads. The loss is that of
the authors' released code, all heads at once:

    lambda2 FC + mean_heads(PC - lambda1 H + clamp)"""

import torch
from torch import Tensor, nn

from reproduce import losses
from reproduce.config import Config
from reproduce.methods.base import Method, heads_mlp


class CRLC(Method):
    unit_length = False

    def __init__(self, config: Config, backbone: nn.Module, n_clusters: int, n_images: int):
        super().__init__(config, backbone)
        sizes = backbone.n_features, config.head_hidden
        kind = config.head_bias, config.head_init
        self.projector = heads_mlp(1, *sizes, config.projection_dim, *kind)
        self.heads = heads_mlp(config.n_heads, *sizes, n_clusters, *kind)

    def loss(self, views: tuple[Tensor, ...], index: Tensor) -> dict[str, Tensor]:
        """With more than two views the contrasts are averaged over their pairs."""
        c, n = self.config, self.config.n_views
        features = self.encode(views)  # [V B, F]
        i, j = torch.triu_indices(n, n, 1, device=features.device)  # the pairs of views
        z = self.projector(features)[0].unflatten(0, (n, -1))  # [V, B, D]
        logits = losses.at_least_float32(self.heads(features))  # [H, V B, K]
        p = logits.softmax(-1).unflatten(1, (n, -1))  # [H, V, B, K]

        feature_contrast = losses.feature_contrast(z[i], z[j], c.temperature).mean()
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
        return {
            "loss": c.lambda2 * feature_contrast + head_losses.mean(),
            "feature_contrast": feature_contrast,
            "probability_contrast": probability_contrast.mean(),
            "entropy": entropy.mean(),
            "head_losses": head_losses,
        }

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        return {
            "backbone": features,
            "projection": self.projector(features)[0],
            "probabilities": losses.at_least_float32(self.heads(features)).softmax(-1),
        }
