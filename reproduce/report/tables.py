"""Tables of finished runs, ours beside the published figures. Labels enter as the scores that runs wrote down."""

from __future__ import annotations

import dataclasses
import functools
import html
import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML

from reproduce import campaign, runs
from reproduce.report.study import (
    ABLATED,
    ENTROPY,
    RULES,
    command,
    first_grid,
    format_value,
    load,
    root,
    row,
    setting_name,
    stored,
)

SHORT = {
    "first_head": "first head",
    "mean_of_heads": "mean of heads",
    "lowest_loss_head": "lowest-loss head",
    "aligned_average": "aligned average",
    "best_head_oracle": "best head (oracle)",
    "best_epoch_and_head_oracle": "best epoch and head (oracle)",
    "kmeans_embedding": "k-means, features",
    "kmeans_pixels": "k-means, pixels",
}
LOCAL = ("lowest_loss_head", "aligned_average", "kmeans_embedding")


def scores_table(metrics: dict) -> pd.DataFrame:
    """ACC, NMI and ARI in percent by selection rule, the mean of heads with its deviation; empty without labels."""
    rows = {}
    for rule, text in RULES.items():
        if rule in metrics["scores"]:
            s = metrics["scores"][rule]
            rows[text] = {
                k.upper(): f"{100 * s[k]:.1f}"
                + (f" ± {100 * s[k + '_std']:.1f}" if k + "_std" in s else "")
                for k in ("acc", "nmi", "ari")
            }
            if "many_to_one_acc" in s:
                rows[text]["ACC many-to-one"] = f"{100 * s['many_to_one_acc']:.1f}"
    return pd.DataFrame.from_dict(rows, orient="index")


def spread(values) -> str:
    """``97.3 ± 0.8``: mean and sample standard deviation in percent; one value has no spread."""
    values = 100 * pd.Series(values, dtype=float).dropna()
    if values.empty:
        return "–"
    return f"{values.mean():.1f}" + (f"\u00a0±\u00a0{values.std():.1f}" if len(values) > 1 else "")


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["kmeans_embedding_acc"].notna()]


def scores(table: pd.DataFrame, score: str = "acc") -> pd.DataFrame:
    """Mean ± standard deviation over the seeds in percent: a row a setting of the grid, a column a rule."""
    rows, levels = {}, ["data", "method", "entropy", "lambda1"]
    for (data, method, entropy, lambda1), same in labelled(table[table["grid"]]).groupby(
        levels, sort=False
    ):
        key = (
            (data, method, ENTROPY[entropy].removeprefix("the "), format_value(lambda1))
            if method == "crlc"
            else (data, method, "–", "–")
        )
        rows[key] = {
            "n": len(same),
            **{text: spread(same[f"{rule}_{score}"]) for rule, text in SHORT.items()},
        }
    index = (
        pd.MultiIndex.from_tuples(list(rows), names=["data", "method", "entropy of", "λ1"])
        if rows
        else None
    )
    return pd.DataFrame(list(rows.values()), index=index)


def rows_behind(table: pd.DataFrame, results_dir: str = "") -> pd.DataFrame:
    """A row a setting: links to its runs (relative to the results folder), mean time, command. Cells are HTML."""
    rows = []
    for _, same in table.groupby(["data", "method", "setting"], sort=False):
        run = same.iloc[0]
        rows.append(
            {
                "data": run["data"],
                "method": run["method"],
                "setting": html.escape(label(run)),
                "runs (seed)": " ".join(link(r, results_dir) for _, r in same.iterrows()),
                "seconds": f"{same['seconds'].mean():.0f}",
                "command": f"<code>{html.escape(command(run))}</code>",
            }
        )
    return pd.DataFrame(rows)


def label(run) -> str:
    """A setting in a few words: its place in the grid, or what it changes and where."""
    if run["grid"]:
        return (
            f"λ1 = {run['lambda1']:g}, entropy of {ENTROPY[run['entropy']]}"
            if run["method"] == "crlc"
            else setting_name(run)
        )
    return setting_name(run)


def link(run, results_dir: str = "") -> str:
    """The seed, leading to the run's page or its metrics."""
    path = Path(run["path"])
    target = path / next(f for f in ("train.html", "metrics.json") if (path / f).exists())
    return f'<a href="{html.escape(os.path.relpath(target, root(results_dir)))}">{run["seed"]}</a>'


