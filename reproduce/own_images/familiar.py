"""Whether new images are like those that a run was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reproduce.data.sets import evenly
from reproduce.evaluation import probes

RARE = 0.01  # share of the run's own images that are no more like another than "unlike" ones
AT_MOST = 20_000  # of the run's images, evenly drawn
WORTH_SAYING = 0.1  # share of unlike images


class Familiar:
    """The features of a run's own images; None of a run that has kept none (see ``of_run``).

    A new image is "unlike" them if its cosine with the nearest of them is below that of all but one
    in a hundred of them with their own nearest."""

    def __init__(self, features: np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(features, np.float32))
        self.bank = F.normalize(x[evenly(len(x), AT_MOST)], dim=-1)
        cosine, _ = probes.nearest(self.bank, self.bank, 1, itself=True)
        self.least = float(cosine[:, 0].quantile(RARE)) if cosine.shape[1] else -1.0

    def similarity(self, features: Tensor) -> np.ndarray:
        """The cosine ``[N]`` of each of the features ``[N, D]`` with the nearest of the run."""
        return probes.nearest(self.bank, features, 1)[0][:, 0].numpy()


def of_run(run: Path, width: int) -> Familiar | None:
    """Of a run whose features are so wide; None where it has kept none, or some axes of them, as a
    trained run does of more than 64."""
    if (run / "features.npy").exists():
        kept = np.load(run / "features.npy")
    elif (run / "embeddings.npz").exists():
        with np.load(run / "embeddings.npz") as stored:
            kept = stored["embedding"]
    else:
        return None
    return Familiar(kept) if kept.shape[1] == width else None


def warning(unlike: int, n: int) -> list[str]:
    """What is to be said of so many unlike images among n; nothing where they are few."""
    if unlike < max(1, WORTH_SAYING * n):
        return []
    what = f"{unlike:,} of {n:,} images are unlike all that the run was made of"
    return [f"{what}: their clusters and probabilities mean little (column unlike)"]
