"""What the report and the README state: the claims, the trend over lambda1, the price of the probability contrast, the cost."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch

from reproduce import campaign, losses
from reproduce.config import read_settings
from reproduce.report.field import methods, switched, widest
from reproduce.report.study import ENTROPY
from reproduce.report.tables import SHORT, labelled, spread
from reproduce.report.waterfall import accuracies
from reproduce.runs import ROOT, same_settings


def mean_and_spread(values: pd.Series) -> str:
    """``97.3 ± 0.8 (n = 5)``: mean and sample standard deviation in percent. Values that are all equal are one
    computation (k-means on pixels knows no seed): n = 1, no spread."""
    values = 100 * values.dropna()
    if values.empty:
        return "–"
    if values.nunique() == 1:
        values = values.iloc[:1]
    spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread} (n = {len(values)})"


def claims(runs: pd.DataFrame) -> pd.DataFrame:
    """What the project claims, a row a claim: the paper's figure, the course reproduction's, ours with spread and n.

    runs: ``study.load(limited=True)``. ACC in percent; ours is computed from run directories and from nothing else.
    """
    blocks, limited = campaign.blocks(), runs["limit"] > 0
    best = accuracies(runs, blocks["3"][0], "lowest_loss_head")[0]["acc"]
    rows = [
        {
            "data set": "CIFAR-10",
            "claim": "CRLC, λ1 = 1",
            "paper": "79.9 (oracle)",
            "course": "40.9 (first head)",
            "ours": mean_and_spread(best) if len(best) else "not run yet",
        }
    ]
    for said, step in (
        ("the course's settings", 0),
        ("the same with the entropy of the batch mean", 1),
        ("the authors' settings", -1),
    ):
        acc = accuracies(runs, blocks["cpu"][0], "lowest_loss_head")[step]["acc"]
        rows.append(
            {
                "data set": "CIFAR-10, 5,000 images, a narrow ResNet-18, 8 epochs",
                "claim": f"{said}: lowest-loss head",
                "ours": mean_and_spread(acc),
            }
        )
    runs = runs[~limited]
    course = read_settings(ROOT / "notebooks" / "settings" / "digits-course.yaml")
    digits = {
        "batch-mean entropy, λ1 = 1: lowest-loss head": ("lowest_loss_head_acc", {}),
        "the same, aligned average of heads": ("aligned_average_acc", {}),
        "the same, best head by label (oracle)": ("best_head_oracle_acc", {}),
        "per-sample entropy, λ1 = 1, nothing else changed: aligned average": (
            "aligned_average_acc",
            {"entropy": "sample"},
        ),
        "per-sample entropy, λ1 = 2: aligned average": (
            "aligned_average_acc",
            {"entropy": "sample", "lambda1": 2.0},
        ),
        "batch-mean entropy, λ1 = 2: aligned average": ("aligned_average_acc", {"lambda1": 2.0}),
        "no entropy, λ1 = 0: aligned average": ("aligned_average_acc", {"lambda1": 0.0}),
        "the course's settings, as far as digits can show them: first head": (
            "first_head_acc",
            course,
        ),
    }
    said = {
        claim: same_settings(runs, **{"dataset": "digits", "method": "crlc", **settings})[column]
        for claim, (column, settings) in digits.items()
    }
    every = methods(runs)
    for (name, rule), part in every[every["key"] != "crlc"].groupby(["method", "rule"], sort=False):
        said[f"{name}, nothing changed but the method: {SHORT[rule]}"] = part["acc"]
    said["k-means on raw pixels"] = same_settings(runs, dataset="digits")["kmeans_pixels_acc"]
    rows += [
        {"data set": "digits", "claim": claim, "ours": mean_and_spread(acc)}
        for claim, acc in said.items()
    ]
    if len(found := switched(every)):
        method, low, high = widest(found)
        rows.append(
            {
                "data set": "digits",
                "claim": f"the weights of one run ({method}), scored by k-means in eight ways: least and most",
                "ours": f"{low:.1f} and {high:.1f} (n = 1)",
            }
        )
    return pd.DataFrame(rows).fillna("")


def crossed(
    table: pd.DataFrame, data: str = "CIFAR-10", acc: float = 79.9, rule: str = "lowest_loss_head"
) -> str:
    """When runs of a data set first reached an ACC by a rule, at one of their evaluations: quickest first."""
    said = []
    for _, run in labelled(table[table["data"] == data]).iterrows():
        history = pd.read_csv(Path(run["path"]) / "history.csv")
        if (
            f"{rule}_acc" in history
            and (there := history.index[100 * history[f"{rule}_acc"] >= acc]).size
        ):
            seconds = history["seconds"].cumsum()[there[0]]
            said.append(
                (
                    seconds,
                    f"{run['backbone']}, seed {run['seed']}: epoch {history['epoch'][there[0]]}, {seconds / 60:.1f} minutes of training on {run['device_name']}",
                )
            )
    return (
        (
            f"{data} reached {acc} % by the {SHORT[rule]} in {len(said)} runs; "
            + "; ".join(text for _, text in sorted(said)[:3])
            + "."
        )
        if said
        else f"No run on {data} has reached {acc} % by the {SHORT[rule]} yet."
    )


def markdown_table(rows: pd.DataFrame) -> str:
    lines = [rows.columns, ["---"] * len(rows.columns), *rows.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_readme_table(readme: Path, rows: pd.DataFrame) -> None:
    """Put the claims between their two marks in the README."""
    before, _, rest = readme.read_text(encoding="utf-8").partition("<!-- claims -->")
    after = rest.partition("<!-- /claims -->")[2]
    readme.write_text(
        f"{before}<!-- claims -->\n{markdown_table(rows)}\n<!-- /claims -->{after}",
        encoding="utf-8",
    )


def trend(table: pd.DataFrame, rule: str) -> str:
    """ACC over lambda1 for either entropy, by one rule."""
    grid = labelled(table[table["grid"] & (table["method"] == "crlc")])
    said = []
    for (data, entropy), part in grid.groupby(["data", "entropy"], sort=False):
        values = ", ".join(
            f"{spread(v)} at λ1 = {k:g}" for k, v in part.groupby("lambda1")[f"{rule}_acc"]
        )
        said.append(
            f"{data}, entropy of {ENTROPY[entropy]}: {values} (n = {part.groupby('lambda1').size().min()} each)"
        )
    return (
        ("ACC in percent: " + "; ".join(said) + ".")
        if said
        else "No runs yet: `make study` makes them."
    )


def linear_time(b: int = 512, k: int = 10, h: int = 10, repeats: int = 15) -> str:
    """Forward and backward of the linear and of the B x B form, interleaved in one process; the least of each, for a page is made
    while others are."""
    logits = (
        torch.randn(2, h, b, k, generator=torch.Generator().manual_seed(0)).mul_(3).requires_grad_()
    )

    def linear():
        return losses.probability_contrast(*losses.smooth(logits.softmax(-1), 0.01))

    def pairwise():
        return losses.info_nce(
            losses.pairwise_log_dot(torch.cat(list(losses.smooth(logits.softmax(-1), 0.01)), -2))
        )

    seconds = {linear: [], pairwise: []}
    for _ in range(repeats):
        for form, times in seconds.items():
            began = time.perf_counter()
            form().sum().backward()
            times.append(time.perf_counter() - began)
    fast, slow = (min(times) for times in seconds.values())
    difference = float((linear() - pairwise()).detach().abs().max())
    return (
        f"B = {b}, K = {k}, H = {h}, forward and backward, least of {repeats}: {1e3 * fast:.1f} ms against {1e3 * slow:.0f} ms for the B × B form, "
        f"**{slow / fast:.0f} times** faster on {torch.get_num_threads()} threads; largest difference between the values {difference:.1e} nats."
    )


def cost(table: pd.DataFrame) -> str:
    """Compute a run and in all, by device."""
    if not len(table):
        return "No runs yet: `make study` makes them."
    lines = [
        f"{len(part)} runs on {device}, {part['seconds'].median():.0f} s a run in the median (least {part['seconds'].min():.0f}), "
        f"{part['seconds'].sum() / 3600:.1f} hours in all"
        for device, part in table.groupby("device_name")
    ]
    return (
        "Training time: "
        + "; ".join(lines)
        + ". Several runs share the cores of a machine, so a run alone is quicker."
    )
