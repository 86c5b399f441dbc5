"""Looking at a method while it learns and when it is done. Labels are used here and nowhere else."""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch
from torch import Tensor

from reproduce import metrics
from reproduce.augment import Augment
from reproduce.clustering import KMeans
from reproduce.config import Config
from reproduce.data import Images
from reproduce.methods import Method


class Watch:
    """Evaluates a method on the evaluation part, and keeps the traces of what it saw."""

    def __init__(self, config: Config, method: Method, augment: Augment, images: Images, n_clusters: int,
                 device: torch.device, low_precision: bool):
        self.config, self.method, self.augment = config, method, augment
        self.images, self.n_clusters, self.device, self.low_precision = images, n_clusters, device, low_precision
        self.pixels = images.pixels.to(device)
        self.labels = images.labels.numpy()
        spread = torch.linspace(0, len(images) - 1, min(config.trace_images, len(images))).long()
        self.traced = spread.unique().numpy()
        self.epochs: list[int] = []
        self.traces: list[np.ndarray] = []
        self.mass: list[np.ndarray] = []
        self.head_losses: list[float] | None = None

    @torch.no_grad()
    def extract(self, what: Callable[[Tensor], Tensor | None], pixels: Tensor | None = None, batch: int = 2048) -> Tensor | None:
        """``what`` (``method.embed``, ``method.assign``) of all images, in evaluation mode; samples on the next-to-last axis."""
        training = self.method.training
        self.method.eval()
        parts = []
        for part in (self.pixels if pixels is None else pixels).split(batch):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                parts.append(what(self.augment.clean(part)))
        self.method.train(training)
        return None if parts[0] is None else torch.cat([p.float() for p in parts], -2)

    def look(self, epoch: int, head_losses: Tensor | None) -> dict:
        """Evaluate; returns the columns for history."""
        probabilities = self.extract(self.method.assign)
        self.head_losses = None if head_losses is None else [float(x) for x in head_losses]
        if probabilities is None:
            return {}
        self.epochs.append(epoch)
        self.traces.append(probabilities[:, self.traced].transpose(0, 1).half().cpu().numpy())
        self.mass.append(probabilities.mean(1).half().cpu().numpy())
        if head_losses is None:
            return {}
        rules, row = self.rules(probabilities), {}
        if self.images.labelled:
            for rule, assignments in rules.items():
                accuracies = [metrics.accuracy(self.labels, a) for a in np.atleast_2d(assignments)]
                row[f"{rule}_acc"] = float(np.mean(accuracies))
        embedding = self.extract(self.method.embed, self.pixels[:512])  # a batch is enough to see a collapse
        return row | metrics.collapse_monitor(embedding, torch.from_numpy(rules["aligned_average"]), self.n_clusters)

    def rules(self, probabilities: Tensor) -> dict[str, np.ndarray]:
        """Assignments ``[N]`` by each way to make one clustering of H heads (all ``[H, N]`` for the mean)."""
        heads = probabilities.argmax(-1).cpu().numpy()
        chosen = {"first_head": heads[0], "mean_of_heads": heads}
        if self.head_losses is not None:
            chosen["lowest_loss_head"] = heads[metrics.lowest_loss_head(self.head_losses)]
            # the head that the others are aligned with comes first: the one with the lowest loss
            probabilities = probabilities[np.argsort(self.head_losses, kind="stable")]
        chosen["aligned_average"] = metrics.align_heads(probabilities).mean(0).argmax(-1).cpu().numpy()
        return chosen

    def finish(self) -> tuple[dict, dict, list[dict]]:
        """The last evaluation: for metrics.json, {file: its arrays}, and a row for each file of a folder."""
        embedding = self.extract(self.method.embed)
        probabilities = self.extract(self.method.assign)
        kmeans = KMeans(self.n_clusters, seed=self.config.seed).fit_predict(embedding).cpu().numpy()
        if probabilities is None:
            rules = {"kmeans_embedding": kmeans}
            main = kmeans
        else:
            rules = {**self.rules(probabilities), "kmeans_embedding": kmeans}
            main = rules["aligned_average"]
        metric = {
            "scores": self.scores(rules, probabilities) if self.images.labelled else {},
            "collapse": metrics.collapse_monitor(embedding, torch.from_numpy(main), self.n_clusters),
        }
        if self.head_losses is not None:
            each = [self.score(a) for a in rules["mean_of_heads"]] if self.images.labelled else [{}] * len(self.head_losses)
            metric["heads"] = [{"loss": loss, **scores} for loss, scores in zip(self.head_losses, each)]
        shown = {k: v for k, v in rules.items() if k != "mean_of_heads"}
        arrays = {
            "embeddings": {"embedding": reduced(embedding).half().cpu().numpy(), "labels": self.labels.astype(np.int16),
                           **{k: v.astype(np.int16) for k, v in shown.items()}},
        }
        if self.traces:
            arrays["traces"] = {"epochs": np.asarray(self.epochs), "images": self.traced, "labels": self.labels[self.traced],
                                "probabilities": np.stack(self.traces), "mass": np.stack(self.mass)}
        rows = [{"file": file, **{rule: int(a[i]) for rule, a in shown.items()}} for i, file in enumerate(self.images.files)]
        return metric, arrays, rows

    def scores(self, rules: dict[str, np.ndarray], probabilities: Tensor | None) -> dict[str, dict]:
        """ACC, NMI, ARI by selection rule; the head picked by its accuracy is called oracle."""
        found = {}
        for rule, assignments in rules.items():
            each = [self.score(a) for a in np.atleast_2d(assignments)]
            found[rule] = {k: float(np.mean([s[k] for s in each])) for k in each[0]}
            if rule == "mean_of_heads":
                found[rule] |= {f"{k}_std": float(np.std([s[k] for s in each])) for k in each[0]}
                best = int(np.argmax([s["acc"] for s in each]))
                found["best_head_oracle"] = {**each[best], "head": best}
        if "lowest_loss_head" in found:
            found["lowest_loss_head"]["head"] = metrics.lowest_loss_head(self.head_losses)
        pixels = self.pixels.flatten(1).float().div(255)
        found["kmeans_pixels"] = self.score(KMeans(self.n_clusters).fit_predict(pixels).cpu().numpy())
        return found

    def score(self, assignments: np.ndarray) -> dict[str, float]:
        scores = metrics.clustering_scores(self.labels, assignments)
        if self.n_clusters != len(self.images.classes):
            scores["many_to_one_acc"] = metrics.many_to_one_accuracy(self.labels, assignments)
        return scores

    def state_dict(self) -> dict:
        return {"epochs": self.epochs, "traces": [torch.from_numpy(t) for t in self.traces],
                "mass": [torch.from_numpy(m) for m in self.mass], "head_losses": self.head_losses}

    def load_state_dict(self, state: dict) -> None:
        self.epochs, self.head_losses = state["epochs"], state["head_losses"]
        self.traces, self.mass = [t.numpy() for t in state["traces"]], [m.numpy() for m in state["mass"]]


def reduced(embedding: Tensor, dim: int = 64) -> Tensor:
    """The embedding on its first ``dim`` principal axes where it is wider: small files, the same neighbours."""
    if embedding.shape[1] <= dim:
        return embedding
    centred = embedding - embedding.mean(0)
    return centred @ torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :dim]
