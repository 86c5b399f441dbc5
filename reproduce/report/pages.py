"""The pages of many runs: every notebook that reads them, a table of all runs, and an overview."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from IPython.lib import lexers  # noqa: F401  the same

from reproduce.files import ROOT
from reproduce.report import citable, claims, names, results
from reproduce.runs.directory import whole_or_left_out
from reproduce.runs.executed import execute, quantize_png, to_html, write
from reproduce.settings import ConfigError

FIRST = ("report", "entropy", "details", "methods", "embeddings")  # in this order, then the others
OWN = {  # pages whose text also fits the runs of one machine, and which runs each of them needs
    "entropy": "runs of CRLC with the settings of digits-quick and two or more values of lambda1",
    "methods": "runs of CRLC and of another method with the settings of digits-quick",
    "embeddings": "runs of seed 0 on all images, with labels, that keep an embedding",
}
ONE_RUN = "train", "linear_evaluation", "features", "clusters"  # about one run: without a page
TABLE_RULES = [r for r in results.RULES if r not in ("kmeans_pixels", "neighbour_vote")]


def notebooks() -> list[Path]:
    """The notebooks that read many runs, in the order of their pages."""
    found = {p.stem: p for p in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    names = dict.fromkeys([*FIRST, *found])
    return [found[name] for name in names if name in found and name not in ONE_RUN]


def build(results_dir: str | Path = ROOT / "results" / "local", jobs: int = 2) -> Path:
    """Execute the notebooks on the runs below a folder, ``jobs`` at a time, and write their pages,
    runs.html, index.html and results.json there. Returns the path of index.html.

    Raises ConfigError if the folder has no finished run, or if a notebook fails on the committed
    runs. Of other runs, which may be too few for a notebook, only the pages ``OWN`` are made, and
    one that fails is left out with a sentence on stderr.
    """
    folder = Path(os.path.expanduser(results_dir)).resolve()
    runs = results.load(folder)
    if runs.empty:
        raise ConfigError(f"results_dir: {str(folder)!r} has no finished run yet")
    committed = folder == ROOT / "results"
    parameters = {} if committed else {"results_dir": str(folder)}

    def run(notebook: Path) -> str:
        try:
            execute(notebook, folder / notebook.name, **parameters)
        except ConfigError as error:
            if committed:
                raise
            needs = f"{notebook.stem}.html needs {OWN[notebook.stem]}"
            print(f"page left out: {needs} ({error})", file=sys.stderr)
            return ""
        return notebook.stem

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        chosen = [path for path in notebooks() if committed or path.stem in OWN]
        done = pool.map(run, chosen)
        for path in results.load(folder, under_way=True)["path"]:  # meanwhile, each run's page
            for executed in (Path(path) / f"{stem}.ipynb" for stem in ("train", "clusters")):
                with whole_or_left_out(executed):
                    if executed.exists():
                        to_html(executed, executed.with_suffix(".html"), up="../../../")
        measured = claims.measure(runs)
        made = [stem for stem in done if stem]
    shared = {"pages": made, "committed": committed}
    for stem in made:
        to_html(folder / f"{stem}.ipynb", folder / f"{stem}.html", **shared)
    measured = measured[committed | (measured["verdict"] != "not run")]
    shared |= {
        "rows": settings_rows(runs, folder),
        "names": [results.RULES[r] for r in TABLE_RULES],
    }
    shared |= {"cards": [card(folder / f"{stem}.ipynb") for stem in made]}
    shared |= {"left_out": {stem: OWN[stem] for stem in OWN if stem not in made and not committed}}
    shared |= {"claims": claim_rows(measured, folder, made)}
    title = (
        "Deep image clustering: a study of the gap between 79.9 and 40.9 %"
        if committed
        else "The runs of this machine"
    )
    citable.write(folder, runs)
    write(folder / "runs.html", "runs", "All runs", **shared)
    write(folder / "index.html", "overview", title, n_runs=len(runs), **shared)
    return folder / "index.html"


def card(executed: Path) -> dict:
    """What the overview shows of an executed notebook: its title, first sentence, first picture."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    title, _, text = "".join(cells[0]["source"]).lstrip("# ").partition("\n")
    first = text.strip().split("\n\n")[0].replace("\n", " ")
    sentence = re.match(r"(.{40,}?[.?!](?= [A-Z])|.*)", re.sub(r"[*`]", "", first))[0]
    data = [o.get("data", {}) for cell in cells for o in cell.get("outputs", [])]
    pngs = [d["image/png"] for d in data if "image/png" in d]
    small = quantize_png(base64.b64decode(pngs[0]), 32, width=440) if pngs else b""
    picture = base64.b64encode(small).decode()
    return {
        "href": quote(f"{executed.stem}.html"),
        "title": title,
        "text": sentence,
        "png": picture,
    }


def settings_rows(runs: pd.DataFrame, folder: Path) -> list[dict]:
    """What runs.html shows: one row per setting, its seeds together."""
    rows = []
    for (data, method, _), same in runs.groupby(["data", "method", "setting"], sort=False):
        scores = 100 * same[[*(f"{rule}_acc" for rule in TABLE_RULES), "knn_acc"]].astype(float)
        links = [_page_of_run(path, folder) for path in same["path"]]
        row = {"data": data, "method": names.METHODS.get(method, method)}
        row["setting"] = results.in_words(same.iloc[0])
        row |= {"collapsed": int(same["collapsed"].sum())}
        row |= {"n": len(same), "seconds": same["seconds"].median(), **_curve(same)}
        scores, seeds = zip(scores.mean(), scores.std()), zip(same["seed"], links)
        rows.append(row | {"scores": [*scores], "seeds": [*seeds]})
    return rows


def claim_rows(measured: pd.DataFrame, folder: Path, made: list[str]) -> list[dict]:
    """What index.html shows: one row per claim, with links to its section, where that page was
    made, and to its runs."""
    rows = []
    for claim in measured.to_dict("records"):
        page, _, anchor = claims.section(claim["section"])
        href = f"{page}.html#{anchor}" if page in made else ""
        runs = [(seed, _page_of_run(path, folder)) for seed, path in claim["runs"]]
        rows.append(claim | {"href": href, "runs": runs})
    return rows


def _page_of_run(path: str, folder: Path) -> str:
    """The page of a run, or its directory where it has none, as seen from a folder."""
    page = Path(path) / "train.html"
    there = page if page.exists() else Path(path)
    return quote(os.fsencode(there.relative_to(folder)))  # a folder's name is no scheme, as a:b/


def _curve(runs: pd.DataFrame) -> dict:
    """A line 60 wide and 18 high: ACC from 0 to 1 over the epochs, the mean over the seeds."""
    history = results.history(runs)
    for rule in ("aligned_average_acc", "kmeans_embedding_acc"):
        if rule in history and history[rule].notna().any():
            acc = history.groupby("epoch")[rule].mean().dropna()
            x, y = 60 * acc.index / acc.index.max(), 17 - 16 * acc
            line = "L".join(f"{a:.0f} {b:.1f}" for a, b in zip(x, y))
            return {"curve": "M" + line, "said": f"{acc.iloc[0]:.0%} to {acc.iloc[-1]:.0%}"}
    return {}
