"""The evaluator's parts against loops and the weights; without labels everything but the scores is
the same."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as theirs
from torch import nn

from reproduce import Config, fit, kmeans, metrics
from reproduce.augment import Augment
from reproduce.data import sets as data
from reproduce.data.sets import Images, evenly
from reproduce.evaluation import Evaluator
from reproduce.evaluation.evaluator import reduced
from reproduce.evaluation.extractor import Extractor
from reproduce.evaluation.probes import knn_accuracy
from reproduce.evaluation.rules import Alignment, Heads, by_heads, by_kmeans, fitted_clusters
from reproduce.evaluation.scores import Levels, Scores
from reproduce.evaluation.traces import Traces
from reproduce.kmeans import KMeans
from reproduce.methods import METHODS
from reproduce.networks import backbones

CPU = torch.device("cpu")
TINY = dict(epochs=2, limit=90, width=4, n_heads=3, head_hidden=8, trace_images=4)


def parts(tmp_path, **own):
    """A configuration on digits, an untrained method, its augmentation, and both parts."""
    heads = ("n_heads", "head_hidden")
    tiny = {k: v for k, v in TINY.items() if "method" not in own or k not in heads}
    config = Config.from_params({**tiny, "data_dir": str(tmp_path / "data"), **own})
    train, images = data.load(config).parts(config.split, config.limit)
    backbone = backbones.build(config, 1)
    method = METHODS[config.method](config, backbone, 10, len(train))
    return config, method, Augment(config, *data.moments(train)), train, images


def evaluator(tmp_path, **own):
    return Evaluator(*parts(tmp_path, **own), 10, CPU)


def some_heads(n_heads=3, n=40, k=4, seed=0):
    """Probabilities ``[H, N, K]`` of heads that agree but for noise and for their numbering."""
    g = torch.Generator().manual_seed(seed)
    seen = 2 * F.one_hot(torch.randint(k, (n,), generator=g), k) + torch.zeros(n_heads, n, k)
    p = (seen + torch.randn(n_heads, n, k, generator=g)).softmax(-1)
    return torch.stack([head[:, torch.randperm(k, generator=g)] for head in p])


# ---- extractor


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_each_image_in_evaluation_mode(tmp_path, training, monkeypatch):
    """In some batches; the mode is as before, nothing has a gradient, and no statistic moved."""
    config, method, augment, train, _ = parts(tmp_path)
    monkeypatch.setattr(Extractor, "batch_size", 32)
    with torch.no_grad():
        for norm in (m for m in method.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_()  # other than those of a batch
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.train(training)
    found = Extractor(config, method, augment)(method.outputs, train.pixels)
    assert method.training is training
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert {k: v.shape[-2] for k, v in found.items()} == dict.fromkeys(found, 90)
    method.eval()
    for i in (0, 31, 32, 89):
        with torch.no_grad():
            one = method.outputs(augment.clean(train.pixels[i : i + 1]))
        for name, value in found.items():
            assert not value.requires_grad
            torch.testing.assert_close(value[..., i, :], one[name][..., 0, :], rtol=1e-4, atol=1e-5)


def test_features_are_float32_and_whole_numbers_stay_whole(tmp_path):
    """2^24 + 1 is no float32."""
    config, method, augment, train, _ = parts(tmp_path)
    large = 2**24 + 1

    def network(images):
        rows = images.flatten(1)
        return {"low": rows.bfloat16(), "number": rows[:, :1].long() * 0 + large}

    found = Extractor(config, method, augment)(network, train.pixels)
    assert found["low"].dtype == torch.float32
    assert found["number"].dtype == torch.int64 and found["number"].unique().tolist() == [large]


@pytest.mark.parametrize("side, size", [(8, 2048), (96, 606), (600, 64)])
def test_batches_of_large_images_are_small(side, size):
    config = dataclasses.replace(Config(), view_size=side)
    assert Extractor(config, None, None).batch_size == size


def test_positions_are_spread_over_all():
    assert evenly(7, 512).tolist() == list(range(7)) and len(evenly(5000, 512)) == 512
    spread = evenly(5000, 50)
    assert spread[0] == 0 and spread[-1] == 4999 and int(spread.diff().max()) <= 103


# ---- rules


def loop_average(p, losses):
    """Head by head, from the lowest loss on, numbered to agree with the first of these."""
    rank = sorted(range(len(p)), key=lambda h: losses[h])
    total = torch.zeros_like(p[0])
    for h in rank:
        together = [
            [float(sum(a * b for a, b in zip(p[rank[0]][:, i], p[h][:, j]))) for j in range(4)]
            for i in range(4)
        ]
        for i, j in zip(*linear_sum_assignment(together, maximize=True)):
            total[:, i] += p[h][:, j]
    return total / len(p)


@pytest.mark.parametrize("losses", [[0.2, -0.1, 0.1], [0.0, 0.0, 0.0]])
def test_the_average_of_aligned_heads_is_that_of_a_loop(losses):
    p = some_heads()
    alignment = Alignment.of(p, losses)
    torch.testing.assert_close(alignment.average(p), loop_average(p, losses))
    assert alignment.rank[0] == int(np.argmin(losses))
    untrained = Alignment.of(p, None)
    assert untrained.rank.tolist() == [0, 1, 2] and untrained.order[0].tolist() == [0, 1, 2, 3]


def heads_of(p, losses):
    alignment = Alignment.of(p, losses)
    return Heads(p, p.argmax(-1), alignment.average(p).argmax(-1), alignment)


def test_rules_of_heads():
    p, losses = some_heads(), [0.2, -0.1, 0.1]
    found = by_heads(heads_of(p, losses), losses)
    rules = {rule.name: rule for rule in found.rules}
    assert list(rules) == ["first_head", "lowest_loss_head", "aligned_average"]
    assert [rule.name for rule in found.rules if rule.leads] == ["aligned_average"]
    assert found.leading is rules["aligned_average"]
    own = p.argmax(-1).numpy()
    assert (found.heads == own).all() and (rules["first_head"].clusters == own[0]).all()
    assert (rules["lowest_loss_head"].clusters == own[1]).all()
    assert [rule.head for rule in found.rules] == [None, 1, None]
    average = loop_average(p, losses).argmax(-1).numpy()
    assert (found.leading.clusters == average).all()
    assert found.for_new["rank"].tolist() == [1, 2, 0] and found.for_new["order"].shape == (3, 4)


def test_no_head_is_chosen_by_loss_before_any_training():
    found = by_heads(heads_of(some_heads(), None), None)
    assert [rule.name for rule in found.rules] == ["first_head", "aligned_average"]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("leads", [True, False])
def test_a_rule_of_kmeans(metric, leads):
    x = torch.randn(50, 3) + torch.eye(3).repeat(17, 1)[:50] * 9
    kmeans = KMeans(3, metric=metric, sharded=True)
    found = by_kmeans(kmeans, x, leads)
    (rule,) = found.rules
    assert (rule.name, rule.leads, found.heads) == ("kmeans_embedding", leads, None)
    assert (rule.clusters == KMeans(3, metric=metric).fit_predict(x).numpy()).all()
    assert set(found.for_new) == {"centroids"} | {"cosine"} & {metric}
    rows = F.normalize(x, dim=-1) if metric == "cosine" else x
    near = torch.cdist(rows, found.for_new["centroids"]).argmin(1).numpy()
    assert (near == rule.clusters).all()


# ---- traces


def test_traces_are_of_the_images_that_they_name():
    """Of 20 sampled images out of 60, three; in two evaluations."""
    every = [some_heads(n=60, seed=seed) for seed in (1, 2)]
    sample = torch.arange(0, 60, 3)
    traces = Traces(sample, 3)
    for epoch, p in zip((0, 4), every):
        traces.keep(epoch, p[:, sample])
    again = Traces(sample, 3)
    again.load_state_dict(traces.state_dict())
    for found in (traces.arrays(), again.arrays()):
        assert found["epochs"].tolist() == [0, 4] and len(found["images"]) == 3
        assert set(found["images"]) <= set(sample.tolist())
        assert found["probabilities"].shape == (2, 3, 3, 4) and found["mass"].shape == (2, 3, 4)
        for e, p in enumerate(every):
            for t, image in enumerate(found["images"]):
                for h in range(3):
                    np.testing.assert_array_equal(
                        found["probabilities"][e, t, h], p[h, image].half().numpy()
                    )
            for h in range(3):
                mass = sum(p[h, image] for image in sample.tolist()) / len(sample)
                np.testing.assert_allclose(found["mass"][e, h], mass, atol=5e-4)


# ---- scores


def labelled(n_classes=3, n=30, seed=0):
    """Images with labels that are of no data set, the last third a test part."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, 1, 8, 8), generator=g, dtype=torch.uint8)
    labels, split = torch.randint(n_classes, (n,), generator=g), (torch.arange(n) >= 20).byte()
    return Images("made", pixels, labels, split, tuple("abcdef"[:n_classes]), "0")


