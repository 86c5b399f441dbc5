"""Settings that several methods share. A method's ``Settings`` inherits the groups that it reads,
and thereby every setting of ``EveryRun``."""

from dataclasses import dataclass

from reproduce.methods.every_run import EveryRun
from reproduce.settings import setting


@dataclass(frozen=True)
class Projection(EveryRun):
    """The width of projections and heads."""

    head_hidden: int = setting(128, "hidden width of every head and projector", (1, 65_536))
    projection_dim: int = setting(
        128, "width of the projections, which are contrasted or predicted", (2, 65_536)
    )


@dataclass(frozen=True)
class Projector(Projection):
    """A projector, where there are no clustering heads."""

    projector_layers: int = setting(2, "linear layers of the projector; 1: no hidden layer", (1, 3))
    projector_norm: str = setting(
        "own",
        "batch norm at the projector's end; own: plain for SimSiam, none for the others",
        "own none plain affine",
    )


@dataclass(frozen=True)
class Contrast(EveryRun):
    """The contrast between images."""

    temperature: float = setting(0.1, "temperature of the contrast between images", (1e-3, 100))


@dataclass(frozen=True)
class ClusterContrast(EveryRun):
    """The contrast between clusters or prototypes."""

    cluster_temperature: float = setting(
        1.0, "temperature of the contrast of clusters (CC) or prototypes (ProPos)", (1e-3, 100)
    )


@dataclass(frozen=True)
class Symmetric(Projector):
    """A symmetric loss, from each view to the other."""

    directions: str = setting(
        "own",
        "how both directions of the loss are joined; own: sum for BYOL and ProPos, else mean",
        "own sum mean",
    )


@dataclass(frozen=True)
class Target(Symmetric):
    """A target network, which follows the one that learns."""

    ema: float = setting(0.99, "share of itself that the target network keeps at a step", (0, 1))
    ema_schedule: str = setting(
        "constant", "course of ema over the steps; ramp: from ema up to 1", "constant ramp"
    )
    shuffle_keys: bool = setting(
        False, "shuffle the target network's batch before batchnorm_split parts it"
    )

    def refusals(self):
        if self.shuffle_keys and self.batchnorm_split == 1:
            yield (
                "shuffle_keys is True, but batchnorm_split is 1: a batch that is not split has "
                "one statistic in any order"
            )


@dataclass(frozen=True)
class Prediction(Symmetric):
    """A predictor, from one view's projection to the other's."""

    predictor_hidden: int = setting(256, "hidden width of the predictor", (1, 65_536))
    predictor_init: str = setting(
        "torch",
        "start of the predictor: torch's default, or normal with deviation 0.01 and biases 0",
        "torch normal",
    )
    predictor_rate: float = setting(
        1.0, "the predictor's learning rate, as a multiple of learning_rate", (0, 1000)
    )
    predictor_schedule: str = setting(
        "same",
        "course of the predictor's learning rate: the same as schedule, or constant at the peak",
        "same constant",
    )


@dataclass(frozen=True)
class Prototypes(EveryRun):
    """Prototypes, which k-means finds before each epoch."""

    prototype_weight: float = setting(
        0.1, "weight of the contrast with prototypes (PCL) or between them (ProPos)", (0, None)
    )
    prototype_warmup: int = setting(10, "number of first epochs without prototypes", (0, None))

    def notes(self):
        if self.epochs <= self.prototype_warmup:
            never = f"prototype_warmup is {self.prototype_warmup} and epochs {self.epochs}"
            yield f"{never}: no prototype ever enters the loss"


@dataclass(frozen=True)
class Freeze(EveryRun):
    """A backbone that need not learn."""

    freeze: bool = setting(False, "keep the backbone as it started, train only what follows it")

    def refusals(self):
        if self.freeze and not self.weights:
            yield "freeze is True, but weights is empty: the backbone would stay random"
        if self.freeze and self.eval_batchnorm == "measured":
            yield "freeze is True, but eval_batchnorm is 'measured': the backbone would change"
        if self.freeze and self.optimizer == "muon":
            yield "freeze is True, but optimizer is 'muon', which is for convolutions that learn"


@dataclass(frozen=True)
class Neighbours(EveryRun):
    """Neighbours as views."""

    neighbours: int = setting(
        0,
        "n: all views but the first show one of the image's n nearest images, by the features "
        "that the run starts with; 0: the image itself",
        (0, 10_000),
    )

    def refusals(self):
        if self.neighbours and not self.weights:
            yield (
                f"neighbours is {self.neighbours}, but weights is empty: "
                "a random network's features have no neighbours"
            )

    def misfits(self, n_images: int, n_clusters: int):
        if self.neighbours >= n_images:
            others = f"the {n_images - 1} other images"
            yield f"neighbours is {self.neighbours}, more than {others}"


@dataclass(frozen=True)
class Vote(EveryRun):
    """What clustering heads are read by."""

    vote_neighbours: int = setting(
        0,
        "n: one rule more, a vote of an image and its n nearest over the heads' clusters; 0: none",
        (0, 1000),
    )


@dataclass(frozen=True)
class Views(EveryRun):
    """Any number of views."""

    n_views: int = setting(2, "views of each image; of 3 or more CRLC contrasts all pairs", (1, 16))
