"""A run on one's own images without any training: three kinds of squares in three clusters."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reproduce.files import in_table
from reproduce.own_images import tables
from reproduce.own_images.edits import Edits

VERDICT = "The clusters hold for most images; <b>look</b> at the doubtful."
COLOURS = ("firebrick", "seagreen", "steelblue")


def own_run(base: Path, files: list[str], k: int = 3) -> Path:
    """Images in ``base/images``, image i in cluster i % k; its probability falls with i."""
    run, folder, n = base / "run", base / "images", len(files)
    run.mkdir(parents=True)
    for i, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (40 + 20 * (i % 2), 40), COLOURS[i % 3])
        picture.putpixel((i % 40, i // 40), (255, 255, 255))  # no two are the same
        picture.save(folder / file)
    clusters = np.arange(n) % k
    features = np.eye(k, 8)[clusters] + 0.1 * np.random.default_rng(0).normal(size=(n, 8))
    np.save(run / "features.npy", features.astype(np.float32))
    best = 0.9 - 0.5 * np.arange(n) / n
    p = np.full((n, k), (1 - best[:, None]) / (k - 1))
    p[np.arange(n), clusters] = best
    np.save(run / "probabilities.npy", p.astype(np.float32))
    (run / "config.json").write_text(json.dumps({"folder": str(folder)}))
    (run / "verdict.json").write_text(json.dumps({"sentence": VERDICT}))
    with open(run / "assignments.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["file", "kmeans_embedding"])
        writer.writerows(zip(map(in_table, files), clusters))
    rows = {"file": [*map(in_table, files)], "cluster": clusters, "name": [""] * n}
    rows |= {"probability": best, "margin": best - p[:, -1]}
    table = pd.DataFrame(rows | {"path": [str(folder / file) for file in files]})
    tables.write_table(run, table)
    with pytest.MonkeyPatch.context() as patch:  # the map takes UMAP seconds; it is kept
        patch.setattr(tables, "map_of", lambda x, near, cosine: x[:, :2])
        tables.finish(run, str(folder), Edits())
    return run
