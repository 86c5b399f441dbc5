"""What is kept of the heads' probabilities from epoch to epoch."""

import numpy as np
import torch
from torch import Tensor

from reproduce.data.sets import evenly


class Traces:
    """The probabilities of a few images by each head, and the mass of each head's clusters, at
    every evaluation; before any training, too, as epoch 0.

    sample: int64 ``[S]``, the numbers of the images whose probabilities ``keep`` is given. at_most:
    of so many of them the probabilities are kept; mass is the mean over all S."""

    def __init__(self, sample: Tensor, at_most: int):
        self.traced = evenly(len(sample), at_most)  # [T], positions in the sample
        self.images = sample[self.traced].numpy()  # [T], their numbers among all images
        self.epochs: list[int] = []
        self.probabilities: list[Tensor] = []  # float16 [T, H, K] of each
        self.mass: list[Tensor] = []  # float16 [H, K] of each

    def keep(self, epoch: int, probabilities: Tensor) -> None:
        """Of an evaluation after so many epochs; probabilities ``[H, S, K]``."""
        self.epochs.append(epoch)
        traced = probabilities[:, self.traced].transpose(0, 1)
        self.probabilities.append(traced.half().cpu())
        self.mass.append(probabilities.mean(1).half().cpu())

    def arrays(self) -> dict[str, np.ndarray]:
        """What traces.npz holds of E evaluations: "epochs" ``[E]``, "images" ``[T]``,
        "probabilities" ``[E, T, H, K]`` and "mass" ``[E, H, K]``."""
        return {
            "epochs": np.asarray(self.epochs),
            "images": self.images,
            "probabilities": torch.stack(self.probabilities).numpy(),
            "mass": torch.stack(self.mass).numpy(),
        }

    def state_dict(self) -> dict:
        return {"epochs": self.epochs, "probabilities": self.probabilities, "mass": self.mass}

    def load_state_dict(self, state: dict) -> None:
        self.epochs, self.probabilities, self.mass = (
            state[name] for name in ("epochs", "probabilities", "mass")
        )
