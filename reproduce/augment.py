"""Random views of a batch, drawn for each sample, computed for all of them at once on their device.

Each transform is a pure function of images ``[N, C, H, W]`` in 0..1 and of its parameters, one
value per sample: a test hands torchvision the same draw. ``Augment`` draws them."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce.config import Config
from reproduce.processes import share, world

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision


class Augment:
    """Random views of a batch of uint8 images.

    mean, std: ``[C]``, of the training images in 0..1; used where ``config.normalize`` is set.
    side: of crops, in pixels, which grows in training where ``config.view_sizes`` say so; 0: that
    of the images."""

    def __init__(self, config: Config, mean: Tensor, std: Tensor):
        self.config, self.side = config, config.phases[-1][0]
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        draws: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
            "digits": self.digits,
            "images": self.images,
            "none": self.resize,
        }
        self.draw = draws[config.augmentation]

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """uint8 ``[B, C, H, W]`` -> ``n_views`` views, float32 ``[B, C, S, S]`` with sides of
        ``side`` (0: H, W as they are). With ``neighbours`` the images are ``[V B, C, H, W]``,
        one for each view. All are drawn in one pass."""
        times = 1 if self.config.neighbours else self.config.n_views
        x = images.float().div_(255).repeat(times, 1, 1, 1)
        views = self.normalize(self.draw(x, generator))
        return views.contiguous(memory_format=torch.channels_last).chunk(self.config.n_views)

    def clean(self, images: Tensor) -> Tensor:
        """Whole images for evaluation, scaled and normalised as the views are, with sides of
        ``eval_size`` (0: of the views). Crops enlarge what they show; whole images of the views'
        size show it smaller than the network has learnt it (Touvron et al., NeurIPS 2019)."""
        x = self.resize(images.float().div_(255))
        return self.normalize(x).contiguous(memory_format=torch.channels_last)

    def resize(self, x: Tensor, _=None) -> Tensor:
        """Whole images in the size that the network sees, as torchvision resizes tensors; the
        squares at their centres where crops are 'fixed'."""
        c, side = self.config, self.config.eval_size or self.config.phases[-1][0]
        if c.crop == "fixed":
            side, whole = side or x.shape[-1], x.shape[-1]
            cut = round(whole * c.crop_scale**0.5) or whole  # as the views
            first = (whole - cut) // 2
            x = x[..., first : first + cut, first : first + cut]
        return F.interpolate(x, (side, side), mode="bilinear", antialias=True) if side else x

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std if self.config.normalize else x

    def digits(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Affine, gamma, contrast, noise: for small grey images, whose shape a crop would cut."""
        c = self.config
        draws = uniform(7, len(x), generator, x.device, c.n_views).mul_(2).sub_(1)
        angle, shear, log_gamma, grown, factor, dx, dy = draws
        angle, zoom = angle * c.rotation, 1 + grown * c.zoom
        x = affine(x, angle, zoom, shear * c.shear, dx * c.shift, dy * c.shift)
        x = x.pow((log_gamma * c.gamma).exp().view(-1, 1, 1, 1))
        x = adjust_contrast(x, 1 + factor * c.contrast)
        whole = len(x) * world(), *x.shape[1:]
        noise = share(torch.randn(whole, generator=generator, device=x.device), c.n_views)
        return (x + c.noise * noise).clamp_(0, 1)

    def images(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Random resized crop, flip, colour jitter, grayscale, blur: SimCLR's, as in CRLC."""
        c, draws = self.config, (len(x), generator, x.device, self.config.n_views)
        u = uniform(5, *draws)
        shape = dict(most=c.crop_scale, ratio=(1, 1)) if c.crop == "fixed" else {}
        box = random_boxes(x.shape[-2:], len(x), c.crop_scale, *draws[1:], **shape)
        x = resized_crop(x, box, u[0] < c.flip, self.side)
        if x.shape[1] == 3 and c.jitter > 0 and c.jitter_p > 0:
            *blends, turns = uniform(4, *draws)
            low, high = max(0.0, 1 - c.jitter), 1 + c.jitter
            factors = [low + (high - low) * f for f in blends] + [c.jitter / 4 * (2 * turns - 1)]
            jittered = color_jitter(x, torch.stack(factors), uniform(4, *draws).argsort(0))
            x = torch.where((u[1] < c.jitter_p).view(-1, 1, 1, 1), jittered, x)
        if x.shape[1] == 3 and c.grayscale > 0:
            x = torch.where((u[2] < c.grayscale).view(-1, 1, 1, 1), to_gray(x), x)
        if c.blur > 0:
            sigma = 0.1 + 1.9 * u[3]
            x = torch.where((u[4] < c.blur).view(-1, 1, 1, 1), gaussian_blur(x, sigma), x)
        return x


def uniform(rows: int, n: int, generator: torch.Generator, device, views: int = 1) -> Tensor:
    """``[rows, n]`` numbers in [0, 1). Several processes draw those of the whole batch, and each
    keeps its own samples'."""
    return share(torch.rand(rows, n * world(), generator=generator, device=device), views, -1)


def affine(
    x: Tensor, degrees: Tensor, scale: Tensor, shear: Tensor, dx: Tensor, dy: Tensor
) -> Tensor:
    """Rotation, scale, shear along x and shift about the centre, bilinear, zeros outside.

    One value per sample: degrees and shear in degrees, dx and dy as shares of the side. The signs
    are torchvision's ``affine(angle, translate, scale, shear)``."""
    a, s = torch.deg2rad(degrees), torch.deg2rad(shear)
    cos, sin, tan = a.cos(), a.sin(), s.tan()
    # an output pixel asks where it comes from:  inverse of R(a) S(s) scale  =  S(-s) R(-a) / scale
    inverse = torch.stack([cos - tan * sin, sin + tan * cos, -sin, cos], -1).view(-1, 2, 2)
    inverse = inverse / scale.view(-1, 1, 1)
    offset = torch.stack([dx, dy], -1).unsqueeze(-1) * -2  # grid_sample's coordinates span -1..1
    theta = torch.cat([inverse, inverse @ offset], -1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_boxes(
    size, n: int, least: float, generator, device, views=1, most=1, ratio=(3 / 4, 4 / 3), tries=10
) -> Tensor:
    """n boxes ``[4, n]`` (top, left, height, width) as torchvision's RandomResizedCrop draws them:
    area uniform in least..most, log-uniform aspect ratio, the first of ten draws that fits, else
    the largest central box of an allowed ratio."""
    height, width = size
    drawn = uniform(4 * tries, n, generator, device, views)
    area, shape, top, left = drawn.view(4, tries, n)
    area = height * width * (least + (most - least) * area)
    low, high = map(math.log, ratio)
    shape = torch.exp(low + (high - low) * shape)
    w, h = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.float().argmax(0, keepdim=True)
    w, h, top, left, fits = (t.gather(0, first)[0] for t in (w, h, top, left, fits))
    box = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor(), h, w
    full_w, full_h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    central = (height - full_h) // 2, (width - full_w) // 2, full_h, full_w
    return torch.stack([torch.where(fits, drawn, fixed) for drawn, fixed in zip(box, central)])


def resized_crop(x: Tensor, box: Tensor, flip: Tensor, side: int = 0) -> Tensor:
    """Cut a box out of each sample, resize it to ``side`` x ``side`` (0: the images' own size),
    flip where asked. box: ``[4, N]``.

    A bilinear resize is linear and separable: two small matrix products a channel,
    ``rows @ image @ columns^T``, do crop, resize (antialiased when it shrinks) and flip together.
    """
    height, width = x.shape[-2:]
    top, left, h, w = box
    rows = resize_matrix(top, h, height, side or height)
    columns = resize_matrix(left, w, width, side or width)
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    return (rows.unsqueeze(1) @ x @ columns.mT.unsqueeze(1)).clamp_(0, 1)


def resize_matrix(start: Tensor, length: Tensor, n_in: int, n_out: int) -> Tensor:
    """``[N, n_out, n_in]``: row o holds the weights of the input pixels in output pixel o, when the
    ``length`` pixels from ``start`` on are resized to ``n_out`` by a triangle filter."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    o = torch.arange(n_out, device=start.device).view(1, -1, 1)
    i = torch.arange(n_in, device=start.device).view(1, 1, -1)
    scale = length / n_out
    centre = start + (o + 0.5) * scale - 0.5
    reach = scale.clamp_min(1)
    weight = (1 - (i - centre).abs() / reach).clamp_min(0)
    weight = weight * ((i >= start) & (i < start + length))
    return weight / weight.sum(-1, keepdim=True)


def color_jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation (factors) and hue (turns) in an order of each sample's own.

    factors: ``[4, N]``; order: ``[4, N]``, a permutation of 0..3 a column, the step at each place.
    Hue costs most and is computed once: each sample takes the other steps before it or after it,
    and a blend by factor 1 where its turn is the other."""
    hue_at = (order == 3).int().argmax(0)  # [N]
    factor_at = factors.gather(0, order)  # [4, N]
    for place in (0, 1, 2):
        x = blend(x, order[place], torch.where(place < hue_at, factor_at[place], 1))
    x = adjust_hue(x, factors[3])
    for place in (1, 2, 3):
        x = blend(x, order[place], torch.where(place > hue_at, factor_at[place], 1))
    return x


def blend(x: Tensor, step: Tensor, factor: Tensor) -> Tensor:
    """Brightness blends with black (step 0), contrast with the mean grey (1), saturation with the
    grey image (2), a step a sample: factor 0 is the other, 1 the image itself."""
    step, factor = step.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    gray = luma(x)
    mean = gray.mean((-2, -1), keepdim=True)
    other = torch.where(step == 1, mean, torch.where(step == 2, gray, 0))
    return torch.addcmul((1 - factor) * other, factor, x).clamp_(0, 1)


def luma(x: Tensor) -> Tensor:
    """``[N, 3, H, W]`` -> ``[N, 1, H, W]``"""
    r, g, b = x.split(1, 1)
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def to_gray(x: Tensor) -> Tensor:
    """Luma in all three channels."""
    return luma(x).expand_as(x)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey: factor 0 is flat, 1 the image itself."""
    gray = luma(x) if x.shape[1] == 3 else x
    mean = gray.mean((-3, -2, -1), keepdim=True)
    return (mean + factor.view(-1, 1, 1, 1) * (x - mean)).clamp(0, 1)


def adjust_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by so many turns (-0.5 to 0.5); value and chroma, as HSV has them, are kept.

    Value V is the largest channel, chroma C what it has over the least. A channel at a distance of
    d turns from the hue opposite to its own is  V - C clip(2 - 6 d, 0, 1)."""
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = high - low
    r, g, b = x.split(1, 1)
    safe = torch.where(chroma == 0, 1, chroma)
    sixths = torch.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    sixths = torch.where(high == r, (g - b) / safe, sixths)
    # red is at 0, green at 1/3, blue at 2/3
    opposite = 0.5 + torch.arange(3, device=x.device).view(3, 1, 1) / 3
    distance = sixths / 6 + turns.view(-1, 1, 1, 1) - opposite
    distance = distance.sub_(distance.round()).abs_()
    return torch.addcmul(high, chroma, (2 - 6 * distance).clamp_(0, 1), value=-1)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each sample by its ``sigma`` in pixels, over a tenth of the side, edges reflected."""
    n, channels, height, width = x.shape
    radius = max(1, (min(height, width) // 10) // 2)
    offset = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offset / sigma.view(-1, 1)).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0).unsqueeze(1)
    padded = F.pad(x, [radius] * 4, mode="reflect")
    flat = padded.reshape(1, n * channels, *padded.shape[-2:])
    flat = F.conv2d(flat, kernel.unsqueeze(2), groups=n * channels)
    flat = F.conv2d(flat, kernel.unsqueeze(3), groups=n * channels)
    return flat.view(n, channels, height, width)
