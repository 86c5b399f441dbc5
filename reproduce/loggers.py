"""Following a run from outside the notebook: TensorBoard's event files, Weights & Biases. Both are off unless asked for."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Iterable, Iterator

import numpy as np

from reproduce.config import Config, ConfigError
from reproduce.runs import Run


def check(config: Config) -> None:
    """ConfigError if what shall follow the run is not installed."""
    for name, wanted, how in (
        ("tensorboard", config.tensorboard, "tensorboard"),
        ("wandb", config.wandb, "-e '.[wandb]'"),
    ):
        if wanted and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"{name} is {wanted!r}, but the package {name} is not installed: pip install {how}"
            )


def log_epochs(config: Config, run: Run, rows: Iterable[dict]) -> Iterator[dict]:
    """Pass the rows of ``fit`` on, and tell each to whoever follows the run.

    A continued run yields its earlier rows again, so everything is told anew and no step twice.
    """
    if not (config.tensorboard or config.wandb):
        return rows
    return told(
        rows,
        [
            kind(config, run)
            for kind, wanted in (
                (TensorBoard, config.tensorboard),
                (WeightsAndBiases, config.wandb),
            )
            if wanted
        ],
    )


def told(rows: Iterable[dict], followers: list) -> Iterator[dict]:
    try:
        for row in rows:
            for follower in followers:
                follower.log(
                    {label(k): v for k, v in row.items() if k != "epoch" and v is not None},
                    row["epoch"],
                )
            yield row
        for follower in followers:
            follower.finish()
    finally:
        for follower in followers:
            follower.close()


def label(column: str) -> str:
    """Accuracies in one group of pictures, the rest by their own name."""
    return f"accuracy/{column.removesuffix('_acc')}" if column.endswith("_acc") else column


class TensorBoard:
    """Scalars, and the embedding for the projector, in the run directory's ``tensorboard/``."""

    def __init__(self, config: Config, run: Run):
        self.run, self.writer = run, None

    def writing(self):
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:
            place = (
                self.run.path if self.run.finished and self.run.config.resume else self.run.partial
            )
            shutil.rmtree(place / "tensorboard", ignore_errors=True)
            self.writer = SummaryWriter(str(place / "tensorboard"))
        return self.writer

    def log(self, scalars: dict, epoch: int) -> None:
        for name, value in scalars.items():
            self.writing().add_scalar(name, value, epoch)
        self.writing().flush()

    def finish(self) -> None:
        """The run has its final name now, and the embedding lies there."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        if (self.run.path / "embeddings.npz").exists():
            stored = dict(np.load(self.run.path / "embeddings.npz"))
            columns = [k for k in stored if k != "embedding"]
            with SummaryWriter(str(self.run.path / "tensorboard")) as writer:
                named = [
                    list(map(str, row)) for row in zip(*(stored[c] for c in columns))
                ]  # an image's label and clusters
                writer.add_embedding(
                    stored["embedding"].astype(np.float32),
                    named,
                    metadata_header=columns,
                    tag="features",
                )

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class WeightsAndBiases:
    """The same scalars under the project that the setting ``wandb`` names; WANDB_MODE=offline keeps them on this machine."""

    def __init__(self, config: Config, run: Run):
        import wandb

        run.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.session = wandb.init(
                project=config.wandb,
                id=f"{config.method}-{config.hash()}",
                name=run.path.name,
                config=config.identity(),
                dir=str(run.path.parent),
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.errors.Error, OSError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"wandb is {config.wandb!r}, but Weights & Biases cannot be reached ({why}): log in with 'wandb login', "
                f"or set WANDB_MODE=offline"
            ) from None

    def log(self, scalars: dict, epoch: int) -> None:
        self.session.log(scalars, step=epoch)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self.session.finish()
