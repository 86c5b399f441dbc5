"""Each transform against torchvision's on single images with the same draw; then the draws
themselves."""

import itertools
import math

import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as tv

from reproduce import augment
from reproduce.augment import Augment
from reproduce.config import Config

N = 24


def draws(n, low, high):
    return low + (high - low) * torch.rand(n)


def pictures(n=N, channels=3, side=32):
    """Smooth shapes with some texture, all values in 0..1, with black and white pixels among
    them."""
    coarse = torch.rand(n, channels, 4, 4)
    x = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return (x + 0.1 * torch.randn(x.shape)).clamp(0, 1)


def bytes_of(n=N, channels=3, side=32):
    return (pictures(n, channels, side) * 255).round().to(torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def augmenter(channels=3, side=32, mean=None, std=None, **settings):
    folder = {"dataset": "folder", "folder": "x", "image_size": side}
    config = Config.from_params(
        {"augmentation": "images", "normalize": False, **folder, **settings}
    )
    return Augment(
        config,
        torch.zeros(channels) if mean is None else mean,
        torch.ones(channels) if std is None else std,
    )


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_a_fixed_crop_of_less_than_a_pixel_is_the_whole_image():
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    tiny = augmenter(side=8, crop="fixed", crop_scale=0.001)
    assert torch.equal(tiny.clean(x), augmenter(side=8, crop="fixed", crop_scale=1.0).clean(x))


# ---- transforms, draw by draw


@pytest.mark.parametrize("side", [8, 32])
def test_affine_is_torchvisions(side):
    x = pictures(side=side)
    degrees, scale, shear = draws(N, -40, 40), draws(N, 0.6, 1.5), draws(N, -25, 25)
    right, down = torch.randint(-3, 4, (2, N))
    ours = augment.affine(x, degrees, scale, shear, right / side, down / side)
    theirs = torch.stack(
        [
            tv.affine(
                x[i],
                float(degrees[i]),
                [int(right[i]), int(down[i])],
                float(scale[i]),
                [float(shear[i]), 0.0],
                interpolation=tv.InterpolationMode.BILINEAR,
            )  # zeros outside, where no fill is named
            for i in range(N)
        ]
    )
    close(ours, theirs)


def test_affine_in_closed_form():
    x = pictures()
    zero, one = torch.zeros(N), torch.ones(N)
    close(augment.affine(x, zero, one, zero, zero, zero), x)
    close(augment.affine(x, zero + 90, one, zero, zero, zero), x.rot90(-1, (2, 3)))  # clockwise
    shifted = augment.affine(x, zero, one, zero, zero + 0.25, zero)
    close(shifted[..., 8:], x[..., :-8])  # to the right by a quarter of 32
    assert shifted[..., :8].count_nonzero() == 0  # zeros come in
    shifted = augment.affine(x, zero, one, zero, zero, zero + 0.25)
    close(shifted[:, :, 8:], x[:, :, :-8])
    close(
        augment.affine(x, zero, 2 * one, zero, zero, zero)[0].mean(),
        x[0, :, 8:24, 8:24].mean(),
        atol=2e-2,
    )


@pytest.mark.parametrize("side, size", [(8, 0), (32, 0), (64, 0), (32, 24), (32, 16), (16, 40)])
def test_resized_crop_is_torchvisions(side, size):
    """Larger and smaller, at every edge, flipped or not, to the images' own size or another."""
    x = pictures(side=side)
    height, width = torch.randint(1, side + 1, (2, N))
    top, left = (
        (torch.rand(N) * (side - height + 1)).floor(),
        (torch.rand(N) * (side - width + 1)).floor(),
    )
    flip = torch.rand(N) < 0.5
    box = torch.stack([top, left, height, width]).float()
    ours = augment.resized_crop(x, box, flip, size)
    for i in range(N):
        t, l, h, w = (int(v) for v in box[:, i])
        theirs = tv.resized_crop(x[i], t, l, h, w, [size or side] * 2, antialias=True)
        close(ours[i], tv.hflip(theirs) if flip[i] else theirs)


@pytest.mark.parametrize(
    "n_in, n_out, start, length",
    [(64, 32, 0, 64), (64, 32, 5, 50), (64, 16, 10, 20), (64, 32, 1, 63)],
)
def test_resize_is_antialiased_when_it_shrinks(n_in, n_out, start, length):
    """``resize_matrix`` down to fewer pixels than the box has, as torchvision's antialiased
    resize."""
    x = pictures(1, side=n_in)[0]
    matrix = augment.resize_matrix(
        torch.tensor([float(start)]), torch.tensor([float(length)]), n_in, n_out
    )[0]
    ours = matrix @ x @ matrix.T
    close(ours, tv.resized_crop(x, start, start, length, length, [n_out, n_out], antialias=True))


def test_whole_box_is_the_image_itself():
    x = pictures()
    whole = torch.tensor([0.0, 0, 32, 32]).view(4, 1).expand(4, N)
    assert torch.equal(augment.resized_crop(x, whole, torch.zeros(N, dtype=torch.bool)), x)
    assert torch.equal(augment.resized_crop(x, whole, torch.ones(N, dtype=torch.bool)), x.flip(-1))


def by_torchvision(x, factors, order):
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for step in order.tolist():
        x = steps[step](x, float(factors[step]))
    return x


def test_color_jitter_is_torchvisions_in_all_orders():
    order = torch.tensor(list(itertools.permutations(range(4)))).T  # [4, 24]
    for strength in (0.4, 1.0):  # the second so strong that values are clipped between the steps
        x = pictures()
        factors = torch.cat(
            [draws((3, N), 1 - strength, 1 + strength), draws((1, N), -strength / 2, strength / 2)]
        )
        ours = augment.color_jitter(x, factors, order)
        theirs = torch.stack([by_torchvision(x[i], factors[:, i], order[:, i]) for i in range(N)])
        close(ours, theirs)
        assert (ours - x).abs().amax((1, 2, 3)).min() > 0.05  # every image did change


@pytest.mark.parametrize(
    "step, f", [(0, tv.adjust_brightness), (1, tv.adjust_contrast), (2, tv.adjust_saturation)]
)
def test_blend_is_torchvisions(step, f):
    x, factor = pictures(), draws(N, 0, 2)
    ours = augment.blend(x, torch.full((N,), step), factor)
    close(ours, torch.stack([f(x[i], float(factor[i])) for i in range(N)]))
    close(
        augment.blend(x, torch.full((N,), step), torch.ones(N)), x, atol=0
    )  # by factor 1: not touched


def test_adjust_hue_is_torchvisions_on_every_kind_of_colour():
    """Black, white, grey, every tie between channels; turns that land on the borders of the
    sixths."""
    levels = torch.tensor([0.0, 0.2, 0.5, 1.0])
    x = torch.cartesian_prod(levels, levels, levels).T.view(1, 3, 8, 8)
    for turns in [-0.5, -1 / 3, -1 / 6, -0.05, 0.0, 0.1, 1 / 6, 0.25, 1 / 3, 0.5]:
        close(augment.adjust_hue(x, torch.tensor([turns])), tv.adjust_hue(x, turns))
    x, turns = pictures(), draws(N, -0.5, 0.5)
    close(
        augment.adjust_hue(x, turns),
        torch.stack([tv.adjust_hue(x[i], float(turns[i])) for i in range(N)]),
    )


def test_adjust_hue_in_closed_form():
    red, green, blue = torch.eye(3).view(3, 1, 3, 1, 1)
    third = torch.tensor([1 / 3])
    close(augment.adjust_hue(red, third), green)
    close(augment.adjust_hue(green, third), blue)
    close(augment.adjust_hue(blue, third), red)
    close(augment.adjust_hue(red, torch.tensor([0.5])), 1 - red)


def test_to_gray_is_torchvisions():
    x = pictures()
    close(augment.to_gray(x), tv.rgb_to_grayscale(x, 3), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_adjust_contrast_is_torchvisions(channels):
    x, factor = pictures(channels=channels), draws(N, 0, 2)
    close(
        augment.adjust_contrast(x, factor),
        torch.stack([tv.adjust_contrast(x[i], float(factor[i])) for i in range(N)]),
    )


@pytest.mark.parametrize("side, kernel", [(8, 3), (32, 3), (64, 7), (96, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_gaussian_blur_is_torchvisions(side, kernel, channels):
    """The kernel is SimCLR's: 2 (side // 10 // 2) + 1 pixels, never fewer than 3."""
    x, sigma = pictures(6, channels, side), draws(6, 0.1, 2)
    theirs = torch.stack(
        [tv.gaussian_blur(x[i], [kernel, kernel], [float(sigma[i])] * 2) for i in range(6)]
    )
    close(augment.gaussian_blur(x, sigma), theirs)


def test_one_sample_does_not_see_the_others():
    """A transform of the batch is the transform of each image with its own draw."""
    x = pictures()
    order = torch.rand(4, N).argsort(0)
    factors = torch.cat([draws((3, N), 0.6, 1.4), draws((1, N), -0.1, 0.1)])
    box = augment.random_boxes((32, 32), N, 0.2, generator(), "cpu")
    a, b, c = draws(N, 0.5, 1.5), draws(N, -20, 20), draws(N, -0.1, 0.1)
    transforms = {
        "affine": lambda x, i: augment.affine(x, b[i], a[i], b[i] / 2, c[i], -c[i]),
        "resized_crop": lambda x, i: augment.resized_crop(x, box[:, i], b[i] > 0),
        "color_jitter": lambda x, i: augment.color_jitter(x, factors[:, i], order[:, i]),
        "adjust_contrast": lambda x, i: augment.adjust_contrast(x, a[i]),
        "to_gray": lambda x, i: augment.to_gray(x),
        "gaussian_blur": lambda x, i: augment.gaussian_blur(x, a[i]),
    }
    for name, transform in transforms.items():
        together = transform(x, slice(None))
        for i in (0, 7, N - 1):
            torch.testing.assert_close(
                transform(x[i : i + 1], slice(i, i + 1))[0],
                together[i],
                rtol=0,
                atol=1e-6,
                msg=name,
            )


@pytest.mark.parametrize("augmentation", ["digits", "images"])
def test_a_view_does_not_see_the_other_images(augmentation):
    """Other images beside it, the same draws: the same view, to the bit."""
    make = augmenter(augmentation=augmentation, blur=0.5)
    x, other = bytes_of(), bytes_of().flip(0)
    other[5] = x[5]
    for a, b in zip(make(x, generator()), make(other, generator())):
        assert torch.equal(a[5], b[5]) and not torch.equal(a[6], b[6])


# ---- boxes


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (20, 90), (90, 20)])
@pytest.mark.parametrize("least", [0.08, 0.2, 1.0])
def test_boxes_lie_inside(size, least):
    top, left, height, width = augment.random_boxes(size, 5000, least, generator(), "cpu")
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    for t in (top, left, height, width):
        assert torch.equal(t, t.round())


@pytest.mark.parametrize(
    "size, least", [((224, 224), 0.2), ((32, 32), 0.08), ((40, 100), 0.2), ((100, 30), 0.5)]
)
def test_boxes_are_distributed_as_torchvisions(size, least):
    """Area, aspect ratio and both corners by Kolmogorov-Smirnov; the last two sizes need the
    fallback."""
    n = 3000
    ours = augment.random_boxes(size, n, least, generator(), "cpu")
    image = torch.zeros(3, *size)
    theirs = (
        torch.tensor(
            [RandomResizedCrop.get_params(image, [least, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
        )
        .float()
        .T
    )

    def shares(box):
        top, left, h, w = box
        yield "area", h * w
        yield "aspect", (w / h).log()
        yield "top", top / (size[0] - h + 1)
        yield "left", left / (size[1] - w + 1)
        yield "bottom", top + h
        yield "right", left + w

    for (name, a), (_, b) in zip(shares(ours), shares(theirs)):
        assert ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3, name


def test_a_box_that_never_fits_is_the_central_one():
    """A square box cannot have 9 parts in 10 of such a strip: torchvision falls back to the
    same."""
    for size in ((100, 20), (20, 100), (20, 101)):
        box = augment.random_boxes(size, 50, 0.9, generator(), "cpu")
        theirs = RandomResizedCrop.get_params(torch.zeros(1, *size), [0.9, 1.0], [3 / 4, 4 / 3])
        assert torch.equal(box, torch.tensor(theirs).float().view(4, 1).expand(4, 50))


# ---- the two views of a batch


@pytest.mark.parametrize(
    "augmentation, channels, side",
    [("digits", 1, 8), ("digits", 3, 32), ("images", 3, 32), ("images", 1, 16), ("none", 3, 8)],
)
def test_views_are_as_promised(augmentation, channels, side):
    x = bytes_of(channels=channels, side=side)
    before, state = x.clone(), torch.get_rng_state()
    make = augmenter(channels, side, augmentation=augmentation, blur=0.3)
    views = make(x, generator())
    for view in views:
        assert view.shape == x.shape and view.dtype == torch.float32 and view.device == x.device
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert view.min() >= 0 and view.max() <= 1 + 1e-6 and view.isfinite().all()
    assert torch.equal(x, before)
    assert torch.equal(
        torch.get_rng_state(), state
    )  # drawn from the generator handed in, and no other
    again = make(x, generator())
    assert all(torch.equal(a, b) for a, b in zip(views, again))
    if augmentation == "none":
        assert torch.equal(views[0], x / 255) and torch.equal(views[1], x / 255)
    else:
        assert (views[0] != views[1]).flatten(1).any(1).all()  # for every image
        assert not torch.equal(views[0], make(x, generator(1))[0])
        same = make(x[:1].expand(N, -1, -1, -1), generator())[0]  # every image draws for itself
        assert all((same[i] != same[j]).any() for i, j in itertools.combinations(range(N), 2))


def test_a_generator_goes_on():
    make, g = augmenter(), generator()
    x = bytes_of()
    assert not torch.equal(make(x, g)[0], make(x, g)[0])


def test_normalisation():
    mean, std = torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.1, 0.2, 0.4])
    x = bytes_of()
    expected = torch.stack([(x[:, c] / 255 - mean[c]) / std[c] for c in range(3)], 1)
    make = augmenter(mean=mean, std=std, normalize=True, augmentation="none")
    for view in (*make(x, generator()), make.clean(x)):
        close(view, expected, atol=1e-6)
    for augmentation in ("images", "digits"):  # after everything else
        plain = augmenter(augmentation=augmentation)(x, generator())
        normal = augmenter(augmentation=augmentation, mean=mean, std=std, normalize=True)(
            x, generator()
        )
        for a, b in zip(plain, normal):
            close(b, (a - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert torch.equal(augmenter(mean=mean, std=std).clean(x), x / 255)


def spy(monkeypatch, *names):
    """The arguments of each call of augment.<name>."""
    calls = {name: [] for name in names}
    for name in names:
        original = getattr(augment, name)

        def watched(*args, _name=name, _original=original, **kwargs):
            calls[_name].append((args, kwargs))
            return _original(*args, **kwargs)

        monkeypatch.setattr(augment, name, watched)
    return calls


def test_digits_image_by_image(monkeypatch):
    """Affine, then gamma, contrast and noise, from the draws of one generator, by torchvision."""
    calls = spy(monkeypatch, "affine", "adjust_contrast")
    make = augmenter(1, 8, augmentation="digits", noise=0.0, shift=0.125)
    x = bytes_of(6, 1, 8)
    views = torch.cat(make(x, generator()))
    (_, *drawn), _ = calls["affine"][0]
    (before_contrast, factor), _ = calls["adjust_contrast"][0]
    for i, image in enumerate(torch.cat([x, x])):
        image = augment.affine(image[None] / 255, *(p[i : i + 1] for p in drawn))[
            0
        ]  # torchvision's, see above
        middle = (image - 0.5).abs().argmin()
        gamma = float(before_contrast[i].flatten()[middle].log() / image.flatten()[middle].log())
        assert abs(math.log(gamma)) <= make.config.gamma
        close(views[i], tv.adjust_contrast(tv.adjust_gamma(image, gamma), float(factor[i])))


def test_digits_draw_what_the_settings_say(monkeypatch):
    calls = spy(monkeypatch, "affine", "adjust_contrast")
    n = 2000
    settings = dict(rotation=20, zoom=0.3, shear=7, shift=0.2, contrast=0.5, gamma=0.0, noise=0.0)
    augmenter(1, 8, augmentation="digits", **settings)(
        bytes_of(1, 1, 8).expand(n, -1, -1, -1), generator()
    )
    (_, degrees, scale, shear, dx, dy), _ = calls["affine"][0]
    (_, factor), _ = calls["adjust_contrast"][0]
    expected = [
        (degrees, 20, 0),
        (scale, 0.3, 1),
        (shear, 7, 0),
        (dx, 0.2, 0),
        (dy, 0.2, 0),
        (factor, 0.5, 1),
    ]
    for drawn, reach, centre in expected:
        assert kstest(drawn.numpy(), "uniform", args=(centre - reach, 2 * reach)).pvalue > 1e-3
    together = torch.stack([d for d, *_ in expected])
    correlation = torch.corrcoef(together) - torch.eye(len(together))
    assert correlation.abs().max() < 5 / math.sqrt(2 * n)  # each from a draw of its own


def test_digits_noise_and_gamma():
    still = dict(
        augmentation="digits", rotation=0, zoom=0, shear=0, shift=0, gamma=0, contrast=0, noise=0
    )
    x = bytes_of(400, 1, 8)
    close(augmenter(1, 8, **still)(x, generator())[0], x / 255)
    grey = torch.full((400, 1, 8, 8), 128, dtype=torch.uint8)
    noisy = augmenter(1, 8, **{**still, "noise": 0.1})(grey, generator())[0] - 128 / 255
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.03) and abs(float(noisy.mean())) < 3e-3
    exponents = augmenter(1, 8, **{**still, "gamma": 0.5})(grey, generator())[0][
        :, 0, 0, 0
    ].log() / math.log(128 / 255)
    assert kstest(exponents.log().numpy(), "uniform", args=(-0.5, 1.0)).pvalue > 1e-3


def test_images_image_by_image(monkeypatch):
    """Crop, flip, jitter, blur one after the other, every probability 1, by torchvision with the
    same draws."""
    calls = spy(monkeypatch, "resized_crop", "color_jitter", "gaussian_blur")
    make = augmenter(flip=1, jitter_p=1, blur=1, grayscale=0)
    x = bytes_of(6)
    views = torch.cat(make(x, generator()))
    (_, box, *_), _ = calls["resized_crop"][0]
    (_, factors, order), _ = calls["color_jitter"][0]
    (_, sigma), _ = calls["gaussian_blur"][0]
    for i, image in enumerate(torch.cat([x, x])):
        top, left, h, w = (int(v) for v in box[:, i])
        image = tv.hflip(tv.resized_crop(image / 255, top, left, h, w, [32, 32], antialias=True))
        image = by_torchvision(image, factors[:, i], order[:, i])
        close(views[i], tv.gaussian_blur(image, [3, 3], [float(sigma[i])] * 2))
    gray = torch.cat(augmenter(flip=1, jitter_p=1, blur=1, grayscale=1)(x, generator()))
    close(gray, gray[:, :1].expand_as(gray))
    assert gray.std() > 0.05


@pytest.mark.parametrize("jitter", [0.4, 1.6])
def test_images_draw_what_torchvision_would(monkeypatch, jitter):
    calls = spy(monkeypatch, "color_jitter", "gaussian_blur", "random_boxes")
    n = 1200
    augmenter(3, 16, jitter=jitter, blur=0.5, crop_scale=0.3)(
        bytes_of(1, 3, 16).expand(n, -1, -1, -1), generator()
    )
    (_, factors, order), _ = calls["color_jitter"][0]
    (_, sigma), _ = calls["gaussian_blur"][0]
    theirs = ColorJitter(jitter, jitter, jitter, jitter / 4)
    for drawn, (low, high) in zip(
        factors, (theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue)
    ):
        assert kstest(drawn.numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3
    assert kstest(sigma.numpy(), "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    assert torch.equal(order.sort(0)[0], torch.arange(4).view(4, 1).expand(4, 2 * n))
    counts = torch.bincount((order * torch.tensor([[64], [16], [4], [1]])).sum(0))
    counts = counts[counts > 0]
    assert len(counts) == 24  # all orders, evenly
    chi = float(((counts - n / 12) ** 2 / (n / 12)).sum())
    assert chi < 23 + 4 * math.sqrt(2 * 23)
    assert calls["random_boxes"][0][0][2] == 0.3


STILL = dict(crop_scale=1.0, flip=0, jitter_p=0, grayscale=0, blur=0)


def changed(setting, value, n=2000):
    """Share of images that a setting changes when everything else stands still."""
    x = bytes_of(1, 3, 16).expand(n, -1, -1, -1)
    # a crop of the whole area is the whole image only for aspect 1, so the box is held
    original, augment.random_boxes = (
        augment.random_boxes,
        lambda size, n, *_: torch.tensor([0.0, 0, *size]).view(4, 1).expand(4, n),
    )
    try:
        views = augmenter(3, 16, **{**STILL, setting: value})(x, generator())
    finally:
        augment.random_boxes = original
    return float(
        torch.stack(
            [((v - x / 255).abs().amax((1, 2, 3)) > 1e-4).float().mean() for v in views]
        ).mean()
    )


@pytest.mark.parametrize("setting", ["flip", "jitter_p", "grayscale", "blur"])
def test_probabilities_are_respected(setting):
    assert changed(setting, 0.0) == 0
    always = changed(setting, 1.0)  # a blur of little sigma cannot be seen
    assert always > (0.9 if setting == "blur" else 0.998)
    assert changed(setting, 0.3) == pytest.approx(0.3 * always, abs=4 * math.sqrt(0.3 * 0.7 / 4000))


def test_decisions_are_drawn_apart(monkeypatch):
    """Whether an image is jittered, made grey, blurred or flipped are four draws; so are blur and
    its sigma."""
    n = 1000
    sigmas, flips = [], []
    monkeypatch.setattr(
        augment, "color_jitter", lambda x, *_: x + 1
    )  # each leaves a mark of its own
    monkeypatch.setattr(augment, "to_gray", lambda x: x + 10)
    monkeypatch.setattr(augment, "gaussian_blur", lambda x, sigma: sigmas.append(sigma) or x + 100)
    monkeypatch.setattr(augment, "resized_crop", lambda x, box, flip, side: flips.append(flip) or x)
    half = dict(flip=0.5, jitter_p=0.5, grayscale=0.5, blur=0.5)
    black = torch.zeros(n, 3, 2, 2, dtype=torch.uint8)
    marks = torch.cat(augmenter(3, 2, **half)(black, generator()))[:, 0, 0, 0]
    decisions = torch.stack([flips[0].float(), marks % 10, marks // 10 % 10, marks // 100])
    assert decisions.unique().tolist() == [0, 1]
    together = torch.cat([decisions, sigmas[0][None]])
    assert (torch.corrcoef(together) - torch.eye(5)).abs().max() < 5 / math.sqrt(2 * n)


@pytest.mark.parametrize("view_size", [0, 16, 48])
def test_views_and_clean_images_have_the_size_that_is_asked_for(view_size):
    images, side = bytes_of(5), view_size or 32
    augmented = augmenter(view_size=view_size, n_views=3)
    views = augmented(images, generator())
    assert [tuple(view.shape) for view in views] == [(5, 3, side, side)] * 3
    assert len({float(view.sum()) for view in views}) == 3
    theirs = tv.resize(images.float() / 255, [side, side], antialias=True)
    close(augmented.clean(images), theirs)
    for view in augmenter(view_size=view_size, n_views=3, augmentation="none")(images, generator()):
        close(view, theirs)


@pytest.mark.parametrize("side", [2, 7, 16, 33])
def test_single_channel_images(side):
    """Grey images go through 'images' without the colour steps, at any side."""
    view1, view2 = augmenter(1, side, blur=1.0)(bytes_of(channels=1, side=side), generator())
    assert view1.shape == (N, 1, side, side) and (view1 != view2).any() and view1.isfinite().all()


# ---- on an accelerator


class NoHostReads(TorchDispatchMode):
    """Refuses what would make the host wait for the device: reading a value, a shape that depends
    on values, a tensor made from Python numbers."""

    refused = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "lift_fresh",
        "unique",
        "is_nonzero",
        "equal",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.refused, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in args[1]), (
                "an index by a mask"
            )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("augmentation, channels", [("digits", 1), ("images", 3), ("images", 1)])
def test_the_host_never_waits(augmentation, channels):
    make = augmenter(channels, 16, augmentation=augmentation, blur=0.5)
    x = bytes_of(4, channels, 16)
    with NoHostReads():
        make(x, generator())
    for waits in (lambda: float(x.sum()), lambda: x[x > 3], lambda: torch.tensor([1.0, 2.0])):
        with pytest.raises(AssertionError), NoHostReads():
            waits()


def test_transforms_compile_into_one_graph():
    x = pictures(4, side=16)
    order = torch.rand(4, 4).argsort(0)
    factors = torch.cat([draws((3, 4), 0.6, 1.4), draws((1, 4), -0.1, 0.1)])
    box = augment.random_boxes((16, 16), 4, 0.2, generator(), "cpu")

    def transform(x, box, factors, order):
        x = augment.color_jitter(augment.resized_crop(x, box, factors[0] > 1), factors, order)
        return augment.gaussian_blur(
            augment.affine(x, factors[0], factors[1], factors[2], factors[3], factors[3]),
            factors[0],
        )

    torch._dynamo.reset()
    compiled = torch.compile(transform, fullgraph=True, backend="eager")
    close(compiled(x, box, factors, order), transform(x, box, factors, order), atol=1e-6)
