"""What a finished run keeps, and what is read of it, recomputed from its weights.

The network is written out here once more, in float64, and looks at the image files themselves, so
that nothing that evaluates in the package can agree with itself. A run of e epochs at a constant
rate is the first e epochs of a longer one: its weights are those of the longer one at that time.
"""

import csv
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from reproduce import Config, fit
from reproduce.__main__ import main
from reproduce.methods import METHODS
from reproduce.report import results
from reproduce.runs.directory import Run

# ---- the network, once more


def conv(x, w, name):
    """A 3 x 3 convolution and its batch norm, as it evaluates."""
    return norm(F.conv2d(x, w[f"{name}.0.weight"], padding=1), w, f"{name}.1")


def norm(x, w, name):
    mean, var, scale, shift = (
        w[f"{name}.{part}"].view(1, -1, *[1] * (x.dim() - 2))
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def backbone(x, w, name="backbone"):
    """The small backbone, images ``[N, C, S, S]`` -> features ``[N, F]``."""
    x = conv(x, w, f"{name}.stem").relu()
    inner = conv(conv(x, w, f"{name}.inner.0").relu(), w, f"{name}.inner.2")
    x = F.max_pool2d((x + inner).relu(), 2)
    return conv(x, w, f"{name}.last").relu().mean((-2, -1))


def projector(x, w, name="projector"):
    hidden = norm(x @ w[f"{name}.0.weight"].T, w, f"{name}.1").relu()
    return hidden @ w[f"{name}.3.weight"].T + w[f"{name}.3.bias"]


def heads(x, w):
    """Every head's probabilities, one head after the other ``[H, N, K]``."""
    n_heads = len(w["heads.0.weight"])
    first, second = (w[f"heads.{layer}.bias"].view(n_heads, -1) for layer in (0, 2))
    found = []
    for h in range(n_heads):
        hidden = (x @ w["heads.0.weight"][h] + first[h]).relu()
        found.append((hidden @ w["heads.2.weight"][h] + second[h]).softmax(-1))
    return torch.stack(found).numpy()


def weights(run):
    state = torch.load(run / "model.pt", weights_only=True)
    return {name: value.double() for name, value in state.items() if value.is_floating_point()}


def seen(folder, run):
    """The files of a run in its order, and what a network that was trained on them sees of them,
    ``[N, 3, S, S]``."""
    files = [row["file"] for row in read(run / "assignments.csv")]
    there = [str(file.relative_to(folder)) for file in folder.rglob("*.png")]
    assert sorted(files) == sorted(there)
    pixels = np.stack([np.asarray(Image.open(folder / file)) for file in files])
    x = torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 255
    return files, (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


# ---- runs


def train(base, **settings):
    places = {"results_dir": str(base / "runs"), "data_dir": str(base / "data")}
    config = Config.from_params({"device": "cpu", "precision": "float32", **settings, **places})
    run = Run(config)
    list(fit(config, run))
    return run.path


def read(file):
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


CRLC = dict(
    dataset="folder",
    image_size=8,
    width=8,
    n_heads=4,
    head_hidden=16,
    batch_size=16,
    learning_rate=0.1,
    schedule="constant",
    evaluate_every=2,  # and before training, and at the end: after 0, 2 and 3 epochs
    trace_images=7,
)
EPOCHS = [0, 2, 3]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images in three class folders of unequal sizes; their files do not lie in the order of their
    names."""
    folder, rng = tmp_path_factory.mktemp("kept") / "images", np.random.default_rng(0)
    for i in range(66):
        label = 0 if i % 2 else 1 + i % 3 % 2
        pixels = rng.integers(0, 150, (8, 8, 3))
        pixels[..., label] += rng.integers(0, 100)
        pixels[label : label + 4] //= 2
        part = folder / "abc"[label]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(part / f"{97 * i % 66:02d}.png")
    return folder


@pytest.fixture(scope="module")
def crlc(photographs):
    """The directories of runs of CRLC that are one run after 0, 2 and 3 epochs."""
    base = photographs.parent
    of = [train(base / str(e), folder=str(photographs), epochs=e, **CRLC) for e in EPOCHS]
    for shorter in of[1:-1]:
        longer = read(of[-1] / "history.csv")
        for row, same in zip(read(shorter / "history.csv"), longer, strict=False):
            assert row["loss"] == same["loss"]
    return of


@pytest.fixture(scope="module")
def expected(photographs, crlc):
    """Files, labels, and every head's probabilities of every image at each evaluation
    ``[E, H, N, K]``."""
    files, x = seen(photographs, crlc[-1])
    p = [heads(backbone(x, w), w) for w in map(weights, crlc)]
    return files, np.array(["abc".index(f[0]) for f in files]), np.stack(p)


def apart(p, axis):
    """How far the nearest two along an axis are from each other, at their farthest."""
    one = np.moveaxis(p, axis, 0)
    return min(np.abs(a - b).max() for a, b in itertools.combinations(one, 2))


# ---- traces


def test_traces_are_of_their_image_label_head_and_epoch(crlc, expected):
    files, labels, p = expected
    traced = np.linspace(0, len(files) - 1, 7).astype(int)
    with np.load(crlc[-1] / "traces.npz") as kept:
        assert kept["epochs"].tolist() == EPOCHS
        assert kept["images"].tolist() == traced.tolist()
        assert kept["labels"].tolist() == labels[traced].tolist()
        for e, (i, image), h in itertools.product(range(3), enumerate(traced), range(4)):
            found = kept["probabilities"][e, i, h]
            np.testing.assert_allclose(found, p[e, h, image], atol=2e-3, err_msg=f"{e} {i} {h}")
        for e, h in itertools.product(range(3), range(4)):
            share = [np.mean([p[e, h, n, k] for n in range(len(files))]) for k in range(3)]
            np.testing.assert_allclose(kept["mass"][e, h], share, atol=2e-3)
    mass = p.mean(2)
    # no other epoch, head or image would have passed
    assert min(apart(p[:, :, traced], axis) for axis in (0, 1, 2)) > 0.01
    assert min(apart(mass, axis) for axis in (0, 1)) > 0.01
    assert len(set(labels[traced])) == 3


def test_traces_and_mass_as_tables(crlc, expected):
    """Of all heads, and of the one with the lowest loss."""
    files, labels, p = expected
    table = results.load(crlc[-1].parents[2])
    rows = results.traces(table, every_head=True)
    assert len(rows) == 3 * 7 * 4 * 3
    for row in rows.to_dict("records"):
        e, n = EPOCHS.index(row["epoch"]), row["image"]
        assert row["probability"] == pytest.approx(p[e, row["head"], n, row["cluster"]], abs=2e-3)
        assert row["label"] == labels[n]
    losses = [head["loss"] for head in json.loads((crlc[-1] / "metrics.json").read_text())["heads"]]
    lowest = int(np.argmin(losses))
    assert set(results.traces(table)["head"]) == {lowest}
    for row in results.mass(table).to_dict("records"):
        share = p[EPOCHS.index(row["epoch"]), lowest, :, row["cluster"]].mean()
        assert row["share"] == pytest.approx(share, abs=2e-3)


# ---- clusters, by each rule


def aligned(p):
    """The mean of ``[H, N, K]`` after the clusters of each have the numbers that agree best with
    those of the first; all ways are tried."""
    ways = list(itertools.permutations(range(p.shape[-1])))
    best = [max(ways, key=lambda way: (p[0] * head[:, way]).sum()) for head in p]
    return np.mean([head[:, way] for head, way in zip(p, best)], 0)


def accuracy(labels, clusters, k=3):
    """Of the best of all ways to give clusters to classes."""
    ways = itertools.permutations(range(k))
    return max(np.mean(np.take(way, clusters) == labels) for way in ways)


def test_a_row_of_the_table_is_what_scikit_learn_says(crlc, expected):
    """Clusters from the weights, scores from them, in the columns of their names."""
    files, labels, p = expected
    metrics = json.loads((crlc[-1] / "metrics.json").read_text())
    losses = [head["loss"] for head in metrics["heads"]]
    rank = np.argsort(losses)
    clusters = {
        "first_head": p[-1, 0].argmax(-1),
        "lowest_loss_head": p[-1, rank[0]].argmax(-1),
        "aligned_average": aligned(p[-1, rank]).argmax(-1),
    }
    (row,) = results.load(crlc[-1].parents[2]).to_dict("records")
    with np.load(crlc[-1] / "embeddings.npz") as kept:
        assert kept["labels"].tolist() == labels.tolist()
        for rule, found in clusters.items():
            assert kept[rule].tolist() == found.tolist(), rule
        clusters["kmeans_embedding"] = kept["kmeans_embedding"]
    by_head = [p[-1, h].argmax(-1) for h in range(4)]
    best = max(range(4), key=lambda h: accuracy(labels, by_head[h]))
    clusters["best_head_oracle"] = by_head[best]
    for rule, found in clusters.items():
        acc, nmi, ari = (row[f"{rule}_{score}"] for score in ("acc", "nmi", "ari"))
        assert acc == pytest.approx(accuracy(labels, found)), rule
        assert nmi == pytest.approx(normalized_mutual_info_score(labels, found)), rule
        assert ari == pytest.approx(adjusted_rand_score(labels, found)), rule
    assert max(abs(row[f"{rule}_nmi"] - row[f"{rule}_ari"]) for rule in clusters) > 0.02
    assert row["mean_of_heads_acc"] == pytest.approx(
        np.mean([accuracy(labels, found) for found in by_head])
    )
    shown = results.scores_table(metrics).loc["aligned average"]
    for name in ("acc", "nmi", "ari"):
        assert shown[name.upper()] == pytest.approx(100 * row[f"aligned_average_{name}"], abs=0.05)


def test_the_table_of_new_images_has_probability_and_margin(crlc, photographs, expected, tmp_path):
    """With clustering heads: of the aligned average, as the run ordered its heads."""
    files, _, p = expected
    out = tmp_path / "clusters.csv"
    assert main(["apply", str(crlc[-1]), str(photographs), "-o", str(out)]) == 0
    losses = [head["loss"] for head in json.loads((crlc[-1] / "metrics.json").read_text())["heads"]]
    mean = aligned(p[-1, np.argsort(losses)])
    check_table(read(out), files, mean)


def check_table(rows, files, p):
    assert [row["file"] for row in rows] == files
    for row, q in zip(rows, p):
        second, first = sorted(q)[-2:]
        assert int(row["cluster"]) == int(np.argmax(q))
        assert float(row["probability"]) == pytest.approx(first, abs=2e-4)
        assert float(row["margin"]) == pytest.approx(first - second, abs=4e-4)
    assert max(float(row["probability"]) - float(row["margin"]) for row in rows) > 0.1


def test_mirror_images_and_neighbours_vote(photographs, tmp_path):
    """Features and probabilities are means over an image and its mirror image, in the run and for
    new images; neighbours vote by a loop over images, neighbours and heads."""
    settings = {**CRLC, "augmentation": "images", "eval_flip": True, "vote_neighbours": 1}
    run = train(tmp_path, **settings, folder=str(photographs), epochs=2)
    files, x = seen(photographs, run)
    w = weights(run)
    features = [backbone(pixels, w) for pixels in (x, x.flip(-1))]
    p = np.mean([heads(f, w) for f in features], 0)
    assert np.abs(p - heads(features[0], w)).max() > 0.01
    losses = [head["loss"] for head in json.loads((run / "metrics.json").read_text())["heads"]]
    p, mean = p[np.argsort(losses)], F.normalize(sum(features) / 2, dim=-1).numpy()
    votes = np.zeros(p.shape[1:])
    ways = list(itertools.permutations(range(3)))
    for head in p:
        way = max(ways, key=lambda way: (p[0] * head[:, way]).sum())
        for i in range(len(files)):
            near = sorted(range(len(files)), key=lambda j: -mean[i] @ mean[j])[:2]
            assert near[0] == i
            for j in near:
                votes[i, way.index(head[j].argmax())] += 1
    with np.load(run / "embeddings.npz") as kept:
        assert kept["aligned_average"].tolist() == aligned(p).argmax(-1).tolist()
        assert kept["neighbour_vote"].tolist() == votes.argmax(-1).tolist()
        assert kept["neighbour_vote"].tolist() != kept["aligned_average"].tolist()
        labels = kept["labels"]
    (row,) = results.load(run.parents[2]).to_dict("records")
    voted = accuracy(labels, votes.argmax(-1))
    assert row["neighbour_vote_acc"] == pytest.approx(voted)
    assert float(read(run / "history.csv")[-1]["neighbour_vote_acc"]) == pytest.approx(voted, 1e-5)
    labels = torch.from_numpy(labels)
    assert row["knn_acc"] == pytest.approx(vote(torch.from_numpy(mean), labels, k=65))
    out = tmp_path / "clusters.csv"
    assert main(["apply", str(run), str(photographs), "-o", str(out)]) == 0
    check_table(read(out), files, aligned(p))


def test_margins_without_clustering_heads(photographs, tmp_path):
    """A probability is in proportion to 1 / squared distance from the centroid."""
    run = train(
        tmp_path,
        **{k: v for k, v in CRLC.items() if k not in ("n_heads", "trace_images")},
        folder=str(photographs),
        method="simclr",
        epochs=1,
    )
    out = [tmp_path / "clusters.csv", tmp_path / "features.npy"]
    words = ["apply", str(run), str(photographs), "-o", str(out[0]), "--embedding", str(out[1])]
    assert main(words) == 0
    files, x = seen(photographs, run)
    with np.load(run / "apply.npz") as kept:
        centroids = kept["centroids"].astype(float)
    features = F.normalize(backbone(x, weights(run)), dim=-1).numpy()
    np.testing.assert_allclose(np.load(out[1]), features, atol=1e-5)
    square = ((features[:, None] - centroids) ** 2).sum(-1)
    check_table(read(out[0]), files, (1 / square) / (1 / square).sum(1, keepdims=True))
    for row, nearest in zip(read(out[0]), square.min(1)):
        assert float(row["distance"]) == pytest.approx(nearest**0.5, abs=1e-3)


# ---- the heads' losses


def test_head_losses_are_those_of_each_epoch(photographs, tmp_path, monkeypatch):
    """The means of what the method said in an epoch's steps; the head of the lowest changes, and
    with it the column of history, the rank of the heads and the kept clusters."""
    said, own = [], METHODS["crlc"].loss

    def loss(self, views, index):
        found = own(self, views, index)
        if not index.is_meta:  # where the arithmetic of a step is counted
            said.append(found["head_losses"].detach().double().numpy())
        return found

    monkeypatch.setattr(METHODS["crlc"], "loss", loss)
    settings = {**CRLC, "evaluate_every": 1, "folder": str(photographs)}
    settings |= {"learning_rate": 0.4, "seed": 5}  # one whose heads change their order
    runs = [train(tmp_path / str(e), epochs=e, **settings) for e in (1, 2, 3)]
    each = np.stack(said[-12:]).reshape(3, 4, 4).mean(1)  # [E, H], of the longest run
    lowest = each.argmin(1).tolist()
    assert len(set(lowest)) == 3, lowest
    metrics = json.loads((runs[-1] / "metrics.json").read_text())
    assert [head["loss"] for head in metrics["heads"]] == pytest.approx(each[-1].tolist())
    assert metrics["scores"]["lowest_loss_head"]["head"] == lowest[-1]
    with np.load(runs[-1] / "apply.npz") as kept:
        assert kept["rank"].tolist() == np.argsort(each[-1]).tolist()
    files, x = seen(photographs, runs[-1])
    labels = ["abc".index(file[0]) for file in files]
    for e, (run, row) in enumerate(zip(runs, read(runs[-1] / "history.csv"), strict=True)):
        w = weights(run)
        by_head = [accuracy(labels, q.argmax(-1)) for q in heads(backbone(x, w), w)]
        assert float(row["lowest_loss_head_acc"]) == pytest.approx(by_head[lowest[e]], abs=1e-5)
        assert float(row["first_head_acc"]) == pytest.approx(by_head[0], abs=1e-5)
    with np.load(runs[-1] / "embeddings.npz") as kept:
        found = heads(backbone(x, w), w)[lowest[-1]].argmax(-1)
        assert kept["lowest_loss_head"].tolist() == found.tolist()
    first, *rest = read(runs[-1] / "history.csv")
    assert first["previous_nmi"] == ""
    kept = [np.load(run / "embeddings.npz")["aligned_average"] for run in runs]
    for row, before, now in zip(rest, kept, kept[1:], strict=False):
        same = normalized_mutual_info_score(before, now)
        assert float(row["previous_nmi"]) == pytest.approx(same, abs=1e-5)
    for row, now in zip([first, *rest], kept, strict=True):
        known = normalized_mutual_info_score(labels, now)
        assert float(row["nmi"]) == pytest.approx(known, abs=1e-5)


# ---- nearest neighbours


def vote(features, labels, k=200, temperature=0.1):
    """The share of images whose class gets the largest vote of their k most similar others."""
    z, right = F.normalize(features, dim=-1), 0
    for i in range(len(z)):
        similar = z @ z[i]
        similar[i] = -torch.inf
        near, who = similar.topk(k)
        votes = [((labels[who] == c) * (near / temperature).exp()).sum() for c in range(10)]
        right += int(np.argmax(votes)) == int(labels[i])
    return right / len(z)


def test_neighbours_are_looked_up_in_the_space_of_the_setting(tmp_path):
    """There are more images than the 200 neighbours that vote, so that who is near matters."""
    digits, folder = load_digits(), tmp_path / "images"
    for i, (image, label) in enumerate(zip(digits.images[:300], digits.target)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((15 * image).astype(np.uint8)).convert("RGB")
        image.save(folder / str(label) / f"{i}.png")
    settings = dict(dataset="folder", folder=str(folder), image_size=8, width=16, kmeans_starts=1)
    settings |= dict(method="byol", epochs=1, batch_size=50, projection_dim=8)
    settings |= dict(learning_rate=0.1, schedule="constant")
    found, digest = {}, set()
    for space in ("backbone", "projection", "online"):
        run = train(tmp_path, **settings, knn_space=space)
        metrics = json.loads((run / "metrics.json").read_text())
        found[space] = metrics["knn_acc"]
        digest.add(metrics["weights_sha256"])
    assert len(digest) == 1
    (files, x), w = seen(folder, run), weights(run)
    labels = torch.tensor([int(file[0]) for file in files])
    online = backbone(x, w)
    expected = {
        "backbone": vote(online, labels),
        "projection": vote(projector(backbone(x, w, "target.0"), w, "target.1"), labels),
        "online": vote(projector(online, w), labels),
    }
    for space, share in expected.items():
        assert found[space] == pytest.approx(share, abs=1 / 300), space
    values = sorted(expected.values())
    assert min(b - a for a, b in itertools.pairwise(values)) > 3 / 300, values


# ---- k-means, anew in each epoch


@pytest.mark.parametrize("method", ["deepcluster", "pcl", "propos"])
def test_each_epochs_k_means_has_a_start_of_its_own(method, tmp_path, monkeypatch):
    """Features without clusters, the same in every epoch: what differs is the start. It is the same
    again when a run is."""
    own = {
        "deepcluster": dict(pseudo_clusters=20),
        "pcl": dict(prototypes="20", prototype_warmup=0, queue_size=128, projection_dim=8),
        "propos": dict(prototype_warmup=0, n_clusters=20),
    }[method]
    points = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    buffer = "pseudo_labels" if method == "deepcluster" else "cluster"
    kind, drawn = METHODS[method], []
    before_epoch = kind.before_epoch

    def with_points(self, epoch, extract):
        found = before_epoch(self, epoch, lambda network: points)
        drawn.append(getattr(self, buffer).flatten().tolist())
        return found

    monkeypatch.setattr(kind, "before_epoch", with_points)
    settings = dict(limit=128, batch_size=64, width=4, epochs=3, kmeans_starts=1, resume=False)
    for _ in range(2):
        train(tmp_path, method=method, **settings, **own)
    first, again = drawn[:3], drawn[3:]
    assert first == again
    for a, b in itertools.combinations(first, 2):  # not even up to the numbers of the clusters
        assert normalized_mutual_info_score(a, b) < 0.95
