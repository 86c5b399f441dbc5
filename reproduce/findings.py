"""Sentences and small tables that read a study: computed from the table of runs, so that prose cannot drift from numbers."""

from __future__ import annotations

import time

import pandas as pd
import torch

from reproduce import losses
from reproduce.config import read_settings
from reproduce.report import mean_and_spread
from reproduce.runs import ROOT, same_settings

NO_RUNS = "*No runs yet: `make study` makes them.*"
FACTORS = {  # each point of the course reproduction that digits can show, as it departs from the authors'
    "entropy of each sample, smoothed": {"entropy": "sample", "entropy_smoothed": True},
    "heads without bias, torch's initialisation": {"head_init": "torch", "head_bias": False},
    "weight decay on every parameter": {"decay": "all"},
    "no logit clamp": {"logit_clamp": 0.0},
    "no normalisation": {"normalize": False},
    "views apart": {"views": "apart"},
    "batch norm over half a batch": {"batchnorm_split": 2},
    "endless sampler": {"sampler": "endless"},
    "train on 80 %, score the rest": {"split": "test"},
}


def scope(runs: pd.DataFrame) -> str:
    if not len(runs):
        return NO_RUNS
    devices = " and ".join(sorted(runs["device_name"].unique()))
    return f"{len(runs)} runs of CRLC on digits, {runs['hash'].nunique()} settings with their seeds, on {devices}."


def entropy_gap(study: pd.DataFrame, column: str = "lowest_loss_head_acc") -> str:
    """Batch mean against per sample at lambda1 = 1."""
    at = study[study["lambda1"] == 1.0] if len(study) else study
    batch, sample = (at[at["entropy"] == e][column] if len(at) else at for e in ("batch", "sample"))
    if not len(batch) or not len(sample):
        return NO_RUNS
    gap = 100 * (batch.mean() - sample.mean())
    return (f"At λ1 = 1 the lowest-loss head reaches **{mean_and_spread(batch)} %** with the batch mean and **{mean_and_spread(sample)} %** "
            f"per sample: {gap:+.1f} points for reading one word otherwise. k-means on raw pixels has {100 * at['kmeans_pixels_acc'].mean():.1f} %.")


def lambda1_trend(study: pd.DataFrame, column: str = "aligned_average_acc") -> str:
    if not len(study):
        return NO_RUNS
    said = []
    for entropy, text in (("sample", "per sample"), ("batch", "of the batch mean")):
        part = study[study["entropy"] == entropy].groupby("lambda1")[column]
        if len(part):
            said.append(f"{text}: " + ", ".join(f"{mean_and_spread(v)} at λ1 = {k:g}" for k, v in part))
    return "Measured, aligned average, ACC in percent; " + "; ".join(said) + "."


def selection(study: pd.DataFrame) -> str:
    """What each rule for ten heads costs against the oracle, over the batch-mean runs with lambda1 = 1."""
    part = study[(study["lambda1"] == 1.0) & (study["entropy"] == "batch")] if len(study) else study
    if not len(part):
        return NO_RUNS
    best = part["best_head_oracle_acc"]
    rules = {"first head": "first_head", "mean over heads": "mean_of_heads", "lowest-loss head": "lowest_loss_head", "aligned average": "aligned_average"}
    lost = [f"the {text} {mean_and_spread(part[f'{rule}_acc'])} ({100 * (part[f'{rule}_acc'] - best).mean():+.1f} points)" for text, rule in rules.items()]
    return (f"Batch-mean entropy, λ1 = 1, ACC in percent and, in brackets, against the best head by label, which reaches {mean_and_spread(best)}: "
            + "; ".join(lost) + ".")


def closed_form(n: int = 512, k: int = 10, gamma: float = 0.01) -> pd.DataFrame:
    """The probability contrast and either entropy for three extreme predictions, from the losses themselves."""
    predictions = {
        "uniform": torch.full((n, k), 1 / k),
        "balanced one-hot": torch.eye(k)[torch.arange(n) % k],
        "all in one cluster": torch.eye(k)[torch.zeros(n, dtype=torch.long)],
    }
    rows = {}
    for text, p in predictions.items():
        smoothed = losses.smooth(p.double(), gamma)
        contrast = losses.probability_contrast(smoothed, smoothed)
        sample, batch = losses.sample_entropy(smoothed), losses.batch_entropy(p.double())
        objectives = {"course, λ1 = 1": contrast - sample, "course, 0.3": contrast - 0.3 * sample, "course, 0.1": contrast - 0.1 * sample,
                      "authors, λ1 = 1": contrast - batch, "authors, 2": contrast - 2 * batch}
        rows[text] = {"PC": contrast, "entropy of each sample": sample, "of the batch mean": batch, **objectives}
    return pd.DataFrame.from_dict(rows, orient="index").map(lambda t: f"{float(t) + 0:.3f}")


