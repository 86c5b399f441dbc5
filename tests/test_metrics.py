"""Scores against brute force and scikit-learn; heads that agree after a change of names."""

import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from reproduce import metrics


def brute_force_accuracy(labels, assignments):
    """The best over every way to give each cluster a class of its own, or none."""
    clusters, classes = max(assignments) + 1, max(labels) + 1
    size = max(clusters, classes)
    return max(
        np.mean([names[a] == l for a, l in zip(assignments, labels)])
        for names in itertools.permutations(range(size))
    )


@pytest.mark.parametrize(
    "classes, clusters", [(1, 1), (2, 2), (4, 4), (5, 3), (3, 5), (6, 2), (1, 4)]
)
def test_scores_are_brute_force_and_scikit_learn(classes, clusters):
    random = np.random.default_rng(classes + 10 * clusters)
    for n in (1, 7, 40):
        labels, assignments = random.integers(classes, size=n), random.integers(clusters, size=n)
        scores = metrics.clustering_scores(labels, assignments)
        assert list(scores) == ["acc", "nmi", "ari"] and all(
            type(s) is float for s in scores.values()
        )
        assert scores["acc"] == pytest.approx(brute_force_accuracy(labels, assignments), abs=1e-12)
        assert scores["acc"] == metrics.accuracy(labels, assignments)
        assert scores["nmi"] == pytest.approx(
            sk.normalized_mutual_info_score(labels, assignments, average_method="arithmetic"),
            abs=1e-12,
        )
        assert scores["ari"] == pytest.approx(
            sk.adjusted_rand_score(labels, assignments), abs=1e-12
        )
        table = sk.cluster.contingency_matrix(labels, assignments)
        assert metrics.many_to_one_accuracy(labels, assignments) == pytest.approx(
            table.max(0).sum() / n
        )


def test_the_best_matching_is_not_the_greedy_one():
    """Cluster 0 meets class 0 most often, and must leave it to cluster 1."""
    labels = [0] * 5 + [1] * 4 + [0] * 4
    assignments = [0] * 5 + [0] * 4 + [1] * 4
    assert metrics.accuracy(labels, assignments) == 8 / 13
    assert metrics.matching(labels, assignments).tolist() == [1, 0]
    assert metrics.many_to_one_accuracy(labels, assignments) == 9 / 13


def test_scores_do_not_mind_names():
    random = np.random.default_rng(0)
    labels = random.integers(5, size=200)
    noisy = np.where(random.random(200) < 0.7, labels, random.integers(5, size=200))
    names = random.permutation(5)
    a, b = metrics.clustering_scores(labels, noisy), metrics.clustering_scores(labels, names[noisy])
    assert a == pytest.approx(b, abs=1e-12)
    assert metrics.clustering_scores(labels, names[labels]) == pytest.approx(
        {"acc": 1, "nmi": 1, "ari": 1}
    )
    # a cluster too many does not pay under one-to-one matching, and does under many-to-one
    split = np.where((labels == 0) & (np.arange(200) % 2 == 0), 5, labels)
    assert metrics.accuracy(labels, split) < 1 == metrics.many_to_one_accuracy(labels, split)


def test_matching_names_each_cluster_once():
    labels, assignments = [0, 0, 1, 1, 2], [3, 3, 1, 1, 0]
    assert metrics.matching(labels, assignments).tolist() == [2, 1, -1, 0]
    table = metrics.contingency(labels, assignments)
    assert table.tolist() == [[0, 0, 1], [0, 2, 0], [2, 0, 0]]  # no cluster 2


@pytest.mark.parametrize("kind", [*np.typecodes["AllInteger"]])
def test_whole_numbers_of_every_type_are_taken(kind):
    """Up to the largest of the type: 255 + 1 is 0 in uint8, and 2^63 has no table of its size."""
    top = int(np.iinfo(kind).max)
    labels = np.array([top, top, 3, 3, 3], kind)
    for assignments in ([0, 0, 1, 1, 0], np.array([top, top, 5, 5, top], kind)):
        scores = metrics.clustering_scores(labels, assignments)
        assert scores["acc"] == metrics.many_to_one_accuracy(labels, assignments) == 0.8
        assert scores == metrics.clustering_scores([1, 1, 0, 0, 0], [1, 1, 0, 0, 1])
    if top < 2**63:
        assert metrics.matching(labels, [0, 0, 1, 1, 0]).tolist() == [top, 3]


