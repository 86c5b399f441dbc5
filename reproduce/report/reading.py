"""Sentences of the figure notebooks, made from the numbers of the runs: what a table or a figure says."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from IPython.display import Markdown
from scipy.stats import spearmanr

from reproduce.report.study import ENTROPY, load
from reproduce.report.tables import SHORT, factors, gap, heads, labelled, points, published, spread

NONE = "No runs yet: `make study` makes them all, `make report` a few in minutes."


def say_runs(table: pd.DataFrame, results_dir: str = "") -> Markdown:
    """How much there is to read."""
    local = len(load(results_dir, part="local"))
    beside = f" Made on this machine: {count(local, 'run')} in `local`." if local else ""
    if table.empty:
        return Markdown(NONE + beside)
    each = "; ".join(
        f"{d}: {count(len(t), 'run')} of {count(t['setting'].nunique(), 'setting')} ({', '.join(t['method'].unique())})"
        for d, t in table.groupby("data", sort=False)
    )
    bare = len(table) - len(labelled(table))
    unscored = f" Without labels, and so without scores: {count(bare, 'run')}." if bare else ""
    took, devices = (
        table["seconds"].sum(),
        ", ".join(sorted(table["device_name"].dropna().unique())),
    )
    time = f"{took / 3600:.1f} hours" if took >= 3600 else f"{took / 60:.0f} minutes"
    return Markdown(f"{each}. Training took {time} in all, on {devices}.{unscored}{beside}")


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def pair(table: pd.DataFrame, lambda1: float, column: str) -> dict[str, pd.Series]:
    """The scores at one lambda1, by entropy."""
    at = table[table["grid"] & (table["lambda1"] == lambda1) & (table["method"] == "crlc")]
    return {e: at.loc[at["entropy"] == e, column].dropna() for e in ENTROPY}


def read_grid(table: pd.DataFrame, rule: str) -> Markdown:
    """The two entropies at the paper's weight, and whether the course's trend over lambda1 is seen here."""
    said = []
    for data, part in labelled(table[table["grid"] & (table["method"] == "crlc")]).groupby(
        "data", sort=False
    ):
        said.append(f"**{data}**, {SHORT[rule]}:")
        batch, sample = pair(part, 1.0, f"{rule}_acc").values()
        if len(batch) and len(sample):
            said.append(
                f"At λ1 = 1 the entropy of the batch mean reaches ACC **{spread(batch)} %** (n = {len(batch)}), "
                f"that of each sample **{spread(sample)} %** (n = {len(sample)}); difference {points(batch, sample)} points."
            )
        low, high = (pair(part, w, f"{rule}_acc")["sample"] for w in (0.1, 1.0))
        if len(low) and len(high):
            said.append(
                f"With the entropy of each sample, going from λ1 = 1 to 0.1 gains {points(low, high)} points here ({verdict(*gap(low, high))}); "
                "the course reproduction gained 7.2 on CIFAR-10."
            )
        gaps = {
            w: sides
            for w in sorted(part["lambda1"].unique())
            if all(map(len, (sides := pair(part, w, f"{rule}_acc")).values()))
        }
        if len(gaps) > 1:
            wide = max(gaps, key=lambda w: abs(gap(gaps[w]["batch"], gaps[w]["sample"])[0]))
            said.append(
                f"The two are furthest apart at λ1 = {wide:g}: {spread(gaps[wide]['batch'])} % and {spread(gaps[wide]['sample'])} %."
            )
        if said[-1].endswith(":"):
            said.append("no weight has runs of both entropies yet.")
    return Markdown(" ".join(said) or "There are no runs with labels to compare yet.")


def verdict(mean: float, error: float) -> str:
    """What a difference is worth: two standard errors, or nothing can be said."""
    if math.isnan(error):
        return "single runs: no error can be given"
    if abs(mean) > 2 * error:
        return "more than two standard errors"
    return "within two standard errors: not told apart"


def read_rules(table: pd.DataFrame) -> Markdown:
    """What it costs not to look at labels when choosing a head."""
    said = []
    for data, part in labelled(table[table["grid"] & (table["method"] == "crlc")]).groupby(
        "data", sort=False
    ):
        part = part[part["best_head_oracle_acc"].notna()]
        if part.empty:
            continue
        lost = {
            r: 100 * (part["best_head_oracle_acc"] - part[f"{r}_acc"])
            for r in ("lowest_loss_head", "aligned_average", "first_head")
        }
        said.append(
            f"**{data}**: over the {len(part)} runs of the grid, the head with the lowest loss is {lost['lowest_loss_head'].mean():.1f} points below the "
            f"oracle on average (median {lost['lowest_loss_head'].median():.1f}), the aligned average {lost['aligned_average'].mean():.1f}, "
            f"the first head, which the course reproduction scored, {lost['first_head'].mean():.1f}. "
            f"k-means on raw pixels has {100 * part['kmeans_pixels_acc'].mean():.1f} %: "
            f"{int((part['lowest_loss_head_acc'] < part['kmeans_pixels_acc']).sum())} of the runs stay below it with their lowest-loss head."
        )
    return Markdown(" ".join(said) or "There is no run with clustering heads and labels yet.")


def read_heads(table: pd.DataFrame) -> Markdown:
    """Whether a head's loss tells its accuracy, within a run."""
    found = heads(table)
    runs = [
        h
        for _, h in found.groupby("run")
        if len(h) > 2 and h["acc"].nunique() > 1 and h["loss"].nunique() > 1
    ]
    if not runs:
        return Markdown("There is no run with three heads or more yet.")
    ranks = np.array([spearmanr(h["loss"], h["acc"]).statistic for h in runs])
    best = sum(h.loc[h["loss"].idxmin(), "acc"] == h["acc"].max() for h in runs)
    strength = (
        "usually tells"
        if np.median(ranks) < -0.5
        else "tells something about"
        if np.median(ranks) < -0.2
        else "says little about"
    )
    return Markdown(
        f"Within a run a head's loss {strength} its accuracy: the rank correlation has the median {np.median(ranks):+.2f} over {len(runs)} runs "
        f"(negative: low loss, high accuracy), and is negative in {int((ranks < 0).sum())}. The head with the lowest loss is the best "
        f"of all in {best} of {len(runs)} runs."
    )


