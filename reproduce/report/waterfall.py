"""What each detail was worth: the paths of notebooks/campaign.yaml, from the course's settings to the authors',
one factor after the other, each kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

from reproduce import campaign
from reproduce.figures import COLORS
from reproduce.report.study import ENTROPY, format_value, picked
from reproduce.report.tables import SHORT, gap, labelled, points, spread
from reproduce.runs import same_settings

BLOCKS = {"CIFAR-10": "1", "CIFAR-10, 5,000 images": "cpu", "digits": "digits"}
GROUPS = {
    "entropy": "entropy",
    "stem": "stem",
    "crop_scale": "crop, jitter, normalisation",
    "head_init": "heads' initialisation and bias",
    "head_bias": "heads, weight decay, clamp",
    "decay": "weight decay of weights only",
    "logit_clamp": "clamp of the logits",
    "normalize": "normalisation",
}  # by a factor's first setting


def paths(table: pd.DataFrame, data: str, rule: str) -> list[pd.DataFrame]:
    """For each path of a data set of which every step was run: one row a run and step, "step" (0: the start), "factor", "acc"."""
    found = []
    for star in campaign.blocks()[BLOCKS[data]]:
        if "path" in star:
            runs = accuracies(table, star, rule)
            names = ["the course's settings", *map(named, star["path"])]
            if all(map(len, runs)):
                found.append(
                    pd.concat(
                        [
                            part.assign(step=step, factor=names[step])
                            for step, part in enumerate(runs)
                        ]
                    )
                )
    return found


def singles(
    table: pd.DataFrame, data: str, rule: str
) -> dict[str, dict[str, tuple[pd.Series, pd.Series]]]:
    """Each factor alone, from both ends: {end: {factor: (ACC of runs with it changed, ACC of the end's own runs)}}."""
    found = {}
    for star in campaign.blocks()[BLOCKS[data]]:
        if "one" in star:
            base, *others = accuracies(table, star, rule)
            end = (
                "taken from the authors' settings"
                if star["settings"].endswith("paper")
                else "added to the course's settings"
            )
            if all(map(len, [base, *others])):
                found[end] = {
                    named(factor): (part["acc"], base["acc"])
                    for factor, part in zip(star["one"], others)
                }
    return found


def singles_table(ends: dict) -> pd.DataFrame:
    """A row a factor, a column an end: differences in points ± standard error, and the ACC of the end itself."""
    return pd.DataFrame(
        {
            f"{end} ({spread(next(iter(alone.values()))[1])})": {
                factor: points(*pair) for factor, pair in alone.items()
            }
            for end, alone in ends.items()
        }
    ).rename_axis("factor")


def read_singles(ends: dict) -> Markdown:
    """Which factors count by more than two standard errors, from one end and from both."""
    counts = {
        end: [factor for factor, pair in alone.items() if abs(gap(*pair)[0]) > 2 * gap(*pair)[1]]
        for end, alone in ends.items()
    }
    said = [
        f"{end}, by more than two standard errors: {listed(factors)}"
        for end, factors in counts.items()
    ]
    both = [
        factor
        for factor in next(iter(counts.values()), [])
        if all(factor in factors for factors in counts.values())
    ]
    text = "; ".join(said) + (f". From both ends: {listed(both)}." if len(counts) > 1 else ".")
    return Markdown(text[:1].upper() + text[1:])


def listed(factors: list[str]) -> str:
    """Names that may hold commas themselves."""
    return ", ".join(f"*{factor}*" for factor in factors) or "none"


def read_certainty(table: pd.DataFrame, data: str) -> Markdown:
    """How decided the predictions for the traced images are at the end, all heads: the range over the settings with lambda1 = 1, by entropy."""
    largest: dict[str, list[float]] = {}
    for _, run in picked(
        table[(table["data"] == data) & (table["method"] == "crlc") & (table["lambda1"] == 1)],
        "traces.npz",
    ).iterrows():
        with np.load(Path(run["path"]) / "traces.npz") as traces:
            if traces["probabilities"].size:
                largest.setdefault(run["entropy"], []).append(
                    float(traces["probabilities"][-1].astype(float).max(-1).mean())
                )
    said = [
        f"{min(values):.2f} to {max(values):.2f} with the entropy of {ENTROPY[entropy]} (n = {len(values)} settings)"
        for entropy, values in sorted(largest.items())
    ]
    return Markdown(
        f"{data}, mean largest probability of an image at the end, λ1 = 1: {'; '.join(said)}. One seed a setting."
        if said
        else ""
    )


def accuracies(table: pd.DataFrame, star: dict, rule: str) -> list[pd.DataFrame]:
    """Of each setting of a star, in its order, the runs with any seed: "seed", "acc", "floor" (k-means on pixels)."""
    found = []
    for config in campaign.star_of({k: v for k, v in star.items() if k != "grid"}, {}):
        settings = {k: v for k, v in config.identity().items() if k != "seed"}
        runs = same_settings(labelled(table), **settings)
        found.append(
            runs[["seed"]].assign(acc=runs[f"{rule}_acc"], floor=runs["kmeans_pixels_acc"])
        )
    return found


def named(factor: dict) -> str:
    return GROUPS.get(
        next(iter(factor)), ", ".join(f"{k} {format_value(v)}" for k, v in factor.items())
    )


def draw(path: pd.DataFrame, ax) -> None:
    """A bar a factor, from the mean before it to the mean with it; dots are runs, thin lines one standard deviation, a dotted
    one k-means on pixels."""
    steps = [part for _, part in path.groupby("step")]
    for y, (before, part) in enumerate(zip([None, *steps], steps)):
        runs = 100 * part["acc"]
        start = 0.0 if before is None else 100 * before["acc"].mean()
        color = COLORS[7] if before is None else COLORS[0] if runs.mean() >= start else COLORS[1]
        ax.barh(y, runs.mean() - start, left=start, color=color, height=0.6, alpha=0.85)
        ax.errorbar(
            runs.mean(),
            y,
            xerr=runs.std() if len(runs) > 1 else None,
            color="black",
            lw=1,
            capsize=3,
        )
        ax.plot(runs, [y] * len(runs), "o", color="black", ms=3)
        text = spread(part["acc"]) if before is None else points(part["acc"], before["acc"])
        ax.annotate(
            text,
            (max(runs.max(), start), y),
            xytext=(22, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    ax.axvline(
        100 * path["floor"].mean(),
        color="0.35",
        linestyle=":",
        linewidth=1.6,
        label="k-means on pixels",
    )
    ax.legend(loc="lower left", fontsize="small")
    names = [part["factor"].iloc[0] for part in steps]
    ax.set_yticks(range(len(names)), [names[0], *("+ " + n for n in names[1:])])
    ax.invert_yaxis()
    ax.set(xlim=(0, 130 * path["acc"].max()), xlabel="ACC, %")
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 100])


def read(found: dict[str, list[pd.DataFrame]], rule: str) -> Markdown:
    """Which factor is worth most on each path of each data set, and what it is worth there."""
    lines = []
    for data, several in found.items():
        for i, path in enumerate(several):
            steps = [part for _, part in path.groupby("step")]
            gains = {
                b["factor"].iloc[0]: (points(b["acc"], a["acc"]), gap(b["acc"], a["acc"])[0])
                for a, b in zip(steps, steps[1:])
            }
            most = max(gains, key=lambda name: gains[name][1])
            lines.append(
                f"- **{data}**{f', order {i + 1}' * (len(several) > 1)}: from {spread(steps[0]['acc'])} to {spread(steps[-1]['acc'])} % by the {SHORT[rule]}; "
                f"most is worth **{most}**, {gains[most][0]} points (difference of means ± standard error, n = {min(map(len, steps))} or more each)."
            )
    return Markdown(
        "\n".join(lines)
        or "No path was run yet: `python -m reproduce campaign 1` (a GPU), `campaign cpu` or `campaign digits` runs one."
    )
