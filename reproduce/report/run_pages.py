"""What pages show of runs: the table of settings, a page for each setting with its seeds, and what
stands above an executed notebook of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from reproduce.files import ROOT, read_json
from reproduce.report import claims, names, results
from reproduce.runs.executed import write
from reproduce.settings import ConfigError

SHOWN = ("aligned_average", "lowest_loss_head", "first_head", "kmeans_embedding")
SHOWN += ("best_head_oracle",)  # rules in the table of all settings; the pages of settings have all
FILES = ("config.json", "metrics.json", "history.csv", "provenance.json")


def settings_rows(runs: pd.DataFrame, folder: Path) -> list[dict]:
    """What runs.html shows: one row per setting, its seeds together. CIFAR-10 and CRLC first, then
    by the named setting that it starts from, those with the fewest changes first."""
    rows = []
    for (data, method, setting), same in runs.groupby(["data", "method", "setting"], sort=False):
        start, changes = results.parts_in_words(same.iloc[0])
        scores = 100 * same[[*(f"{rule}_acc" for rule in SHOWN), "knn_acc"]].astype(float)
        page = f"settings/{setting}.html"
        row = {"data": data, "method": names.METHODS.get(method, method), "href": page}
        row["setting"] = "; ".join(filter(None, [start, ", ".join(changes)]))
        row |= {"collapsed": int(same["collapsed"].sum()), "runs": same}
        row |= {"n": len(same), "seconds": same["seconds"].median(), **curve(same)}
        row["seeds"] = [(seed, f"{page}#seed-{seed}") for seed in same["seed"]]
        row["scores"] = [*zip(scores.mean(), scores.std())]
        order = (data != "CIFAR-10", data, method != "crlc", method)
        row["order"] = (*order, results.start_rank(start), len(changes), row["setting"])
        rows.append(row)
    return sorted(rows, key=lambda row: row["order"])


def claim_rows(measured: pd.DataFrame, runs: pd.DataFrame, made: list[str]) -> list[dict]:
    """What index.html shows: one row per claim, with links to its section, where that page was
    made, and to its runs."""
    place = dict(zip(runs["path"], runs["setting"]))
    rows = []
    for claim in measured.to_dict("records"):
        page, heading, anchor = claims.section(claim["section"])
        href = f"{page}.html#{anchor}" if page in made else ""
        links = [
            (seed, f"settings/{place[path]}.html#seed-{seed}")
            for seed, path in claim["runs"]
            if path in place
        ]
        rows.append(claim | {"href": href, "heading": heading, "runs": links})
    return rows


def write_settings(rows: list[dict], stated: list[dict], folder: Path, **site) -> None:
    """A page for each row of ``settings_rows``, in the folder settings: what it is in words, its
    accuracy, the command, every seed with its files, and the claims that rest on it.

    stated: ``claim_rows``. Pages of settings that are gone are removed.
    """
    (folder / "settings").mkdir(exist_ok=True)
    resting: dict[str, dict[str, dict]] = {}
    for claim in stated:
        for _, href in claim["runs"]:
            resting.setdefault(href.partition("#")[0], {})[claim["id"]] = claim
    for row in rows:
        page = folder / row["href"]
        path = Path(row["runs"]["path"].iloc[0])
        rules = [r for r in results.RULES if row["runs"][f"{r}_acc"].notna().any()]
        shared = {**site, "up": "../", "row": row, "command": command(path)}
        shared |= {"rules": [results.RULES[rule] for rule in rules]}
        shared |= {"seeds": _seeds(row["runs"], rules, page.parent)}
        shared |= {"head": headline(row), "stated": [*resting.get(row["href"], {}).values()]}
        shared["code"] = code_links(row["runs"].iloc[0], shared["command"], page.parent)
        write(page, "setting", f"{row['setting']}: {row['data']}, {row['method']}", **shared)
    known = {folder / row["href"] for row in rows}
    for page in (folder / "settings").glob("*.html"):
        if page not in known:
            page.unlink()


def _seeds(same: pd.DataFrame, rules: list[str], here: Path) -> list[dict]:
    """The runs of one setting: scores, machine, commit, and links to what there is of each."""
    seeds = []
    for run in same.sort_values("seed").to_dict("records"):
        path = Path(run["path"])
        origin = read_json(path / "provenance.json")
        there = [file for file in FILES if (path / file).exists()]
        page = relative(path / "train.html", here) if (path / "train.html").exists() else ""
        seeds.append(
            {
                "seed": run["seed"],
                "scores": [100 * run[f"{rule}_acc"] for rule in rules],
                "knn": 100 * run["knn_acc"],
                "minutes": run["seconds"] / 60,
                "device": f"{run['device']}, {run['arithmetic'] or 'float32'}",
                "commit": (origin["git"].get("commit") or "")[:10],
                "page": page,
                "files": [(file, relative(path / file, here)) for file in there],
            }
        )
    return seeds


def headline(row: dict) -> str:
    """``ACC 36.3 ± 0.4 % (n = 5, aligned average)``, or by k-means where there are no heads."""
    for rule in ("aligned_average", "kmeans_embedding"):
        mean, deviation = row["scores"][SHOWN.index(rule)]
        if mean == mean:
            spread = f" ± {deviation:.1f}" if deviation == deviation else ""
            return f"ACC {mean:.1f}{spread} % (n = {row['n']}, {results.RULES[rule]})"
    return "without labels: no accuracy"


def command(path: Path) -> str:
    """The command that makes a run again; empty where its settings are of another version."""
    try:
        return results.command(read_json(path / "config.json"))
    except (ConfigError, KeyError):
        return ""


def code_links(run: pd.Series, command: str, here: Path) -> list[tuple[str, str]]:
    """The files that a run is made by: its preset, its method, the losses, the loop."""
    files = [ROOT / word for word in command.split() if word.endswith(".yaml")]
    files += [ROOT / "reproduce" / "methods" / f"{run['method']}.py"]
    files += [ROOT / "reproduce" / name for name in ("losses.py", "train.py")]
    return [(file.name, relative(file, here)) for file in files if file.exists()]


def head_of_run(row: dict, run: dict[str, Any], folder: Path) -> dict:
    """What stands above an executed notebook of a run: its setting in words, its accuracy, the
    command, and its siblings."""
    path = Path(run["path"])
    up = relative(folder / row["href"], path)
    siblings = [
        (seed, relative(Path(other) / "train.html", path))
        if (Path(other) / "train.html").exists() or (Path(other) / "train.ipynb").exists()
        else (seed, f"{up}#seed-{seed}")
        for seed, other in zip(row["runs"]["seed"], row["runs"]["path"])
        if seed != run["seed"]
    ]
    rule = "kmeans_embedding" if pd.isna(run["aligned_average_acc"]) else "aligned_average"
    acc = 100 * run[f"{rule}_acc"]
    said = f"ACC {acc:.1f} % ({results.RULES[rule]})" if acc == acc else "without labels"
    return {
        "title": f"{row['setting']}: seed {run['seed']}",
        "said": f"{row['data']}, {row['method']}. {said}",
        "command": command(path),
        "siblings": siblings,
        "setting": up,
        "all": headline(row),
    }


def relative(path: Path, folder: Path) -> str:
    """A link to a path as seen from a folder; a folder's name is no scheme, as a:b/."""
    return quote(os.fsencode(os.path.relpath(path, folder)))


