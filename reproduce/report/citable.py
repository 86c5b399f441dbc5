"""What others can cite or read by a program: results.json, and a card beside each committed
backbone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from reproduce.files import ROOT, atomic, read_json
from reproduce.report import names, results
from reproduce.runs.trained import load_weights
from reproduce.runs.yaml_files import read_settings

ABOUT = {
    "task": "image clustering: labels are for evaluation only",
    "metric": "of the last epoch, in percent",
    "value": "mean over n runs, one per seed",
    "sd": "sample standard deviation over the runs; null for a single run",
    "split": "the images that are scored: test, or all, which are those of the training, too",
    "rule": "what makes one clustering; both rules take no label",
    "pflop": "of a run's steps and those of the runs that it starts from, 10^15; the mean",
    "seconds": "of a run's training on its machine; the median",
    "commit": "of the runs, in the order of their seeds; null where it is not known",
    "command": "makes the first of the seeds",
}


def results_json(table: pd.DataFrame) -> dict:
    """One row per setting that has labels, in the order of ``results.load``: {"about", "rows"}."""
    rows = []
    for (data, method, _), same in table.groupby(["data", "method", "setting"], sort=False):
        heads = same["aligned_average_acc"].notna().any()
        rule = "aligned_average" if heads else "kmeans_embedding"
        acc = 100 * same[f"{rule}_acc"]
        if acc.isna().any():
            continue
        origins = [read_json(Path(path) / "provenance.json") for path in same["path"]]
        commits = dict.fromkeys(origin["git"]["commit"] for origin in origins)
        row = {
            "task": "image clustering",
            "data": data,
            "method": method,
            "setting": results.in_words(same.iloc[0]),
            "metric": "ACC",
            "value": acc.mean(),
            "sd": acc.std(),
            "n": len(same),
            "seeds": same["seed"].tolist(),
            "split": same["split"].iloc[0],
            "rule": names.RULES[rule],
            "pflop": same["pflop_with_start"].mean(),
            "seconds": same["seconds"].median(),
            "commit": [*commits],
            "command": results.command(read_json(Path(same["path"].iloc[0]) / "config.json")),
        }
        rows.append({name: _short(value) for name, value in row.items()})
    return {"about": ABOUT, "rows": rows}


def _short(value: Any) -> Any:
    """A number to five digits; None where it is not known, for which JSON has no number."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


# ---- cards

LIKE_THE_WEIGHTS = ("backbone", "width", "stem", "sobel", "normalize")  # of new heads on a backbone
CARD = """# A backbone trained without labels on {data}

`backbone.pt` beside this file holds the network's weights, rounded to bfloat16's digits.

| | |
| --- | --- |
| images | {data}: {n_train:,} for training, {n_eval:,} scored |
| network | `{backbone}`, width {width}, stem `{stem}`; {parameters:,} parameters |
| method | {method}; {setting} |
| training | {epochs} epochs with views of {view} pixels, {start} |
| result | {rule} {acc:.1f} % ACC, nearest neighbours {knn:.1f} % (n = 1) |
| from | commit `{commit}`, torch {torch} |

**Labels.** In this run: {labels}. The recipe (rate, batch size, views) was
chosen by the accuracy of single runs, which is a use of labels.

**Limits.** A small network for small photographs, trained to study differences between settings. It
is far below a ResNet that is trained for hundreds of epochs, one run shows no spread between seeds,
and the features know little beyond the classes of {data}.

**To load it**, in the repository's folder. It takes RGB images in 0..1{moments}:

```python
from pathlib import Path

from reproduce.networks.weights import moments_of
from reproduce.runs.trained import load_weights, new_method

(run,) = Path("results").glob("*/*/*_{hash}")
config, metrics, weights = load_weights(run, backbone_alone=True)
backbone = new_method(config, metrics, weights, channels=3).backbone.eval()
mean, std = moments_of(run)  # of each channel of its training images
```

**To look at it** on images of your own, and **to train new heads** on it:

```
papermill notebooks/features.ipynb out.ipynb -p run_dir {run} -p images my_images
{heads}
```

**To make it again**: `{command}`

The MIT licence of the repository holds for the weights, too. No photograph of {data} is in them.
"""


def card(run: Path) -> str:
    """What a committed backbone is, in a page of Markdown, from its run directory."""
    config, origin = (read_json(run / f"{stem}.json") for stem in ("config", "provenance"))
    checked, metrics, weights = load_weights(run, backbone_alone=True)
    rule = "aligned_average" if "aligned_average" in metrics["scores"] else "kmeans_embedding"
    path = run.relative_to(ROOT).as_posix()
    (row,) = results.load(run)[results.SETTING_NAMES].to_dict("records")
    heads = read_settings(results.PRESETS / "cifar10-cpu-heads.yaml")
    heads |= {"weights": path, **{name: config[name] for name in LIKE_THE_WEIGHTS}, "seed": 0}
    given = {
        "data": names.DATA.get(config["dataset"], config["dataset"]),
        "method": names.METHODS.get(config["method"], config["method"]),
        "n_train": metrics["data"]["n_train"],
        "n_eval": metrics["data"]["n_eval"],
        "parameters": sum(v.numel() for k, v in weights.items() if _learned(k)),
        "setting": results.in_words(row),
        "view": checked.view_side,
        "start": f"from the weights of `{config['weights']}`" if config["weights"] else "from none",
        "rule": names.RULES[rule],
        "acc": 100 * metrics["scores"][rule]["acc"],
        "knn": 100 * metrics["knn_acc"],
        "commit": (origin["git"]["commit"] or "unknown")[:12],
        "torch": origin["packages"]["torch"],
        "labels": origin["labels"],
        "moments": ", normalised by its moments" if checked.normalize else ", as they are",
        "run": path,
        "hash": checked.hash(),
        "heads": results.command(heads),
        "command": results.command(config),
    }
    network = {name: config[name] for name in ("backbone", "width", "stem", "epochs")}
    return CARD.format(**given, **network)


def _learned(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def write(folder: Path, table: pd.DataFrame) -> None:
    """results.json of the runs in ``table`` into ``folder``; of the repository's own results also
    card.md beside each backbone that is kept."""
    with atomic(folder / "results.json") as temporary:
        text = json.dumps(results_json(table), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    if folder == ROOT / "results":
        for file in sorted(folder.rglob("backbone.pt")):
            with atomic(file.with_name("card.md")) as temporary:
                temporary.write_text(card(file.parent), encoding="utf-8")