def heads(table: pd.DataFrame) -> pd.DataFrame:
    """One row a head of a labelled run of CRLC: loss, its rank in the run (1 lowest), acc. Ranks of few heads and of many
    do not compare, so these are the runs with the number of heads that most have."""
    rows, found = [], labelled(table[table["method"] == "crlc"])
    for i, run in found[found["n_heads"].isin(found["n_heads"].mode())].iterrows():
        found = stored(run["path"], "metrics").get("heads", [])
        ranks = np.argsort(np.argsort([h["loss"] for h in found])) + 1
        rows += [
            {"run": i, "data": run["data"], "entropy": run["entropy"], "rank": int(r), **h}
            for r, h in zip(ranks, found)
        ]
    return pd.DataFrame(rows, columns=["run", "data", "entropy", "rank", "loss", "acc"])


def factors(table: pd.DataFrame, rule: str = "lowest_loss_head") -> pd.DataFrame:
    """The runs that change something else than lambda1 and entropy alone (or than one factor of the paper's ablations) and are not
    halfway on a path, and their hubs: one row a run with "star" (the hub's name), "factor" (the hub first), "acc"."""
    found = labelled(table)
    ablation = (found["method"] == "crlc") & found["changed"].map(
        lambda names: len(names) == 1 and set(names) <= ABLATED
    )
    spoke = ~(
        ablation
        | (found["grid"] & (found["changed"].map(len) > 0))
        | found["setting"].isin(halfway())
    )
    found = found[spoke].assign(
        factor=[setting_name(r) for _, r in found[spoke].iterrows()],
        acc=found[f"{rule}_acc"],
        first=found["changed"].map(len) > 0,
    )
    stars = {
        (d, m, h): setting_name({"setting": h, "changed": ()}).split(",")[0]
        for d, m, h in zip(found["data"], found["method"], found["hub"])
    }
    found["star"] = [
        f"{d}, {m}: {stars[d, m, h]}"
        for d, m, h in zip(found["data"], found["method"], found["hub"])
    ]
    several = found.groupby("star")["setting"].transform("nunique") > 1
    found = found[several & found["acc"].notna()]
    return found.sort_values(["first"], kind="stable")[["star", "factor", "acc", "seed", "path"]]


@functools.cache
def halfway() -> frozenset:
    """The settings in the middle of the campaign's paths that no one factor makes: they have a page of their own, ``what_mattered``."""
    steps, alone = set(), set()
    for star in itertools.chain.from_iterable(campaign.blocks().values()):
        configs = campaign.star_of({k: v for k, v in star.items() if k != "grid"}, {})
        found = [row(dataclasses.asdict(config))["setting"] for config in configs]
        if "path" in star:
            steps.update(found[2:-1])
        else:
            alone.update(found)
    return frozenset(steps - alone)