def scored(n_clusters=3, **own):
    images = labelled()
    config = Config.from_params({"method": "simclr", **own})
    return Scores(config, *images.parts(config.split), n_clusters), images


@pytest.mark.parametrize("n_clusters", [3, 5])
def test_scores_of_a_clustering_are_scikit_learns(n_clusters):
    scores, images = scored(n_clusters)
    clusters = np.random.default_rng(0).integers(n_clusters, size=30)
    found, labels = scores.of(clusters), images.labels.numpy()
    assert found["nmi"] == pytest.approx(theirs.normalized_mutual_info_score(labels, clusters))
    assert found["ari"] == pytest.approx(theirs.adjusted_rand_score(labels, clusters))
    assert found["acc"] == metrics.accuracy(labels, clusters)
    purity = sum(np.bincount(labels[clusters == k]).max() for k in set(clusters)) / 30
    assert found.get("many_to_one_acc") == (None if n_clusters == 3 else pytest.approx(purity))


def test_scores_by_rule_and_what_is_picked_by_label_is_called_oracle():
    scores, images = scored()
    p, losses = some_heads(4, 30, 3), [0.3, 0.2, 0.1, 0.4]
    clusterings = by_heads(heads_of(p, losses), losses)
    rows = [scores.row(1, clusterings)]
    heads = p.argmax(-1)
    each = [scores.of(head.numpy()) for head in heads]
    acc = [one["acc"] for one in each]
    assert list(rows[0]) == [
        "nmi", "first_head_acc", "mean_of_heads_acc", "lowest_loss_head_acc", "aligned_average_acc"
    ]  # fmt: skip
    assert rows[0]["mean_of_heads_acc"] == pytest.approx(sum(acc) / 4)
    assert rows[0]["lowest_loss_head_acc"] == acc[2] and rows[0]["first_head_acc"] == acc[0]
    best = int(np.argmax(acc))
    assert scores.best == {**each[best], "head": best, "epoch": 1}
    # a later epoch is the best only if it is better
    worse = by_heads(heads_of(torch.eye(3)[[0] * 30].repeat(4, 1, 1), losses), losses)
    scores.row(2, worse)
    assert scores.best["epoch"] == 1
    perfect = F.one_hot(images.labels, 3).float().expand(4, -1, -1)
    scores.row(3, by_heads(heads_of(perfect, losses), losses))
    assert scores.best["epoch"] == 3 and scores.best["acc"] == 1

    by_head = scores.by_head(clusterings.heads)
    assert by_head == each
    found = scores.by_rule(clusterings.rules, by_head)
    assert list(found) == [
        "first_head", "mean_of_heads", "best_head_oracle", "lowest_loss_head", "aligned_average",
        "best_epoch_and_head_oracle",
    ]  # fmt: skip
    assert found["lowest_loss_head"] == {**each[2], "head": 2}
    assert found["best_head_oracle"] == {**each[best], "head": best}
    for name in ("acc", "nmi", "ari"):
        values = [one[name] for one in each]
        mean = sum(values) / 4
        deviation = (sum((v - mean) ** 2 for v in values) / 4) ** 0.5
        assert found["mean_of_heads"][name] == pytest.approx(mean)
        assert found["mean_of_heads"][f"{name}_std"] == pytest.approx(deviation)
    assert found["best_epoch_and_head_oracle"] == scores.best


