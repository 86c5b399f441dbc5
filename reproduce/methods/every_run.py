"""The settings that every run has, whatever its method.

Data, network and augmentation stand in ``data_and_network.py``; here are optimisation, evaluation
and the run itself. Each dataclass builds on the one before, and refuses what cannot go together.
"""

from dataclasses import dataclass

from reproduce.methods.data_and_network import FOLDERS, Augmentation, phases
from reproduce.settings import machine, setting


@dataclass(frozen=True)
class Optimisation(Augmentation):
    """The steps: how many, and how far each goes."""

    epochs: int = setting(60, "passes over the training images", (0, 1_000_000))
    batch_size: int = setting(64, "images in a batch, each shown in n_views views", (2, None))
    optimizer: str = setting(
        "sgd",
        "sgd, with momentum that is not Nesterov's, adam, or muon on 3x3 convolutions beside sgd",
        "sgd adam muon",
    )
    muon_rate: float = setting(
        0.25, "muon: the convolutions' learning rate, as a multiple of learning_rate", (0, 1000)
    )
    learning_rate: float = setting(
        0.4, "learning rate; its peak where the schedule has one", (0, 1000)
    )
    schedule: str = setting("onecycle", "course of the learning rate", "constant cosine onecycle")
    warmup_epochs: int = setting(0, "epochs of linear warm-up before a cosine schedule", (0, None))
    cosine_period: int = setting(
        0, "epochs from the peak of a cosine schedule to 0; 0: all after the warm-up", (0, None)
    )
    momentum: float = setting(0.9, "momentum of sgd, beta1 of adam", (0, 0.9999))
    weight_decay: float = setting(5e-4, "weight decay, as an L2 penalty", (0, 10))
    decay: str = setting(
        "weights",
        "what weight_decay acts on: tensors of 2 dimensions and more, or every parameter; never "
        "muon's kernels",
        "weights all",
    )
    sampler: str = setting(
        "epoch",
        "order of the images; epoch: a new permutation in each, without its last part batch; "
        "endless: one permutation after another; deepcluster draws by pseudo-label instead",
        "epoch endless",
    )

    def refusals(self):
        muon = "optimizer is 'muon', which is for 3x3 convolutions of more than 3 channels"
        if self.optimizer == "muon" and self.backbone == "small" and self.width <= 3:
            yield f"{muon}, but width is {self.width}: it must be at least 4"
        if self.optimizer != "muon" and self.muon_rate != Optimisation.muon_rate:
            yield f"muon_rate is {self.muon_rate}, but optimizer is {self.optimizer!r}"
        grown = sum(epochs for _, epochs in phases(self.view_sizes))
        if grown not in (0, self.epochs):
            what = f"view_sizes is {self.view_sizes!r}, which are {grown} epochs"
            yield f"{what}, but epochs is {self.epochs}: they must be as many"
        for name, what in (("warmup_epochs", "warm-up"), ("cosine_period", "period")):
            if getattr(self, name) and self.schedule != "cosine":
                yield (
                    f"{name} is {getattr(self, name)}, but schedule is {self.schedule!r}: "
                    f"only 'cosine' has a {what}"
                )
        if 0 < self.cosine_period < self.epochs - self.warmup_epochs:
            yield (
                f"cosine_period is {self.cosine_period}, less than the "
                f"{self.epochs - self.warmup_epochs} epochs after the warm-up: "
                "the rate would rise again"
            )
        if self.warmup_epochs > self.epochs:
            yield f"warmup_epochs is {self.warmup_epochs}, more than epochs, {self.epochs}"


@dataclass(frozen=True)
class Evaluation(Optimisation):
    """What evaluation measures, and how."""

    evaluate_every: int = setting(2, "epochs between evaluations, where labels are used", (1, None))
    cluster_space: str = setting(
        "own",
        "features for k-means; own: projection for PCL and ProPos, backbone for the others",
        "own backbone projection online",
    )
    knn_space: str = setting(
        "backbone",
        "features in which nearest neighbours are looked up",
        "backbone projection online",
    )
    kmeans_metric: str = setting(
        "euclidean",
        "distance of k-means in evaluation and for prototypes; cosine: spherical k-means",
        "euclidean cosine",
    )
    kmeans_starts: int = setting(
        10,
        "starts of k-means in evaluation and for prototypes; the best by inertia counts",
        (1, 1000),
    )
    kmeans_iterations: int = setting(
        100, "most iterations of k-means from each of kmeans_starts", (1, 10_000)
    )
    eval_flip: bool = setting(
        False, "features and probabilities are means over an image and its mirror image"
    )
    trace_images: int = setting(
        32, "number of images whose probabilities each evaluation keeps", (0, 10_000)
    )

    def refusals(self):
        if self.eval_flip and self.augmentation == "digits":
            what = "but augmentation is 'digits', whose images are not mirrored"
            yield f"eval_flip is True, {what}: it is for 'images' and 'none'"


@dataclass(frozen=True)
class EveryRun(Evaluation):
    """The run itself: its seed, its machine, what it leaves behind."""

    seed: int = setting(0, "seed of initialisation, sampling and augmentation", (0, 2**31 - 1))
    precision: str = setting(
        "auto",
        "numbers in the network; auto: bfloat16 where it is fast, on a CPU not for small",
        "auto float32 bfloat16",
    )
    compile: bool = setting(False, "compile the network with torch.compile")
    device: str = machine("auto", "where to compute; auto: on CUDA if it is there", "auto cpu cuda")
    threads: int = machine(
        0,
        "threads on a processor; 0: one for a small run, for others what steps at its start say",
        (0, 1024),
    )
    workers: int = machine(0, "processes that read packed images ahead; 0: none", (0, 256))
    processes: int = machine(
        1, "processes of this machine that share each batch; torchrun starts them", (1, 1024)
    )
    checkpoint_minutes: float = machine(
        10.0, "minutes between checkpoints; 0: one after each step", (0, 10_000)
    )
    resume: bool = machine(True, "continue an interrupted run, show a finished one; False: anew")
    tensorboard: bool = machine(False, "write TensorBoard's event files into the run directory")
    wandb: str = machine("", "project of Weights & Biases that the run reports to; empty: none")
    results_dir: str = machine(
        "", "where run directories go; empty: results/local of the repository"
    )
    data_dir: str = machine("", "where data sets are kept; empty: data of the repository")

    def refusals(self):
        if self.workers and self.dataset not in FOLDERS:
            yield (
                f"workers is {self.workers}, but dataset is {self.dataset!r}: "
                "only packed images are read by workers"
            )
        yield from self.not_for(self.processes)

    def not_for(self, processes: int):
        """Yield a sentence for each setting that so many processes cannot have."""
        there = f"but there are {processes} processes"
        if self.batch_size % processes:
            yield f"batch_size is {self.batch_size}, {there}: they must divide it into equal parts"
        if self.batchnorm_split > 1 and self.batchnorm_split % processes:
            yield (
                f"batchnorm_split is {self.batchnorm_split}, {there}: it must be 1 (batch norm "
                f"over the whole batch), {processes} or a multiple of {processes}"
            )
        if self.eval_batchnorm == "measured" and processes > 1:
            yield f"eval_batchnorm is 'measured', {there}: it is for one process"
        if self.compile and processes > 1:
            yield f"compile is True, {there}: torch.compile is for one process"
