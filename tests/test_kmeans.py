"""k-means against scikit-learn, against loops over samples in float64, and under changes that must
not matter."""

import math
import tracemalloc
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import cluster, datasets
from torch.overrides import TorchFunctionMode

from reproduce import kmeans
from reproduce.kmeans import KMeans
from reproduce.methods.deepcluster import whitened


@pytest.fixture(scope="module")
def digits():
    return datasets.load_digits().data.astype(np.float32)


def blobs(n=400, d=5, k=4, spread=0.5, seed=0):
    """Samples float64 ``[n, d]`` around corners of a wide grid, and where each belongs."""
    g = torch.Generator().manual_seed(seed)
    corners = 10 * torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * d)
    corners = corners[torch.randperm(len(corners), generator=g)[:k]].double()
    truth = torch.arange(n) % k
    return corners[truth] + spread * torch.randn(n, d, generator=g, dtype=torch.float64), truth


def padded(x):
    return F.pad(x, (0, 1), value=1.0)


@pytest.fixture
def read_in(monkeypatch):
    """``read_in(size)``: memory for so many bytes of samples, and of products with them."""

    def bytes_at_a_time(size):
        if size:
            monkeypatch.setitem(kmeans.BLOCK, "cpu", size)
            monkeypatch.setitem(kmeans.BUFFER, "cpu", size)

    return bytes_at_a_time


def same_partition(a, b):
    """Equal up to the names of the clusters."""
    pairs = {(int(i), int(j)) for i, j in zip(a, b)}
    return len(pairs) == len({i for i, _ in pairs}) == len({j for _, j in pairs})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_numbers_of_every_size(metric, dtype):
    """Powers of two change no bit but of the inertia and the centroids, though squares of the
    largest and the smallest are beyond the type."""
    x = blobs()[0].to(dtype)
    model = KMeans(4, metric=metric).fit(x)
    power = 100 if dtype == torch.float32 else 900
    for factor in (2.0**power, 2.0**-power):
        other = KMeans(4, metric=metric).fit(x * factor)
        assert torch.equal(other.labels_, model.labels_)
        if metric == "euclidean":
            assert torch.equal(other.cluster_centers_ / factor, model.cluster_centers_)
            scale = float(factor) ** 2 if power == 100 else math.inf  # beyond Python's numbers, too
            assert other.inertia_ == pytest.approx(model.inertia_ * scale) or power == 900
    large = whitened(x * 2.0**power, 3)
    assert torch.allclose(large.abs(), whitened(x, 3).abs(), atol=1e-4)


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), 3])
def test_seeds_of_scikit_learn(seed):
    x = blobs()[0]
    expected = KMeans(9, n_init=1, random_state=3).fit(x)
    assert torch.equal(KMeans(9, n_init=1, random_state=seed).fit(x).labels_, expected.labels_)
    found = []
    for numpy_seed in (1, 1, 2):  # None draws from numpy's generator
        np.random.seed(numpy_seed)
        found.append(KMeans(9, n_init=1, random_state=None).fit(x).inertia_)
    assert found[0] == found[1] != found[2]
    for wrong in (-1, 1.0, "3", True):
        with pytest.raises(ValueError, match="random_state must be a whole number of at least 0"):
            KMeans(9, random_state=wrong)


# ---- the same by loops


def loop_lloyd_step(x, centroids, cosine):
    """One iteration on one restart, where no cluster is empty."""
    members = [[] for _ in centroids]
    for sample in x:
        members[
            min(range(len(centroids)), key=lambda k: float((sample - centroids[k]).square().sum()))
        ].append(sample)
    means = [sum(m) / len(m) for m in members]
    return torch.stack([m / m.square().sum().sqrt() if cosine else m for m in means])


def loop_plus_plus(x, k, n_init, seed):
    """Greedy k-means++ one restart, candidate and sample at a time, from the same draws."""
    trials, generator = 2 + int(math.log(k)), torch.Generator().manual_seed(seed)
    first = torch.randint(len(x), (n_init, 1), generator=generator)
    uniform = torch.rand(k, n_init, trials, generator=generator, dtype=torch.float64)
    starts = []
    for r in range(n_init):
        chosen = [x[first[r, 0]]]
        for u in uniform[: k - 1, r]:
            closest = [min(float((sample - c).square().sum()) for c in chosen) for sample in x]
            bounds = np.cumsum(closest)
            candidates = [x[int(np.argmax(bounds > float(v) * bounds[-1]))] for v in u]
            left = [
                sum(min(d, float((sample - c).square().sum())) for d, sample in zip(closest, x))
                for c in candidates
            ]
            chosen.append(candidates[int(np.argmin(left))])
        starts.append(torch.stack(chosen))
    return torch.stack(starts)