def curve(runs: pd.DataFrame) -> dict:
    """A line 60 wide and 18 high: ACC from 0 to 1 over the epochs, the mean over the seeds; nothing
    of fewer than four evaluations."""
    history = results.history(runs)
    for rule in ("aligned_average_acc", "kmeans_embedding_acc"):
        if rule in history and history[rule].notna().any():
            acc = history.groupby("epoch")[rule].mean().dropna()
            if len(acc) < 4:
                return {}
            x, y = 60 * acc.index / acc.index.max(), 17 - 16 * acc
            line = "L".join(f"{a:.0f} {b:.1f}" for a, b in zip(x, y))
            return {"curve": "M" + line, "said": f"{acc.iloc[0]:.0%} to {acc.iloc[-1]:.0%}"}
    return {}


def ladder(runs: pd.DataFrame) -> list[dict]:
    """The overview's small table: CIFAR-10 by CENG501's settings and by the authors', and by both
    with the weight of the entropy with which CENG501 fared best."""
    table, grid = results.cells(runs, "B"), results.grid(runs)
    tenth = table.query("entropy == 'sample' and lambda1 == 0.1")
    theirs = grid.query("data == 'CIFAR-10' and entropy == 'batch' and lambda1 == 0.1")
    short, long = (
        [results.cells(runs, block).query("cell == @cell") for cell in ("none", "ESXH")]
        for block in "AD"
    )
    compared = {
        "four epochs, small network": short,
        "the same with λ1 = 0.1": [tenth, theirs],
        "45 epochs, small network": long,
    }
    rows = []
    for what, ends in compared.items():
        if all(map(len, ends)):
            accs = [100 * part["aligned_average_acc"] for part in ends]
            values = [f"{acc.mean():.1f} ± {acc.std():.1f}" for acc in accs]
            n = " and ".join(dict.fromkeys(str(len(acc)) for acc in accs))
            rows.append({"what": what, "values": values, "n": n})
    if rows:
        pixels = f"{100 * runs.loc[runs['data'] == 'CIFAR-10', 'kmeans_pixels_acc'].mean():.1f}"
        rows.insert(0, {"what": "k-means on pixels", "values": [pixels, pixels], "n": "1"})
        rows.append({"what": "published, ResNet-34", "values": ["40.9", "79.9"], "n": "1, unknown"})
        rows.append({"what": "the same with λ1 = 0.1", "values": ["48.1", ""], "n": "1"})
    return rows
