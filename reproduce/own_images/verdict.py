"""What a clustering is worth, in words, from what needs no label."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from reproduce.files import read_json
from reproduce.own_images.stability import agreement, choose_k, table_of

SOUND, FAIR = 0.8, 0.6  # agreement between heads: 0.86 to 0.99 on folders where ACC was above 90 %
COLLAPSED = 0.9  # share of the largest cluster
SMALL = 0.1  # of the mean size


@dataclass(frozen=True)
class Verdict:
    """level: "sound", "mixed", "poor" or "collapsed"; agreement: mean adjusted Rand index between
    heads, or starts of k-means; largest: share of the largest cluster; empty, small: clusters
    without images, or with less than a tenth of the mean; sentence: all that in words."""

    level: str
    agreement: float
    largest: float
    empty: int
    small: int
    sentence: str

    def json(self) -> dict:
        said = asdict(self)
        return {**said, "agreement": None if np.isnan(self.agreement) else self.agreement}


def judge(sizes: np.ndarray, votes: np.ndarray, voters: str = "heads") -> Verdict:
    """A verdict on clusters of ``sizes`` ``[K]``, on which votes ``[V, M]`` were cast. voters: what
    they are called."""
    agreed, n = agreement(votes), max(1, int(sizes.sum()))
    largest, empty = float(sizes.max() / n), int((sizes == 0).sum())
    small = int(((sizes > 0) & (sizes < SMALL * n / len(sizes))).sum())
    who = f"{len(votes)} {voters} from random starts of their own"
    said = f"{who} agree by {agreed:.2f} (1: the same)"
    if largest > COLLAPSED and len(sizes) > 1:
        level, words = "collapsed", f"{largest:.0%} of the images are in one cluster: do not use it"
    elif np.isnan(agreed) or len(votes) < 2:
        level, words = "mixed", "nothing says how sure it is: there is one vote"
    elif agreed >= SOUND:
        hint = "the pictures say whether you want them"
        level, words = "sound", f"The clusters are stable: {said}; {hint}"
    elif agreed >= FAIR:
        level, words = "mixed", f"The clusters hold for most images: {said}; look at the doubtful"
    else:
        advice = "try another K, other weights, or more images"
        level, words = "poor", f"The clusters are mostly arbitrary: {said}; {advice}"
    notes = []
    if empty:
        notes.append(f"{empty} of {len(sizes)} clusters are empty, K is too large")
    if small:
        notes.append(f"{small} {'is' if small == 1 else 'are'} very small")
    return Verdict(level, agreed, largest, empty, small, "; ".join([words, *notes]) + ".")


def sentence_of(run: Path) -> str:
    """What was said of a run when it was made, and how its K was chosen; '' where nothing was."""
    path, table = run / "verdict.json", table_of(run)
    said = [read_json(path)["sentence"]] if path.exists() else []
    return " ".join(said + ([] if table is None else [f"{choose_k(table)[1]}."]))
