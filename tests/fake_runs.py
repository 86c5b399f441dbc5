"""Run directories as ``fit`` leaves them, with invented contents: what the reading side is tested
on."""

import dataclasses
import json

import numpy as np
import pandas as pd

from reproduce.config import Config
from reproduce.runs.directory import Run

RULES = (
    "first_head",
    "mean_of_heads",
    "lowest_loss_head",
    "aligned_average",
    "best_head_oracle",
    "kmeans_embedding",
    "kmeans_pixels",
)


def write_run(results, acc=0.9, labelled=True, arrays=False, **settings):
    """A run of CRLC: its three heads reach acc - 0.2, acc and acc - 0.4, every rule reaches acc."""
    config = Config.from_params({"results_dir": str(results), **settings})
    run = Run(config)
    run.path.mkdir(parents=True)
    scores = {r: {"acc": acc, "nmi": acc - 0.01, "ari": acc - 0.02} for r in RULES}
    heads = [
        {"loss": 3.0, "acc": acc - 0.2},
        {"loss": 2.0, "acc": acc},
        {"loss": 4.0, "acc": acc - 0.4},
    ]
    name = "mine" if config.dataset == "folder" else config.dataset
    metrics = {
        "scores": scores if labelled else {},
        "heads": heads if labelled else [{"loss": h["loss"]} for h in heads],
        "seconds": 60.0,
        "images_per_second": 1.0,
        "data": {"name": name},
    }
    stored = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in ("results_dir", "data_dir")
    }
    write_files(run.path, stored, metrics)
    if arrays:
        rng = np.random.default_rng(config.seed)
        labels = np.arange(60) % 3
        far = rng.normal(size=(60, 4)) + 20 * np.eye(4)[labels]
        clusters = np.where(np.arange(60) < 3, (labels + 1) % 3, labels)[:60]
        np.savez(
            run.path / "embeddings.npz",
            embedding=far.astype(np.float16),
            labels=labels if labelled else np.full(60, -1),
            **{
                r: (clusters + 1) % 3
                for r in ("lowest_loss_head", "aligned_average", "kmeans_embedding")
            },
        )
        p = np.full((3, 4, 3, 3), 1 / 3)
        p[-1, :, 1] = [0.96, 0.03, 0.01]
        np.savez(
            run.path / "traces.npz",
            epochs=[0, 2, 4],
            images=[0, 20, 40, 59],
            labels=[0, 2, 1, 2],
            probabilities=p.astype(np.float16),
            mass=np.full((3, 3, 3), 1 / 3, np.float16),
        )
    return run.path


def write_method(
    results,
    method,
    acc,
    seed=0,
    floor=0.79,
    knn=0.9,
    curve=(),
    kmeans_protocols=(),
    collapsed=False,
    probes=None,
    **settings,
):
    """A run of any method at its default settings, ``settings`` beside: crlc and cc with heads, the
    others scored by k-means. curve: the accuracies of its evaluations, two epochs apart."""
    headed = method in ("crlc", "cc")
    stored = {
        k: v
        for k, v in dataclasses.asdict(Config(seed=seed)).items()
        if k not in ("results_dir", "data_dir")
    } | {"method": method, **settings}
    path = (
        results
        / "digits"
        / method
        / "_".join([*(f"{k}-{v}" for k, v in settings.items()), f"seed-{seed}", "0a1b2c3d"])
    )
    path.mkdir(parents=True)
    rules = RULES[:-1] if headed else ("kmeans_embedding",)
    scores = {r: {"acc": acc, "nmi": acc - 0.01, "ari": acc - 0.02} for r in rules} | {
        "kmeans_pixels": {"acc": floor, "nmi": floor, "ari": floor}
    }
    metrics = {
        "scores": scores,
        "seconds": 60.0,
        "images_per_second": 1.0,
        "data": {"name": "digits", "n_clusters": 10},
        "knn_acc": knn,
        "kmeans_protocols": list(kmeans_protocols),
        "collapse": {
            "collapsed": collapsed,
            "why": "the features of all images are alike" if collapsed else "",
        },
    }
    if headed:
        metrics["heads"] = [{"loss": 2.0, "acc": acc}]
    write_files(path, stored, metrics)
    rows = [
        {
            "epoch": 2 * i + 2,
            "loss": 1.0,
            "learning_rate": 0.1,
            ("aligned_average_acc" if headed else "kmeans_embedding_acc"): a,
            "knn_acc": knn,
        }
        for i, a in enumerate(curve or [acc])
    ]
    if headed:
        rows = [r | {"lowest_loss_head_acc": r["aligned_average_acc"]} for r in rows]
    if method == "deepcluster":
        end = acc - 0.3
        rows = [
            {
                "epoch": e,
                "pseudo_nmi": end * e / 3,
                "reassigned_nmi": None if e == 1 else 0.2 * e,
                "pseudo_clusters": 9,
                "kmeans_embedding_acc": acc,
                "knn_acc": knn,
            }
            for e in (1, 2, 3)
        ]
    pd.DataFrame(rows).to_csv(path / "history.csv", index=False)
    if probes:
        layers = {layer: {"acc": a, "features": 128} for layer, a in probes.items()}
        (path / "probes.json").write_text(
            json.dumps({"layers": layers, "n_train": 900, "n_test": 897, "epochs": 100})
        )
    return path


def kmeans_protocols(acc, projection=0.0, normalized=0.0, restarts=0.0):
    """The eight evaluations by k-means, each switch worth the share given."""
    return [
        {
            "space": space,
            "normalized": length,
            "restarts": n,
            "nmi": 0.5,
            "ari": 0.5,
            "acc": acc
            + projection * (space == "projection")
            + normalized * length
            + restarts * (n == 20),
        }
        for space in ("backbone", "projection")
        for length in (False, True)
        for n in (1, 20)
    ]


def write_files(path, config, metrics):
    for file, content in {
        "config": config,
        "metrics": metrics,
        "provenance": {"device": "a processor", "git": {"commit": None}},
    }.items():
        (path / f"{file}.json").write_text(json.dumps(content))
