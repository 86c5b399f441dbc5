"""Choosing without labels, and what it costs: a setting, or an epoch, by a monitor in place of its
accuracy."""

from __future__ import annotations

import pandas as pd
from scipy import stats

from reproduce.report import results
from reproduce.sweeps import campaign

BETTER = {  # evaluation/monitors.py: whether more of it should be better, 1, or less, -1
    "rankme": 1,
    "head_agreement": 1,
    "neighbour_agreement": 1,
    "normalized_cut": -1,
    "view_alignment": -1,
    "uniformity": -1,
}
DESIGNS = {"recipe": ("ablation", ""), "rate": ("rates", "learning_rate"), "λ1": ("B", "lambda1")}


def candidates(table: pd.DataFrame, score: str = "aligned_average_acc") -> pd.DataFrame:
    """What there is to choose from among the runs of ``table`` that have monitors: one row per
    evaluation, with "choice" (what is chosen: recipe, rate, λ1 or epoch), "group" (in which of
    several such choices), "candidate" (what could be chosen), "acc" in percent, and the monitors.

    A recipe, rate or λ1 is chosen among the cells of a design that differ in nothing else, by the
    last evaluation; an epoch among the evaluations of a run. "acc" is ``score``, or that of k-means
    on the features where a method has no heads."""
    monitors, scores = [*BETTER], [score, "kmeans_embedding_acc"]
    rows = results.history(table, "path").reindex(columns=["path", "epoch", *scores, *monitors])
    rows = rows.assign(acc=100 * rows[scores].astype(float).bfill(axis=1).iloc[:, 0])
    rows = rows.dropna(subset=["acc"]).dropna(subset=monitors, how="all")
    epochs = rows.assign(choice="epoch", group=rows["path"], candidate=rows["epoch"])
    last = rows.sort_values("epoch").drop_duplicates("path", keep="last")
    choices = [epochs]
    for choice, (block, factor) in DESIGNS.items():
        cells = results.cells(table, block)
        levels = [*campaign.cells(block)[0].levels]
        others = [level for level in levels if factor and level != factor]
        group = cells[others].astype(str).agg(", ".join, axis=1) if others else block
        cells = cells.assign(choice=choice, group=group, candidate=cells["cell"])
        choices.append(cells[["path", "choice", "group", "candidate"]].merge(last, on="path"))
    columns = ["choice", "group", "candidate", "acc", *monitors]
    return pd.concat([part[columns] for part in choices], ignore_index=True)


def price(rows: pd.DataFrame) -> pd.DataFrame:
    """What it costs to choose by each monitor, in one row for each choice and monitor. rows: of
    ``candidates``.

    A candidate's accuracy and monitors are the means over its rows. "correlation": Spearman's, of
    monitor and accuracy, turned so that 1 is a perfect monitor. "regret": how far the accuracy of
    the candidate that is best by the monitor lies below that of the best by label, in points. Both
    are means over the groups with two candidates or more; "groups" and "candidates" say how many
    there are. The monitor "none" is a candidate drawn at random."""
    prices = []
    for (choice, _), group in rows.groupby(["choice", "group"], sort=False):
        each = group.groupby("candidate")[["acc", *BETTER]].mean()
        for monitor, sign in {**BETTER, "none": 0}.items():
            part = each.dropna(subset=[monitor]) if sign else each
            if len(part) < 2:
                continue
            best, rho = part["acc"].max(), float("nan")
            chosen = part["acc"].mean()
            if sign:
                chosen = part["acc"][(sign * part[monitor]).idxmax()]
                if part[monitor].nunique() > 1 and part["acc"].nunique() > 1:
                    rho = sign * stats.spearmanr(part[monitor], part["acc"]).statistic
            prices.append((choice, monitor, len(part), rho, best - chosen))
    names = ["choice", "monitor", "candidates", "correlation", "regret"]
    each = pd.DataFrame(prices, columns=names).groupby(["choice", "monitor"], sort=False)
    count = {"groups": ("regret", "size"), "candidates": ("candidates", "sum")}
    return each.agg(**count, correlation=("correlation", "mean"), regret=("regret", "mean"))
