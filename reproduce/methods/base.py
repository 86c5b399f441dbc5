"""What every method shares: a backbone, the way two views pass through it, and a bank of MLP heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reproduce.config import Config


class Method(nn.Module):
    """From two views to named loss terms; a method never sees a label.

    A new method subclasses this, defines ``loss`` and gets one line in ``reproduce/methods/__init__.py``.
    """

    def __init__(self, config: Config, backbone: nn.Module):
        super().__init__()
        self.config = config
        self.backbone = backbone

    def encode(self, images: Tensor) -> Tensor:
        """Both views' images ``[2B, C, H, W]``, view by view -> features ``[2B, n_features]``.

        What batch norm sees at once is one pass. ``views`` 'together': both views, 'apart': each by
        itself. ``batchnorm_split``: only the images that one of n devices would hold.
        """
        n = self.config.batchnorm_split
        if self.config.views == "apart":
            return torch.cat([self.backbone(part) for part in images.chunk(2 * n)])
        if n == 1:
            return self.backbone(images)
        devices = zip(*(view.chunk(n) for view in images.chunk(2)))
        features = [self.backbone(torch.cat(both)).chunk(2) for both in devices]
        return torch.cat([part for view in zip(*features) for part in view])

    def loss(self, view1: Tensor, view2: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Two views ``[B, C, H, W]`` of the images ``index`` ``[B]`` -> {"loss": scalar, its named terms},
        and, where there are clustering heads, "head_losses" ``[H]``, by which a head is chosen without labels."""
        raise NotImplementedError

    def after_step(self) -> None:
        """After each optimiser step: moving averages, queues."""

    def before_epoch(self, epoch: int, extract) -> dict:
        """Before each epoch: pseudo-labels, prototypes. Returns what history should tell of them."""
        return {}

    def embed(self, images: Tensor) -> Tensor:
        """Features ``[N, D]`` for k-means, kNN and UMAP."""
        return self.backbone(images)

    def assign(self, images: Tensor) -> Tensor | None:
        """Cluster probabilities ``[H, N, K]``, or None for a method without clustering heads."""
        return None


class HeadsLinear(nn.Module):
    """H linear layers side by side: ``[H, N, n_in]`` or ``[N, n_in]`` -> ``[H, N, n_out]``."""

    def __init__(self, n_heads: int, n_in: int, n_out: int, bias: bool, init: str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_heads, n_in, n_out))
        # one dimension, so that weight decay knows a bias from a weight
        self.bias = nn.Parameter(torch.zeros(n_heads * n_out)) if bias else None
        # both are uniform within +-bound; kaiming's gain is sqrt(2), torch's default amounts to 1/sqrt(3)
        bound = (6 / n_in) ** 0.5 if init == "kaiming" else (1 / n_in) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if bias and init == "torch":
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.weight
        return out if self.bias is None else out + self.bias.view(len(out), 1, -1)


def heads_mlp(n_heads: int, n_in: int, hidden: int, n_out: int, bias: bool = True, init: str = "kaiming") -> nn.Module:
    """H two-layer perceptrons, computed at once: features ``[N, n_in]`` -> ``[H, N, n_out]``."""
    return nn.Sequential(
        HeadsLinear(n_heads, n_in, hidden, bias, init),
        nn.ReLU(inplace=True),
        HeadsLinear(n_heads, hidden, n_out, bias, init),
    )
