"""What changes while a run lasts, beside its method: where it stands, and its random numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Position:
    """Where a run stands: after so many whole epochs, and after some steps of the next."""

    device: torch.device  # where the tensors are
    epoch: int = 0  # whole epochs
    history: list[dict] = field(default_factory=list)  # their rows
    seconds: float = 0.0  # that they took
    left_over: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # images
    # of the next epoch, once it has begun
    order: Tensor | None = None  # its images [steps, B], with neighbours [steps, V B]
    terms: list[Tensor] = field(default_factory=list)  # the loss terms of each step done
    row: dict = field(default_factory=dict)  # what is known of it
    spent: float = 0.0  # seconds until the last checkpoint
    warm: bool = False  # ``method.warm``

    def __post_init__(self):
        self.left_over = self.left_over.to(self.device)

    def end_epoch(self) -> None:
        """The epoch that was begun is a whole one."""
        self.epoch += 1
        self.seconds += self.row["seconds"]
        self.history.append(self.row)
        self.order, self.terms, self.row, self.spent = None, [], {}, 0.0

    def state_dict(self) -> dict:
        state = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del state["device"]
        terms = torch.stack(self.terms).cpu() if self.terms else torch.empty(0)
        return {**state, "terms": terms}  # [steps done, terms]

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)
        self.terms = [*self.terms]


class Randomness:
    """The states of all random numbers of a run, seeded: ``generator``, on the device, for order
    and views, and torch's own, for weights and for what a method draws."""

    def __init__(self, seed: int, device: torch.device):
        torch.manual_seed(seed)
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        state = {"generator": self.generator.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"])