def read_factors(table: pd.DataFrame, rule: str) -> Markdown:
    """Which single changes moved the accuracy by more than two standard errors."""
    said = []
    for star, same in factors(table, rule).groupby("star", sort=False):
        names = list(same["factor"].unique())
        values = {f: same.loc[same["factor"] == f, "acc"] for f in names}
        gains = {
            f: (*gap(values[f], values[names[0]]), points(values[f], values[names[0]]))
            for f in names[1:]
        }
        moved = [
            f"{f} ({text})" for f, (mean, error, text) in gains.items() if abs(mean) > 2 * error
        ]
        alone = sum(math.isnan(error) for _, error, _ in gains.values())
        rest = len(gains) - len(moved) - alone
        tail = [
            f"{rest} {'change is' if rest == 1 else 'changes are'} not told apart from it"
        ] * bool(rest)
        tail += [f"{alone} rest on a single run"] * bool(alone)
        said.append(
            f"From **{star}** ({spread(values[names[0]])} %, n = {len(values[names[0]])}): "
            + (
                f"moved by more than two standard errors: {', '.join(moved)}"
                if moved
                else "no change moved it by more than two standard errors"
            )
            + "".join(f"; {t}" for t in tail)
            + "."
        )
    return Markdown(" ".join(said) or "No run changes a single other setting yet.")


def read_local(rows: pd.DataFrame) -> Markdown:
    """Whether runs made here fall where the study's do."""
    if rows.empty:
        return Markdown("There are no runs of this machine yet (`make report` makes six).")
    judged = rows[rows["deviation"].notna()]
    inside = int(((judged["here"] - judged["mean"]).abs() <= 2 * judged["deviation"]).sum())
    new = rows.loc[rows["n"] == 0, "run"].nunique()
    tail = f" {new} of the runs have no counterpart in the study." if new else ""
    if judged.empty:
        return Markdown(
            "None of this machine's runs has two or more counterparts in the study to compare with."
            + tail
        )
    return Markdown(
        f"{inside} of {len(judged)} scores made here lie within two standard deviations of the study's mean for the same settings; "
        f"about 95 in 100 would, were the seeds the only difference.{tail}"
    )


