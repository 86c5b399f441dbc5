"""From run directories to pages: tables, the figure notebooks executed, HTML that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template

from PIL import Image

from reproduce.config import ConfigError
from reproduce.runs import ROOT, find

NOTEBOOKS = {
    "report": "The report: what was claimed, what came out, what it cost",
    "results": "The tables: every method, ours beside the published figures, what the evaluation alone is worth",
    "what_mattered": "From the course's number to the authors', a detail at a time",
    "ablations": "CRLC's own ablations: critic, heads, weight of the feature contrast, smoothing",
    "deepcluster": "DeepCluster: pseudo-labels over the epochs, and what each convolution has learned",
    "probabilities": "How cluster probabilities move while a network learns",
    "embeddings": "The learned features, by label and by cluster",
    "benchmark": "How fast the loop is, beside the usual pipeline",
}


def execute(notebook: Path, executed: Path, **parameters) -> None:
    """papermill, in a process of its own; ConfigError with the last line of what it said if it fails."""
    words = [w for k, v in parameters.items() for w in ("-r", k, str(v))]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(notebook),
            str(executed),
            "--no-progress-bar",
            *words,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ConfigError(f"{notebook.name}: {lines[-1]}")


def strip_paths_and_times(executed: Path) -> None:
    """Leave in an executed notebook what is worth keeping: paths relative to the repository (where it lay is nobody's
    concern), pictures of few colours, no clock times of single cells."""
    content = json.loads(executed.read_text(encoding="utf-8").replace(f"{ROOT}/", ""))
    for cell in content["cells"]:
        for times in ("execution", "papermill"):
            cell["metadata"].pop(times, None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = base64.b64encode(
                    quantize_png(base64.b64decode("".join(data["image/png"])))
                ).decode()
    executed.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def quantize_png(png: bytes, n: int = 64) -> bytes:
    """The picture with at most n colours, about a third of its size; one that has a palette already stays as it is.

    Maximum coverage and k-means: a median cut gives thin lines the colour of their neighbours.
    """
    picture = Image.open(io.BytesIO(png))
    if picture.mode == "P":
        return png
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    smaller = io.BytesIO()
    flat.quantize(n, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        smaller, "PNG", optimize=True
    )
    return min(png, smaller.getvalue(), key=len)


def build(results_dir: str = "") -> Path:
    """Execute the figure notebooks, render them, write ``index.html``; returns its path."""
    results = Path(results_dir).resolve() if results_dir else ROOT / "results"

    def render(name: str) -> None:
        executed = results / f"{name}.ipynb"
        execute(ROOT / "notebooks" / f"{name}.ipynb", executed, results_dir=results_dir)
        strip_paths_and_times(executed)
        to_html(executed, executed.with_suffix(".html"))

    with ThreadPoolExecutor(
        2
    ) as pool:  # each in a process of its own; the one that takes longest first
        list(pool.map(render, sorted(NOTEBOOKS)))
    index = results / "index.html"
    index.write_text(
        page("Deep image clustering, reproduced", index_body(results)), encoding="utf-8"
    )
    return index


def index_body(results: Path) -> str:
    figure = os.path.relpath(ROOT / "figures" / "lambda1.png", results)
    links = "".join(
        f'<li><a href="{name}.html">{name}</a>: {html.escape(text)}</li>'
        for name, text in NOTEBOOKS.items()
    )
    parts = [
        "<h1>Deep image clustering, reproduced</h1>",
        "<p>Clustering accuracy against the weight of the entropy, for the two readings of that entropy. "
        "The pages below need no network; every number in them comes from a run directory listed at the end.</p>",
        f'<p><a href="results.html"><img src="{figure}" alt="accuracy against lambda1 for two entropies" width="760"></a></p>',
        f"<ul>{links}</ul>",
    ]
    for title, folder in (
        ("Runs on this machine", results / "local"),
        ("The committed study", results),
    ):
        if runs := find(folder):
            parts.append(f"<h2>{title} ({len(runs)})</h2>{runs_table(runs, results)}")
    return "\n".join(parts)


def runs_table(runs: list[Path], results: Path) -> str:
    """One line a run with its accuracies without labels; the name leads to its notebook or its metrics."""
    rules = {
        "lowest_loss_head": "lowest-loss head",
        "aligned_average": "aligned average",
        "kmeans_embedding": "k-means, features",
    }
    head = f"<tr><th>run</th>{''.join(f'<th>{text}<br>ACC, %</th>' for text in rules.values())}<th>seconds</th><th>device</th></tr>"
    lines = []
    for run in runs:
        metrics, origin = (
            json.loads((run / f"{f}.json").read_text()) for f in ("metrics", "provenance")
        )
        target = next(f for f in ("train.html", "metrics.json") if (run / f).exists())
        link = html.escape(os.path.relpath(run / target, results))
        acc = [
            f"{100 * metrics['scores'][r]['acc']:.1f}" if r in metrics["scores"] else "–"
            for r in rules
        ]
        cells = [
            f'<a href="{link}">{html.escape(str(run.relative_to(results)))}</a>',
            *acc,
            f"{metrics['seconds']:.0f}",
            html.escape(origin["device"]),
        ]
        lines.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f'<div class="wide"><table>{head}{"".join(lines)}</table></div>'


def to_html(executed: Path, page_path: Path) -> None:
    """An executed notebook as one page with its pictures inside: no script, no address of any network."""
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    notebook = nbformat.read(executed, as_version=4)
    title = next(
        (
            line.lstrip("# ")
            for cell in notebook.cells
            if cell.cell_type == "markdown"
            for line in cell.source.splitlines()
            if line.startswith("# ")
        ),
        executed.stem,
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = body.replace("<title>Notebook</title>", "")
    body = re.sub(
        r'<span class="(?:n|p|w)">([^<]*)</span>', r"\1", body
    )  # names, brackets and spaces have no colour
    page_path.write_text(
        page(title, body, HtmlFormatter(style="friendly").get_style_defs(".highlight")),
        encoding="utf-8",
    )


def page(title: str, body: str, style: str = "") -> str:
    return PAGE.substitute(title=html.escape(title), body=body, style=style)


PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2733; max-width: 58rem; margin: 2rem auto; padding: 0 1.2rem; }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em; } h1 { margin-top: 0; }
a { color: #0b5fa5; } .anchor-link { display: none; }
img { max-width: 100%; height: auto; }
pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
code { font: .88em ui-monospace, Menlo, Consolas, monospace; }
.highlight { background: #f5f7f9; border-left: 3px solid #c9d3dd; padding: .5rem .8rem; margin: .8rem 0 .4rem; }
.jp-RenderedText, .jp-RenderedHTMLCommon { margin: .4rem 0; overflow-x: auto; }
.jp-OutputArea-output > pre, .jp-RenderedText pre { padding: .3rem .8rem; color: #39424d; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; } .wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #dfe5ea; text-align: right; vertical-align: top; }
th { border-bottom: 2px solid #9fadba; } td:first-child, th:first-child { text-align: left; }
$style
</style></head>
<body>
$body
</body></html>
""")
