"""What a run keeps: its checkpoints, why it stopped, its results."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from reproduce import processes
from reproduce.config import Config
from reproduce.evaluation import Evaluator
from reproduce.loop import threads
from reproduce.loop.devices import peak_memory, uses_bfloat16
from reproduce.loop.state import Position, Randomness
from reproduce.methods import Method
from reproduce.runs import flops, stopping
from reproduce.runs.directory import Run, weights_digest
from reproduce.settings import ConfigError, Diverged

FORMAT = 2  # of checkpoints; one of another format is not continued
PARTS = "at", "randomness", "method", "optimizer", "evaluator"  # of a checkpoint


@dataclass(eq=False)
class Keeper:
    """Keeps a run so that it goes on to the same bits wherever it is stopped, and what it leaves.

    Of several processes only the first writes."""

    config: Config
    run: Run
    at: Position
    randomness: Randomness
    method: Method
    optimizer: torch.optim.Optimizer
    evaluator: Evaluator

    def __post_init__(self):
        images = self.evaluator.train
        self.sizes = images.pixels.shape[1], self.evaluator.n_clusters, len(images)
        low = uses_bfloat16(self.config, self.at.device)
        self.precision = "bfloat16" if low else "float32"
        self.any_asked, self.asked = processes.Asked(), 0  # the signal by which all processes stop
        # of the network that the run starts from, with the moments of its images
        start = dict(self.method.backbone.state_dict()) if self.config.weights else {}
        augment = self.evaluator.augment
        start |= {"mean": augment.mean, "std": augment.std} if start else {}
        self.pflops = flops.of_run(self.config, *self.sizes)  # before training: it reads the start
        self.start = weights_digest({name: value.cpu() for name, value in start.items()})

    def save(self) -> bool:
        """Write a checkpoint, and return True; False where a loss term of the begun epoch is not
        finite, of which none is written. Stopped after it, if a signal asked for that."""
        at = self.at
        if at.order is not None:
            at.spent = time.perf_counter() - self.began
        if processes.rank() == 0:
            state = {name: getattr(self, name).state_dict() for name in PARTS}
            if not state["at"]["terms"].isfinite().all():
                return False
            begun = {"device": at.device.type, "images": self.evaluator.train.sha256}
            begun["start"] = self.start
            self.run.save_checkpoint({"format": FORMAT, **begun, **state})
            self.run.tell(done=self.done, kept=self.done)
        self.saved = time.perf_counter()
        if self.asked:
            self.any_asked.wait()
            stopping.at_checkpoint(self.asked, self.done)
        return True

    @property
    def done(self) -> str:
        """Epochs and steps so far, in words."""
        n = len(self.at.terms)
        return f"epoch {self.at.epoch}" + (f" and {n} step{'s' * (n > 1)}" if n else "")

    def restore(self) -> bool:
        """Go on from the newest checkpoint, with as many threads; False where there is none."""
        self.saved = time.perf_counter()
        alone = self.run.load_checkpoint() if processes.rank() == 0 else (None, "")
        state, file = processes.broadcast(alone)
        if state is not None:
            self.load(state)
            self.run.notes.append(f"continued after {self.done} from {file}")
        before = state["parts"][-1].get("threads") if state else None
        augment, sizes = self.evaluator.augment, self.sizes[:2]
        torch.set_num_threads(threads.choose(self.config, self.method, augment, sizes, before))
        done = {"epochs": self.at.epoch, "steps": len(self.at.terms)}
        self.run.begin_part(self.precision, state, **done)
        if processes.rank() == 0:
            kept = "" if state is None else self.done
            self.run.tell(epochs=self.config.epochs, done=self.done, kept=kept, why="")
        return state is not None

    def load(self, state: dict) -> None:
        """Put everything where a checkpoint has it; ConfigError where that was begun on another
        kind of device, on other images, from other weights, or by an older version."""
        anew, device = "start anew with -p resume False", self.at.device.type
        if state.get("format") != FORMAT:
            raise self.refused("by an older version", anew)
        if state["device"] != device:
            how = f"continue it there, or start anew here with -p resume False ({device})"
            raise self.refused(f"on {state['device']}", how)
        if state["images"] != self.evaluator.train.sha256:
            raise self.refused("on other images", anew)
        if state.get("start", self.start) != self.start:
            what = f"from other weights than {self.config.weights!r} holds now"
            raise self.refused(what, f"put those back, or {anew}")
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])

    def refused(self, begun: str, how: str) -> ConfigError:
        return ConfigError(f"{str(self.run.partial)!r} was begun {begun}: {how}")

    def begin_epoch(self) -> None:
        """Begin to count the seconds of an epoch, or go on."""
        self.began = time.perf_counter() - self.at.spent

    def due(self) -> bool:
        """Whether it is time for a checkpoint; asked once after each step, in every process."""
        self.asked = self.any_asked(stopping.asked())
        return bool(self.asked) or self.late()

    def late(self) -> bool:
        """Whether the last checkpoint is old."""
        return time.perf_counter() - self.saved >= 60 * self.config.checkpoint_minutes

    def due_within(self) -> bool:
        """Whether it is time for a checkpoint within the epoch."""
        assert self.at.order is not None  # the epoch has begun
        return len(self.at.terms) < len(self.at.order) and self.due()

    def after_epoch(self) -> None:
        """A checkpoint if it is time for one, and always after the last epoch."""
        if self.due() or self.at.epoch == self.config.epochs:
            self.save()
        elif processes.rank() == 0:
            self.run.tell(done=self.done)

    def end_of_epoch(self, named: dict[str, Tensor], rate: float) -> tuple[dict, Tensor | None]:
        """The row of the epoch that ends, with the means of its loss terms and its speed, and the
        heads' mean losses ``[H]``, if there are heads.

        named: the terms of one step, for their names and sizes. Diverged where a term or a weight
        is not finite."""
        at, epoch = self.at, self.at.epoch + 1
        terms = torch.stack(at.terms).cpu()  # the one synchronisation of an epoch
        head_losses = record(named, terms, at.row, epoch)
        if not torch.stack([p.isfinite().all() for p in self.method.parameters()]).all():
            # by its last step
            raise Diverged(f"the weights are not finite after epoch {epoch}")
        seconds = time.perf_counter() - self.began
        speed = len(terms) * self.config.batch_size / seconds
        at.row |= {"learning_rate": rate, "seconds": seconds, "images_per_second": speed}
        at.row["pflop"] = flops.of_epochs(self.config, epoch, *self.sizes)
        return at.row, head_losses

    @contextlib.contextmanager
    def until_divergence(self):
        """Diverged with a remedy, where it comes without; then history and the reason are left in
        the run directory."""
        try:
            yield
        except Diverged as error:
            remedy = "lower learning_rate, or see the run's history"
            kept = "; the last checkpoint is kept" if self.run.has_checkpoint else ""
            reason = f"{error}: {remedy}{kept}"
            if processes.rank() == 0:
                why = {"status": "diverged", "epochs": self.at.epoch, "reason": reason}
                self.run.write_json("metrics.json", why)
                self.run.write_history(self.at.history)
            raise Diverged(reason) from None

    def finish(self) -> None:
        """Evaluate for the last time, and write what a finished run leaves behind."""
        config, at, evaluator = self.config, self.at, self.evaluator
        images = evaluator.train
        if config.compile and len(at.history) > 1:
            first, *rest = (row["seconds"] for row in at.history)
            compiling = first - statistics.median(rest)
            self.run.notes.append(f"compiling took about {compiling:.0f} s of the first epoch")
        weights = {name: value.cpu() for name, value in self.method.state_dict().items()}
        scores, arrays, assignments = evaluator.finish()
        n_looked_at = len(evaluator.images), evaluator.n_bank
        shown = config.epochs * (len(images) // config.batch_size) * config.batch_size  # images
        metrics = {
            "status": "finished",
            "epochs": config.epochs,
            "data": {
                "name": images.name,
                "sha256": images.sha256,
                "split": config.split,
                "n_train": len(images),
                "n_eval": len(evaluator.images),
                "n_clusters": evaluator.n_clusters,
                "skipped": len(images.skipped),
                **({"levels": images.levels} if images.levels else {}),
            },
            **scores,
            **self.pflops,
            "evaluation_pflop": flops.of_evaluation(config, *self.sizes, *n_looked_at),
            "seconds": at.seconds,
            "images_per_second": shown / at.seconds if at.seconds else 0.0,
            "peak_memory_mb": peak_memory(at.device),
            "precision": self.precision,
            "processes": processes.world(),
            "weights_sha256": weights_digest(weights),
        }
        if processes.rank() == 0:
            self.run.finish(metrics, at.history, weights, assignments, **arrays)


def record(named: dict[str, Tensor], terms: Tensor, row: dict, epoch: int) -> Tensor | None:
    """Put the means over the steps of the terms ``[steps, terms]`` into the row; return the heads'
    mean losses. Diverged where a term is not finite."""
    column, head_losses = 0, None
    for name, value in named.items():
        values = terms[:, column : column + value.numel()]
        column += value.numel()
        wrong = ~values.isfinite()
        if wrong.any():
            step = int(wrong.any(1).nonzero()[0, 0])
            first = float(values[step][wrong[step]][0])
            raise Diverged(f"{name} is {first} at epoch {epoch}, step {step}")
        if name == "head_losses":
            head_losses = values.mean(0)
        else:
            row[name] = float(values.mean())
    return head_losses
