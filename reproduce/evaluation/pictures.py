"""What a network's channels look for: first filters as pictures, and the images that excite a
channel most (Caron et al., ECCV 2018, section 4.1)."""

from torch import Tensor, nn


def first_filters(backbone: nn.Module) -> Tensor:
    """The filters ``[F, C, h, w]`` of the first convolution that is learned, each moved and scaled
    as a whole to fill 0..1; a filter of one value everywhere is 0.5."""
    learned = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    weight = next(learned).weight.detach().float()
    low, high = weight.amin((1, 2, 3), True), weight.amax((1, 2, 3), True)
    scaled = (weight - low) / (high - low)
    return scaled.nan_to_num_(0.5)


def most_activating(means: Tensor, n: int) -> Tensor:
    """For each channel the n images that excite it most, the strongest first: int64 ``[F, n]``,
    fewer where there are not as many images. means: ``[N, F]``, the mean of each channel's map."""
    return means.topk(min(n, len(means)), 0).indices.T


def same_class(labels: Tensor, images: Tensor) -> Tensor:
    """How pure rows of images are: of each row of numbers ``[R, n]`` the share, in 0..1, that its
    most frequent class has among its n; ``[R]``. labels: int64 ``[N]``, from 0 on."""
    counts = nn.functional.one_hot(labels[images], int(labels.max()) + 1).sum(1)
    return counts.amax(1) / images.shape[1]