# ---- k-means against scikit-learn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_inertia_is_that_of_scikit_learn_on_digits(digits, seed):
    ours = KMeans(10, n_init=20, max_iter=300, random_state=seed).fit(digits)
    theirs = cluster.KMeans(10, n_init=20, max_iter=300, random_state=seed).fit(digits)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-3)


def test_inertia_and_partition_are_those_of_scikit_learn_on_blobs():
    x, truth = blobs(k=8)
    ours, theirs = KMeans(8).fit(x), cluster.KMeans(8, n_init=10, random_state=0).fit(x)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert same_partition(ours.labels_, theirs.labels_) and same_partition(ours.labels_, truth)


def test_seeding_is_as_good_as_scikit_learns(digits):
    """Mean inertia of the starts alone: plain k-means++ is 13 % worse, uniform draws are 16 %."""
    x = digits - digits.mean(0)
    x = padded(torch.from_numpy(x))
    ours = kmeans.plus_plus(x, 10, 200, seed=0)
    theirs = np.stack(
        [cluster.kmeans_plusplus(x[:, :-1].numpy(), 10, random_state=i)[0] for i in range(100)]
    )
    ours, theirs = (
        x[:, :-1].square().sum() - 2 * kmeans.nearest(x, s)[1].sum(-1).mean()
        for s in (ours, torch.from_numpy(theirs))
    )
    assert float(ours) == pytest.approx(float(theirs), rel=0.015)


@pytest.mark.parametrize("k, tol", [(10, 1e-4), (10, 0.0), (60, 1e-4)])
def test_from_one_start_each_restart_does_what_scikit_learn_does(digits, k, tol):
    """Same centroids after the same number of iterations, though the restarts end at different
    times."""
    x = torch.from_numpy(digits).double()
    x += 0.01 * torch.randn_like(x)  # whole numbers have ties
    x -= x.mean(0)
    starts = x[torch.stack([torch.randperm(len(x))[:k] for _ in range(4)])]
    centroids, n_iter = kmeans.lloyd(kmeans.Blocks(x), starts, max_iter=300, tol=tol)
    for start, ours, count in zip(starts, centroids, n_iter):
        theirs = cluster.KMeans(k, init=start.numpy(), n_init=1, max_iter=300, tol=tol).fit(
            x.numpy()
        )
        assert count == theirs.n_iter_
        torch.testing.assert_close(ours, torch.from_numpy(theirs.cluster_centers_))
    assert len(set(n_iter)) > 1


# ---- k-means by loops and by hand


@pytest.mark.parametrize("size", [None, 600])  # of 40 samples some at a time
def test_seeding_is_that_of_a_loop(read_in, size):
    read_in(size)
    x = torch.randn(40, 3, dtype=torch.float64) * torch.logspace(-1, 1, 40)[:, None]
    ours = kmeans.plus_plus(padded(x), 5, 3, seed=1)
    torch.testing.assert_close(ours, loop_plus_plus(x, 5, 3, seed=1))


@pytest.mark.parametrize("k", [3, 40])  # summed by a product, and by sorting
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("size", [None, 600])
def test_an_iteration_is_that_of_a_loop(read_in, k, cosine, size):
    read_in(size)
    x = torch.randn(200, 6, dtype=torch.float64)
    x = F.normalize(x, dim=-1) if cosine else x - x.mean(0)
    starts = x[torch.stack([torch.randperm(len(x))[:k] for _ in range(3)])]
    ours, _ = kmeans.lloyd(kmeans.Blocks(x, cosine), starts, max_iter=1, tol=0.0)
    torch.testing.assert_close(ours, torch.stack([loop_lloyd_step(x, s, cosine) for s in starts]))


