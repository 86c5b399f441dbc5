"""How good a clustering is, and which head to believe without looking at labels.

Scores are in 0..1. Labels are for evaluation only; whatever is picked with them is called oracle.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def contingency(labels, assignments) -> np.ndarray:
    """Counts ``[clusters, classes]`` of how often an assignment meets a label, of those that occur,
    in their order. Both int ``[N]``, from 0 on; ValueError where they are not, or of different
    length."""
    labels, assignments = (np.asarray(a).ravel() for a in (labels, assignments))
    both = "labels and assignments must be"
    if labels.shape != assignments.shape or not labels.size:
        sizes = f"{labels.size} and {assignments.size}"
        raise ValueError(f"{both} of one length, at least 1, got {sizes}")
    if labels.dtype.kind not in "iu" or assignments.dtype.kind not in "iu":
        raise ValueError(f"{both} whole numbers, got {labels.dtype} and {assignments.dtype}")
    if labels.min() < 0 or assignments.min() < 0:
        raise ValueError(f"{both} 0 or more; images without a label cannot be scored")
    (clusters, row), (classes, column) = (
        np.unique(a, return_inverse=True) for a in (assignments, labels)
    )
    table = np.zeros((len(clusters), len(classes)), dtype=np.int64)
    np.add.at(table, (row, column), 1)
    return table


def accuracy(labels, assignments) -> float:
    """Accuracy, in 0..1, under the best one-to-one matching of clusters with classes (Hungarian
    method). Arguments and errors as in ``contingency``."""
    table = contingency(labels, assignments)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())


def matching(labels, assignments) -> np.ndarray:
    """The class that the matching of ``accuracy`` gives each cluster from 0 to the last, -1 for
    none. Arguments and errors as in ``contingency``."""
    rows, columns = linear_sum_assignment(contingency(labels, assignments), maximize=True)
    clusters, classes = np.unique(assignments), np.unique(labels)
    matched = np.full(int(clusters[-1]) + 1, -1)
    matched[clusters[rows]] = classes[columns]
    return matched


def clustering_scores(labels, assignments) -> dict[str, float]:
    """{"acc", "nmi", "ari"}: accuracy under the best one-to-one matching, normalised mutual
    information (arithmetic mean), both in 0..1, and adjusted Rand index, at most 1 and about 0 by
    chance. Arguments and errors as in ``contingency``."""
    acc = accuracy(labels, assignments)
    return {"acc": acc, "nmi": nmi(labels, assignments), "ari": ari(labels, assignments)}


def nmi(a, b) -> float:
    """Normalised mutual information (arithmetic mean), in 0..1, of two clusterings, or of a
    clustering and labels. Both int ``[N]``."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(np.asarray(a).ravel(), np.asarray(b).ravel()))


def ari(a, b) -> float:
    """Adjusted Rand index, at most 1 and about 0 by chance, of two clusterings, or of a clustering
    and labels. Both int ``[N]``."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(np.asarray(a).ravel(), np.asarray(b).ravel()))


def many_to_one_accuracy(labels, assignments) -> float:
    """Purity, in 0..1: each cluster takes its commonest class; for more clusters than classes.
    Arguments and errors as in ``contingency``."""
    table = contingency(labels, assignments)
    return float(table.max(1).sum() / table.sum())


def align_heads(probabilities: Tensor) -> Tensor:
    """``[H, N, K]`` -> the same, each head's clusters permuted to agree best with head 0's.
    ValueError for another shape."""
    return take_order(probabilities, head_order(probabilities))


def head_order(probabilities: Tensor) -> Tensor:
    """``[H, N, K]`` -> ``[H, K]``: for each cluster of head 0 each head's that agrees best with it.

    Hungarian matching on the co-occurrence ``p_0^T p_h`` of the probabilities, without labels.
    ValueError for another shape."""
    if probabilities.dim() != 3:
        shape = tuple(probabilities.shape)
        raise ValueError(f"align_heads takes probabilities [H, N, K], got shape {shape}")
    p = probabilities.detach().float()
    together = (p[0].T @ p).cpu().numpy()  # [H, K, K]
    order = np.stack([linear_sum_assignment(t, maximize=True)[1] for t in together])  # [H, K]
    return torch.from_numpy(order).to(probabilities.device)


def take_order(probabilities: Tensor, order: Tensor) -> Tensor:
    """``[H, N, K]`` with the clusters of each head in the order ``[H, K]``."""
    return probabilities.gather(-1, order.unsqueeze(1).expand_as(probabilities))


def lowest_loss_head(head_losses) -> int:
    """The head with the lowest loss, the first of equals: a choice without labels. head_losses:
    ``[H]``; ValueError if they are not finite, or none."""
    head_losses = np.asarray(head_losses, dtype=float)
    if head_losses.ndim != 1 or not head_losses.size or not np.isfinite(head_losses).all():
        wanted = "the finite losses of one head or more"
        raise ValueError(f"lowest_loss_head takes {wanted}, got {head_losses.tolist()}")
    return int(head_losses.argmin())
