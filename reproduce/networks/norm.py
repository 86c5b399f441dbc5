"""Batch norm over the images of all processes."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from reproduce.processes import world


def with_global_norm(method: nn.Module, device: torch.device) -> nn.Module:
    """The method with batch norms that see the shares of all processes."""
    if world() == 1:
        return method
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(method)
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = GlobalBatchNorm  # the same parameters and buffers
    return method


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all processes' images on a CPU, for which torch has none."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes, shape = [d for d in range(x.dim()) if d != 1], (1, -1, *[1] * (x.dim() - 2))
        n, kind = x.numel() // x.shape[1] * world(), x.dtype
        x = x if kind == torch.float64 else x.float()
        # a sum whose gradients are summed on the way back
        mean = all_reduce(x.sum(axes)) / n
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / n
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))
        return y.to(kind)
