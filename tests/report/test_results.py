"""What lies in results/ was made by the project as some commit holds it, and without a failure."""

import json
import re
import subprocess

import nbformat
import pytest

from reproduce.files import ROOT
from reproduce.networks import backbones
from reproduce.runs.directory import find
from reproduce.runs.trained import load_weights

EXECUTED = sorted(
    p
    for p in (ROOT / "results").rglob("*.ipynb")
    if "local" not in p.relative_to(ROOT / "results").parts and ".ipynb_checkpoints" not in p.parts
)


def failures(notebook) -> list[str]:
    """What speaks against an executed notebook: an exception, or a code cell that no one ran to its
    end."""
    found = []
    if notebook.metadata.get("papermill", {}).get("exception"):
        found.append("papermill stopped at an exception")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip():
            if (
                cell.execution_count is None
                or cell.metadata.get("papermill", {}).get("status", "completed") != "completed"
            ):
                found.append(f"cell {number} was not executed")
            found += [
                f"cell {number} holds a {output.ename}"
                for output in cell.outputs
                if output.output_type == "error"
            ]
    return found


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: str(p.relative_to(ROOT / "results")))
def test_an_executed_notebook_ran_to_its_end(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert failures(notebook) == []
    assert "widgets" not in notebook.metadata and not re.search(
        "application/vnd.jupyter.widget", path.read_text(encoding="utf-8")
    )


def test_there_are_executed_notebooks_and_the_check_has_teeth():
    assert len(EXECUTED) > 4
    notebook = nbformat.read(EXECUTED[0], as_version=4)
    cell = next(c for c in notebook.cells if c.cell_type == "code" and c.source.strip())
    cell.outputs.append(
        nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[])
    )
    assert failures(notebook) == [f"cell {notebook.cells.index(cell)} holds a ValueError"]
    cell.outputs.pop()
    cell.execution_count = None
    assert failures(notebook) == [f"cell {notebook.cells.index(cell)} was not executed"]


@pytest.fixture(scope="module")
def sources():
    """The source hash of every commit, as git knows it."""

    def git(*words, **more):
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, **more
        ).stdout

    try:
        if git("rev-parse", "--is-shallow-repository").strip() == "true":
            pytest.skip("a shallow clone knows the last commit only")
        commits = git("rev-list", "--all").split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no git repository here")
    trees = git(
        "cat-file", "--batch-check", input="".join(f"{commit}:reproduce\n" for commit in commits)
    )
    return {line.split()[0] for line in trees.splitlines() if " tree " in line}


def test_every_run_was_made_by_a_source_that_a_commit_has(sources):
    said = {
        path: json.loads((path / "provenance.json").read_text())["source"]
        for path in find(ROOT / "results")
    }
    assert (
        said
        and {str(path.relative_to(ROOT)) for path, source in said.items() if source not in sources}
        == set()
    )
    assert "0" * 40 not in sources


def test_every_runs_notebook_shows_the_source_of_its_run(sources):
    for path in EXECUTED:
        if (path.parent / "provenance.json").exists():
            shown = re.search(r"source ([0-9a-f]{12}), commit", path.read_text(encoding="utf-8"))
            assert shown and any(source.startswith(shown[1]) for source in sources), path


def test_kept_backbones_are_those_of_their_runs():
    kept = [run for run in find() if (run / "backbone.pt").exists()]
    assert kept
    for run in kept:
        assert (run / "backbone.pt").stat().st_size < 3.1e6, run
        config, metrics, weights = load_weights(run, backbone_alone=True)
        state = {k.removeprefix("backbone."): v for k, v in weights.items()}
        backbones.build(config, 3).load_state_dict(state)
