"""The monitors against loops over images and pairs in float64, and within runs: no label, no
random number of the training, the same when a run is continued."""

import csv
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from reproduce import Config, fit, metrics
from reproduce.__main__ import main
from reproduce.augment import Augment
from reproduce.data import packed
from reproduce.data import sets as data
from reproduce.evaluation import monitors, probes
from reproduce.evaluation.rules import Clusterings, Rule
from reproduce.methods import METHODS
from reproduce.networks import backbones
from reproduce.runs.directory import Run, warning_note

ALWAYS = ["rankme", "neighbour_agreement", "normalized_cut", "view_alignment", "uniformity"]
TINY = dict(epochs=2, limit=150, batch_size=32, width=4, trace_images=5, evaluate_every=1)


def features(n=40, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1)) + 0.3


def settings(base, **own) -> Config:
    where = {"results_dir": str(base / "results"), "data_dir": str(base / "data")}
    return Config.from_params({**TINY, **where, **own})


# ---- each by itself


@pytest.mark.parametrize("n, d", [(40, 6), (5, 9)])
def test_rankme_is_that_of_the_singular_values(n, d):
    x = features(n, d)
    singular = np.linalg.svd(x.double().numpy(), compute_uv=False)
    entropy = 0.0
    for s in singular:
        p = s / sum(singular)
        entropy -= p * math.log(p)
    assert monitors.rankme(x) == pytest.approx(math.exp(entropy), rel=1e-6)
    assert monitors.rankme(100 * x) == pytest.approx(math.exp(entropy), rel=1e-6)


def test_rankme_counts_directions():
    rotation = torch.linalg.qr(features(8, 8))[0]
    for rank in (1, 3, 8):
        rows = torch.eye(8)[:rank].repeat(5, 1)
        assert monitors.rankme(rows @ rotation) == pytest.approx(rank, rel=1e-5)
    assert monitors.rankme(torch.zeros(6, 4)) == 1  # no direction, and no nan


def test_head_agreement_is_the_mean_over_pairs():
    draw = torch.Generator().manual_seed(2)
    first = torch.randint(4, (50,), generator=draw)
    noisy = torch.where(torch.rand(50, generator=draw) < 0.4, 0, first)
    heads = torch.stack([first, noisy, torch.randint(4, (50,), generator=draw)])
    each = [normalized_mutual_info_score(a, b) for a, b in itertools.combinations(heads, 2)]
    assert monitors.head_agreement(heads) == pytest.approx(np.mean(each), abs=1e-12)
    renamed = torch.tensor([2, 0, 3, 1])[first]
    assert monitors.head_agreement(torch.stack([first, renamed])) == pytest.approx(1)
    one = torch.zeros_like(first)
    assert monitors.head_agreement(torch.stack([first, one])) == 0
    assert monitors.head_agreement(torch.stack([one, one])) == 0


def loop_neighbours(x, k):
    """The k nearest others of each by cosine, one pair at a time."""
    x, found = x.double().numpy(), []
    for i in range(len(x)):
        cosines = {
            j: x[i] @ x[j] / math.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))
            for j in range(len(x))
            if j != i
        }
        found.append(sorted(cosines, key=cosines.get, reverse=True)[:k])
    return found


def loop_graph(x, clusters, k, n_clusters):
    """The share of neighbours in the own cluster, and the mean over clusters of cut / volume."""
    near, n = loop_neighbours(x, k), len(x)
    weight = np.zeros((n, n))
    agree = 0
    for i in range(n):
        for j in near[i]:
            weight[i, j] += 1
            weight[j, i] += 1
            agree += clusters[i] == clusters[j]
    cuts = []
    for c in range(n_clusters):
        cut = volume = 0.0
        for i, j in itertools.product(range(n), repeat=2):
            if clusters[i] == c:
                volume += weight[i, j]
                cut += weight[i, j] * (clusters[j] != c)
        cuts.append(cut / volume if volume else 1.0)
    return float(agree) / (n * len(near[0])), np.mean(cuts)