def factor_table(
    table: pd.DataFrame, rules=("lowest_loss_head", "aligned_average")
) -> pd.DataFrame:
    """A row a factor: n, and for each rule ACC and the difference from the star's hub, in points ± standard error."""
    rows = {}
    for rule in rules:
        for star, same in factors(table, rule).groupby("star", sort=False):
            hub = same.loc[same["factor"] == same["factor"].iloc[0], "acc"]
            for factor, part in same.groupby("factor", sort=False):
                gain = "" if factor == same["factor"].iloc[0] else points(part["acc"], hub)
                rows.setdefault((star, factor), {"n": len(part)}).update(
                    {f"{SHORT[rule]}: ACC": spread(part["acc"]), f"{SHORT[rule]}: difference": gain}
                )
    index = pd.MultiIndex.from_tuples(list(rows), names=["from", "changed"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index)


def gap(a, b) -> tuple[float, float]:
    """Difference of two means in points, and its standard error (nan where one side has a single run)."""
    a, b = (100 * pd.Series(x, dtype=float).dropna() for x in (a, b))
    return a.mean() - b.mean(), float(np.sqrt(a.var() / max(len(a), 1) + b.var() / max(len(b), 1)))


def points(a, b) -> str:
    """``+2.1 ± 0.9``: ``gap`` as text."""
    mean, error = gap(a, b)
    return signed(mean) + ("" if np.isnan(error) else f"\u00a0±\u00a0{error:.1f}")


def signed(value: float) -> str:
    """``+2.1`` or ``−2.1``, with a minus sign as long as the plus; ``–`` where there is none."""
    return "–" if np.isnan(value) else f"{value:+.1f}".replace("-", "−")


def local_scores(results_dir: str, table: pd.DataFrame, dataset: str = "") -> pd.DataFrame:
    """The runs of this machine, a row a run and rule, beside the study's of the same setting and any seed."""
    rows = []
    for _, run in load(results_dir, dataset, "local").iterrows():
        same = table[(table["data"] == run["data"]) & (table["setting"] == run["setting"])]
        for rule in LOCAL:
            theirs = same[f"{rule}_acc"].dropna()
            if pd.notna(run[f"{rule}_acc"]):
                rows.append(
                    {
                        "run": link(run, results_dir),
                        "data": run["data"],
                        "method": run["method"],
                        "setting": html.escape(label(run)),
                        "rule": rule,
                        "here": 100 * run[f"{rule}_acc"],
                        "study": spread(theirs),
                        "n": len(theirs),
                        "mean": 100 * theirs.mean(),
                        "deviation": 100 * theirs.std(),
                    }
                )
    return pd.DataFrame(
        rows,
        columns=[
            "run",
            "data",
            "method",
            "setting",
            "rule",
            "here",
            "study",
            "n",
            "mean",
            "deviation",
        ],
    )


def local_table(rows: pd.DataFrame) -> pd.DataFrame:
    """``local_scores`` to read: a row a run, here beside the study. Cells are HTML."""
    lines = []
    for (run, data, method, setting), same in rows.groupby(
        ["run", "data", "method", "setting"], sort=False
    ):
        line = {
            "data": data,
            "method": method,
            "setting": setting,
            "seed": run,
            "n in the study": same["n"].max(),
        }
        for _, one in same.iterrows():
            line |= {
                f"{SHORT[one['rule']]}: here": f"{one['here']:.1f}",
                f"{SHORT[one['rule']]}: study": one["study"],
            }
        lines.append(line)
    return pd.DataFrame(lines).fillna("–")


def published() -> pd.DataFrame:
    """results/published.csv: figures from papers and tables, in percent; ``verified`` says whether the source was read."""
    return pd.read_csv(runs.ROOT / "results" / "published.csv").fillna(
        {"split": "", "setting": "", "source": "", "note": ""}
    )


def printed(row) -> dict[str, str]:
    """ACC, NMI and ARI of a published row: a question mark where it is unverified."""
    sure = {"yes": runs.SCORES, "ACC only": ("acc",), "no": ()}[row["verified"]]
    return {
        k.upper(): "–" if pd.isna(row[k]) else f"{row[k]:.1f}{'' if k in sure else '?'}"
        for k in runs.SCORES
    }


def beside(table: pd.DataFrame, data: str, rule: str = "lowest_loss_head") -> pd.DataFrame:
    """The published clusterings of one data set and ours, by ACC."""
    rows = []
    for _, r in published().query("dataset == @data and acc == acc").iterrows():
        rows.append(
            {
                "by": r["acc"],
                "method": r["method"],
                "setting": r["setting"],
                "split": r["split"],
                **printed(r),
                "n": "",
                "source": r["source"],
            }
        )
    for _, same in labelled(table[table["data"] == data]).groupby(
        ["method", "setting"], sort=False
    ):
        run, used = same.iloc[0], rule if same[f"{rule}_acc"].notna().any() else "kmeans_embedding"
        rows.append(
            {
                "by": 100 * same[f"{used}_acc"].mean(),
                "method": f"ours: {run['method']}, {SHORT[used]}",
                "setting": label(run),
                "split": run["split"],
                **{k.upper(): spread(same[f"{used}_{k}"]) for k in runs.SCORES},
                "n": str(len(same)),
                "source": "this repository",
            }
        )
    floor = labelled(table[table["data"] == data])
    if len(floor):
        rows.append(
            {
                "by": 100 * floor["kmeans_pixels_acc"].mean(),
                "method": "ours: k-means on pixels",
                "setting": "",
                "split": floor["split"].iloc[0],
                **{k.upper(): spread(floor[f"kmeans_pixels_{k}"].iloc[:1]) for k in runs.SCORES},
                "n": "1",
                "source": "this repository",
            }
        )
    found = pd.DataFrame(
        rows, columns=["by", "method", "setting", "split", "ACC", "NMI", "ARI", "n", "source"]
    )
    return found.sort_values("by", kind="stable").drop(columns="by").reset_index(drop=True)


def confidence(table: pd.DataFrame, lambda1s: list[float], values: bool = False) -> pd.DataFrame:
    """How decided the predictions for the traced images are at the end, all heads and seeds together: a row a lambda1
    and entropy of the first data set's grid. With ``values``, the largest probability of every prediction instead."""
    grid, rows = first_grid(table), []
    for (lambda1, entropy), same in grid[grid["lambda1"].isin(lambda1s)].groupby(
        ["lambda1", "entropy"]
    ):
        files = [Path(p) / "traces.npz" for p in same["path"] if (Path(p) / "traces.npz").exists()]
        stored = [np.load(f) for f in files]
        ends = [s["probabilities"][-1].astype(float) for s in stored]  # [I, H, K]
        if not ends or not all(e.size for e in ends):
            continue
        largest = np.concatenate([e.max(-1).ravel() for e in ends])
        if values:
            rows.append(pd.DataFrame({"lambda1": lambda1, "entropy": entropy, "largest": largest}))
            continue
        rows.append(
            {
                "lambda1": lambda1,
                "entropy": entropy,
                "n": len(ends),
                "max probability": largest.mean(),
                "share above 0.9": (largest > 0.9).mean(),
                "H of each sample": np.mean([nats(e).mean() for e in ends]),
                "H of the mean": np.mean(
                    [nats(s["mass"][-1].astype(float)).mean() for s in stored]
                ),
                "log K": np.log(ends[0].shape[-1]),
            }
        )
    if values:
        return pd.concat(rows) if rows else pd.DataFrame(columns=["lambda1", "entropy", "largest"])
    return pd.DataFrame(
        rows,
        columns=[
            "lambda1",
            "entropy",
            "n",
            "max probability",
            "share above 0.9",
            "H of each sample",
            "H of the mean",
            "log K",
        ],
    )


def nats(p: np.ndarray) -> np.ndarray:
    """Entropy over the last axis; half-precision probabilities are brought back to a sum of 1."""
    p = p / p.sum(-1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def published_matrix() -> pd.DataFrame:
    """Published ACC, a row a method, a column a data set beyond CIFAR-10; a question mark where it is unverified, one in
    brackets where it is probably a misprint."""
    found = published().query("acc == acc and dataset != 'CIFAR-10'")
    text = found["acc"].map("{:.1f}".format) + found["verified"].map(
        {"yes": "", "ACC only": ""}
    ).fillna("?")
    text[found["note"].str.contains("misprint")] += " (?)"
    matrix = (
        found.assign(text=text).pivot(index="method", columns="dataset", values="text").fillna("–")
    )
    return matrix[[c for c in found["dataset"].unique()]].rename_axis(index=None, columns=None)


def representations() -> pd.DataFrame:
    """Published figures of features rather than clusterings, on CIFAR-10."""
    found = published().query("dataset == 'CIFAR-10' and (knn == knn or linear == linear)")
    return found.assign(
        **{k: found[k].map("{:g}".format).replace("nan", "") for k in ("knn", "linear")}
    )[["method", "setting", "knn", "linear", "source", "note"]].rename(
        columns={"knn": "kNN", "note": "time"}
    )


def show(rows: pd.DataFrame, digits: int = 1, html_cells: bool = False) -> HTML:
    """A table to read: what is the same in all rows of "data" and "method" is left out, an index becomes columns
    that say a value once, columns of words are set left. Cells are text, or HTML already."""
    if rows.empty:
        return HTML("")
    if rows.index.nlevels > 1 or rows.index.dtype.kind != "i":
        levels = [n or "" for n in rows.index.names]
        rows = rows.rename_axis(levels).reset_index()
    else:
        levels = []
    levels = [n for n in levels if n not in ("data", "method") or rows[n].nunique() > 1]
    rows = rows.drop(
        columns=[
            n
            for n in ("data", "method")
            if n in rows and n not in levels and rows[n].nunique() == 1 and len(rows) > 1
        ]
    )
    text = rows.map(lambda v: f"{v:.{digits}f}" if isinstance(v, float) else str(v))
    for depth in reversed(range(len(levels) - 1)):
        text[levels[depth]] = text[levels[depth]].where(~rows.duplicated(levels[: depth + 1]), "")
    if not html_cells:
        text = text.map(html.escape)
    words = text.apply(
        lambda column: column.str.replace("<.*?>", "", regex=True).str.contains("[A-Za-z]").any()
    )
    style = {name: ' style="text-align: left"' if words[name] else "" for name in text}
    head = "".join(f"<th{style[name]}>{html.escape(str(name))}</th>" for name in text)
    body = "".join(
        "<tr>" + "".join(f"<td{style[n]}>{cell}</td>" for n, cell in zip(text, line)) + "</tr>"
        for line in text.itertuples(index=False)
    )
    return HTML(
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def side_by_side(parts: dict[str, pd.DataFrame]) -> HTML:
    """Several small tables, each under its name, as many in a line as there is room for."""
    each = "".join(
        f"<div><b>{html.escape(name)}</b>{show(rows).data}</div>" for name, rows in parts.items()
    )
    return HTML(
        f'<div style="display: flex; flex-wrap: wrap; gap: 0 2rem">{each}</div>' if parts else ""
    )
