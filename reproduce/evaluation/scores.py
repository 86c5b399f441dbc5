"""Scores by the labels: within a run, labels are used nowhere else."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import metrics, processes
from reproduce.config import Config
from reproduce.data import packed
from reproduce.data.sets import Images
from reproduce.evaluation import probes
from reproduce.evaluation.rules import Clusterings, Rule, fitted_clusters
from reproduce.kmeans import KMeans
from reproduce.methods import Method

MOST_PIXELS = 1 << 25  # values of packed pixels that k-means may have in memory


class Levels:
    """This process's share of pixels uint8 ``[N, C, S, S]`` as samples ``[n, D]`` in 0..1, made
    when they are read: as floats they would take four times their memory."""

    def __init__(self, pixels: Tensor | packed.Pixels):
        self.pixels, self.device = pixels, pixels.device
        self.rows = torch.arange(len(pixels))[processes.own(len(pixels))]
        self.ndim, self.dtype = 2, torch.float32
        self.shape = len(self.rows), pixels.shape[1:].numel()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        return self.pixels[self.rows[index]].to(self.device).flatten(1).float().div(255)


class Scores:
    """The labels of a run's images, and what is measured with them; unlabelled images have none.

    train: the images of training; images: the N images that are scored, all with a label."""

    def __init__(self, config: Config, train: Images, images: Images, n_clusters: int):
        self.config, self.n_clusters = config, n_clusters
        self.labels = images.labels.numpy()  # int64 [N]
        self.n_classes = len(images.classes)
        self.train_labels = train.labels  # -1 for an image without
        # who votes as neighbours: training images with a label; None: the N images themselves
        self.bank = train.scored() if config.split == "test" else None
        self.best: dict | None = None  # scores of the best head of any epoch, by label

    def of(self, clusters: np.ndarray) -> dict[str, float]:
        """Scores of clusters int ``[N]``: "acc", "nmi", "ari", and "many_to_one_acc" where there
        are not as many clusters as classes; in 0..1, but for "ari", which can be below 0."""
        scores = metrics.clustering_scores(self.labels, clusters)
        if self.n_clusters != self.n_classes:
            scores["many_to_one_acc"] = metrics.many_to_one_accuracy(self.labels, clusters)
        return scores

    # ---- at every evaluation

    def row(self, epoch: int, clusterings: Clusterings) -> dict[str, float]:
        """Columns of history: the NMI of the clusters that lead, the accuracy by each rule, and of
        the heads their mean."""
        row = {"nmi": metrics.nmi(self.labels, clusterings.leading.clusters)}
        for rule in clusterings.rules:
            row[f"{rule.name}_acc"] = metrics.accuracy(self.labels, rule.clusters)
            if rule.name == "first_head":
                each = [metrics.accuracy(self.labels, head) for head in clusterings.heads]
                row["mean_of_heads_acc"] = float(np.mean(each))
                self.keep_best(epoch, each, clusterings.heads)
        return row

    def keep_best(self, epoch: int, accuracies: list[float], heads: np.ndarray) -> None:
        """The rule of CRLC's authors: the most accurate of all epochs' heads ``[H, N]``. It picks
        by label: an oracle, which stands beside the label-free rules, never in their place."""
        head = int(np.argmax(accuracies))
        if self.best is None or accuracies[head] > self.best["acc"]:
            self.best = {**self.of(heads[head]), "head": head, "epoch": epoch}

    def knn_acc(self, features: Tensor, bank: Tensor | None) -> float:
        """Accuracy of a vote among the nearest neighbours of features ``[N, D]``. bank: the
        features ``[M, D]`` of ``self.bank``; None: the images vote, none for itself."""
        labels = torch.from_numpy(self.labels)
        if bank is None:
            return probes.knn_accuracy(features, labels, features, labels, itself=True)
        return probes.knn_accuracy(bank, self.bank.labels, features, labels)

    def pseudo_nmi(self, method: Method) -> dict[str, float]:
        """How much the pseudo-labels of a method that makes such agree with the labels, as a column
        of history; the method never knows."""
        pseudo, known = getattr(method, "pseudo_labels", None), self.train_labels >= 0
        if pseudo is None:
            return {}
        return {"pseudo_nmi": metrics.nmi(self.train_labels[known], pseudo.cpu()[known])}

    # ---- at the end

    def by_head(self, heads: np.ndarray) -> list[dict[str, float]]:
        """The scores of each of the heads' clusters ``[H, N]``."""
        return [self.of(head) for head in heads]

    def by_rule(self, rules: list[Rule], by_head: list[dict]) -> dict[str, dict]:
        """The scores of each rule; of the heads' own their mean and deviation, and the best: picked
        by its accuracy, in the last epoch and in any, it is called oracle."""
        scored = {}
        for rule in rules:
            scored[rule.name] = self.of(rule.clusters)
            if rule.head is not None:
                scored[rule.name]["head"] = rule.head
            if rule.name == "first_head":
                each = {name: [scores[name] for scores in by_head] for name in by_head[0]}
                mean = {name: float(np.mean(values)) for name, values in each.items()}
                deviation = {f"{name}_std": float(np.std(values)) for name, values in each.items()}
                scored["mean_of_heads"] = mean | deviation
                best = int(np.argmax(each["acc"]))
                scored["best_head_oracle"] = {**by_head[best], "head": best}
        if self.best:
            scored["best_epoch_and_head_oracle"] = self.best
        return scored

    def kmeans_pixels(self, pixels: Tensor | packed.Pixels) -> dict[str, float] | None:
        """The floor for all methods: k-means on the pixels, uint8 ``[N, C, S, S]``. None where they
        are packed and would not be held in memory."""
        if not isinstance(pixels, Tensor) and pixels.shape.numel() > MOST_PIXELS:
            return None
        kmeans = KMeans(self.n_clusters, sharded=True).fit(Levels(pixels))
        return self.of(processes.gather_rows(kmeans.labels_).cpu().numpy())

    def kmeans_protocols(self, features: dict[str, Tensor]) -> list[dict]:
        """What the protocol of evaluation is worth: k-means on either space ``[N, D]``, as it is or
        with length one, with one start or the best of 20 by inertia."""
        protocols, spaces = [], [space for space in ("backbone", "projection") if space in features]
        for space, normalized, restarts in itertools.product(spaces, (False, True), (1, 20)):
            x = F.normalize(features[space], dim=-1) if normalized else features[space]
            seed = self.config.seed
            kmeans = KMeans(self.n_clusters, restarts, random_state=seed, sharded=True)
            protocol = {"space": space, "normalized": normalized, "restarts": restarts}
            protocols.append(protocol | self.of(fitted_clusters(kmeans, x)))
        return protocols

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]
