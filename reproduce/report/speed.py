"""What ``python -m reproduce benchmark`` measured: images a second of the loop and of its parts, beside the usual pipeline."""

from __future__ import annotations

import json

import pandas as pd
from IPython.display import Markdown
from matplotlib.ticker import LogLocator, NullLocator

from reproduce.figures import COLORS
from reproduce.report.study import root

PARTS = {
    "augmentation": "augmentation alone",
    "network": "forward, backward, update",
    "step": "the whole step",
}


def benchmarks(results_dir: str = "") -> list[dict]:
    """The contents of every benchmark*.json below the results folder, by name, those in ``local`` left out; "name" says on which device of what."""
    folder = root(results_dir)
    found = [
        json.loads(p.read_text())
        for p in sorted(folder.rglob("benchmark*.json"))
        if "local" not in p.relative_to(folder).parts
    ]
    return [
        {
            **b,
            "name": f"{b['settings']['backbone']}, {b['image'][1]} pixels, batch {b['settings']['batch_size']}"
            + ", compiled" * b["compile"]
            + f"\n{b['device']}, {b['threads']} threads",
        }
        for b in found
        if "settings" in b
    ]


def table(benchmark: dict) -> pd.DataFrame:
    """A row a precision and layout, to read."""
    rows = pd.DataFrame(benchmark["rows"])
    text = {"precision": rows["precision"], "layout": rows["layout"].str.replace("_", " ")}
    text |= {
        f"{said}, images/s": rows[f"{part}_images_per_second"].map("{:,.0f}".format)
        for part, said in PARTS.items()
    }
    text |= {
        "augmentation's share of the step": rows["augmentation_share"].map("{:.0%}".format),
        "TFLOP/s": rows["tflops"].map("{:.3g}".format),
        "of a matrix product": rows["share_of_product"].map("{:.0%}".format),
        "first step, s": rows["first_step_seconds"].map("{:.0f}".format),
    }
    return pd.DataFrame(text)


def dots(benchmark: dict, ax) -> None:
    """Images a second of each part, a row a precision and layout; the usual pipeline as a line."""
    rows = pd.DataFrame(benchmark["rows"])
    for (part, said), color, marker in zip(PARTS.items(), COLORS, "so^"):
        ax.plot(
            rows[f"{part}_images_per_second"], rows.index, marker, color=color, ms=9, label=said
        )
    ax.set_yticks(rows.index, rows["precision"] + ", " + rows["layout"].str.replace("_", " "))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    if "plain_images_per_second" in benchmark:
        ax.axvline(
            benchmark["plain_images_per_second"],
            color="black",
            ls=":",
            label="the usual pipeline, whole step",
        )
    ax.set(
        xscale="log",
        xlabel="images a second, each in two views (logarithmic)",
        title=benchmark["name"],
    )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def read(found: list[dict]) -> Markdown:
    """What is quickest, how much of it is augmentation, and how it stands beside the usual pipeline."""
    lines = []
    for b in found:
        best = max(b["rows"], key=lambda row: row["step_images_per_second"])
        line = (
            f"- **{b['name'].replace(chr(10), '; ')}**: {best['step_images_per_second']:,.0f} images/s in {best['precision']}, {best['layout'].replace('_', ' ')}, "
            f"{best['augmentation_share']:.0%} of the time for augmentation, {best['share_of_product']:.0%} of what a matrix product reaches"
        )
        if "times_plain" in b:
            line += f"; **{b['times_plain']:.1f} times** the usual pipeline ({b['plain_images_per_second']:,.0f} images/s)"
        lines.append(line + ".")
    return Markdown(
        "\n".join(lines)
        if lines
        else "Nothing measured yet: `python -m reproduce benchmark -f notebooks/settings/cifar10-paper.yaml` measures it."
    )