def test_labels_and_inertia_belong_to_the_centroids(digits):
    model = KMeans(10, n_init=3, max_iter=5).fit(digits)
    distance = torch.cdist(
        torch.from_numpy(digits).double(), model.cluster_centers_.double()
    ).square()
    assert (distance.argmin(1) == model.labels_).all()
    assert model.inertia_ == pytest.approx(float(distance.min(1).values.sum()), rel=1e-6)
    assert model.n_iter_ == 5


def test_the_best_restart_is_kept():
    x = torch.randn(100, 2, dtype=torch.float64)
    x = x - x.mean(0)
    starts = kmeans.plus_plus(padded(x), 12, 10, seed=1)
    ends, n_iter = kmeans.lloyd(kmeans.Blocks(x), starts, 100, 1e-4)
    x = padded(x)
    inertias = kmeans.deviations(x, ends, kmeans.nearest(x, ends)[0]).sum(-1)
    assert inertias.argmin() > 0 and inertias.max() > 1.1 * inertias.min()
    best = KMeans(12, random_state=1).fit(x[:, :-1])
    assert (
        best.inertia_ == pytest.approx(float(inertias.min()))
        and best.n_iter_ == n_iter[inertias.argmin()]
    )


def test_a_maximum_and_its_index_are_those_of_torch():
    scores = torch.randn(3, 7, 50)
    scores[1, 2] = scores[1, 5]
    values, index = kmeans.largest(scores)
    assert (values == scores.amax(1)).all() and (index == scores.max(1).indices).all()


# ---- empty clusters


@pytest.mark.parametrize("n, k", [(60, 6), (60, 50), (30, 29)])
def test_empty_clusters_are_seeded_again_as_in_scikit_learn(n, k):
    """All centroids start on one sample, so that all but one cluster are empty."""
    x = torch.randn(n, 3, dtype=torch.float64)
    x -= x.mean(0)
    start = x[:1].expand(k, -1).contiguous()
    ours, _ = kmeans.lloyd(kmeans.Blocks(x), torch.stack([start, x[:k]]), max_iter=100, tol=0.0)
    labels, _ = kmeans.nearest(padded(x), ours)
    assert [len(row.unique()) for row in labels] == [k, k]
    theirs = cluster.KMeans(k, init=start.numpy(), n_init=1, max_iter=100, tol=0.0).fit(x.numpy())
    inertia = float(kmeans.deviations(padded(x), ours[:1], labels[:1]).sum())
    assert inertia == pytest.approx(theirs.inertia_, rel=1e-9)


def test_seeding_again_takes_the_farthest_samples_from_their_clusters():
    x = torch.tensor([[-20.0], [-19.0], [-13.0], [13.0], [17.0], [22.0]])  # their mean is 0
    centroids = torch.tensor([[[-20.0], [100.0], [13.0], [200.0]]])
    labels = torch.tensor([[0, 0, 0, 2, 2, 2]])
    total = kmeans.totals(padded(x), labels, 4)
    assert total[0].tolist() == [[-52.0, 3.0], [0.0, 0.0], [52.0, 3.0], [0.0, 0.0]]
    kmeans.reseed(total, kmeans.Blocks(x), centroids, labels)
    assert total[0].tolist() == [[-39.0, 2.0], [22.0, 1.0], [30.0, 2.0], [-13.0, 1.0]]


def test_an_empty_cluster_keeps_a_restart_going():
    """The first centroid is at rest on the mean of all samples, but the second has none: that is no
    end."""
    x = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
    centroids, n_iter = kmeans.lloyd(
        kmeans.Blocks(x), torch.tensor([[[0.0], [100.0]]]), max_iter=50, tol=1e-4
    )
    assert n_iter[0] > 1
    labels, _ = kmeans.nearest(padded(x), centroids)
    for k in range(2):
        torch.testing.assert_close(centroids[0, k], x[labels[0] == k].mean(0))


@pytest.mark.parametrize("k", [5, 8])
def test_duplicates(k):
    """Five different samples, ten times each: nothing remains, also where there are clusters to
    spare."""
    x = torch.randn(5, 3).repeat(10, 1)
    model = KMeans(k, n_init=4).fit(x)
    assert model.inertia_ == pytest.approx(0, abs=1e-9) and len(model.labels_.unique()) == 5
    assert model.cluster_centers_.isfinite().all() and model.n_iter_ < 10


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_one_start_on_fewer_samples_than_clusters(kind):
    """Of those that differ: one sample is taken at a time, which numpy makes a scalar of."""
    x = np.eye(3, 2, dtype=np.float32).repeat([4, 3, 1], 0)
    for k in range(4, 9):
        model = KMeans(k, n_init=1).fit(kind(x))
        assert model.inertia_ == pytest.approx(0, abs=1e-12)
        assert same_partition(model.labels_, np.arange(3).repeat([4, 3, 1]))