def test_who_votes_among_the_neighbours():
    """The images themselves, or on a test part those of training that have a label."""
    scores, images = scored()
    x = torch.randn(30, 4)
    assert scores.bank is None
    same = knn_accuracy(x, images.labels, x, images.labels, itself=True)
    assert scores.knn_acc(x, None) == same
    split = torch.cat([torch.zeros(15), torch.full((5,), 2), torch.ones(10)]).byte()
    images = dataclasses.replace(images, split=split)
    config = Config.from_params({"method": "simclr", "split": "test"})
    scores = Scores(config, *images.parts("test"), 3)
    assert len(scores.bank) == 15 and torch.equal(scores.bank.labels, images.labels[:15])
    voted = knn_accuracy(x[:15], images.labels[:15], x[20:], images.labels[20:])
    assert scores.knn_acc(x[20:], x[:15]) == voted


def test_agreement_of_pseudo_labels_is_over_images_with_a_label():
    images = labelled()
    images = dataclasses.replace(images, labels=torch.where(images.split == 1, -1, images.labels))
    config = Config.from_params({"method": "deepcluster"})
    scores = Scores(config, images, images.part("train"), 3)
    method = nn.Module()
    assert scores.pseudo_nmi(method) == {}
    method.pseudo_labels = torch.arange(30) % 4
    expected = theirs.normalized_mutual_info_score(images.labels[:20], method.pseudo_labels[:20])
    assert scores.pseudo_nmi(method) == {"pseudo_nmi": pytest.approx(expected)}