@pytest.mark.parametrize("k, n_clusters", [(10, 3), (3, 5)])
def test_neighbours_are_counted_as_in_a_loop(k, n_clusters):
    """Of five clusters one is empty."""
    x, draw = features(), torch.Generator().manual_seed(3)
    clusters = torch.randint(3 if n_clusters == 3 else 4, (40,), generator=draw)
    near = probes.neighbours(x, k)
    agreement, cut = loop_graph(x, clusters.tolist(), k, n_clusters)
    assert monitors.neighbour_agreement(near, clusters) == pytest.approx(agreement, abs=1e-12)
    assert monitors.normalized_cut(near, clusters, n_clusters) == pytest.approx(cut, abs=1e-12)


def test_separate_groups_are_not_cut_and_one_cluster_for_all_is_no_way_out():
    groups = torch.eye(3).repeat_interleave(6, 0) + 0.01 * features(18, 3)
    near, own = probes.neighbours(groups, 5), torch.arange(3).repeat_interleave(6)
    assert monitors.neighbour_agreement(near, own) == 1
    assert monitors.normalized_cut(near, own, 3) == 0
    everything = torch.zeros_like(own)
    assert monitors.normalized_cut(near, everything, 3) == pytest.approx(2 / 3)


def test_uniformity_is_that_of_all_pairs():
    x = features()
    z = [row / row.norm() for row in x.double()]
    pairs = [float((-2 * ((a - b) ** 2).sum()).exp()) for a, b in itertools.combinations(z, 2)]
    assert monitors.uniformity(x) == pytest.approx(math.log(np.mean(pairs)), abs=1e-5)
    assert monitors.uniformity(torch.tensor([[1.0, 0], [-3, 0]])) == pytest.approx(-8, abs=1e-5)
    assert monitors.uniformity(torch.ones(7, 3)) == pytest.approx(0, abs=1e-5)


def test_collapse_is_seen_on_images_of_every_class():
    """Sorted by class, 512 from the front would be of one: 5,000 images whose first class has one
    embedding are no collapse."""
    embedding = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    embedding[:600] = 1.0
    clusters = np.arange(5000) % 10
    found = monitors.collapse(embedding, clusters, 10)
    assert found["embedding_std"] > 0.8 and found["nonempty_clusters"] == 10
    same = monitors.collapse(torch.ones(300, 16), clusters[:300], 10)
    assert same["embedding_std"] < 1e-5
    assert monitors.collapse(embedding, np.where(clusters < 4, 0, clusters), 12) == {
        "embedding_std": found["embedding_std"],
        "largest_cluster": pytest.approx(0.4),
        "nonempty_clusters": 7,
    }


# ---- two views


def made(base, method="crlc", **own):
    config = settings(base, method=method, **own)
    images = data.load(config).parts(config.split, config.limit)[1]
    augment = Augment(config, *data.moments(images))
    backbone = backbones.build(config, images.pixels.shape[1])
    return METHODS[method](config, backbone, 10, len(images)).train(), augment, images.pixels


def test_views_are_those_of_the_method_in_evaluation_mode(tmp_path):
    """Two of each image, also where a step has four, and the same whatever was drawn elsewhere."""
    method, augment, pixels = made(tmp_path, n_views=4, batch_size=32)
    index = torch.arange(0, 100, 2)
    before = torch.get_rng_state(), {k: v.clone() for k, v in method.state_dict().items()}
    z = monitors.two_views(method, augment, pixels, index, "backbone", 3)
    assert torch.equal(torch.get_rng_state(), before[0]) and method.training
    assert all(torch.equal(v, before[1][k]) for k, v in method.state_dict().items())
    assert z.shape == (2, 50, method.backbone.n_features) and not z.requires_grad
    torch.manual_seed(99)
    again = monitors.two_views(method, augment, pixels, index, "backbone", 3)
    later = monitors.two_views(method, augment, pixels, index, "backbone", 4)
    assert torch.equal(z, again) and not torch.allclose(z, later)
    assert not torch.allclose(z[0], z[1])
    # without any change a view is the image
    still = dict(rotation=0, zoom=0, shear=0, shift=0, gamma=0, contrast=0, noise=0)
    method, augment, pixels = made(tmp_path, n_views=4, batch_size=32, **still)
    method.config = dataclasses.replace(method.config, neighbours=3)  # whose views are of others
    z = monitors.two_views(method, augment, pixels, index, "projection", 3)
    with torch.no_grad():
        clean = method.eval().outputs(augment.clean(pixels[index]))["projection"]
    torch.testing.assert_close(z, clean.expand_as(z), rtol=1e-4, atol=1e-4)


