"""How fast the loop is, beside the usual pipeline and beside scikit-learn. Everything that is compared is timed in
one process, in turns; of each thing the median is kept. On a busy machine only the ratios mean something."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reproduce import backbones, losses
from reproduce.augment import Augment
from reproduce.clustering import KMeans
from reproduce.config import Config, ConfigError
from reproduce.methods import METHODS
from reproduce.runs import ROOT, atomic, provenance
from reproduce.train import build_optimizer

KMEANS = ((60_000, 10, 10), (20_000, 1000, 1))  # samples, clusters, restarts
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def time_interleaved(
    work: dict[str, Callable[[], object]], device: torch.device, seconds: float, rounds: int = 3
) -> dict[str, float]:
    """Seconds that each piece of work takes: it is repeated for a share of ``seconds`` in each of some rounds, all in
    turns, after a warm-up."""

    def timed(do, n: int) -> float:
        wait(device)
        began = time.perf_counter()
        for _ in range(n):
            do()
        wait(device)
        return (time.perf_counter() - began) / n

    repeats = {}
    for name, do in work.items():
        timed(do, 2)
        repeats[name] = max(1, int(seconds / rounds / max(timed(do, 1), 1e-6)))
    found = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            found[name].append(timed(do, repeats[name]))
    return {name: float(np.median(times)) for name, times in found.items()}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step(config: Config, seconds: float = 2.0, plain: bool = True) -> dict:
    """Images/s of augmentation alone, of forward, backward and update alone, and of the whole step, for every precision and
    layout, on images of the data set's size (drawn at random: no data set is needed).

    Returns {"rows": a row a precision and layout, "plain": images/s of ``plain_pipeline``, ...}. An image is seen in two views.
    """
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    channels, b, side = 1 if config.dataset == "digits" else 3, config.batch_size, config.side
    generator = torch.Generator(device).manual_seed(config.seed)
    torch.manual_seed(config.seed)
    n = 4 * b
    pixels = torch.randint(
        256, (n, channels, side, side), dtype=torch.uint8, device=device, generator=generator
    )
    augment = Augment(
        config,
        torch.full((channels,), 0.5, device=device),
        torch.full((channels,), 0.25, device=device),
    )
    index = torch.arange(b, device=device)
    rows = []
    for precision in ("float32", "bfloat16"):
        for layout, memory_format in LAYOUTS.items():
            method = METHODS[config.method](
                config, backbones.build(config, channels), config.n_clusters or 10, n
            )
            method = method.to(device, memory_format=memory_format)
            optimizer = build_optimizer(config, method)
            method.before_epoch(1, lambda network: network(augment.clean(pixels)).detach().float())
            loss_of = torch.compile(method.loss) if config.compile else method.loss

            def views() -> list[Tensor]:
                return [
                    view.contiguous(memory_format=memory_format)
                    for view in augment(pixels[index], generator)
                ]

            def learn(view1: Tensor, view2: Tensor) -> None:
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    loss = loss_of(view1, view2, index)["loss"]
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                method.after_step(0, 1)

            fixed = views()
            began = time.perf_counter()
            learn(*fixed)  # compiles, where that is asked for
            wait(device)
            first = time.perf_counter() - began
            with FlopCounterMode(display=False) as counter:
                method.loss(*fixed, index)["loss"].backward()
            peak_side = 8192 if device.type == "cuda" else 1536
            a = torch.randn(peak_side, peak_side, device=device, dtype=getattr(torch, precision))
            took = time_interleaved(
                {
                    "augmentation": views,
                    "network": lambda: learn(*fixed),
                    "step": lambda: learn(*views()),
                    "product": lambda: a @ a,
                },
                device,
                seconds,
            )
            flops, peak = (
                counter.get_total_flops() / took["network"],
                2 * peak_side**3 / took["product"],
            )
            rows.append(
                {
                    "precision": precision,
                    "layout": layout,
                    **{
                        f"{k}_images_per_second": b / took[k]
                        for k in ("augmentation", "network", "step")
                    },
                    "augmentation_share": took["augmentation"] / took["step"],
                    "network_share": took["network"] / took["step"],
                    "tflops": flops / 1e12,
                    "share_of_product": flops / peak,
                    "first_step_seconds": first,
                }
            )
    found = {
        "device": provenance(config)["device"],
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "compile": config.compile,
        "settings": {
            k: getattr(config, k)
            for k in (
                "method",
                "backbone",
                "stem",
                "width",
                "batch_size",
                "n_heads",
                "augmentation",
            )
        },
        "image": [channels, side, side],
        "rows": rows,
    }
    if plain and config.method == "crlc" and config.augmentation == "images" and channels == 3:
        found["plain_images_per_second"] = plain_pipeline(config, pixels.cpu(), device, seconds)
        best = max(rows, key=lambda row: row["step_images_per_second"])
        found["times_plain"] = best["step_images_per_second"] / found["plain_images_per_second"]
    return found


# ---- the usual pipeline, written plainly: the baseline


class TorchvisionViews(torch.utils.data.Dataset):
    """Images as PIL, each view through torchvision's transforms by itself."""

    def __init__(self, config: Config, pixels: Tensor):
        from torchvision import transforms as t

        self.pixels = pixels
        self.transform = t.Compose(
            [
                t.ToPILImage(),
                t.RandomResizedCrop(pixels.shape[-1], (config.crop_scale, 1)),
                t.RandomHorizontalFlip(config.flip),
                t.RandomApply(
                    [t.ColorJitter(config.jitter, config.jitter, config.jitter, config.jitter / 4)],
                    config.jitter_p,
                ),
                t.RandomGrayscale(config.grayscale),
                t.ToTensor(),
                t.Normalize([0.5] * 3, [0.25] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.pixels[i]), self.transform(self.pixels[i])


def plain_pipeline(config: Config, pixels: Tensor, device: torch.device, seconds: float) -> float:
    """Images/s of CRLC as it is usually written: transforms in a DataLoader on every core, float32, a forward pass a view,
    a loop over the heads, all pairs compared in the loss, a loss read back at each step."""
    loader = torch.utils.data.DataLoader(
        TorchvisionViews(config, pixels),
        config.batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        drop_last=True,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    backbone = backbones.build(config, 3).to(device)

    def head(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(backbone.n_features, config.head_hidden),
            nn.ReLU(),
            nn.Linear(config.head_hidden, width),
        ).to(device)

    projector, heads = (
        head(config.projection_dim),
        nn.ModuleList(head(config.n_clusters or 10) for _ in range(config.n_heads)),
    )
    optimizer = torch.optim.SGD(
        nn.ModuleList([backbone, projector, heads]).parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
    )

    def forever() -> Iterator:
        while True:
            yield from loader

    batches = forever()

    def learn() -> float:
        view1, view2 = (view.to(device, non_blocking=True) for view in next(batches))
        h1, h2 = backbone(view1), backbone(view2)
        loss = config.lambda2 * losses.feature_contrast(
            projector(h1), projector(h2), config.temperature
        )
        for k in heads:
            p1, p2 = F.softmax(k(h1), -1), F.softmax(k(h2), -1)
            pairs = losses.pairwise_log_dot(
                torch.cat(
                    [losses.smooth(p1, config.smoothing), losses.smooth(p2, config.smoothing)]
                )
            )
            entropy = (losses.batch_entropy(p1) + losses.batch_entropy(p2)) / 2
            loss = loss + (losses.info_nce(pairs) - config.lambda1 * entropy) / len(heads)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    # at least two rounds of the loader, so that what its workers have made beforehand does not count
    return (
        config.batch_size
        / time_interleaved({"step": learn}, device, max(seconds, 1), rounds=3)["step"]
    )


# ---- k-means


def kmeans(repeats: int = 2) -> list[dict]:
    """Seconds of ``clustering.KMeans`` beside scikit-learn's, in turns, least of some repeats; "ratio" is ours / theirs."""
    from sklearn.cluster import KMeans as Theirs

    rng, rows = np.random.default_rng(0), []
    for n, k, restarts in KMEANS:
        centres = rng.normal(size=(k, 128))
        x = (centres[rng.integers(k, size=n)] + 2 * rng.normal(size=(n, 128))).astype(np.float32)
        settings = dict(n_init=restarts, max_iter=300, tol=1e-4)
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        for seed in range(repeats):
            models = {
                "ours": KMeans(k, random_state=seed, **settings),
                "theirs": Theirs(k, random_state=seed, **settings),
            }
            for name, model in models.items():
                wall, cpu = time.perf_counter(), time.process_time()
                model.fit(x)
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        (ours, ours_cpu), (theirs, theirs_cpu) = (
            np.min(times[name], 0) for name in ("ours", "theirs")
        )
        rows.append(
            {
                "n": n,
                "features": 128,
                "k": k,
                "restarts": restarts,
                "threads": torch.get_num_threads(),
                "ours": ours,
                "theirs": theirs,
                "ratio": ours / theirs,
                "cpu_ratio": ours_cpu / theirs_cpu,
                "inertia_ratio": models["ours"].inertia_ / models["theirs"].inertia_,
            }
        )
    return rows


def run(config: Config, what: str = "step", seconds: float = 2.0, out: str = "") -> dict:
    """The benchmark ``what``, written as JSON to ``out`` or to results/local/benchmark-<what>.json."""
    if not 0 < seconds <= 600:
        raise ConfigError(f"seconds must be a number above 0 and at most 600, got {seconds}")
    found = {"rows": kmeans()} if what == "kmeans" else step(config, seconds)
    path = Path(out) if out else ROOT / "results" / "local" / f"benchmark-{what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps({**found, "provenance": provenance(config)}, indent=1, default=float) + "\n"
        )
    return {**found, "path": path}
