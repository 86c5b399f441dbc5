"""Muon for convolutions (Jordan et al., 2024, kellerjordan.github.io/posts/muon): a step has no
large and no small directions. Here it is for 3x3 convolutions, and SGD for the rest, as
KellerJordan/cifar10-airbench trains with labels."""

import torch
from torch import Tensor, nn

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic, as released


def convolutions(network: nn.Module) -> list[Tensor]:
    """The kernels ``[out, in, 3, 3]`` that learn and have more than three input channels: fewer
    channels are pixels, whose few directions are not alike."""
    kernels = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    wide = [w for w in kernels if w.shape[1] > 3 and w.shape[2:] == (3, 3)]
    return [w for w in wide if w.requires_grad]


def orthogonalized(gradient: Tensor, steps: int = 3) -> Tensor:
    """U V^T, nearly, of a matrix U S V^T ``[out, in]``: its singular values brought towards 1 by
    Newton-Schulz, in the precision of the matrix.

    X_0 = G / |G|;  X_n+1 = a X + b (X X^T) X + c (X X^T)^2 X"""
    a, b, c = COEFFICIENTS
    tall = gradient.shape[0] > gradient.shape[1]
    x = gradient.mT if tall else gradient
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.SGD):
    """SGD, but for the groups with "muon": their parameters, kernels ``[out, in, 3, 3]``, take
    orthogonalised steps.

    M <- 0.6 M + G;  W <- sqrt(out) W / |W|;  W <- W - rate * orthogonalized(G + 0.6 M)

    on kernels as matrices ``[out, 9 in]``; batch norm after them takes no note of the norm.
    dtype: of Newton-Schulz, whose products are as narrow as the network's."""

    def __init__(self, groups, dtype: torch.dtype = torch.float32, **settings):
        super().__init__(groups, **settings)
        self.dtype, self.muon_momentum = dtype, 0.6

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for kernel in group["params"] if group["muon"] else ():
                kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
                # with its own momentum 0 and no decay, SGD's step is minus rate times this
                kernel.grad.copy_(self.direction(kernel))
        return super().step(closure)

    def direction(self, kernel: Tensor) -> Tensor:
        """Where a kernel goes, ``[out, in, 3, 3]``."""
        state, gradient = self.state[kernel], kernel.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(kernel)
        momentum = state["momentum_buffer"].mul_(self.muon_momentum).add_(gradient)
        nesterov = gradient.add(momentum, alpha=self.muon_momentum)
        flat = nesterov.flatten(1).to(self.dtype)
        return orthogonalized(flat).reshape(kernel.shape).to(kernel.dtype)