def test_all_is_measured_on_the_outputs_and_the_leading_clusters(tmp_path):
    method, augment, pixels = made(tmp_path, n_heads=2)
    with torch.no_grad():
        out = method.eval().outputs(augment.clean(pixels))
    heads = out["probabilities"].argmax(-1).numpy()
    lead, other = Rule("lead", heads[1], leads=True), Rule("other", heads[0])
    clusterings = Clusterings([lead, other], heads, {})
    found = monitors.measure(method, augment, pixels, out, clusterings, 10, 1)
    agreement, cut = loop_graph(out["backbone"], heads[1].tolist(), 10, 10)
    assert found["neighbour_agreement"] == pytest.approx(agreement, abs=1e-3)
    assert found["normalized_cut"] == pytest.approx(cut, abs=1e-3)
    assert found["rankme"] == monitors.rankme(out["backbone"])
    assert found["head_agreement"] == pytest.approx(metrics.nmi(*heads), abs=1e-9)
    z = monitors.two_views(method, augment, pixels, torch.arange(len(pixels)), "projection", 1)
    u = z.double() / z.double().norm(dim=-1, keepdim=True)
    distance = float(((u[0] - u[1]) ** 2).sum(-1).mean())
    assert found["view_alignment"] == pytest.approx(distance, abs=1e-5)
    means = np.mean([monitors.uniformity(view) for view in z])
    assert found["uniformity"] == pytest.approx(means, abs=1e-9)
    out["backbone"][3, 0] = torch.inf
    assert monitors.measure(method, augment, pixels, out, clusterings, 10, 1) == {}


def test_of_many_images_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(monitors, "MOST", 50)
    monkeypatch.setattr(monitors, "FEW", 20)
    seen = []
    for name in ("rankme", "head_agreement", "uniformity"):

        def noted(x, own=getattr(monitors, name)):
            seen.append(x.shape[-1 if x.dtype == torch.long else 0])
            return own(x)

        monkeypatch.setattr(monitors, name, noted)
    list(fit(settings(tmp_path, n_heads=2, epochs=1)))
    assert seen == [50, 50, 30, 30]


# ---- in runs