def read_published(table: pd.DataFrame) -> Markdown:
    """The gap in question, and what can be put beside it."""
    crlc = (
        published()
        .query("dataset == 'CIFAR-10' and method.str.startswith('CRLC')", engine="python")
        .set_index("setting")
    )
    paper = crlc.loc[crlc["method"] == "CRLC", "acc"].iloc[0]
    course = crlc.loc[crlc["method"] != "CRLC", "acc"]
    ours = labelled(table[table["data"] == "CIFAR-10"])
    tail = (
        f"Ours on CIFAR-10: {len(ours)} runs, in the table."
        if len(ours)
        else "There is no run of ours on CIFAR-10 yet: the runs on other data ask the same question, and give no number to put beside these."
    )
    return Markdown(
        f"The paper has ACC {paper}, the course reproduction {course.min()} at λ1 = 1 and {course.max()} at best: "
        f"{paper - course.min():.1f} and {paper - course.max():.1f} points apart. {tail}"
    )


def read_closed_form(closed: pd.DataFrame) -> Markdown:
    """closed: rows uniform, certain and balanced, all in one; columns of losses. What is left of the reward for certainty?"""
    gain, fall = closed.iloc[0] - closed.iloc[1], closed.iloc[2] - closed.iloc[0]
    return Markdown(
        f"Going from uniform to certain and balanced predictions lowers PC alone by {gain['PC']:.2f} (log K = {math.log(10):.2f}). With the entropy of "
        f"each sample maximised at λ1 = 1, {gain['PC − 1 H(each sample)']:.2f} of that is left: being undecided costs next to nothing. At λ1 = 0.3 it is "
        f"{gain['PC − 0.3 H(each sample)']:.2f}, at 0.1 {gain['PC − 0.1 H(each sample)']:.2f}; with the entropy of the batch mean it stays "
        f"{gain['PC − 1 H(batch mean)']:.2f}, and all images in one cluster cost {fall['PC − 1 H(batch mean)']:.2f} more than being undecided."
    )


def read_confidence(confidence: pd.DataFrame) -> Markdown:
    """confidence: ``tables.confidence``. How decided the predictions are at the end."""
    if confidence.empty:
        return Markdown(NONE)
    said = []
    for lambda1, part in confidence.groupby("lambda1"):
        both = part.set_index("entropy")
        if set(both.index) == set(ENTROPY):
            b, s = both.loc["batch"], both.loc["sample"]
            said.append(
                f"λ1 = {lambda1:g}: {b['max probability']:.2f} with the entropy of the batch mean, {s['max probability']:.2f} with that of each sample, "
                f"whose predictions keep {s['H of each sample']:.2f} nats of {s['log K']:.2f}"
            )
    return Markdown(
        "Mean largest probability of an image at the end: " + "; ".join(said) + "."
        if said
        else "Only one of the two entropies has runs, so there is nothing to compare yet."
    )


def read_why(confidence: pd.DataFrame) -> Markdown:
    """The explanation of the course's trend, held against the measured predictions."""
    sample = (
        confidence[confidence["entropy"] == "sample"].set_index("lambda1")
        if len(confidence)
        else confidence
    )
    if len(sample) < 2:
        return Markdown("Two weights with the entropy of each sample are needed to see the trend.")
    low, high = sample.iloc[0], sample.iloc[-1]
    less = high["max probability"] < low["max probability"]
    return Markdown(
        f"Measured, with the entropy of each sample: from λ1 = {sample.index[0]:g} to {sample.index[-1]:g} the mean largest probability goes from "
        f"{low['max probability']:.2f} to {high['max probability']:.2f}, the share of predictions above 0.9 from {low['share above 0.9']:.0%} to "
        f"{high['share above 0.9']:.0%}. "
        + (
            "The larger weight keeps predictions undecided, as the loss says it may."
            if less
            else "The larger weight does not leave predictions less decided in these runs."
        )
    )


def read_mass(shown: list[dict]) -> Markdown:
    """The largest cluster of each run at the end, and whether one is empty."""
    if not shown:
        return Markdown(NONE)
    said = [
        f"{s['title'].replace(chr(10), ', ')}: {s['mass'][-1].max():.0%} (smallest {s['mass'][-1].min():.1%})"
        for s in shown
    ]
    return Markdown(
        f"Share of the largest cluster at the end, an equal share being {1 / shown[0]['mass'].shape[1]:.0%}: "
        + "; ".join(said)
        + "."
    )


def read_traces(shown: list[dict], images: list[int]) -> Markdown:
    """How many of the drawn images are decided, and when."""
    if not shown:
        return Markdown(NONE)
    said = []
    for s in shown:
        largest = s["probabilities"][:, np.isin(s["images"], images)].max(-1)
        decided = largest[-1] > 0.9
        since = [
            s["epochs"][np.flatnonzero(largest[:, i] <= 0.9)[-1] + 1]
            for i in np.flatnonzero(decided)
            if (largest[:, i] <= 0.9).any()
        ]
        when = f", for good since epoch {np.median(since):.0f} (median)" if since else ""
        said.append(f"{s['title'].replace(chr(10), ', ')}: {decided.sum()} of {len(decided)}{when}")
    return Markdown(
        "Images above 0.9 in one cluster at the end: "
        + "; ".join(said)
        + f". Seed {shown[0]['seed']}, n = 1 run each."
    )


