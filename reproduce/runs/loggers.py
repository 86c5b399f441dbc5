"""Following a run outside the notebook: TensorBoard, Weights & Biases; off unless asked for."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Iterator

import numpy as np

from reproduce.config import Config
from reproduce.runs.directory import Run
from reproduce.settings import ConfigError


def check(config: Config) -> None:
    """ConfigError if what shall follow the run is not installed."""
    for name, how in {"tensorboard": "tensorboard", "wandb": "-e '.[wandb]'"}.items():
        wanted = getattr(config, name)
        if wanted and importlib.util.find_spec(name) is None:
            why = f"the package {name} is not installed: pip install {how}"
            raise ConfigError(f"{name} is {wanted!r}, but {why}")


def log_epochs(config: Config, run: Run, rows: Iterable[dict]) -> Iterator[dict]:
    """Yield the rows of ``fit``, each after it was logged to whatever follows the run.

    A continued run yields its earlier rows again, so the log is written from the first epoch on.
    """
    loggers = [TensorBoard(run)] if config.tensorboard else []
    finished = False
    try:
        loggers += [WeightsAndBiases(run)] if config.wandb else []
        for row in rows:
            scalars = {k: v for k, v in row.items() if k != "epoch" and v is not None}
            for logger in loggers:
                logger.log({scalar_name(k): v for k, v in scalars.items()}, row["epoch"])
            yield row
        finished = True
    finally:
        for logger in loggers:
            logger.close(finished)


def scalar_name(column: str) -> str:
    """Accuracies in one group of charts, the rest by their own name."""
    return f"accuracy/{column.removesuffix('_acc')}" if column.endswith("_acc") else column


class TensorBoard:
    """Scalars, and the embedding for the projector, in the run directory's ``tensorboard/``."""

    def __init__(self, run: Run):
        self.run, self.writer = run, None

    def log(self, scalars: dict, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:
            shown_again = self.run.finished and self.run.config.resume
            folder = (self.run.path if shown_again else self.run.partial) / "tensorboard"
            shutil.rmtree(folder, ignore_errors=True)
            self.writer = SummaryWriter(str(folder))
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self, finished: bool) -> None:
        """A finished run has its final name, and the embedding lies there."""
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is not None:
            self.writer.close()
        if finished and (self.run.path / "embeddings.npz").exists():
            stored = dict(np.load(self.run.path / "embeddings.npz"))
            features = stored.pop("embedding").astype(np.float32)
            named = [list(map(str, row)) for row in zip(*stored.values())]  # label and clusters
            with SummaryWriter(str(self.run.path / "tensorboard")) as writer:
                writer.add_embedding(features, named, metadata_header=list(stored), tag="features")


class WeightsAndBiases:
    """The same scalars in the project that the setting ``wandb`` names; with WANDB_MODE=offline
    they stay on this machine."""

    def __init__(self, run: Run):
        import wandb

        config = run.config
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
            what = f"wandb is {config.wandb!r}, but Weights & Biases cannot be reached ({why})"
            remedy = "log in with 'wandb login', or set WANDB_MODE=offline"
            raise ConfigError(f"{what}: {remedy}") from None

    def log(self, scalars: dict, epoch: int) -> None:
        self.session.log(scalars, step=epoch)

    def close(self, finished: bool) -> None:
        self.session.finish(exit_code=int(not finished))