def test_protocols_of_kmeans_are_what_they_say():
    scores, _ = scored(3, seed=4)
    features = {"projection": torch.randn(30, 3), "online": torch.randn(30, 3)}
    features["backbone"] = torch.randn(30, 4) * torch.rand(30, 1) * 9
    found = scores.kmeans_protocols(features)
    assert len(found) == 8 and {one["space"] for one in found} == {"backbone", "projection"}
    for one in found:
        x = features[one["space"]]
        x = F.normalize(x, dim=-1) if one["normalized"] else x
        clusters = KMeans(3, one["restarts"], random_state=4).fit_predict(x).numpy()
        assert {k: one[k] for k in ("acc", "nmi", "ari")} == scores.of(clusters)


def test_the_floor_is_kmeans_on_pixels():
    scores, images = scored()
    clusters = KMeans(3).fit_predict(images.pixels.flatten(1).float() / 255).numpy()
    assert scores.kmeans_pixels(images.pixels) == scores.of(clusters)


def test_pixels_are_floats_only_while_a_block_of_them_is_read(monkeypatch):
    """As much at a time as k-means reads, and to the same bits as all of them at once."""
    images, get = labelled(n=90), Levels.__getitem__
    whole = images.pixels.flatten(1).float() / 255
    rows = Levels(images.pixels)
    assert (len(rows), rows.shape, rows.dtype) == (90, whole.shape, torch.float32)
    read = []
    monkeypatch.setattr(kmeans, "BLOCK", {"cpu": 4 * 65 * 20})
    monkeypatch.setattr(Levels, "__getitem__", lambda *a: (read.append(len(get(*a))), get(*a))[1])
    found = KMeans(3).fit(rows)
    assert max(read) == 90 and read.count(90) == 1, "k-means++ draws from all, where they are few"
    assert torch.equal(found.labels_, KMeans(3).fit(whole).labels_)


def test_clusters_of_a_fit_are_numbers():
    x = torch.randn(20, 2)
    found = fitted_clusters(KMeans(3, sharded=True), x)
    assert found.dtype == np.int64 and found.shape == (20,)


# ---- the evaluator