def read_embeddings(shown: list[dict]) -> Markdown:
    """The errors in the pictures, and where they lie."""
    said = []
    for s in shown:
        if s["wrong"] is None:
            said.append(f"{s['title']}: {len(s['points'])} images without labels")
            continue
        mixed = (
            f", {s['wrong_mixed']:.0%} of them among neighbours of mostly another class"
            if s["wrong"].any()
            else ""
        )
        said.append(
            f"{s['title']}: {s['wrong'].sum()} of {len(s['wrong'])} images are errors ({s['wrong'].mean():.1%}){mixed}"
        )
    return Markdown("; ".join(said) + "." if said else NONE)


def read_neighbours(table: pd.DataFrame) -> Markdown:
    """Features against clusters: is it the network or the head that errs?"""
    if len(table) < 2:
        return Markdown(
            "Fewer than two labelled runs have kept their embedding: nothing to compare."
            if len(table)
            else NONE
        )
    agreement, acc = (
        table["neighbours of one label, %"].astype(float),
        table["ACC, %"].astype(float),
    )
    low, high = agreement.idxmin(), agreement.idxmax()
    rank = (
        spearmanr(agreement, acc).statistic
        if min(agreement.nunique(), acc.nunique()) > 1
        else math.nan
    )
    tail = (
        ""
        if math.isnan(rank)
        else f" Rank correlation with the ACC of the clustering over {len(table)} runs: {rank:+.2f}."
    )
    return Markdown(
        f"Neighbours share a label in {agreement.min():.1f} % ({low}) to {agreement.max():.1f} % ({high}) of cases, "
        f"while the clusterings range from {acc.min():.1f} to {acc.max():.1f} % ACC.{tail}"
    )


def read_scores(table: pd.DataFrame, rule: str) -> Markdown:
    """Whether the three scores tell one story."""
    found = labelled(table[table["grid"]])
    means = (
        found.groupby(["data", "method", "setting"])[[f"{rule}_{s}" for s in ("acc", "nmi", "ari")]]
        .mean()
        .dropna()
    )
    if len(means) < 3:
        return Markdown("Fewer than three settings: too few to say whether the scores agree.")
    rank = means.corr("spearman").iloc[0]
    return Markdown(
        f"Over the {len(means)} settings, {SHORT[rule]}: ACC orders them as NMI does with rank correlation {rank.iloc[1]:+.2f}, as ARI does with {rank.iloc[2]:+.2f}."
    )


def close_results(table: pd.DataFrame) -> Markdown:
    """Matched, not matched, changed: the reproduction in three items."""
    matched, missed = [], []
    claims = (
        (
            "the entropy of the batch mean above that of each sample at λ1 = 1",
            lambda at: (at[1.0]["batch"], at[1.0]["sample"]),
        ),
        (
            "with the entropy of each sample, λ1 = 0.1 above 1",
            lambda at: (at[0.1]["sample"], at[1.0]["sample"]),
        ),
    )
    for data, part in labelled(table).groupby("data", sort=False):
        for claim, sides in claims:
            for rule in ("lowest_loss_head", "aligned_average"):
                more, less = sides({w: pair(part, w, f"{rule}_acc") for w in (0.1, 1.0)})
                if len(more) and len(less):
                    mean, error = gap(more, less)
                    (matched if mean > 2 * error else missed).append(
                        f"{claim} ({data}, {SHORT[rule]}): {points(more, less)} points"
                    )
    if not len(table[table["data"] == "CIFAR-10"]):
        missed.append(
            "the paper's 79.9 % and the course's 40.9 % on CIFAR-10 themselves: no run of ours yet"
        )
    return Markdown(
        "- **Matched** (more than two standard errors, in the expected direction): "
        + ("; ".join(matched) or "nothing yet")
        + ".\n"
        "- **Did not match, or not told apart**: " + ("; ".join(missed) or "nothing") + ".\n"
        "- **Changed**: label-free rules beside the oracle, n and spread beside every mean, the last epoch and never the best, "
        "and a small data set on which each setting can be run several times."
    )
