"""The pages of many runs: every notebook that reads them, a table of all runs, and an overview."""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from IPython.lib import lexers  # noqa: F401  the same

from reproduce.files import ROOT
from reproduce.report import citable, claims, names, results, run_pages
from reproduce.runs.directory import whole_or_left_out
from reproduce.runs.executed import execute, quantize_png, to_html, write
from reproduce.settings import ConfigError

OWN = {  # pages whose text also fits the runs of one machine, and which runs each of them needs
    "entropy": "runs of CRLC with the settings of digits-quick and two or more values of lambda1",
    "methods": "runs of CRLC and of another method with the settings of digits-quick",
    "embeddings": "runs of seed 0 on all images, with labels, that keep an embedding",
}
SLOWEST = "embeddings", "entropy"  # start first, so that no processor waits for them at the end
# about one run: without a page
ONE_RUN = "train", "linear_evaluation", "features", "clusters", "own_images"


def notebooks() -> list[Path]:
    """The notebooks that read many runs, in the order of their pages."""
    by_stem = {p.stem: p for p in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    order = dict.fromkeys([*names.PAGES, *by_stem])
    return [by_stem[name] for name in order if name in by_stem and name not in ONE_RUN]


def build(results_dir: str | Path = ROOT / "results" / "local", jobs: int = 2) -> Path:
    """Execute the notebooks on the runs below a folder, ``jobs`` at a time, and write their pages,
    a page for each setting, runs.html, index.html and results.json there. Returns the path of
    index.html.

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
        done = pool.map(run, sorted(chosen, key=lambda path: path.stem not in SLOWEST))
        rows = run_pages.settings_rows(runs, folder)  # meanwhile
        whole = {path.stem: _label(path.stem) for path in chosen} if committed else {}
        each_run(rows, folder, whole)
        measured = claims.measure(runs)
        stems = {stem for stem in done if stem}
    made = {path.stem: _label(path.stem) for path in notebooks() if path.stem in stems}
    shared = {"pages": made, "committed": committed}
    seeds = {
        run_pages.relative(Path(path), folder): href
        for row in rows
        for path, (_, href) in zip(row["runs"]["path"], row["seeds"])
    }
    for stem in made:
        page = folder / f"{stem}.html"
        to_html(folder / f"{stem}.ipynb", page, mathematics=True, places=seeds, **shared)
    measured = measured[committed | (measured["verdict"] != "not run")]
    stated = run_pages.claim_rows(measured, runs, [*made])
    run_pages.write_settings(rows, stated, folder, **shared)
    shared |= {"rows": rows, "names": [results.RULES[r] for r in run_pages.SHOWN]}
    shared |= {"cards": [card(folder / f"{stem}.ipynb") for stem in made]}
    shared |= {"left_out": {stem: OWN[stem] for stem in OWN if stem not in made and not committed}}
    shared |= {"claims": stated, "by_id": {claim["id"]: claim for claim in stated}}
    shared |= {
        "ladder": run_pages.ladder(runs) if committed else [],
        "picture": _picture(committed),
    }
    title = (
        "Deep image clustering: a study of the gap between 79.9 and 40.9 %"
        if committed
        else "The runs of this machine"
    )
    citable.write(folder, runs)
    write(folder / "runs.html", "runs", "All runs", **shared)
    write(folder / "index.html", "overview", title, n_runs=len(runs), **shared)
    return folder / "index.html"


def each_run(rows: list[dict], folder: Path, pages: dict[str, str]) -> None:
    """The pages of the runs that have an executed notebook, each with its setting above it.
    pages: those that will surely be made, each with its name."""
    heads = {
        run["path"]: functools.partial(run_pages.head_of_run, row, run, folder)
        for row in rows
        for run in row["runs"].to_dict("records")
    }
    for path in results.load(folder, under_way=True)["path"]:
        for stem in ("train", "clusters"):
            executed = Path(path) / f"{stem}.ipynb"
            with whole_or_left_out(executed):
                if executed.exists():
                    head = heads[path]() if stem == "train" and path in heads else None
                    page = executed.with_suffix(".html")
                    to_html(executed, page, up="../../../", head=head, pages=pages)


def _label(stem: str) -> str:
    return names.PAGES.get(stem, stem.replace("_", " ").capitalize())


def _picture(committed: bool) -> str:
    """The overview's picture, as in the README; empty where there is none."""
    file = ROOT / "figures" / "both_ends.png"
    if not (committed and file.exists()):
        return ""
    return base64.b64encode(quantize_png(file.read_bytes(), 32, width=900)).decode()


def card(executed: Path) -> dict:
    """What the overview shows of an executed notebook: its title, first sentence, first picture
    with the text for those who do not see it."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    title, _, text = "".join(cells[0]["source"]).lstrip("# ").partition("\n")
    first = text.strip().split("\n\n")[0].replace("\n", " ")
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"[*`]", "", first))
    sentence = re.match(r"(.{40,}?[.?!](?= [A-Z])|.*)", plain)[0]
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    shown = next((o for o in outputs if "image/png" in o.get("data", {})), None)
    png = base64.b64decode("".join(shown["data"]["image/png"])) if shown else b""
    small = quantize_png(png, 32, width=440) if png else b""
    about = shown["metadata"].get("image/png", {}) if shown else {}
    picture = base64.b64encode(small).decode()
    return {
        "href": quote(f"{executed.stem}.html"),
        "title": title,
        "text": sentence,
        "png": picture,
        "alt": about.get("alt", "A figure of this page"),
    }