class Untouchable:
    """Labels that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"labels are looked at: {name}")

    def __getitem__(self, at):
        raise AssertionError("labels are looked at")


@pytest.mark.parametrize("own", [{}, {"method": "simclr"}, {"split": "test"}, {"method": "cc"}])
def test_without_labels_all_but_the_scores_is_the_same(tmp_path, own):
    """The same method on the same images, without classes, and with labels that raise an error
    when they are looked at."""
    config, method, augment, train, images = parts(tmp_path, **own)
    bare = dict(classes=(), labels=Untouchable())
    train_bare = dataclasses.replace(train, **bare)
    bare = train_bare if images is train else dataclasses.replace(images, **bare)
    losses = torch.tensor([0.3, 0.1, 0.2][: {"simclr": 0, "cc": 1}.get(config.method, 3)])
    losses = losses if len(losses) else None
    found = []
    for pair in ((train, images), (train_bare, bare)):
        made = Evaluator(config, method, augment, *pair, 10, CPU)
        assert (made.scores is None) == (pair[0] is train_bare)
        assert made.evaluate(0, None) == {}
        row = made.evaluate(config.epochs, losses)
        assert made.pseudo_labels() == {}
        found.append((row, *made.finish(), made.state_dict()))
    (row, results, arrays, _, state), (row_bare, results_bare, arrays_bare, _, state_bare) = found
    accuracies = [name for name in row if name.endswith("_acc") or name == "nmi"]
    assert len(accuracies) > 1 and not {*accuracies} & {*row_bare}
    assert {k: v for k, v in row.items() if k not in accuracies} == row_bare
    of_labels = {"scores", "knn_acc", "kmeans_protocols", "heads"}
    assert {k: v for k, v in results.items() if k not in of_labels} == {
        k: v for k, v in results_bare.items() if k not in of_labels
    }
    assert results["scores"] and results_bare["scores"] == {}
    assert results_bare.keys() & of_labels <= {"scores", "heads"}
    if losses is not None:
        assert results_bare["heads"] == [{"loss": one["loss"]} for one in results["heads"]]
    assert state_bare["scores"] is None and state["head_losses"] == state_bare["head_losses"]
    for stem, content in arrays.items():
        for name, array in content.items():
            other = arrays_bare[stem][name]
            if name == "labels":
                assert (other == -1).all() and other.dtype == array.dtype and (array >= 0).all()
            else:
                np.testing.assert_array_equal(array, other)


def test_the_last_look_is_kept_and_no_earlier_one(tmp_path):
    """Features of all images are not held while the next epochs train."""
    made = evaluator(tmp_path, epochs=2)
    made.evaluate(0, None)
    made.evaluate(1, torch.tensor([0.3, 0.1, 0.2]))
    assert made.last is None
    made.evaluate(2, torch.tensor([0.1, 0.3, 0.2]))
    last = made.last
    assert last is not None and made.head_losses == pytest.approx([0.1, 0.3, 0.2])
    results, _, _ = made.finish()
    assert results["knn_acc"] == last.knn_acc
    assert results["scores"]["lowest_loss_head"]["head"] == 0


def test_finish_after_a_kill_is_finish(tmp_path):
    """From the checkpoint after the last epoch everything is there again."""
    made = evaluator(tmp_path, epochs=2)
    made.evaluate(0, None)
    row = made.evaluate(2, torch.tensor([0.3, 0.1, 0.2]))
    again = Evaluator(made.config, made.method, made.augment, made.train, made.images, 10, CPU)
    again.load_state_dict(made.state_dict())
    (results, arrays, table), (others, other_arrays, _) = made.finish(), again.finish()
    assert results == others and table == {}  # digits are in no files
    assert results["scores"]["aligned_average"]["acc"] == row["aligned_average_acc"]
    traces, labels = arrays["traces"], made.images.labels.numpy()
    assert (traces["labels"] == labels[traces["images"]]).all()
    assert (arrays["embeddings"]["labels"] == labels).all()
    for stem, content in arrays.items():
        for name, array in content.items():
            np.testing.assert_array_equal(array, other_arrays[stem][name])


@pytest.mark.parametrize("space", ["backbone", "projection"])
def test_neighbours_are_looked_up_in_the_space_that_is_set(tmp_path, space):
    """Fewer neighbours vote than there are images, and the two spaces differ."""
    made = evaluator(tmp_path, method="simclr", limit=600, knn_space=space, projection_dim=3)
    with torch.no_grad():
        out = made.method.eval().outputs(made.augment.clean(made.train.pixels))
    labels = made.images.labels
    accuracies = {k: knn_accuracy(x, labels, x, labels, itself=True) for k, x in out.items()}
    assert accuracies["backbone"] != accuracies["projection"]
    assert made.look(made.outputs(), 1).knn_acc == pytest.approx(accuracies[space], abs=0.01)


@pytest.mark.parametrize("split, n_bank", [("all", 0), ("test", 90)])
def test_who_is_extracted_to_vote(tmp_path, monkeypatch, split, n_bank):
    made = evaluator(tmp_path, split=split)
    assert made.n_bank == n_bank
    seen, extract = [], Extractor.__call__

    def noted(self, network, pixels):
        seen.append(len(pixels))
        return extract(self, network, pixels)

    monkeypatch.setattr(Extractor, "__call__", noted)
    made.look(made.outputs(), 1)
    assert sum(seen) == len(made.images) + n_bank


def test_an_embedding_is_kept_on_the_axes_of_largest_variance():
    x = torch.randn(300, 80) * torch.linspace(1, 10, 80)
    kept = reduced(x)
    assert kept.shape == (300, 64)
    exact = torch.linalg.svdvals(x - x.mean(0)).square()[:64] / 300
    torch.testing.assert_close(kept.var(0, correction=0), exact, rtol=1e-3, atol=1e-3)
    assert reduced(x[:, :64]) is not None and torch.equal(reduced(x[:, :64]), x[:, :64])


def test_measured_statistics_are_the_evaluations_alone(tmp_path):
    """What DeepCluster clusters before an epoch is the same whenever it was evaluated."""
    tiny = dict(method="deepcluster", limit=64, batch_size=32, width=4, pseudo_clusters=8, epochs=4)
    places = {"results_dir": str(tmp_path / "runs"), "data_dir": str(tmp_path / "data")}
    config = Config.from_params({**tiny, **places, "eval_batchnorm": "measured"})
    one, four = ([*fit(config.replace(evaluate_every=n))] for n in (1, 4))
    assert [row["loss"] for row in one] == [row["loss"] for row in four]
    assert "knn_acc" in one[0] and "knn_acc" not in four[0]