def test_all_samples_the_same():
    model = KMeans(3).fit(torch.ones(20, 2))
    assert model.inertia_ == 0 and (model.cluster_centers_ == 1).all()


def test_one_cluster_and_as_many_as_samples():
    x = torch.randn(12, 4)
    one = KMeans(1).fit(x)
    torch.testing.assert_close(one.cluster_centers_[0], x.mean(0))
    assert one.inertia_ == pytest.approx(float(x.var(0, correction=0).sum() * 12), rel=1e-5)
    each = KMeans(12).fit(x)
    assert sorted(each.labels_.tolist()) == list(range(12)) and each.inertia_ == pytest.approx(
        0, abs=1e-9
    )
    assert KMeans(1).fit(x[:1]).labels_.tolist() == [0]


# ---- what must not matter


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [5, 40])
@pytest.mark.parametrize("size", [1, 300, 5000])  # bytes; a sample takes 40
def test_chunks_do_not_matter(read_in, metric, k, size):
    x = torch.randn(131, 4, dtype=torch.float64)
    whole = KMeans(k, n_init=3, metric=metric).fit(x)
    read_in(size)
    parts = KMeans(k, n_init=3, metric=metric).fit(x)
    torch.testing.assert_close(parts.cluster_centers_, whole.cluster_centers_)
    assert (parts.labels_ == whole.labels_).all() and parts.inertia_ == pytest.approx(
        whole.inertia_
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_order_of_samples_does_not_matter(metric):
    x, _ = blobs(k=6)
    order = torch.randperm(len(x))
    a, b = KMeans(6, metric=metric).fit(x), KMeans(6, metric=metric).fit(x[order])
    assert a.inertia_ == pytest.approx(b.inertia_, rel=1e-9) and same_partition(
        a.labels_[order], b.labels_
    )


def test_cosine_does_not_see_the_length_of_samples():
    x = torch.randn(300, 5, dtype=torch.float64)
    scale = torch.exp(3 * torch.randn(300, 1, dtype=torch.float64))
    a, b = KMeans(6, metric="cosine").fit(x), KMeans(6, metric="cosine").fit(x * scale)
    assert (a.labels_ == b.labels_).all() and a.inertia_ == pytest.approx(b.inertia_)
    torch.testing.assert_close(a.cluster_centers_, b.cluster_centers_)
    torch.testing.assert_close(a.cluster_centers_.norm(dim=1), torch.ones(6, dtype=torch.float64))
    cosine = F.normalize(x, dim=-1) @ a.cluster_centers_.T
    assert (cosine.argmax(1) == a.labels_).all()
    assert a.inertia_ == pytest.approx(float((2 - 2 * cosine.amax(1)).sum()))
    assert not same_partition(a.labels_, KMeans(6).fit(x * scale).labels_)
    far = blobs()[0].float()  # whose squares are beyond the type
    inertia = KMeans(4, metric="cosine").fit(far).inertia_
    for factor in (1e12, 1e-12):
        c = KMeans(4, metric="cosine").fit(far * factor)
        lengths = c.cluster_centers_.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
        assert c.inertia_ == pytest.approx(inertia, rel=1e-4)


def test_place_and_scale_do_not_matter():
    """Far from the origin float32 needs centring; tol is relative to the variance."""
    x = (torch.randn(500, 4) * 64).round() / 64  # sums with 4096 are exact
    model = KMeans(5).fit(x)
    far, large = KMeans(5).fit(x + 4096), KMeans(5).fit(1024 * x)
    assert (far.labels_ == model.labels_).all() and far.inertia_ == pytest.approx(
        model.inertia_, rel=1e-3
    )
    assert (large.labels_ == model.labels_).all() and large.n_iter_ == model.n_iter_ == far.n_iter_


def test_deterministic_and_the_global_generator_is_left_alone():
    x = torch.randn(200, 3)
    before = torch.get_rng_state()
    a, b = (KMeans(5, n_init=2, random_state=3).fit(x) for _ in range(2))
    assert (a.labels_ == b.labels_).all() and (torch.get_rng_state() == before).all()
    starts = [kmeans.plus_plus(padded(x), 5, 2, seed) for seed in (3, 4)]
    assert not (starts[0] == starts[1]).all() and not (starts[0][0] == starts[0][1]).all()


def test_any_kind_of_samples():
    x = torch.randint(0, 9, (60, 3)).float()
    labels = KMeans(4).fit_predict(x)
    assert labels.dtype == torch.int64 and labels.shape == (60,)
    array = x.numpy()[::-1][::-1]
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (array, x.tolist(), x.long(), x.half(), x.double(), x.clone().requires_grad_()):
            assert (KMeans(4).fit_predict(same) == labels).all()
        with torch.autocast("cpu", torch.bfloat16):
            assert (KMeans(4).fit_predict(x) == labels).all()
    assert x.equal(x.round())  # not centred in place


# ---- what it costs


class Watch(TorchFunctionMode):
    """Counts the calls of torch and notes the largest result in bytes."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += 1
        for result in out if isinstance(out, tuple) else (out,):
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.numel() * result.element_size())
        return out


@pytest.mark.parametrize("k", [10, 50])
def test_memory_is_bounded(monkeypatch, k):
    """Nothing is larger than the labels of all restarts; distances from all centroids would be many
    times that."""
    monkeypatch.setitem(kmeans.BUFFER, "cpu", 100_000)
    with Watch() as watch:
        KMeans(k, n_init=10, max_iter=2).fit(torch.randn(2000, 4))
    assert watch.largest <= 10 * 2000 * 8


def test_restarts_are_computed_at_once(read_in):
    """About as many operations for ten restarts as for one."""
    read_in(1 << 30)
    x = torch.randn(500, 4)
    counts = []
    for restarts in (1, 10):
        with Watch() as watch:
            start = kmeans.plus_plus(padded(x), 5, restarts, seed=0)
            kmeans.lloyd(kmeans.Blocks(x), start, max_iter=3, tol=0.0)
        counts.append(watch.count)
    assert abs(counts[1] - counts[0]) < 10 < counts[0]


def test_converged_restarts_leave_the_batch(monkeypatch):
    x, sizes = torch.randn(500, 4), []
    nearest = kmeans.nearest
    monkeypatch.setattr(kmeans, "nearest", lambda x, c: (sizes.append(len(c)), nearest(x, c))[1])
    starts = kmeans.plus_plus(padded(x), 5, 8, seed=0)
    _, n_iter = kmeans.lloyd(kmeans.Blocks(x), starts, max_iter=300, tol=1e-4)
    assert sizes == [sum(n >= i for n in n_iter) for i in range(1, max(n_iter) + 1)] and min(
        n_iter
    ) < max(n_iter)


# ---- samples in blocks: larger than memory, and over several processes


def saved(x, path):
    """x as a file that is mapped, read only."""
    mapped = np.memmap(path, x.numpy().dtype, "w+", shape=tuple(x.shape))
    mapped[:] = x.numpy()
    mapped.flush()
    return np.memmap(path, x.numpy().dtype, "r", shape=tuple(x.shape))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("size", [None, 2000])
def test_a_mapped_file_gives_what_a_tensor_gives(tmp_path, read_in, metric, size):
    read_in(size)
    x = torch.randn(333, 6) + 2
    mapped = saved(x, tmp_path / "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b = (KMeans(7, 3, metric=metric).fit(y) for y in (x, mapped))
    assert (a.labels_ == b.labels_).all() and a.inertia_ == b.inertia_
    assert (a.cluster_centers_ == b.cluster_centers_).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [6, 40])
def test_memory_holds_blocks_not_samples(tmp_path, monkeypatch, read_in, metric, k):
    """Neither a copy of x nor a mask of it; what is as long as all samples is one number each."""
    read_in(20_000)
    monkeypatch.setattr(kmeans, "SEEDING", 100 * k)
    mapped = saved(torch.randn(8000, 64), tmp_path / "x")
    mask, number, drawn = 8000 * 64, 8000 * 8, max(100, 16 * k) * 65 * 4
    tracemalloc.start()  # what numpy holds
    with Watch() as watch:
        KMeans(k, n_init=1, max_iter=3, metric=metric).fit(mapped)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert watch.largest <= max(number, drawn) < mask / 3 and held < mask
    with Watch() as watch:
        kmeans.Blocks(mapped)
    assert watch.largest <= 20_000


@pytest.mark.parametrize("double", [False, True])
def test_mean_and_variance_are_those_of_all_blocks(read_in, double):
    read_in(280 if double else 140)  # seven samples
    x = 50 + torch.randn(100, 4, dtype=torch.float64) * torch.arange(1, 101)[:, None]
    x = x if double else x.float()
    blocks = kmeans.Blocks(x)
    assert blocks.size == 7
    torch.testing.assert_close(blocks.origin, x.mean(0))
    torch.testing.assert_close(
        blocks.variance, x.double().var(0, correction=0).mean(), rtol=1e-5, atol=0
    )
    centred = padded(x - blocks.origin)
    torch.testing.assert_close(torch.cat([part.clone() for part in blocks]), centred)
    torch.testing.assert_close(blocks.pick(torch.tensor([99, 0, 50])), centred[[99, 0, 50]])


def test_many_samples_are_seeded_from_some_of_them(monkeypatch):
    monkeypatch.setattr(kmeans, "SEEDING", 8 * 200)
    x, truth = blobs(n=4000, k=8)
    blocks = kmeans.Blocks(x)
    drawn = kmeans.seeding_samples(blocks, 8, seed=0)
    place = torch.cdist(drawn[:, :-1] + blocks.origin, x).argmin(1)
    torch.testing.assert_close(drawn, padded(x - blocks.origin)[place])
    assert len(drawn) == 200 and (place.diff() > 0).all()  # each once, in their order
    assert place[0] < 400 and place[-1] > 3600 and len(truth[place].unique()) == 8
    assert not (kmeans.seeding_samples(blocks, 8, seed=1) == drawn).all()
    assert len(kmeans.seeding_samples(blocks, 50, seed=0)) == 16 * 50
    few = KMeans(8).fit(x)
    assert same_partition(few.labels_, truth)
    monkeypatch.undo()
    assert few.inertia_ == pytest.approx(KMeans(8).fit(x).inertia_, rel=1e-9)


@pytest.mark.parametrize(
    "n, k, d, size",
    [(2**18 + 3, 2, 1, 2**18), (2**18, 2, 1, 2**18), (70_000, 1000, 1, 2**26 // 1000)],
)
def test_how_many_samples_seed(monkeypatch, n, k, d, size):
    """Only how many: k-means itself would take long."""
    sizes = []
    monkeypatch.setattr(
        kmeans,
        "plus_plus",
        lambda x, k, n_init, seed: (sizes.append(len(x)), x[None, :k, :-1])[1],
    )
    KMeans(k, n_init=1, max_iter=1).fit(torch.rand(n, d))
    assert sizes == [size]


def test_all_of_few_samples_seed(monkeypatch, read_in):
    """In their order, to the bit, also in blocks; ``fit`` starts from what they give."""
    x, started = torch.randn(500, 5), []
    whole = padded(x - x.mean(0))
    assert (kmeans.seeding_samples(kmeans.Blocks(x), 6, seed=3) == whole).all()
    lloyd = kmeans.lloyd
    monkeypatch.setattr(kmeans, "lloyd", lambda x, c, *a: (started.append(c), lloyd(x, c, *a))[1])
    KMeans(6, n_init=2, random_state=3).fit(x)
    assert (started[0] == kmeans.plus_plus(whole, 6, 2, 3)).all()
    read_in(1500)
    parts = kmeans.seeding_samples(kmeans.Blocks(x), 6, seed=3)
    torch.testing.assert_close(parts, whole)


# what two processes share: few clusters and many, restarts, both metrics
SHARED = {
    "product": dict(n_clusters=6, n_init=3),
    "sorting": dict(n_clusters=40, n_init=2),
    "cosine": dict(n_clusters=6, n_init=3, metric="cosine"),
    "sample": dict(n_clusters=4, n_init=2),
}
# clusters, metric; from starts of which all but one are empty
EMPTY = {"few": (8, False), "few, cosine": (8, True), "many": (40, False)}


def spread():
    """``[201, 4]``: half of them one and the same; the farthest belong to the second share alone,
    and the two shares differ in mean and scale."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(201, 4, generator=g) + torch.tensor([3.0, 1.0, 0.0, -1.0])
    x[::2] = x[0]
    x[101::2] *= 5
    return x


def found_in(x, sharded):
    """By name: centroids and n_iter; of a whole fit also inertia, and labels of the samples
    given."""
    found = {}
    for name, settings in SHARED.items():
        model = KMeans(**settings, sharded=sharded).fit(x)
        found[name] = model.cluster_centers_, model.n_iter_, model.inertia_, model.labels_
    for name, (k, cosine) in EMPTY.items():
        blocks, generator = kmeans.Blocks(x, cosine, sharded), torch.Generator().manual_seed(0)
        starts = [torch.randperm(blocks.total, generator=generator)[:k] for _ in range(2)]
        starts = blocks.pick(torch.cat(starts)).view(2, k, -1)[..., :-1]
        found[name] = kmeans.lloyd(blocks, starts, max_iter=100, tol=1e-4)
    return found


def share(rank, path):
    """One of two processes: what it finds, in blocks, is saved."""
    from reproduce import processes

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{path}/meet", timedelta(seconds=60), 2, rank
    )
    kmeans.SEEDING, kmeans.BLOCK["cpu"] = 4 * 64, 16 * 20
    x = spread()
    own = processes.own(len(x))
    found = found_in(x[own], sharded=True)
    for name in SHARED:
        *rest, labels = found[name]
        found[name] = *rest, processes.gather_rows(labels)
    found["whitened"] = processes.gather_rows(whitened(x[own], 3, sharded=True))
    alone = KMeans(6, n_init=2).fit(x[own])  # not sharded: each its own
    found["alone"] = alone.inertia_
    x[-1, 0] = math.nan  # of which the first process knows nothing
    for k, words in ((3, "finite"), (202, "number of samples, 201")):
        with pytest.raises(ValueError, match=words):
            KMeans(k, sharded=True).fit(x[own] if k == 3 else spread()[own])
    torch.save(found, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch):
    torch.multiprocessing.spawn(share, (str(tmp_path),), nprocs=2)
    x, found = spread(), [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    monkeypatch.setattr(kmeans, "SEEDING", 4 * 64)
    empties, reseed = [], kmeans.reseed
    monkeypatch.setattr(
        kmeans, "reseed", lambda t, *a: (empties.append(t.shape[1:2]), reseed(t, *a))[1]
    )
    one = found_in(x, sharded=False)
    assert {(k,) for k, _ in EMPTY.values()} <= set(empties)
    for sharded in found:
        for name, (centroids, n_iter, *rest) in one.items():
            torch.testing.assert_close(sharded[name][0], centroids, rtol=1e-5, atol=1e-5)
            assert sharded[name][1] == n_iter, name
            if name in SHARED:
                assert sharded[name][2] == pytest.approx(rest[0], rel=1e-5)
                assert (sharded[name][3] == rest[1]).all()
    assert all((found[0][name][0] == found[1][name][0]).all() for name in one)
    same = found_in(x, sharded=True)
    assert all((same[name][0] == one[name][0]).all() for name in one)
    for process, own in zip(found, (slice(0, 100), slice(100, 201))):
        torch.testing.assert_close(process["whitened"], whitened(x, 3), rtol=1e-4, atol=1e-5)
        assert process["alone"] == pytest.approx(KMeans(6, n_init=2).fit(x[own]).inertia_)


# ---- whitening


def test_whitened_features():
    """Decorrelated, of variance one before they get length one; against the singular vectors of
    numpy."""
    x = (
        torch.randn(200, 6, dtype=torch.float64)
        @ torch.diag(torch.tensor([9.0, 5, 3, 2, 1, 0.5], dtype=torch.float64))
        @ torch.randn(6, 6, dtype=torch.float64)
        + 7
    )
    u, _, _ = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    for axes in (1, 3, 6, 256):
        out = whitened(x, axes)
        assert out.shape == (200, min(axes, 6)) and out.dtype == x.dtype
        torch.testing.assert_close(out.norm(dim=-1), torch.ones(200, dtype=torch.float64))
        theirs = torch.from_numpy(u[:, : min(axes, 6)])
        theirs = theirs / theirs.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(
            out @ out.T, theirs @ theirs.T, atol=1e-8, rtol=1e-8
        )  # the same but for the signs and order of axes
    moved = whitened(x @ torch.randn(6, 6, dtype=torch.float64) + 3, 6)
    torch.testing.assert_close(
        moved @ moved.T, whitened(x, 6) @ whitened(x, 6).T, atol=1e-8, rtol=1e-8
    )  # no linear map of the features matters


def test_whitening_leaves_out_what_does_not_vary():
    """A dead feature, one that repeats another, fewer images than features; and features that are
    all one."""
    x = torch.randn(50, 3)
    x = torch.cat([x, x[:, :1], torch.full((50, 1), 2.0)], 1)
    out = whitened(x, 256)
    assert out.shape == (50, 3) and out.isfinite().all()
    assert whitened(torch.randn(4, 9), 256).shape == (4, 3)
    dead = whitened(torch.ones(50, 4), 3)
    assert dead.isfinite().all() and (dead == 0).all()
    assert KMeans(4, n_init=1).fit_predict(dead).shape == (50,)


def test_whitening_in_blocks(read_in):
    x = torch.randn(300, 6) * torch.arange(1, 7) + 100
    whole = whitened(x, 4)
    read_in(1000)
    assert whole.dtype == torch.float32
    with Watch() as watch:
        torch.testing.assert_close(whitened(x, 4), whole, rtol=1e-5, atol=1e-5)
    assert watch.largest <= 300 * 4 * 4  # the result


# ---- what is refused


@pytest.mark.parametrize(
    "n_clusters, x, words",
    [
        (7, torch.randn(6, 2), r"n_clusters .* between 1 and .* 6, got 7"),
        (2, torch.tensor([[0.0, 1.0], [math.nan, 2.0], [3.0, 4.0]]), "x must be finite"),
        (2, torch.tensor([[0.0, 1.0], [math.inf, 2.0], [3.0, 4.0]]), "x must be finite"),
        (2, torch.randn(6), r"x must have shape \[N, D\].* got \[6\]"),
        (2, torch.randn(6, 2, 2), r"x must have shape \[N, D\].* got \[6, 2, 2\]"),
        (1, torch.randn(0, 2), r"x must have shape \[N, D\].* got \[0, 2\]"),
        (1, torch.randn(3, 0), r"x must have shape \[N, D\].* got \[3, 0\]"),
    ],
)
def test_samples_that_cannot_be_clustered(n_clusters, x, words):
    with pytest.raises(ValueError, match=words) as error:
        KMeans(n_clusters).fit(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(n_clusters=0), "n_clusters .* at least 1, got 0"),
        (dict(n_clusters=2.5), "n_clusters .* got 2.5"),
        (dict(n_clusters=True), "n_clusters .* got True"),
        (dict(n_clusters=2, n_init=0), "n_init .* got 0"),
        (dict(n_clusters=2, max_iter=0), "max_iter .* got 0"),
        (
            dict(n_clusters=2, metric="manhattan"),
            "metric must be euclidean or cosine, got 'manhattan'",
        ),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        KMeans(**settings)


# ---- the batch of restarts


def test_each_restart_ends_on_its_own():
    """Countdowns from 3, 1 and 9, with at most 5 steps."""

    def step(left, steps):
        return (left - 1, steps + 1), (left - 1 == 0).tolist()

    start = torch.tensor([3, 1, 9]), torch.zeros(3)
    (left, steps), n_iter = kmeans.until_converged(step, start, max_iter=5)
    assert left.tolist() == [0, 0, 4] and steps.tolist() == n_iter == [3, 1, 5]
    assert start[0].tolist() == [3, 1, 9]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "model",
    [
        KMeans(10, n_init=20),
        KMeans(60),
        KMeans(10, n_init=20, metric="cosine"),
    ],
    ids=["10", "60", "cosine"],
)
def test_cuda_gives_what_the_processor_gives(digits, model):
    quality = []
    for device in ("cpu", "cuda"):
        labels = model.fit_predict(torch.from_numpy(digits).to(device))
        assert labels.device.type == device
        quality.append(model.inertia_)
    assert quality[0] == pytest.approx(quality[1], rel=0.01)
