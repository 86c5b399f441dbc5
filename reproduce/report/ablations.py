"""CRLC's own ablations: one factor away from the default settings, beside the default's runs."""

from __future__ import annotations

import math

import pandas as pd
from IPython.display import Markdown

from reproduce.config import Config
from reproduce.report.study import FIELDS, format_value
from reproduce.report.tables import SHORT, gap, labelled, points, spread
from reproduce.runs import same_settings

FACTORS = {
    "critic": "critic of the probability contrast",
    "n_heads": "clustering heads, H",
    "lambda2": "λ2, weight of the feature contrast",
    "smoothing": "γ, smoothing of the probabilities",
}
RULES = ("lowest_loss_head", "aligned_average")


def runs_of(table: pd.DataFrame, factor: str, dataset: str = "digits") -> pd.DataFrame:
    """The default's runs and those that change this factor alone, by rising value, with "value" (text) and "default"."""
    found = same_settings(labelled(table), free=("seed", factor), dataset=dataset, method="crlc")
    choices = FIELDS[factor].metadata["choices"]
    order = found[factor].map(choices.index) if choices else found[factor]
    found = found.assign(
        value=found[factor].map(format_value),
        default=found[factor] == getattr(Config(), factor),
        order=order,
    )
    return found.sort_values(["order", "seed"]).drop(columns="order").reset_index(drop=True)


def ablations(table: pd.DataFrame, dataset: str = "digits") -> dict[str, pd.DataFrame]:
    """``runs_of`` each factor that was varied."""
    found = {factor: runs_of(table, factor, dataset) for factor in FACTORS}
    return {
        factor: part
        for factor, part in found.items()
        if part["value"].nunique() > 1 and part["default"].any()
    }


def ablation_table(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a value of a factor: n, and by either rule ACC and the difference from the default, in points ± standard error."""
    rows = {}
    for factor, found in parts.items():
        base = found[found["default"]]
        for value, part in found.groupby("value", sort=False):
            default = part["default"].iloc[0]
            rows[FACTORS[factor], value + " (default)" * bool(default)] = {"n": len(part)} | {
                f"{SHORT[r]}: {what}": text
                for r in RULES
                for what, text in (
                    ("ACC", spread(part[f"{r}_acc"])),
                    ("difference", "" if default else points(part[f"{r}_acc"], base[f"{r}_acc"])),
                )
            }
    index = pd.MultiIndex.from_tuples(list(rows), names=["factor", "value"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index)


def read_ablations(parts: dict[str, pd.DataFrame], rule: str) -> Markdown:
    """What each change is worth, a line a factor; within two standard errors it is not told apart."""
    lines = []
    for factor, found in parts.items():
        base, said = found.loc[found["default"], f"{rule}_acc"], []
        for value, part in found[~found["default"]].groupby("value", sort=False):
            mean, error = gap(part[f"{rule}_acc"], base)
            told = (
                ", a single run"
                if math.isnan(error)
                else ", not told apart" * bool(abs(mean) <= 2 * error)
            )
            said.append(f"with {value}: {points(part[f'{rule}_acc'], base)} points{told}")
        name = found.loc[found["default"], "value"].iloc[0]
        lines.append(f"- **{FACTORS[factor]}**, {name} by default: {'; '.join(said)}.")
    if not lines:
        return Markdown("No run changes one of these factors alone yet: `make study` makes them.")
    return Markdown(
        f"ACC by the {SHORT[rule]}, against the default's {spread(base)} % (n = {len(base)}):\n\n"
        + "\n".join(lines)
    )


def read_single_head(parts: dict[str, pd.DataFrame]) -> Markdown:
    """What ten heads are for: a good clustering, or a safe one?"""
    heads = parts.get("n_heads")
    if heads is None or 1 not in set(heads["n_heads"]):
        return Markdown("There is no run with a single head yet.")
    one, many = heads[heads["n_heads"] == 1], heads[heads["default"]]
    low, high = (100 * x["lowest_loss_head_acc"].min() for x in (one, many))
    return Markdown(
        f"A single head leaves nothing to choose or to average, so that both rules are that head: {spread(one['lowest_loss_head_acc'])} % "
        f"(n = {len(one)}). With {many['n_heads'].iloc[0]} heads the lowest-loss head has {spread(many['lowest_loss_head_acc'])} % and the aligned average "
        f"{spread(many['aligned_average_acc'])} %. The worst single seed is at {low:.1f} % with one head, at {high:.1f} % with the lowest-loss head "
        f"of {many['n_heads'].iloc[0]}."
    )
