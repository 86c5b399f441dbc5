"""The project's own files agree with each other."""

import ast
import contextlib
import graphlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from reproduce.files import ROOT


def pins(text):
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.M))


def test_conda_and_pip_make_the_same_environment():
    constraints = pins((ROOT / "constraints.txt").read_text())
    direct = pins((ROOT / "constraints.txt").read_text().split("# what these stand on")[0])
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    assert isinstance(environment["dependencies"][-1], dict), "pip: comes last"
    python = next(
        d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python=")
    )
    by_pip = environment["dependencies"][-1]["pip"]
    assert by_pip[-1] == "-e ."
    assert pins("\n".join(by_pip)) == direct
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["test"]
    ]
    assert {r.name.lower() for r in wanted} == {name.lower() for name in direct}
    lower = {name.lower(): version for name, version in constraints.items()}
    for requirement in wanted:
        assert requirement.specifier.contains(lower[requirement.name.lower()]), requirement
    assert Requirement(f"python{project['requires-python']}").specifier.contains(
        python.removeprefix("python=")
    )


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.11.5", "3.12.0", "3.13.0", "3.14.0"])
def test_every_pin_installs_on_every_python_that_readme_names(python):
    """By what the packages that are installed here say of themselves."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    there = {"python_full_version": python}
    wanted = [pin for pin in pinned if not pin.marker or pin.marker.evaluate(there)]
    names = [p.name.lower() for p in wanted]
    assert len(names) == len({*names}) == len({p.name.lower() for p in pinned})
    for pin in wanted:
        with contextlib.suppress(PackageNotFoundError):  # of an extra
            about = metadata(pin.name)
            if pin.specifier.contains(about["Version"]):
                takes = SpecifierSet(about["Requires-Python"] or "")
                assert takes.contains(python), f"{pin} takes {takes}"


def test_what_the_package_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    declared = {Requirement(word).name.lower() for word in words}
    files = {file: ast.parse(file.read_text("utf-8")) for file in ROOT.glob("reproduce/**/*.py")}
    of_module = packages_distributions()
    for file, tree in files.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in {name.split(".")[0] for name in names} - {"reproduce"}:
                if module not in sys.stdlib_module_names and module in of_module:
                    assert declared & {d.lower() for d in of_module[module]}, (file, module)


# a path that only one machine has
ABSOLUTE = r"""(?:[\"' >=(])(?:/(?!usr/bin/env|proc/cpuinfo|path/to)[A-Za-z]\w*/[\w.-]|[A-Z]:\\)"""


def test_what_an_absolute_path_is():
    for text in (
        '"/data/images"',
        "results_dir = '/srv/x/results'",
        ">/opt/a.b/c<",
        r"'C:\runs'",
        "data /mnt/disk/cifar10.npz",
    ):
        assert re.search(ABSOLUTE, text, re.M), text
    for text in (
        "images/s",
        "results/local",
        "</td>",
        "font: 16px/1.55 system-ui",
        "https://example.org/a/b",
        "a / b",
        "#!/usr/bin/env python3",
    ):
        assert not re.search(ABSOLUTE, text, re.M), text


def test_no_file_names_a_machine_or_a_registry():
    for path in [
        *ROOT.glob("*.*"),
        *ROOT.glob("reproduce/**/*.py"),
        *ROOT.glob("notebooks/**/*.*"),
        ROOT / "Makefile",
    ]:
        if path.is_file() and path.name != ".git" and path.suffix not in (".png", ".jpg", ".pyc"):
            assert not re.search(
                ABSOLUTE + r"|index-url|pypi\.org/simple", path.read_text(encoding="utf-8"), re.M
            ), path


def test_no_executed_notebook_tells_where_it_lay():
    for path in (
        p
        for p in (ROOT / "results").rglob("*.*")
        if p.suffix in (".ipynb", ".html", ".json") and "local" not in p.parts
    ):
        assert not re.search(ABSOLUTE, path.read_text(encoding="utf-8"), re.M), path


def test_the_readme_names_files_that_exist():
    for name in re.findall(
        r"`((?:notebooks|reproduce|results|figures|tests)/[\w./-]+)`",
        (ROOT / "README.md").read_text(),
    ):
        assert (ROOT / name).exists() or "<" in name or name.startswith("results/local"), name


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]])
def test_code_is_formatted_and_no_line_is_longer_than_100_columns(words):
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("folder", ["price $5", "a b/c", "it's", 'a "b" `id` $(id) #1', "$HOME \\"])
def test_make_hands_a_folders_name_over_as_it_is(folder):
    command = ["make", "--dry-run", "clusters", f"FOLDER={folder}", "K=3", "ARGS=-p seed 1"]
    # by `make test` this make is a child of another, which would set its flags
    outside = {
        name: os.environ[name] for name in os.environ if not name.startswith(("MAKE", "MFLAGS"))
    }
    done = subprocess.run(
        command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True
    )
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[-6:] == ["clusters", folder, "3", "-p", "seed", "1"]


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_types_of_the_method_and_its_loop(pytestconfig):
    """Of the files in pyproject.toml's [tool.mypy]; a second time from pytest's cache."""
    pytest.importorskip("mypy")
    cache = str(pytestconfig.cache.mkdir("mypy"))
    command = [sys.executable, "-m", "mypy", "--cache-dir", cache]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_names_every_file_and_folder_of_the_package():
    section = README.split("## Reading the code")[1]
    named = set(re.findall(r"`(\w+(?:\.py|/))`", section))
    package = ROOT / "reproduce"
    files = {file.name for file in package.glob("[a-z]*.py")}
    folders = {f"{file.parent.name}/" for file in package.glob("*/__init__.py")}
    assert named == files | folders | {"reproduce/"}


def prose(markdown: str) -> str:
    """A page's words: without code, tables, pictures and addresses."""
    text = re.sub(r"^```.*?^```|^\|.*?$|!\[[^\]]*\]\([^)]*\)", "", markdown, flags=re.S | re.M)
    return re.sub(r"\]\([^)]*\)", "", text)


def test_readme_is_read_in_a_minute():
    """Its first screen says what is not reproduced; the rest is linked, and fits a page's width."""
    lines = README.splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 100
    assert "**Not reproduced:**" in "\n".join(lines[:24])
    code = [line for block in README.split("```")[1::2] for line in block.splitlines()]
    assert max(map(len, code)) <= 90
    assert len(prose(README).split()) <= 700
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) >= 12
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, at its head or within a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reproduce":
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_no_circle_of_imports():
    """Not even by an import within a function, nor of a package by its own modules."""
    files = {}
    for file in (ROOT / "reproduce").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph = {name: imported(file) & {*files} - {"reproduce"} for name, file in files.items()}
    for name in graph:  # importing a module runs its package first
        graph[name] -= {name.rpartition(".")[0]}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names one
    # nor between folders, or a folder and a file beside it
    rooms: dict[str, set[str]] = {}
    for name, wanted in graph.items():
        room = ".".join(name.split(".")[:2])
        rooms.setdefault(room, set()).update(".".join(one.split(".")[:2]) for one in wanted)
        rooms[room] -= {room}
    list(graphlib.TopologicalSorter(rooms).static_order())


def test_python_ends_without_a_search_among_all_objects():
    """What is registered first comes last: after the package's own word."""
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); "
    command = [sys.executable, "-c", code + "from reproduce import fit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10_000
