"""What must not change: each of these kept another's file or name from running, or a run's from
being lost."""

import ast
import base64
import hashlib
import os

import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup

from reproduce.files import ROOT, atomic
from reproduce.networks import weights
from reproduce.own_images import look
from reproduce.report import pages
from reproduce.runs.html import sanitise
from reproduce.runs.yaml_files import read_settings
from reproduce.settings import ConfigError

HOSTILE = "<img src=x onerror=alert(1)>"


class Marks:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a function or method of this name in the package: (file, call)."""
    found = []
    for file in [*(ROOT / "reproduce").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                found.append((file.name, node))
    return found


# ---- files that are read


def test_no_file_of_weights_runs_code(tmp_path):
    file, marked = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"backbone": Marks(marked)}, file)
    with pytest.raises(ConfigError):
        weights.read_state(file)
    assert not marked.exists()
    torch.load(file, weights_only=False)
    assert marked.exists(), "the file does run code where it is let"


def test_every_file_of_tensors_is_read_as_weights_only():
    loads = calls("torch.load")
    assert len(loads) >= 2
    for file, call in loads:
        safe = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert safe.get("weights_only") == "True", file
    pickles = [file for file, _ in calls("pickle.load") + calls("pickle.loads")]
    assert pickles == ["sets.py"], "CIFAR-100 alone, of which torchvision has checked the digest"
    for file, call in calls("np.load"):
        assert "allow_pickle=True" not in ast.unparse(call), file


def test_no_settings_file_runs_code(tmp_path):
    (tmp_path / "a.yaml").write_text(f"seed: !!python/object/apply:os.mkdir [{tmp_path / 'ran'}]")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_settings(tmp_path / "a.yaml")
    assert not (tmp_path / "ran").exists()
    for unsafe in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        assert not calls(unsafe), unsafe


# ---- pages


@pytest.mark.parametrize("template", ["page", "runs", "overview"])
def test_what_a_page_is_given_is_text(template, tmp_path):
    row = {"data": HOSTILE, "method": HOSTILE, "setting": HOSTILE, "n": 1, "scores": []}
    row |= {"seconds": 1.0, "seeds": [(HOSTILE, HOSTILE)], "curve": "M0 0", "said": HOSTILE}
    claim = dict.fromkeys(["verdict", "sentence", "data", "ours", "shown", "n"], HOSTILE)
    content = {
        "rows": [row],
        "names": [HOSTILE],
        "claims": [claim],
        "n_runs": 1,
        "body": "",
        "left_out": {HOSTILE: HOSTILE},
    }
    content |= {"cards": [dict.fromkeys(["href", "png", "title", "text"], HOSTILE)]}
    contents = [("h2", HOSTILE, HOSTILE)]
    pages.write(tmp_path / "a.html", template, HOSTILE, contents=contents, **content)
    soup = BeautifulSoup((tmp_path / "a.html").read_text(encoding="utf-8"), "html.parser")
    assert soup.title.text == HOSTILE
    assert not soup(attrs={"onerror": True}) and not soup("img", src="x")


@pytest.mark.parametrize("template", ["page", "runs", "overview"])
def test_every_page_lets_a_browser_run_its_own_script_alone(template, tmp_path):
    given = {"rows": [], "names": [], "claims": [], "cards": [], "n_runs": 0, "body": "<h1>a</h1>"}
    path = tmp_path / f"{template}.html"  # the table of runs has a script by that name
    pages.write(path, template, "A", contents=[], **given)
    soup = BeautifulSoup((path).read_text(encoding="utf-8"), "html.parser")
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        blocks = [base64.b64encode(hashlib.sha256(b.string.encode()).digest()) for b in soup(tag)]
        assert rules[name] == (" ".join(f"'sha256-{b.decode()}'" for b in blocks) or "'none'")
    assert len(soup("script")) == (template == "runs") and len(soup("style")) == 1
    assert not soup(style=True) and not soup(onclick=True)


UNSAFE = [
    "<script>alert(1)</script>",
    HOSTILE,
    "<svg onload=alert(1)>",
    "<a href=javascript:alert(1)>a</a>",
    "<a href=' java&#10;script:alert(1)'>a</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>a</a>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<math><mi><style><img title='</style>" + HOSTILE + "'></style></mi></math>",
    "<form action=https://example.org><input name=a></form>",
    "<p style='background:url(https://example.org)' onclick=alert(1)>a</p>",
    "<img src='https://example.org/a.png'>",
    "<base href='https://example.org/'><meta http-equiv=refresh content='0;url=/'>",
    "<object data=a></object><embed src=a><link rel=stylesheet href=a>",
]


@pytest.mark.parametrize("html", UNSAFE)
def test_a_notebooks_html_is_cleaned(html):
    soup = BeautifulSoup(sanitise(f"<p>before</p>{html}<p>after</p>"), "html.parser")
    text = soup.text
    assert "before" in text and "after" in text
    for tag in soup():
        assert tag.name in ("p", "a", "img", "div"), tag
        assert not {*tag.attrs} - {"alt", "class", "title"}, tag


def test_what_a_notebook_may_hold_stays():
    html = (
        '<h2 id="a">A</h2><a href="#a">b</a> <a href="https://example.org/a?b#c">c</a> '
        '<a href="../../a%3Ab/index.html#d">d</a>'
        '<img alt="An image" src="data:image/png;base64,AA">'
        '<table class="dataframe"><tbody><tr><td colspan="2" rowspan="1">1 &lt; 2 &amp; 3</td></tr>'
        '</tbody></table><pre><code class="k">a</code></pre>'
        '<details class="source"><summary>Code</summary></details>'
    )
    assert sanitise(html) == html


def test_names_in_a_table_are_text():
    frame = pd.DataFrame({HOSTILE: [HOSTILE, "a\rb"]}, index=[f"$50_$100 {HOSTILE}", "R&D"])
    html = look.table(frame, {}).to_html()
    soup = BeautifulSoup(html, "html.parser")
    assert not soup("img") and soup.td.text == HOSTILE and "tex2jax_ignore" in soup.table["class"]
    assert soup("th")[-1].text == "R&D" and "a\\rb" in soup.text


# ---- files that are written


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), fsync(file)))
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda *paths: (done.append("rename"), replace(*paths))
    )
    with atomic(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert done[:2] == ["sync", "rename"] and (tmp_path / "a").read_text() == "whole"
