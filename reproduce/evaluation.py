"""Looking at a method while it learns and when it is done: within a run, labels are used nowhere
else."""

import itertools
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce import distributed, metrics, monitors, packed, probes
from reproduce.augment import Augment
from reproduce.clustering import KMeans
from reproduce.config import Config
from reproduce.data import Images, evenly
from reproduce.methods import Method

# values that may be in memory at a time: of all heads' probabilities, above which only some images
# keep theirs, and of packed pixels for k-means, above which it is left out
MOST_PROBABILITIES, MOST_PIXELS = 1 << 28, 1 << 25
KEPT = "epochs", "traces", "mass", "head_losses", "best"  # in a checkpoint


@dataclass(eq=False)
class Evaluator:
    """Evaluates a method on the evaluation part, and keeps the traces of what it saw."""

    config: Config
    method: Method
    augment: Augment
    train: Images
    images: Images
    n_clusters: int
    device: torch.device

    def __post_init__(self):
        config, n = self.config, len(self.images)
        self.bank = self.train.scored()  # neighbours that have a label
        self.same = config.split == "all"  # scored on training images
        self.train_pixels = self.train.pixels.to(self.device)
        same = self.train is self.images
        self.pixels = self.train_pixels if same else self.images.pixels.to(self.device)
        self.labels = self.images.labels.numpy()
        heads = {"crlc": config.n_heads, "cc": 1}.get(config.method, 0) * self.n_clusters
        self.sample = evenly(n, MOST_PROBABILITIES // heads if heads else n)
        self.traced_at = evenly(len(self.sample), config.trace_images)
        self.traced = self.sample[self.traced_at].numpy()
        self.epochs: list[int] = []
        self.traces: list[Tensor] = []
        self.mass: list[Tensor] = []
        self.head_losses: list[float] | None = None
        self.best: dict | None = None  # scores of the best head of any epoch, by label
        self.last: tuple[dict, dict] | None = None  # what the last look extracted, and the rules
        self.nearest: float | None = None  # and its accuracy of nearest neighbours
        self.monitors: dict | None = None  # and its monitors

    @torch.no_grad()
    def extract(self, network: Callable, pixels: Tensor | packed.Pixels, whole: bool = True):
        """A network's output, or its named outputs, for all images in evaluation mode; samples on
        the next-to-last axis. Always in float32: bfloat16 rounds away what features differ by.
        Of several processes each extracts its share; with ``whole`` all get all rows."""
        training = self.method.training
        self.method.eval()
        distributed.same_statistics(self.method)
        side = max(self.config.side, self.config.view_side, self.config.eval_size)
        batch = max(64, min(2048, (1 << 24) // (3 * side**2)))  # of 64 MiB
        mine = distributed.own(len(pixels))
        images = packed.split(pixels, batch, self.config.workers, mine)
        parts = [network(self.augment.clean(part)) for part in images]
        self.method.train(training)

        def joined(parts: list[Tensor]) -> Tensor:
            rows = torch.cat([part.float() for part in parts], -2).transpose(0, -2)
            return (distributed.gather_rows(rows) if whole else rows).transpose(0, -2)

        if isinstance(parts[0], dict):
            return {name: joined([part[name] for part in parts]) for name in parts[0]}
        return joined(parts)

    def look(self) -> dict[str, Tensor]:
        """The method's outputs for all images. Where the heads' probabilities would be too large to
        be kept they are those of evenly drawn images, by which the heads are aligned; each head's
        cluster "heads" ``[H, N, 1]`` and that of their average "aligned" ``[N, 1]`` are of all."""
        if len(self.sample) == len(self.images):
            return self.extract(self.method.outputs, self.pixels)
        drawn = self.images.pixels.index_select(0, self.sample).to(self.device)
        sample = self.extract(lambda x: self.method.outputs(x)["probabilities"], drawn)
        rank, order = self.heads_order(sample)

        def network(images: Tensor) -> dict[str, Tensor]:
            out = self.method.outputs(images)
            p = out.pop("probabilities").float()
            aligned = metrics.take_order(p[rank], order).mean(0)
            return out | {"heads": p.argmax(-1, True), "aligned": aligned.argmax(-1, True)}

        return self.extract(network, self.pixels) | {"probabilities": sample}

    def evaluate(self, epoch: int, head_losses: Tensor | None) -> dict:
        """Evaluate; returns the columns for history, none before any training (epoch 0)."""
        self.head_losses = None if head_losses is None else [float(x) for x in head_losses]
        out = self.look()
        if "probabilities" in out:
            self.epochs.append(epoch)
            traced = out["probabilities"][:, self.traced_at].transpose(0, 1)
            self.traces.append(traced.half().cpu())
            self.mass.append(out["probabilities"].mean(1).half().cpu())
        if epoch == 0:
            return {}
        rules, row = self.rules(out), {}
        self.last = out, rules
        if self.images.labelled:
            for rule, assignments in rules.items():
                accuracies = [metrics.accuracy(self.labels, a) for a in np.atleast_2d(assignments)]
                row[f"{rule}_acc"] = float(np.mean(accuracies))
                if rule == "mean_of_heads":
                    self.keep_best(epoch, accuracies, assignments)
            row["knn_acc"] = self.nearest = self.knn(out)
        self.monitors = self.monitor(out, rules, epoch)
        return row | self.collapse(out, rules) | self.monitors

    def keep_best(self, epoch: int, accuracies: list[float], heads: np.ndarray) -> None:
        """The rule of CRLC's authors: the most accurate of all epochs' heads. It picks by label: an
        oracle, which stands beside the label-free rules, never in their place."""
        head = int(np.argmax(accuracies))
        if self.best is None or accuracies[head] > self.best["acc"]:
            self.best = {**self.score(heads[head]), "head": head, "epoch": epoch}

    def rules(self, out: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Assignments ``[N]`` by each way to make one clustering (all ``[H, N]`` for the mean of
        heads); the last is the one that a label-free reader takes."""
        if "probabilities" not in out:
            return {"kmeans_embedding": self.kmeans(out)}
        probabilities, whole = out["probabilities"], "heads" not in out
        heads = probabilities.argmax(-1) if whole else out["heads"][..., 0].long()
        heads = heads.cpu().numpy()
        chosen = {"first_head": heads[0], "mean_of_heads": heads}
        if self.head_losses is not None:
            chosen["lowest_loss_head"] = heads[metrics.lowest_loss_head(self.head_losses)]
        if whole:
            rank, order = self.heads_order(probabilities)
            aligned = metrics.take_order(probabilities[rank], order).mean(0).argmax(-1)
        else:
            aligned = out["aligned"][:, 0].long()
        chosen["aligned_average"] = aligned.cpu().numpy()
        return chosen

    def heads_order(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """The heads ``[H]`` from the lowest loss on, and the order ``[H, K]`` of their clusters
        that agrees best with that of the first."""
        losses = self.head_losses or [0.0] * len(probabilities)
        rank = torch.from_numpy(np.argsort(losses, kind="stable")).to(probabilities.device)
        return rank, metrics.head_order(probabilities[rank])

    def kmeans(self, out: dict[str, Tensor]) -> np.ndarray:
        """k-means by the run's protocol."""
        self.fitted = self.method.kmeans(self.n_clusters, self.config.seed)
        return clusters(self.fitted, self.method.prepare(out[self.method.space]))

    def knn(self, out: dict[str, Tensor]) -> float:
        """Accuracy of k nearest training images."""
        space = self.config.knn_space
        if self.same:
            bank = out[space]
        else:
            same = self.bank is self.train
            pixels = self.train_pixels if same else self.bank.pixels.to(self.device)
            bank = self.extract(lambda x: self.method.outputs(x)[space], pixels)
        known, asked = self.bank.labels, self.images.labels
        return probes.knn_accuracy(bank, known, out[space], asked, itself=self.same)

    def collapse(self, out: dict[str, Tensor], rules: dict[str, np.ndarray]) -> dict[str, float]:
        """``metrics.collapse_monitor`` of the clusters of all images and the embedding of a few
        hundred, which are enough to see that all fall into one point."""
        main, embedding = rules[list(rules)[-1]], out[self.method.space]
        some = evenly(len(embedding), 512).to(embedding.device)
        return metrics.collapse_monitor(embedding[some], torch.from_numpy(main), self.n_clusters)

    def monitor(self, out: dict[str, Tensor], rules: dict[str, np.ndarray], epoch: int) -> dict:
        """What needs no label: ``monitors.measure``."""
        seen = self.method, self.augment, self.pixels, out, rules
        return monitors.measure(*seen, self.n_clusters, epoch)

    def pseudo_labels(self) -> dict[str, float]:
        """How much the pseudo-labels of a method that makes such agree with the labels; the method
        never knows."""
        pseudo, known = getattr(self.method, "pseudo_labels", None), self.train.labels >= 0
        if pseudo is None or not self.train.labelled:
            return {}
        return {"pseudo_nmi": metrics.nmi(self.train.labels[known], pseudo.cpu()[known])}

    def finish(self) -> tuple[dict, dict, dict]:
        """The last evaluation: what metrics.json gets; {file stem: its arrays}; and, for a folder,
        the columns of assignments.csv."""
        if self.last is None:  # nothing was left to train
            out = self.look()
            self.last = out, self.rules(out)
        out, rules = self.last
        if self.monitors is None:
            self.monitors = self.monitor(out, rules, self.config.epochs)
        monitor = self.collapse(out, rules)
        why = metrics.collapse_reason(monitor, self.n_clusters)
        if "kmeans_embedding" not in rules:
            rules["kmeans_embedding"] = self.kmeans(out)
        metric = {"scores": {}, "collapse": {**monitor, "collapsed": bool(why), "why": why}}
        metric["monitors"] = self.monitors
        if "heads" in out:
            metric["aligned_by"] = len(self.sample)  # images
        if self.images.labelled:
            metric |= {
                "scores": self.scores(rules),
                "knn_acc": self.knn(out) if self.nearest is None else self.nearest,
                "kmeans_protocols": self.kmeans_protocols(out),
            }
            if "kmeans_pixels" not in metric["scores"]:
                metric["left_out"] = ["kmeans_pixels"]
        if self.head_losses is not None:
            heads = rules["mean_of_heads"]
            each = [self.score(head) if self.images.labelled else {} for head in heads]
            metric["heads"] = [{"loss": x, **scores} for x, scores in zip(self.head_losses, each)]
        shown = {k: v for k, v in rules.items() if k != "mean_of_heads"}
        embedding = self.method.prepare(out[self.method.space])
        kept = {
            "embedding": reduced(embedding).half().cpu().numpy(),
            "labels": self.labels.astype(np.int32),
            **{k: v.astype(np.int32) for k, v in shown.items()},
        }
        found = {"mean": self.augment.mean.flatten(), "std": self.augment.std.flatten()}
        if "probabilities" in out:
            found["rank"], found["order"] = self.heads_order(out["probabilities"])
        else:
            found["centroids"] = self.fitted.cluster_centers_
            if self.fitted.metric == "cosine":
                found["cosine"] = torch.ones(1)
        found = {name: value.cpu().numpy() for name, value in found.items()}
        arrays = {"embeddings": kept, "apply": found}
        if self.traces:
            arrays["traces"] = {
                "epochs": np.asarray(self.epochs),
                "images": self.traced,
                "labels": self.labels[self.traced],
                "probabilities": torch.stack(self.traces).numpy(),
                "mass": torch.stack(self.mass).numpy(),
            }
        files = self.images.files
        return metric, arrays, {"file": files, **shown} if files else {}

    def kmeans_protocols(self, out: dict[str, Tensor]) -> list[dict]:
        """What the protocol of evaluation is worth: k-means on either space, as it is or with
        length one, with one start or the best of 20 by inertia."""
        found, spaces = [], [space for space in ("backbone", "projection") if space in out]
        for space, normalized, restarts in itertools.product(spaces, (False, True), (1, 20)):
            features = F.normalize(out[space], dim=-1) if normalized else out[space]
            seed = self.config.seed
            kmeans = KMeans(self.n_clusters, restarts, random_state=seed, sharded=True)
            scores = self.score(clusters(kmeans, features))
            found.append({"space": space, "normalized": normalized, "restarts": restarts, **scores})
        return found

    def scores(self, rules: dict[str, np.ndarray]) -> dict[str, dict]:
        """ACC, NMI, ARI by selection rule; the head picked by its accuracy is called oracle."""
        found = {}
        for rule, assignments in rules.items():
            each = [self.score(a) for a in np.atleast_2d(assignments)]
            found[rule] = {k: float(np.mean([s[k] for s in each])) for k in each[0]}
            if rule == "mean_of_heads":
                found[rule] |= {f"{k}_std": float(np.std([s[k] for s in each])) for k in each[0]}
                best = int(np.argmax([s["acc"] for s in each]))
                found["best_head_oracle"] = {**each[best], "head": best}
        if self.best:
            found["best_epoch_and_head_oracle"] = self.best
        if "lowest_loss_head" in found:
            found["lowest_loss_head"]["head"] = metrics.lowest_loss_head(self.head_losses)
        if isinstance(self.pixels, Tensor) or self.pixels.shape.numel() <= MOST_PIXELS:
            pixels = self.pixels[:].to(self.device).flatten(1).float().div(255)
            kmeans = KMeans(self.n_clusters, sharded=True)
            found["kmeans_pixels"] = self.score(clusters(kmeans, pixels))
        return found

    def score(self, assignments: np.ndarray) -> dict[str, float]:
        scores = metrics.clustering_scores(self.labels, assignments)
        if self.n_clusters != len(self.images.classes):
            scores["many_to_one_acc"] = metrics.many_to_one_accuracy(self.labels, assignments)
        return scores

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, state: dict) -> None:
        for name in KEPT:
            setattr(self, name, state[name])


def clusters(kmeans: KMeans, features: Tensor) -> np.ndarray:
    """Fit to features ``[N, D]``, of which each process takes its share; the clusters ``[N]``."""
    kmeans.fit(features[distributed.own(len(features))])
    return distributed.gather_rows(kmeans.labels_).cpu().numpy()


def reduced(embedding: Tensor, dim: int = 64) -> Tensor:
    """The embedding on its first ``dim`` principal axes where it is wider: small files, nearly the
    same neighbours."""
    if embedding.shape[1] <= dim:
        return embedding
    centred = embedding - embedding.mean(0)
    return centred @ torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :dim]