def test_tensors_and_lists_are_taken():
    labels, assignments = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0])
    expected = {"acc": 1.0, "nmi": 1.0, "ari": 1.0}
    assert metrics.clustering_scores(labels, assignments) == pytest.approx(expected)
    assert metrics.clustering_scores([0, 1, 1], np.array([1, 0, 0], np.uint8)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    "labels, assignments, word",
    [
        ([], [], "at least 1"),
        ([0, 1], [0], "2 and 1"),
        ([0, -1], [0, 1], "0 or more"),
        ([0, 1], [0, -2], "0 or more"),
        ([0.5, 1.0], [0, 1], "whole"),
        ([0, 1], [0.0, float("nan")], "whole"),
        (["a"], ["b"], "whole"),
    ],
)
def test_bad_input_is_refused(labels, assignments, word):
    for f in (
        metrics.clustering_scores,
        metrics.accuracy,
        metrics.many_to_one_accuracy,
        metrics.matching,
    ):
        with pytest.raises(ValueError, match=word):
            f(labels, assignments)


# ---- heads


def some_head(n=200, k=6):
    return (3 * torch.randn(n, k)).softmax(-1)


def renamed(head, n_heads):
    orders = [torch.arange(head.shape[1])] + [
        torch.randperm(head.shape[1]) for _ in range(n_heads - 1)
    ]
    return torch.stack([head[:, order] for order in orders])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_aligned_copies_are_equal(dtype):
    head = some_head().to(dtype)
    heads = renamed(head, 5)
    assert not torch.equal(heads[1], head)
    before = heads.clone()
    aligned = metrics.align_heads(heads)
    assert aligned.dtype == dtype and torch.equal(heads, before)
    assert all(torch.equal(one, head) for one in aligned)


def test_aligned_noisy_heads_agree():
    """Heads that each err on their own: aligned, their average is better than any of them."""
    truth = torch.randint(6, (600,))
    heads = []
    for _ in range(7):
        wrong = torch.rand(600) < 0.35
        seen = torch.where(wrong, torch.randint(6, (600,)), truth)
        heads.append(
            (4 * torch.nn.functional.one_hot(seen, 6).float() + torch.randn(600, 6)).softmax(-1)[
                :, torch.randperm(6)
            ]
        )
    heads = torch.stack(heads)
    aligned = metrics.align_heads(heads)
    # every head's columns are permuted, none is lost, none is mixed
    for before, after in zip(heads, aligned):
        assert torch.equal(before.sort(-1)[0], after.sort(-1)[0])
        assert sorted(map(tuple, before.T.tolist())) == sorted(map(tuple, after.T.tolist()))
    assert torch.equal(aligned[0], heads[0])
    each = [metrics.accuracy(truth, h.argmax(-1)) for h in heads]
    average = metrics.accuracy(truth, aligned.mean(0).argmax(-1))
    assert average > max(each) + 0.1
    assert metrics.accuracy(truth, heads.mean(0).argmax(-1)) < average - 0.1  # names as they were
    for h in aligned:
        assert float((h.argmax(-1) == aligned[0].argmax(-1)).float().mean()) > 0.4


def test_alignment_is_the_best_permutation():
    heads = (2 * torch.randn(3, 30, 4)).softmax(-1)
    aligned = metrics.align_heads(heads)

    def agreement(h):
        return float((heads[0] * h).sum())

    for before, after in zip(heads, aligned):
        best = max(agreement(before[:, list(order)]) for order in itertools.permutations(range(4)))
        assert agreement(after) == pytest.approx(best, rel=1e-5)


def test_alignment_takes_gradients_and_refuses_other_shapes():
    heads = renamed(some_head(), 2).requires_grad_()
    assert torch.equal(metrics.align_heads(heads)[1], heads[0])
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        metrics.align_heads(torch.ones(4, 3))


def test_lowest_loss_head():
    assert metrics.lowest_loss_head([3.0, -1.0, 2.0]) == 1
    assert metrics.lowest_loss_head(torch.tensor([0.5])) == 0
    assert metrics.lowest_loss_head([2.0, 1.0, 1.0]) == 1  # the first of equals
    assert type(metrics.lowest_loss_head(np.array([1, 0]))) is int
    for bad in ([], [1.0, float("nan")], [float("-inf"), 0.0], 3.0, [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="lowest_loss_head"):
            metrics.lowest_loss_head(bad)
