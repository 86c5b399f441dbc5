"""Neighbours and linear classifiers against loops and scikit-learn; finished runs, loaded strictly
or refused."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from reproduce import Config, ConfigError, fit
from reproduce.__main__ import main
from reproduce.data.sets import write_cached
from reproduce.evaluation import probes
from reproduce.networks import backbones
from reproduce.networks.weights import load_backbone
from reproduce.runs.directory import Run
from reproduce.runs.trained import Trained, probe

# ---- k nearest neighbours


def loop_knn(bank, bank_labels, queries, labels, k, temperature, itself):
    """One query at a time: the k most similar, each with the weight exp(cosine / temperature)."""
    right = 0
    for i, (query, label) in enumerate(zip(queries, labels)):
        near = sorted(
            (
                (float(F.cosine_similarity(query, x, dim=0)), int(y))
                for j, (x, y) in enumerate(zip(bank, bank_labels))
                if not (itself and i == j)
            ),
            reverse=True,
        )[:k]
        votes = {}
        for similarity, y in near:
            votes[y] = votes.get(y, 0) + math.exp(similarity / temperature)
        right += max(votes, key=votes.get) == int(label)
    return right / len(queries)


@pytest.fixture
def blurred():
    """Five classes that overlap, so that who votes and with what weight decides."""
    labels = torch.randint(5, (90,))
    return F.one_hot(labels, 8).float() + 0.7 * torch.randn(90, 8), labels


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("k, temperature", [(1, 0.1), (7, 0.1), (20, 0.05), (20, 1.0), (200, 0.3)])
def test_knn_is_the_loop(blurred, k, temperature, itself):
    """Also with fewer than k images: all of them vote."""
    x, y = blurred
    bank, queries = (x, x) if itself else (x[:60], x[60:])
    bank_labels, labels = (y, y) if itself else (y[:60], y[60:])
    expected = loop_knn(
        bank.double(), bank_labels, queries.double(), labels, k, temperature, itself
    )
    assert probes.knn_accuracy(
        bank, bank_labels, queries, labels, k, temperature, itself
    ) == pytest.approx(expected, abs=1e-6)
    # lengths, chunks and the names of the classes do not matter
    for chunk in (1, 7, 30):
        assert probes.knn_accuracy(
            bank, bank_labels, queries, labels, k, temperature, itself, chunk
        ) == pytest.approx(expected, abs=1e-6)
    lengths = torch.rand(len(x), 1) + 0.5
    longer = (lengths * x, lengths * x) if itself else (lengths[:60] * bank, queries)
    names = torch.randperm(5)
    assert probes.knn_accuracy(
        longer[0], names[bank_labels], longer[1], names[labels], k, temperature, itself
    ) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 5, 15])
def test_knn_with_equal_votes_is_scikit_learns(blurred, k):
    """A high temperature gives all the same weight: a plain vote, whose ties are left out here."""
    x, y = blurred
    theirs = KNeighborsClassifier(k, metric="cosine").fit(x[:60].numpy(), y[:60].numpy())
    share = np.sort(theirs.predict_proba(x[60:].numpy()), 1)
    clear = torch.from_numpy(share[:, -1] > share[:, -2] + 1e-9)
    assert clear.sum() > 15
    queries, labels = x[60:][clear], y[60:][clear]
    assert probes.knn_accuracy(x[:60], y[:60], queries, labels, k, 1e6) == pytest.approx(
        theirs.score(queries.numpy(), labels.numpy())
    )


def test_nobody_votes_for_itself():
    """Pairs of the same image with two labels: its twin is its nearest neighbour, and always
    wrong."""
    x, labels = torch.randn(20, 6).repeat(2, 1), torch.cat([torch.zeros(20), torch.ones(20)]).long()
    for chunk in (4096, 7):
        assert probes.knn_accuracy(x, labels, x, labels, k=1, itself=True, chunk=chunk) == 0
    assert probes.knn_accuracy(x[:20], labels[:20], x[:20], labels[:20], k=1) == 1


@pytest.mark.parametrize("chunk, bank_chunk", [(4096, 1 << 16), (7, 11), (1, 90)])
def test_neighbours_are_the_loops(blurred, chunk, bank_chunk):
    x = blurred[0].double()
    lengths = x.norm(dim=1)
    expected = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        by_cosine = sorted(others, key=lambda j: -float(x[i] @ x[j] / lengths[i] / lengths[j]))
        expected.append(by_cosine[:4])
    found = probes.most_similar(x, x, 4, True, chunk, bank_chunk)
    assert torch.cat([who for _, _, who in found]).tolist() == expected
    assert probes.neighbours(x, 4).tolist() == expected


# ---- linear classifier


@pytest.mark.parametrize("rows, expected", [(7, 7), (1, 1), (0.5, 1), (1e6, 90)])
def test_similarities_take_so_many_bytes(blurred, monkeypatch, rows, expected):
    """However many images there are, the block of similarities is no larger."""
    x = blurred[0]
    monkeypatch.setattr(probes, "SIMILARITIES", {"cpu": int(rows * 4 * len(x))})
    sizes = [part.stop - part.start for part, *_ in probes.most_similar(x, x, 4, True)]
    assert max(sizes) == expected and sum(sizes) == len(x)


def test_linear_separates_what_is_separable():
    """Classes on either side of planes; one that no plane cuts out is not found. A scale per
    feature changes nothing."""
    x = torch.randn(600, 4)
    halves = (x[:, 0] + x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()
    x = x[keep := ((x[:, 0] + x[:, 1]).abs() > 0.1) & (x[:, 2].abs() > 0.1)]
    y = halves[keep]
    n = len(x) // 2
    assert probes.linear_accuracy(x[:n], y[:n], x[n:], y[n:], epochs=40) > 0.97
    scaled = x * torch.tensor([1e-3, 1.0, 1e3, 1.0]) + 100
    assert probes.linear_accuracy(scaled[:n], y[:n], scaled[n:], y[n:], epochs=40) > 0.97
    between = (x[:, 0] > -0.5).long() + (
        x[:, 0] > 0.5
    ).long()  # only a bias tells the middle from both sides
    assert probes.linear_accuracy(x[:n], between[:n], x[n:], between[n:], epochs=40) > 0.9
    odd = ((x[:, 0] > 0) ^ (x[:, 2] > 0)).long()
    assert probes.linear_accuracy(x[:n], odd[:n], x[n:], odd[n:], epochs=40) < 0.65


def test_linear_is_scikit_learns_on_digits():
    x, y = load_digits(return_X_y=True)
    scaler = StandardScaler().fit(x[:1000])
    theirs = (
        LogisticRegression(max_iter=1000)
        .fit(scaler.transform(x[:1000]), y[:1000])
        .score(scaler.transform(x[1000:]), y[1000:])
    )
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    ours = probes.linear_accuracy(x[:1000], y[:1000], x[1000:], y[1000:], epochs=30)
    assert ours == pytest.approx(theirs, abs=0.02) and ours > 0.85
    names = torch.randperm(10)
    assert probes.linear_accuracy(
        x[:1000], names[y[:1000]], x[1000:], names[y[1000:]], epochs=30
    ) == pytest.approx(ours, abs=0.002)


def test_linear_knows_nothing_of_the_test_part():
    """Neither its features' scale nor its order reaches the classifier; a feature that is constant
    does no harm."""
    x, y = torch.randn(200, 5), torch.arange(200) % 3
    x[:, 0] += y
    x[:, 4] = 2.0
    one = probes.linear_accuracy(x[:150], y[:150], x[150:], y[150:], epochs=5)
    each = [
        probes.linear_accuracy(x[:150], y[:150], x[i : i + 1], y[i : i + 1], epochs=5)
        for i in range(150, 160)
    ]
    assert 0.3 < one < 1 and set(each) <= {0.0, 1.0}
    assert probes.linear_accuracy(
        x[:150], y[:150], x[150:160], y[150:160], epochs=5
    ) == pytest.approx(np.mean(each))


# ---- a finished run's network

QUICK = {"epochs": 1, "width": 4, "head_hidden": 16, "limit": 200, "method": "simclr"}


def trained(folder, **settings):
    config = Config.from_params(
        {
            **QUICK,
            "results_dir": str(folder / "results"),
            "data_dir": str(folder / "data"),
            **settings,
        }
    )
    run = Run(config)
    list(fit(config, run))
    return run.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finished")


@pytest.fixture(scope="module")
def finished(folder):
    return trained(folder)


@pytest.fixture
def data_dir(folder):
    return str(folder / "data")


@pytest.fixture
def copied(finished, tmp_path):
    """A copy to damage."""
    return shutil.copytree(finished, tmp_path / finished.name)


def refused(path, *words, data_dir=""):
    with pytest.raises(ConfigError) as caught:
        Trained(path, data_dir)
    assert "\n" not in str(caught.value) and all(
        word in str(caught.value) for word in ("run_dir", *words)
    ), str(caught.value)


def change(path, file, **values):
    (path / file).write_text(json.dumps({**json.loads((path / file).read_text()), **values}))


def test_a_finished_run_says_what_was_loaded(finished, data_dir):
    run = Trained(finished, data_dir)
    acc = run.metrics["scores"]["kmeans_embedding"]["acc"]
    assert (
        run.description
        == f"loaded {finished.name}: simclr on digits, epoch 1, kmeans embedding ACC {acc:.1%}"
    )
    assert not run.method.training and not any(p.requires_grad for p in run.method.parameters())


def test_a_run_may_be_named_with_a_tilde(finished, data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(finished.parent))
    assert Trained(f"~/{finished.name}", data_dir).path == finished


@pytest.mark.parametrize(
    "file, words",
    [
        ("metrics.json", ["not the directory of a finished run"]),
        ("model.pt", ["no model.pt"]),
        ("config.json", ["config.json", "No such file"]),
    ],
)
def test_a_missing_file(copied, file, words):
    (copied / file).unlink()
    refused(copied, *words)


def test_no_such_directory(tmp_path):
    refused(tmp_path / "no such run", "not the directory of a finished run")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_damaged_weights(copied, share):
    content = (copied / "model.pt").read_bytes()
    (copied / "model.pt").write_bytes(content[: int(share * len(content))])
    refused(copied, "model.pt", "cannot be read")


@pytest.mark.parametrize("file", ["metrics.json", "config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "null", "\0"])
def test_damaged_words(copied, file, content):
    (copied / file).write_text(content)
    refused(copied, file)


def test_other_weights_than_were_measured(copied):
    weights = torch.load(copied / "model.pt", weights_only=True)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    torch.save(weights, copied / "model.pt")
    refused(copied, "does not hold the weights that this run's metrics were measured on")


@pytest.mark.parametrize(
    "values", [{"width": 8}, {"method": "byol"}, {"n_heads": 3, "method": "crlc"}]
)
def test_weights_that_do_not_fit_the_method(copied, data_dir, values):
    change(copied, "config.json", **values)
    refused(copied, "its weights do not fit method", data_dir=data_dir)


def test_the_backbone_alone_is_enough_for_features(copied, data_dir, tmp_path):
    """In half precision beside a run whose model.pt stays where it was made; as a start, too."""
    whole, file = Trained(copied, data_dir), copied / "backbone.pt"
    assert main(["export", str(copied), str(file)]) == 0
    (copied / "model.pt").unlink()
    run = Trained(copied, data_dir)
    pixels = run.images.part("all", run.config.limit).pixels
    known = whole.layers(pixels)
    for name, x in run.layers(pixels).items():
        torch.testing.assert_close(
            x, known[name], rtol=0, atol=2e-2 * float(known[name].abs().max())
        )
    start = Config.from_params({**dataclasses.asdict(run.config), "weights": str(file)})
    backbone = backbones.build(start, pixels.shape[1])
    assert load_backbone(start, backbone) is None
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, run.method.backbone.state_dict()[name]), name
    content = torch.load(file, weights_only=True)
    assert all(x.dtype != torch.float32 for x in content["state_dict"].values())
    torch.save({**content, "weights_sha256": "of another run"}, file)
    refused(copied, "backbone.pt", "does not hold the weights that this run's metrics")
    torch.save(content["state_dict"], file)
    refused(copied, "backbone.pt", "cannot be read")
    first, *others = content["state_dict"]
    less = {name: content["state_dict"][name] for name in others}
    torch.save({**content, "state_dict": less}, file)
    refused(copied, "its weights do not fit method", data_dir=data_dir)
    assert main(["apply", str(copied), str(tmp_path), "-o", str(tmp_path / "out.csv")]) == 2


def test_a_run_that_was_not_finished(copied):
    change(copied, "config.json", epochs=5)
    refused(copied, "trained for 1 of 5 epochs")
    change(copied, "config.json", epochs=1)
    change(copied, "metrics.json", status="diverged")
    refused(copied, "not a finished run", "'diverged'")
    (copied / "metrics.json").write_text("{}")
    refused(copied, "not a finished run", "None")


def test_a_run_that_was_not_trained(tmp_path):
    refused(
        trained(tmp_path, epochs=0),
        "trained for 0 of 0 epochs: an untrained model is not evaluated",
    )


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
def test_layers_lie_in_files_that_are_gone_with_them(finished, data_dir):
    run, before = Trained(finished, data_dir), sorted(finished.iterdir())
    found = run.layers(run.images.part("all", run.config.limit).pixels)
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert sum(str(finished) in line for line in maps) == len(found)
    del found
    assert str(finished) not in Path("/proc/self/maps").read_text()
    assert sorted(finished.iterdir()) == before


def test_other_images_than_it_was_trained_on(finished, data_dir, tmp_path):
    content = dict(np.load(f"{data_dir}/digits.npz"))
    del content["sha256"]
    write_cached(tmp_path / "digits.npz", **{**content, "images": 255 - content["images"]})
    refused(finished, "trained on other images than 'digits' holds now", data_dir=str(tmp_path))


def test_layers_of_the_small_network(finished, data_dir):
    """Each layer's features against a forward by hand, whole maps at their full size; batches do
    not matter."""
    run = Trained(finished, data_dir)
    pixels = run.images.part("all", run.config.limit).pixels
    found = run.layers(pixels)
    assert {name: x.shape[1] for name, x in found.items()} == {
        "conv1": 4 * 64,
        "conv2": 4 * 64,
        "conv3": 4 * 64,
        "conv4": 8 * 16,
        "features": 8,
    }
    net, x = run.method.backbone, run.augment.clean(pixels)
    expected = {"conv1": net.stem(x), "conv2": net.inner[0](net.stem(x).relu())}
    expected |= {"conv3": net.inner[2](expected["conv2"].relu())}
    expected |= {
        "conv4": net.last(F.max_pool2d((net.stem(x).relu() + expected["conv3"]).relu(), 2))
    }
    for name, y in expected.items():
        torch.testing.assert_close(found[name], y.relu().flatten(1), msg=name)
    torch.testing.assert_close(found["features"], net(x))
    for name, y in run.layers(pixels, batch=37).items():
        torch.testing.assert_close(y, found[name], rtol=1e-4, atol=1e-5)
    assert not any(m._forward_hooks for m in net.modules())
    # wider maps than may be are averaged: 4 channels leave a 4 x 4 grid of 64 numbers, 8 a 2 x 2
    small = run.layers(pixels, at_most=64)
    torch.testing.assert_close(small["conv1"], F.avg_pool2d(expected["conv1"].relu(), 2).flatten(1))
    assert small["conv4"].shape[1] == 8 * 4 and small["features"].shape[1] == 8
    # and they are the features that the run's own last evaluation had
    np.testing.assert_allclose(
        F.normalize(found["features"], dim=-1).numpy(),
        np.load(finished / "embeddings.npz")["embedding"],
        atol=2e-3,
    )


@pytest.mark.parametrize("has_test_part, n_train, n_test", [(True, 200, 200), (False, 160, 40)])
def test_a_probe_is_scored_on_images_that_it_did_not_learn(
    finished, data_dir, has_test_part, n_train, n_test
):
    """Digits have a test part, which is used though the run was made on all; without one a fifth is
    kept."""
    run = Trained(finished, data_dir)
    if not has_test_part:
        run.images = dataclasses.replace(run.images, split=torch.zeros_like(run.images.split))
    result = probe(run, epochs=5)
    assert (result["n_train"], result["n_test"], result["epochs"]) == (n_train, n_test, 5)
    assert list(result["layers"]) == ["conv1", "conv2", "conv3", "conv4", "features"]
    assert result["layers"]["conv1"]["features"] == 256 and all(
        0.3 < layer["acc"] < 1 for layer in result["layers"].values()
    )
    assert 0.1 < result["knn_acc"] < 1
    train, test = run.parts()
    rows = [{bytes(x) for x in part.pixels.flatten(1).numpy()} for part in (train, test)]
    assert len(rows[0]) == n_train and len(rows[1]) == n_test and not rows[0] & rows[1]
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(10))


def test_a_probe_needs_labels(finished, data_dir, monkeypatch):
    run = Trained(finished, data_dir)
    run.images = dataclasses.replace(
        run.images, labels=torch.full_like(run.images.labels, -1), classes=()
    )
    with pytest.raises(
        ConfigError, match="linear evaluation needs labels, and data set 'digits' has none"
    ):
        probe(run)
