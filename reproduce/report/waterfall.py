"""What each detail was worth: the paths of notebooks/campaign.yaml, from the course's settings to the authors',
one factor after the other, each kept."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from reproduce import campaign
from reproduce.figures import COLORS
from reproduce.report.study import plain
from reproduce.report.tables import SHORT, gap, labelled, points, spread
from reproduce.runs import same_settings

BLOCKS = {"CIFAR-10": "1", "digits": "digits"}
GROUPS = {"entropy": "entropy", "stem": "stem", "crop_scale": "crop, jitter, normalisation", "head_init": "heads' initialisation and bias",
          "head_bias": "heads, weight decay, clamp", "decay": "weight decay of weights only", "logit_clamp": "clamp of the logits",
          "normalize": "normalisation"}  # by a factor's first setting


def paths(table: pd.DataFrame, data: str, rule: str) -> list[pd.DataFrame]:
    """For each path of a data set of which every step was run: one row a run and step, "step" (0: the start), "factor", "acc"."""
    found = []
    for star in campaign.blocks()[BLOCKS[data]]:
        if "path" not in star:
            continue
        configs = campaign.star_of({k: v for k, v in star.items() if k != "grid"}, {})
        names = ["the course's settings", *(GROUPS.get(next(iter(factor)), ", ".join(f"{k} {plain(v)}" for k, v in factor.items())) for factor in star["path"])]
        rows = []
        for step, (config, name) in enumerate(zip(configs, names)):
            settings = {k: v for k, v in config.identity().items() if k != "seed"}
            runs = same_settings(labelled(table), **settings)
            rows += [{"step": step, "factor": name, "seed": run["seed"], "acc": run[f"{rule}_acc"]} for _, run in runs.iterrows()]
        path = pd.DataFrame(rows, columns=["step", "factor", "seed", "acc"])
        if path["step"].nunique() == len(configs):
            found.append(path)
    return found


def draw(path: pd.DataFrame, ax) -> None:
    """A bar a factor, from the mean before it to the mean with it; dots are runs, thin lines one standard deviation."""
    steps = [part for _, part in path.groupby("step")]
    for y, (before, part) in enumerate(zip([None, *steps], steps)):
        runs = 100 * part["acc"]
        start = 0.0 if before is None else 100 * before["acc"].mean()
        color = COLORS[7] if before is None else COLORS[0] if runs.mean() >= start else COLORS[1]
        ax.barh(y, runs.mean() - start, left=start, color=color, height=0.6, alpha=0.85)
        ax.errorbar(runs.mean(), y, xerr=runs.std() if len(runs) > 1 else None, color="black", lw=1, capsize=3)
        ax.plot(runs, [y] * len(runs), "o", color="black", ms=3)
        text = spread(part["acc"]) if before is None else points(part["acc"], before["acc"])
        ax.annotate(text, (max(runs.max(), start) + 2, y), va="center", fontsize="small")
    names = [part["factor"].iloc[0] for part in steps]
    ax.set_yticks(range(len(names)), [names[0], *("+ " + n for n in names[1:])])
    ax.invert_yaxis()
    ax.set(xlim=(0, 115), xlabel="ACC, %")
    ax.set_xticks(range(0, 101, 20))


def read(found: list[pd.DataFrame], rule: str) -> Markdown:
    """Which factor is worth most on each path, and what it is worth where it comes later."""
    if not found:
        return Markdown("No path was run yet: `python -m reproduce campaign 1` (a GPU) or `python -m reproduce campaign digits` runs one.")
    lines = []
    for i, path in enumerate(found):
        steps = [part for _, part in path.groupby("step")]
        gains = {b["factor"].iloc[0]: (points(b["acc"], a["acc"]), gap(b["acc"], a["acc"])[0]) for a, b in zip(steps, steps[1:])}
        most = max(gains, key=lambda name: gains[name][1])
        lines.append(f"- order {i + 1}: from {spread(steps[0]['acc'])} to {spread(steps[-1]['acc'])} % by the {SHORT[rule]}; most is worth **{most}**, "
                     f"{gains[most][0]} points (difference of means ± standard error, n = {min(map(len, steps))} or more each).")
    return Markdown("\n".join(lines))