@pytest.mark.parametrize("method", METHODS)
def test_a_run_has_the_columns_and_nothing_else_of_it_changes(tmp_path, method, monkeypatch):
    """With the monitors patched out, the same weights, and the same scores."""
    config = settings(tmp_path, method=method)
    list(fit(config, Run(config)))
    run, names = Run(config), list(ALWAYS)
    if method == "crlc":
        names.insert(1, "head_agreement")
    rows, metric = run.history(), run.json("metrics.json")
    with open(run.path / "history.csv", newline="") as file:
        columns = next(csv.reader(file))
    assert [c for c in columns if c in names] == names == list(metric["monitors"])
    for name, value in metric["monitors"].items():
        assert rows[-1][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert all(math.isfinite(row[name]) for row in rows for name in names)
    assert all(0 <= row[name] <= 1 for row in rows for name in names[1:-2])
    assert all(0 <= row["view_alignment"] <= 4 and -8 <= row["uniformity"] <= 0 for row in rows)
    assert all(row["rankme"] >= 1 for row in rows)

    monkeypatch.setattr(monitors, "measure", lambda *_: {})
    without = config.replace(results_dir=str(tmp_path / "without"))
    list(fit(without, Run(without)))
    other = Run(without).json("metrics.json")
    assert other["weights_sha256"] == metric["weights_sha256"]
    assert other["scores"] == metric["scores"] and other["monitors"] == {}
    timed = {"seconds", "images_per_second", *names}
    for a, b in zip(rows, Run(without).history(), strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }


@pytest.mark.parametrize("left_after", [1, 2])
def test_a_continued_run_gives_the_same_values(tmp_path, left_after):
    """Also where all epochs were done and only the end was missing."""
    config = settings(tmp_path, n_heads=2)
    list(fit(config, Run(config)))
    stopped = config.replace(results_dir=str(tmp_path / "stopped"))
    rows = fit(stopped, Run(stopped))
    list(itertools.islice(rows, left_after))
    rows.close()
    list(fit(stopped, Run(stopped)))
    one, two = Run(config), Run(stopped)
    assert one.json("metrics.json")["monitors"] == two.json("metrics.json")["monitors"]
    timed = {"seconds", "images_per_second"}
    for a, b in zip(one.history(), two.history(), strict=True):
        assert all(a[name] == b[name] for name in a.keys() - timed)


def test_few_images_without_labels(tmp_path):
    """Four images to look at: three neighbours each."""
    draw = torch.Generator().manual_seed(0)
    arrays = dict(
        images=torch.randint(256, (4, 3, 8, 8), generator=draw, dtype=torch.uint8).numpy(),
        labels=np.full(4, -1),
        split=np.zeros(4, np.uint8),
        classes=[],
        files=[f"{i}.png" for i in range(4)],
        skipped=[],
    )
    (tmp_path / "data").mkdir()
    data.write_cached(tmp_path / "data" / "cifar10.npz", **arrays)
    own = dict(dataset="cifar10", split="all", n_clusters=2, batch_size=2, limit=0, n_heads=2)
    config = settings(tmp_path, augmentation="images", **own)
    rows = list(fit(config, Run(config)))
    assert all(name in rows[-1] for name in [*ALWAYS, "head_agreement"])
    assert not any(name.endswith("_acc") for name in rows[-1])


def test_a_test_part_and_a_frozen_backbone_without_augmentation(tmp_path):
    """Whose views are the images: no alignment, and the uniformity of the images."""
    start = settings(tmp_path, method="simclr", split="test")
    list(fit(start, Run(start)))
    own = dict(weights=str(Run(start).path), freeze=True, neighbours=3, augmentation="none")
    rows = list(fit(settings(tmp_path, split="test", n_heads=2, **own)))
    assert "view_alignment" not in rows[-1]
    assert {*ALWAYS, "head_agreement"} - rows[-1].keys() == {"view_alignment"}
    assert rows[0]["rankme"] == rows[1]["rankme"]
    assert rows[0]["uniformity"] != rows[1]["uniformity"]  # of the projector, which learns


def test_packed_images_give_what_those_in_memory_give(tmp_path):
    from PIL import Image

    source, draw = tmp_path / "photos", np.random.default_rng(0)
    source.mkdir()
    for i in range(30):
        Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(
            source / f"{i}.png"
        )
    packed.pack(str(source), str(tmp_path / "packed"), 8)
    own = dict(dataset="folder", n_clusters=3, batch_size=8, limit=0, augmentation="images")
    found = []
    for folder, more in ((source, dict(image_size=8)), (tmp_path / "packed", {})):
        config = settings(tmp_path, folder=str(folder), n_heads=2, **own, **more)
        list(fit(config, Run(config)))
        found.append(Run(config).json("metrics.json")["monitors"])
    assert found[0] == found[1] and {*ALWAYS, "head_agreement"} == {*found[0]}


def test_collapse_monitor():
    spread = 5 * torch.randn(4000, 32)
    signs = monitors.collapse_monitor(spread, torch.arange(4000) % 10, 10)
    assert signs == {
        "embedding_std": pytest.approx(1, abs=0.02),
        "largest_cluster": pytest.approx(0.1),
        "nonempty_clusters": 10,
    }
    # one direction, at any length: collapsed, whatever its norm says
    one = torch.rand(500, 1) * torch.randn(1, 32)
    signs = monitors.collapse_monitor(one, torch.tensor([3] * 400 + [7] * 100), 10)
    assert signs == {
        "embedding_std": pytest.approx(0, abs=1e-5),
        "largest_cluster": pytest.approx(0.8),
        "nonempty_clusters": 2,
    }
    assert all(type(v) in (float, int) for v in signs.values())
    single = monitors.collapse_monitor(torch.randn(1, 4), torch.tensor([0]), 2)
    assert single == {"embedding_std": 0.0, "largest_cluster": 1.0, "nonempty_clusters": 1}


@pytest.mark.parametrize("n_clusters", [2, 3, 10])
def test_a_healthy_run_has_not_collapsed(n_clusters):
    signs = monitors.collapse_monitor(
        torch.randn(500, 16), torch.arange(500) % n_clusters, n_clusters
    )
    assert monitors.collapse_reason(signs, n_clusters) == ""


@pytest.mark.parametrize(
    "change, why",
    [
        (
            {"embedding_std": 0.1},
            "all embeddings are nearly the same (standard deviation 0.100, spread out it is 1)",
        ),
        (
            {"embedding_std": float("nan")},
            "all embeddings are nearly the same (standard deviation nan, spread out it is 1)",
        ),
        ({"nonempty_clusters": 5}, "only 5 of 10 clusters are in use"),
        ({"largest_cluster": 0.91}, "one cluster holds 91% of the images"),
    ],
)
def test_each_reason_for_a_collapse(change, why):
    signs = {"embedding_std": 0.11, "largest_cluster": 0.9, "nonempty_clusters": 6}
    assert monitors.collapse_reason(signs, 10) == ""
    assert monitors.collapse_reason({**signs, **change}, 10) == why


def test_collapses_are_seen_from_embeddings_and_assignments():
    spread, balanced = torch.randn(500, 16), torch.arange(500) % 10
    for embedding, assignments, word in (
        (torch.ones(500, 16) + 1e-3 * spread, balanced, "nearly the same"),
        (spread, balanced % 5, "only 5 of 10"),
        (spread, torch.where(torch.arange(500) < 475, 0, balanced), "one cluster holds 95%"),
    ):
        assert word in monitors.collapse_reason(
            monitors.collapse_monitor(embedding, assignments, 10), 10
        )


def test_groups_of_unequal_size_cut_into_equal_clusters():
    """The numbers of 170 and 17 images of two digits, with the entropy of the batch mean."""
    group = np.arange(187) >= 170
    half = np.arange(187) % 2  # which has nothing to do with the group
    why = monitors.balance_reason(half, group.astype(int), 2)
    assert why == (
        "the heads' clusters hold 93 to 94 images each, and k-means on the same features finds "
        "others, of 17 to 170"
    )
    assert "a lower lambda1 asks less" in warning_note({"balance": why})
    ten = np.arange(500) % 10
    for heads, kmeans, k in (
        (group, group, 2),  # unequal, as k-means has them
        (half, half, 2),  # equal, as k-means has them
        (half, np.roll(half, 1) ^ (np.arange(187) < 90), 2),  # both equal, and nothing in common
        (ten, np.where(ten < 3, 0, ten), 10),  # nearly the same
    ):
        assert monitors.balance_reason(heads.astype(int), kmeans.astype(int), k) == ""
    assert monitors.evenness(half, 2) == pytest.approx(1, abs=1e-4)
    assert monitors.evenness(group.astype(int), 2) == pytest.approx(0.4395, abs=1e-4)
    assert monitors.evenness(np.zeros(9, int), 4) == 0


@pytest.mark.parametrize("method", ["crlc", "simsiam"])
def test_clusters_cut_in_half_are_said(method, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(monitors, "collapse_reason", lambda *_: "")  # after a single step
    monkeypatch.setattr(monitors, "balance_reason", lambda *_: "cut in half")
    words = {"epochs": 1, "limit": 32, "width": 4, "batch_size": 32, "method": method}
    words |= {"data_dir": tmp_path, "results_dir": tmp_path / "runs"}
    assert main(["train", *(w for k, v in words.items() for w in ("-p", k, str(v)))]) == 0
    said = "warning: Groups may differ in size: cut in half." in capsys.readouterr().out
    assert said == (method == "crlc")  # the other has no heads


def test_two_clusters_of_unequal_size_are_no_collapse():
    signs = monitors.collapse_monitor(torch.randn(500, 16), (torch.arange(500) < 420).long(), 2)
    assert monitors.collapse_reason(signs, 2) == ""
