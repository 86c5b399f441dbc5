"""What frozen features are worth: k nearest neighbours and a linear classifier. Both are trained on
labels, so their accuracies are not those of a clustering."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import processes

SIMILARITIES = {"cpu": 128 << 20, "cuda": 1 << 30}  # bytes that are held at a time


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    k: int = 200,
    temperature: float = 0.1,
    itself: bool = False,
    chunk: int = 0,
    bank_chunk: int = 1 << 16,
) -> float:
    """Accuracy of a vote among the k most similar images, each weighted by exp(cosine /
    temperature) (Wu et al., CVPR 2018).

    bank: ``[M, D]`` with labels ``[M]``; queries: ``[N, D]`` with labels ``[N]``, int64 from 0 on.
    itself: the queries are the bank, and none votes for itself. With fewer than k images in the
    bank, all of them vote. At most ``[chunk, bank_chunk]`` similarities are held at a time; chunk
    0: as many as ``SIMILARITIES`` allows. Of several processes each looks up its share of the
    queries, and all get the result, in 0..1."""
    n_classes = int(max(bank_labels.max(), labels.max())) + 1
    bank_labels, labels = bank_labels.to(bank.device), labels.to(bank.device)
    right = torch.zeros((), dtype=torch.long, device=bank.device)
    for rows, cosine, near in most_similar(bank, queries, k, itself, chunk, bank_chunk):
        votes, weights = cosine.new_zeros(len(near), n_classes), (cosine / temperature).exp()
        votes.scatter_add_(1, bank_labels[near], weights)
        right += (votes.argmax(-1) == labels[rows]).sum()
    return int(processes.reduce_(right)) / len(queries)


def neighbours(features: Tensor, k: int) -> Tensor:
    """For each of the features ``[N, D]`` the numbers of the k that are most similar to it, without
    itself, int64 ``[N, k]``: fewer than k where there are not as many others."""
    return processes.gather_rows(nearest(features, features, k, itself=True)[1])


def nearest(bank: Tensor, queries: Tensor, k: int, itself: bool = False) -> tuple[Tensor, Tensor]:
    """``most_similar`` of all queries ``[N, D]`` at once: cosines ``[N, k]``, and which rows."""
    _, cosine, near = zip(*most_similar(bank, queries, k, itself))
    return torch.cat(cosine), torch.cat(near)


def most_similar(
    bank: Tensor,
    queries: Tensor,
    k: int,
    itself: bool = False,
    chunk: int = 0,
    bank_chunk: int = 1 << 16,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield, for some queries at a time, their slice, the cosines ``[n, k]`` to their k most
    similar rows of the bank, the largest first, and the numbers of these rows, int64 ``[n, k]``.
    Arguments as in ``knn_accuracy``. Of several processes each looks up its share of the queries.
    """
    bank = F.normalize(bank.float(), dim=-1)
    row = bank.element_size() * min(len(bank), bank_chunk)  # bytes of one query's
    chunk = chunk or max(1, min(4096, SIMILARITIES.get(bank.device.type, 1 << 30) // row))
    share = processes.own(len(queries))
    for start in range(share.start, share.stop, chunk):
        stop = min(start + chunk, share.stop)
        asked = F.normalize(queries[start:stop].float(), dim=-1)
        nearest = []  # of the bank so far: cosines, and numbers
        for first in range(0, len(bank), bank_chunk):
            similarity = asked @ bank[first : first + bank_chunk].mT  # [n, m]
            if itself and -len(asked) < start - first < similarity.shape[1]:
                similarity.diagonal(start - first).fill_(-torch.inf)
            cosine, near = similarity.topk(min(k, similarity.shape[1]), -1)
            del similarity  # before the next block of it is made
            nearest.append((cosine, near + first))
            cosine, near = (torch.cat(both, -1) for both in zip(*nearest))
            cosine, best = cosine.topk(min(k, cosine.shape[1], len(bank) - itself), -1)
            nearest = [(cosine, near.gather(-1, best))]
        yield slice(start, stop), *nearest[0]


@torch.no_grad()
def linear_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    epochs: int = 100,
    learning_rate: float = 0.1,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """Accuracy in 0..1 of a softmax classifier on frozen features: SGD with momentum .9, no weight
    decay, the rate divided by 10 after 60 % and 80 % of the epochs (100 of them in the papers).

    train: ``[M, D]``, test: ``[N, D]``, with labels int64 ``[M]`` and ``[N]`` from 0 on. Features
    are standardised by the training part, which a linear layer could do itself, so that one rate
    fits all. Both may be mapped files: a few thousand rows are in memory at a time."""
    mean, std = train.mean(0), train.std(0, correction=0)
    scale = torch.where(std > 1e-6, std, 1)  # what never changes in training stays as it is

    def standardised(x: Tensor) -> Tensor:
        return F.pad((x.float() - mean) / scale, (0, 1), value=1.0)

    train_labels, test_labels = train_labels.to(train.device), test_labels.to(train.device)
    n_classes = int(max(train_labels.max(), test_labels.max())) + 1
    targets = F.one_hot(train_labels, n_classes).float()
    # zero weights give each class the same logit: no draw decides where the classifier starts
    weight, momentum = torch.zeros(2, train.shape[1] + 1, n_classes, device=train.device)
    generator = torch.Generator(train.device).manual_seed(seed)
    for epoch in range(epochs):
        rate = learning_rate * 0.1 ** sum(epoch >= round(part * epochs) for part in (0.6, 0.8))
        order = torch.randperm(len(train), generator=generator, device=train.device)
        for index in order.split(batch_size):
            x, y = standardised(train[index]), targets[index]
            # the gradient of cross-entropy; tiny numbers are cut, on which arithmetic is slow
            error = F.hardshrink((x @ weight).softmax(-1) - y, 1e-12)
            momentum.mul_(0.9).addmm_(x.mT, error, alpha=1 / len(index))
            weight.sub_(momentum, alpha=rate)
    batches = zip(test.split(4096), test_labels.split(4096))
    right = sum(int(((standardised(x) @ weight).argmax(-1) == y).sum()) for x, y in batches)
    return right / len(test)
