"""The evaluator that the loop uses: extract, cluster by each rule, keep traces, score."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reproduce import metrics
from reproduce.augment import Augment
from reproduce.config import Config, readers
from reproduce.data.sets import Images, evenly
from reproduce.evaluation import monitors
from reproduce.evaluation.extractor import Extractor, Outputs, outputs_of, put_back
from reproduce.evaluation.probes import neighbours
from reproduce.evaluation.rules import Clusterings, Rule, by_heads, by_kmeans
from reproduce.evaluation.scores import Scores
from reproduce.evaluation.traces import Traces
from reproduce.files import in_table
from reproduce.methods import Method

MOST_PROBABILITIES = 1 << 28  # values, above which only some images keep their probabilities


@dataclass(frozen=True, eq=False)
class Look:
    """One evaluation of a method."""

    outputs: Outputs
    clusterings: Clusterings
    collapse: dict[str, float]  # ``monitors.collapse_monitor``
    monitors: dict[str, float]  # ``monitors.measure``
    knn_acc: float | None  # of nearest neighbours; None without labels


@dataclass(eq=False)
class Evaluator:
    """Evaluates a method while it learns and when it is done.

    train: the images of training; images: the N images that are evaluated, the same object where
    they are the same. Without labels there are no ``scores``, and all else is as with them."""

    config: Config
    method: Method
    augment: Augment
    train: Images
    images: Images
    n_clusters: int
    device: torch.device

    def __post_init__(self):
        config, train, images, k = self.config, self.train, self.images, self.n_clusters
        self.extract = Extractor(config, self.method, self.augment)
        self.train_pixels = self.pixels = train.pixels.to(self.device)
        if images is not train:
            self.pixels = images.pixels.to(self.device)
        heads = self.method.n_heads * k
        most = MOST_PROBABILITIES // heads if heads else len(images)
        self.sample = evenly(len(images), most)  # [S], the images whose probabilities are kept
        self.traces = Traces(self.sample, config.trace_images)
        self.scores = Scores(config, train, images, k) if images.labelled else None
        self.head_losses: list[float] | None = None  # [H], of the last evaluation
        self.last: Look | None = None  # the look after the last epoch
        self.before: np.ndarray | None = None  # int64 [N], the leading rule's at the one before

    @property
    def n_bank(self) -> int:
        """How many images, beside all N, are extracted for nothing but to vote as neighbours."""
        if self.scores is None or self.scores.bank is None:
            return 0
        return len(self.scores.bank)

    # ---- while it learns

    def evaluate(self, epoch: int, head_losses: Tensor | None) -> dict[str, float]:
        """Evaluate after so many epochs; returns columns for history, none before any training
        (epoch 0). head_losses: ``[H]``, by which heads are chosen; None where there are none.
        "previous_nmi": how much the leading rule's clusters are those of the evaluation before."""
        measured = self.config.eval_batchnorm == "measured" and epoch < self.config.epochs
        with put_back(self.method) if measured else contextlib.nullcontext():
            return self.evaluated(epoch, head_losses)

    def evaluated(self, epoch: int, head_losses: Tensor | None) -> dict[str, float]:
        """``evaluate``, which may leave other statistics in batch norm."""
        self.head_losses = None if head_losses is None else [float(x) for x in head_losses]
        outputs = self.outputs()
        if outputs.heads is not None:
            self.traces.keep(epoch, outputs.heads.probabilities)
        if epoch == 0:
            return {}
        look = self.look(outputs, epoch)
        self.last = look if epoch == self.config.epochs else None
        row = {}
        if self.scores is not None:
            row = self.scores.row(epoch, look.clusterings) | {"knn_acc": look.knn_acc}
        now, before = look.clusterings.leading.clusters, self.before
        row |= {"previous_nmi": None if before is None else metrics.nmi(before, now)}
        self.before = now
        return row | look.collapse | look.monitors

    def pseudo_labels(self) -> dict[str, float]:
        """How good a method's pseudo-labels are, as columns of history; nothing without labels."""
        return {} if self.scores is None else self.scores.pseudo_nmi(self.method)

    def outputs(self) -> Outputs:
        """The method's outputs for all images."""
        if self.config.eval_batchnorm == "measured":
            self.extract.measure_batchnorm(self.train_pixels)
        drawn = None
        if len(self.sample) < len(self.images):
            drawn = self.images.pixels.index_select(0, self.sample).to(self.device)
        return self.extract.outputs(self.pixels, drawn, self.head_losses)

    def look(self, outputs: Outputs, epoch: int) -> Look:
        """Cluster, and measure what history tells at each evaluation."""
        if outputs.heads is not None:
            n, near = self.config.vote_neighbours, None
            if n:
                near = neighbours(outputs.features["backbone"], n)
            clusterings = by_heads(outputs.heads, self.head_losses, near)
        else:
            clusterings = self.kmeans(outputs, leads=True)
        method, features, k = self.method, outputs.features, self.n_clusters
        collapse = monitors.collapse(features[method.space], clusterings.leading.clusters, k)
        measured = monitors.measure(
            method, self.augment, self.pixels, features, clusterings, k, epoch
        )
        knn_acc = None if self.scores is None else self.knn_acc(outputs)
        return Look(outputs, clusterings, collapse, measured, knn_acc)

    def kmeans(self, outputs: Outputs, leads: bool) -> Clusterings:
        """k-means by the run's protocol."""
        kmeans = self.method.kmeans(self.n_clusters, self.config.seed)
        return by_kmeans(kmeans, self.embedding(outputs), leads)

    def embedding(self, outputs: Outputs) -> Tensor:
        """The features ``[N, D]`` that are clustered, as the method prepares them."""
        return self.method.prepare(outputs.features[self.method.space])

    def knn_acc(self, outputs: Outputs) -> float:
        """``scores.knn_acc`` in the run's space."""
        space, bank, features = self.config.knn_space, self.scores.bank, None
        if bank is not None:
            pixels = self.train_pixels if bank is self.train else bank.pixels.to(self.device)
            features = self.extract(lambda x: outputs_of(self.method, x)[space], pixels)
        return self.scores.knn_acc(outputs.features[space], features)

    # ---- when it is done

    def finish(self) -> tuple[dict, dict[str, dict[str, np.ndarray]], dict]:
        """After the last epoch: what metrics.json gets; {file stem: its arrays}; and, for images
        in files, the columns of assignments.csv."""
        look, rules = self.clustered()
        clusters, files = {rule.name: rule.clusters for rule in rules}, self.images.files
        assignments = {"file": [*map(in_table, files)], **clusters} if files else {}
        return self.results(look, rules), self.arrays(look, clusters), assignments

    def clustered(self) -> tuple[Look, list[Rule]]:
        """The look after the last epoch, with the clusters by all rules."""
        look = self.last or self.look(self.outputs(), self.config.epochs)
        rules = look.clusterings.rules
        if look.outputs.heads is not None:
            rules = rules + self.kmeans(look.outputs, leads=False).rules
        return look, rules

    def embeddings(self) -> dict[str, np.ndarray]:
        """The arrays of embeddings.npz alone."""
        look, rules = self.clustered()
        return self.arrays(look, {rule.name: rule.clusters for rule in rules})["embeddings"]

    def results(self, look: Look, rules: list[Rule]) -> dict:
        """What metrics.json gets; without labels no scores are in it."""
        scores, heads = self.scores, look.clusterings.heads
        why = monitors.collapse_reason(look.collapse, self.n_clusters)
        results = {"scores": {}, "collapse": {**look.collapse, "collapsed": bool(why), "why": why}}
        results["monitors"] = look.monitors
        if self.config.method in readers("lambda1") and (balance := self.balance(rules)):
            results["balance"] = balance
        if heads is not None and len(self.sample) < len(self.images):
            results["aligned_by"] = len(self.sample)  # images
        by_head = [{} for _ in self.head_losses or ()]
        if scores is not None:
            by_head = [] if heads is None else scores.by_head(heads)
            results["scores"] = scores.by_rule(rules, by_head)
            results["knn_acc"] = look.knn_acc
            results["kmeans_protocols"] = scores.kmeans_protocols(look.outputs.features)
            if pixels := scores.kmeans_pixels(self.pixels):
                results["scores"]["kmeans_pixels"] = pixels
            else:
                results["left_out"] = ["kmeans_pixels"]
        if self.head_losses is not None:
            results["heads"] = [{"loss": x, **s} for x, s in zip(self.head_losses, by_head)]
        return results

    def balance(self, rules: list[Rule]) -> str:
        """Why heads seem to have cut groups of unequal size into clusters of one, or ''."""
        clusters = {rule.name: rule.clusters for rule in rules}
        heads, kmeans = clusters["aligned_average"], clusters["kmeans_embedding"]
        return monitors.balance_reason(heads, kmeans, self.n_clusters)

    def arrays(self, look: Look, clusters: dict[str, np.ndarray]) -> dict[str, dict]:
        """The arrays of embeddings.npz, apply.npz and, with heads, traces.npz; clusters: ``[N]`` by
        rule. Labels, -1 without, are passed on to whoever draws the embedding."""
        n, features = len(self.images), self.embedding(look.outputs)
        labels = np.full(n, -1) if self.scores is None else self.scores.labels
        embeddings = {"embedding": reduced(features).half().cpu().numpy()}
        for name, numbers in {"labels": labels, **clusters}.items():
            embeddings[name] = numbers.astype(np.int32)
        moments = {"mean": self.augment.mean.flatten(), "std": self.augment.std.flatten()}
        apply = {k: v.cpu().numpy() for k, v in (moments | look.clusterings.for_new).items()}
        by_stem = {"embeddings": embeddings, "apply": apply}
        if self.traces.epochs:
            by_stem["traces"] = self.traces.arrays() | {"labels": labels[self.traces.images]}
        return by_stem

    # ---- in checkpoints

    def state_dict(self) -> dict:
        return {
            "head_losses": self.head_losses,
            "before": None if self.before is None else torch.from_numpy(self.before),
            "traces": self.traces.state_dict(),
            "scores": None if self.scores is None else self.scores.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.head_losses, before = state["head_losses"], state.get("before")
        self.before = None if before is None else before.numpy()
        self.traces.load_state_dict(state["traces"])
        if self.scores is not None:
            self.scores.load_state_dict(state["scores"])


def reduced(embedding: Tensor, dim: int = 64) -> Tensor:
    """The embedding ``[N, D]`` on its first ``dim`` principal axes where it is wider: small files,
    nearly the same neighbours."""
    if embedding.shape[1] <= dim:
        return embedding
    centred = embedding - embedding.mean(0)
    return centred @ torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :dim]
