"""First filters, the images that excite a channel, and how pure a row is, against plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reproduce import Config, fit
from reproduce.evaluation import pictures, probes
from reproduce.networks import backbones
from reproduce.runs.directory import Run
from reproduce.runs.trained import Trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    tiny = {"epochs": 1, "width": 4, "limit": 100, "batch_size": 20}
    config = Config.from_params({**tiny, "results_dir": str(tmp_path_factory.mktemp("runs"))})
    list(fit(config))
    return Trained(Run(config).path)


def test_the_strongest_images_of_a_channel_image_by_image(trained):
    pixels, backbone = trained.images.pixels[:60], trained.method.backbone
    for name, module in backbone.probed.items():
        maps = []
        hook = backbone.get_submodule(module).register_forward_hook(lambda *a: maps.append(a[2]))
        for i in range(len(pixels)):
            backbone(trained.augment.clean(pixels[i : i + 1]))
        hook.remove()
        means = torch.stack([m[0].double().clamp(min=0).mean((1, 2)) for m in maps])  # [N, F]
        rank = pictures.most_activating(trained.layers(pixels, at_most=1)[name], 5)
        assert rank.shape == (means.shape[1], 5)
        for channel, images in enumerate(rank.tolist()):
            assert len({*images}) == 5
            expected = sorted((float(x) for x in means[:, channel]), reverse=True)[:5]
            got = [float(means[i, channel]) for i in images]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert pictures.most_activating(torch.rand(3, 2), 9).shape == (2, 3)


def test_the_nearest_images_of_a_query_one_by_one(trained):
    features = trained.layers(trained.images.pixels[:40])["features"]
    x = F.normalize(features[:].double(), dim=-1).numpy()
    for query, near in enumerate(probes.neighbours(features, 4).tolist()):
        cosine = {other: float(x[query] @ x[other]) for other in range(40) if other != query}
        expected = sorted(cosine.values(), reverse=True)[:4]
        np.testing.assert_allclose([cosine[i] for i in near], expected, atol=1e-6)


@pytest.mark.parametrize("sobel", [False, True])
def test_first_filters_fill_the_scale_each_by_itself(sobel):
    config = Config.from_params(
        {"dataset": "cifar10", "backbone": "resnet18", "augmentation": "images", "sobel": sobel}
    )
    net = backbones.build(config, 3)
    weight = net.get_submodule("1.conv1" if sobel else "conv1").weight
    with torch.no_grad():
        weight[3] = 0.7
    filters = pictures.first_filters(net)
    assert filters.shape == (64, 2 if sobel else 3, 3, 3) and not filters.requires_grad
    for i, (picture, own) in enumerate(zip(filters.double(), weight.detach().double())):
        expected = (own - own.min()) / (own.max() - own.min()) if i != 3 else own * 0 + 0.5
        torch.testing.assert_close(picture, expected, rtol=0, atol=1e-5)


def test_the_share_of_a_rows_most_frequent_class():
    labels, rows = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([[0, 1, 2], [3, 4, 5], [0, 2, 3]])
    found = pictures.same_class(labels, rows)
    torch.testing.assert_close(found, torch.tensor([2 / 3, 1, 1 / 3]))