def linear_time(b: int = 512, k: int = 10, h: int = 10, repeats: int = 5) -> str:
    """Forward and backward of the linear and of the B x B form, in one process, interleaved; medians."""
    logits = torch.randn(2, h, b, k, generator=torch.Generator().manual_seed(0)).mul_(3).requires_grad_()

    def linear():
        return losses.probability_contrast(*losses.smooth(logits.softmax(-1), 0.01))

    def pairwise():
        return losses.info_nce(losses.pairwise_log_dot(losses.smooth(logits.softmax(-1), 0.01).transpose(0, 1).flatten(1, 2)))

    seconds = {linear: [], pairwise: []}
    for _ in range(repeats):
        for form, times in seconds.items():
            began = time.perf_counter()
            form().sum().backward()
            times.append(time.perf_counter() - began)
    fast, slow = (sorted(times)[repeats // 2] for times in seconds.values())
    difference = float((linear() - pairwise()).abs().max())
    return (f"B = {b}, K = {k}, H = {h}, forward and backward, medians of {repeats}: {1e3 * fast:.1f} ms against {1e3 * slow:.0f} ms for the B × B form, "
            f"**{slow / fast:.0f} times** faster on {torch.get_num_threads()} threads; largest difference between the two values {difference:.1e} nats.")


def factor_rows(runs: pd.DataFrame, column: str = "lowest_loss_head_acc") -> pd.DataFrame:
    """Rows "end", "factor", "acc": each factor changed alone, from our baseline and from the course's settings."""
    course = read_settings(ROOT / "notebooks" / "settings" / "digits-course.yaml")
    default = same_settings(runs)
    rows = [{"end": "from the baseline", "factor": "baseline", "acc": a} for a in default[column]]
    rows += [{"end": "from the baseline", "factor": text, "acc": a}
             for text, change in FACTORS.items() for a in same_settings(runs, **change)[column]]
    rows += [{"end": "from the course", "factor": "the course's settings", "acc": a} for a in same_settings(runs, **course)[column]]
    from reproduce.config import Config
    authors = Config().identity()
    for text, change in FACTORS.items():
        if all(course.get(name) == value for name, value in change.items()):
            undone = {**course, **{name: authors[name] for name in change}}
            rows += [{"end": "from the course", "factor": f"undone: {text}", "acc": a} for a in same_settings(runs, **undone)[column]]
    return pd.DataFrame(rows, columns=["end", "factor", "acc"])


def factors(runs: pd.DataFrame) -> pd.DataFrame:
    """ACC by factor, mean, deviation and n, with the difference from its end's reference in points."""
    if not len(runs):
        return pd.DataFrame()
    rows = factor_rows(runs)
    lines = []
    for end, part in rows.groupby("end", sort=False):
        reference = part.loc[part["factor"] == part["factor"].iloc[0], "acc"]
        for factor, values in part.groupby("factor", sort=False)["acc"]:
            gap = 100 * (values.mean() - reference.mean())
            error = 100 * (values.var() / len(values) + reference.var() / len(reference)) ** 0.5
            shown = "" if factor == part["factor"].iloc[0] else f"{gap:+.1f} ± {error:.1f}"
            lines.append({"": end, "factor": factor, "lowest-loss head ACC, %": mean_and_spread(values), "difference ± standard error": shown})
    return pd.DataFrame(lines).set_index("")


def factors_verdict(runs: pd.DataFrame) -> str:
    if not len(runs):
        return NO_RUNS
    means = factor_rows(runs).groupby(["end", "factor"], sort=False)["acc"].mean()
    if "from the course" not in means or "from the baseline" not in means:
        return NO_RUNS
    said = []
    for end, sign in (("from the baseline", -1), ("from the course", 1)):
        gaps = 100 * (means[end].iloc[1:] - means[end].iloc[0])
        if len(gaps):
            most = (sign * gaps).idxmax()
            said.append(f"{end} the largest effect is *{most}* ({gaps[most]:+.1f} points)")
    return "Lowest-loss head: " + "; ".join(said) + "."


def cost(runs: pd.DataFrame) -> str:
    if not len(runs):
        return NO_RUNS
    lines = [f"{len(part)} runs on {device}: {part['seconds'].median():.0f} s a run in the median, {part['seconds'].sum() / 3600:.1f} hours in all"
             for device, part in runs.groupby("device_name")]
    return "Training time: " + "; ".join(lines) + ". Two runs share the two cores of the machine, so a run alone is quicker."
