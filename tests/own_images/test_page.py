"""The page to work in, as a person uses it: in Chromium, from a file, without any network."""

import csv
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from own_run import VERDICT, own_run
from PIL import Image

from reproduce.files import printable
from reproduce.own_images import edits, page, tables

RAN = "<img src=x onerror=document.title='ran'>"
FILES = [
    f"{RAN}.png",
    "$50_$100.png",
    "=cmd|calc!A0.png",
    "猫 😀.png",
    "new\nline.png",
    "R&D #1 100%25?.png",
    "'quoted\".png",
    "</script><script>document.title='ran'</script>.png",
    *(f"2023/trip/{i:03d}.png" for i in range(142)),
]
HOSTILE = f"{RAN} $50_$100 </script> 猫 & <b>"


def written_own(run):
    clusters = tables.probabilities(run).shape[1]
    folder = json.loads((run / "config.json").read_text())["folder"]
    made = edits.of_run(run, clusters)
    tables.write_table(run, tables.edited(run, made).drop(columns=["typicality", "x", "y"]))
    return tables.finish(run, folder, made)


def written(run, **more):
    return page.write(written_own(run), **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory of a run whose page is written."""
    run = own_run(tmp_path_factory.mktemp("made"), FILES)
    written(run)
    return run


@pytest.fixture
def opened(made, visit):
    return visit(made / "page" / "index.html")


def wait_for(shown, true_of, seconds=20):
    """Until there are so many tiles. (The browser's own waiting evaluates text, which the page's
    policy forbids.)"""
    until = time.monotonic() + seconds
    while not true_of(tiles := shown.locator(".tile .open").count()):
        assert time.monotonic() < until, f"{tiles} tiles after {seconds} seconds"
        shown.wait_for_timeout(20)


def on_page(shown) -> dict[str, str]:
    """{file: the title of its cluster}, by clicking through all clusters."""
    found = {}
    n = shown.locator("#clusters a").count()
    for i in range(1, n):
        shown.locator("#clusters a").nth(i).click()
        title = shown.locator("#clusters a .title").nth(i).inner_text()
        count = int(shown.locator("#clusters a .count").nth(i).inner_text())
        wait_for(shown, lambda tiles: tiles <= count)
        while shown.locator(".tile").count() < count:
            shown.mouse.wheel(0, 4000)
            shown.wait_for_timeout(50)
        labels = shown.locator(".tile .open").evaluate_all("all => all.map(e => e.ariaLabel)")
        assert len(labels) == count
        found |= {label.removesuffix(f", {title}"): title for label in labels}
    return found


def in_table(run) -> dict[str, str]:
    with open(run / "clusters.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {row["file"].removeprefix("./"): row for row in rows}
    titles = {f: printable(r["name"]) or f"cluster {r['cluster']}" for f, r in names.items()}
    return {printable(file): title for file, title in titles.items()}


def go(shown, where):
    shown.evaluate("where => { location.hash = where }", where)
    shown.locator("#head h1").wait_for()


def select(shown, n, first=0):
    for i in range(first, first + n):
        shown.locator(".tile .check").nth(i).click(force=True)


def save(shown):
    with shown.expect_download() as download:
        shown.locator("#save").click()
    assert download.value.suggested_filename == "clusters.json"
    shown.locator("#saved [data-close]").click()
    return download.value.path()


def work(shown):
    """Rename, move three, merge two, split off two; returns what the page shows then."""
    go(shown, "cluster/0")
    shown.locator("input.name").fill(HOSTILE)
    shown.locator("input.name").press("Enter")
    select(shown, 3)
    shown.locator("#move").click()
    shown.locator("#choose-list").get_by_role("button", name=re.compile("^cluster 1")).click()
    select(shown, 2, first=5)
    shown.locator("#split").click()
    shown.locator("#split-name").fill("apart")
    shown.locator("#split-name").press("Enter")
    go(shown, "cluster/2")
    shown.locator("#merge").click()
    shown.locator("#choose-list").get_by_role("button", name=re.compile("^cluster 1")).click()
    assert shown.locator("input.name").input_value() == "" and "#cluster/1" in shown.url
    return on_page(shown)


def test_what_is_done_on_the_page_is_what_the_table_says(made, visit, tmp_path):
    shown = visit(made / "page" / "index.html")
    assert on_page(shown) == in_table(made) and len(in_table(made)) == len(FILES)
    before = work(shown)
    titles = {*before.values()}
    assert titles == {printable(HOSTILE), "cluster 1", "apart"} and shown.title() != "ran"
    sizes = {title: [*before.values()].count(title) for title in titles}
    assert sizes == {printable(HOSTILE): 45, "cluster 1": 103, "apart": 2}
    shown.reload()
    assert on_page(shown) == before and shown.locator("#save.unsaved").count() == 1
    saved = save(shown)
    assert shown.locator("#save.unsaved").count() == 0
    run = shutil.copytree(made, tmp_path / "run")
    edits.take(run, str(saved))
    index = written(run)
    assert in_table(run) == before
    assert on_page(visit(index)) == before, "the new page begins with them"


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_nothing_is_lost_when_the_run_is_made_again(made, visit, tmp_path, order):
    """With other numbers: by the next command, by the page that opens the file, and by a page at
    the same place, from what the browser remembers."""
    copied = tmp_path / "made" / "run"
    shutil.copytree(made, copied)
    shown = visit(written(copied, where=tmp_path / "page"))
    before = work(shown)
    saved = save(shown)
    p = np.load(copied / "probabilities.npy")[:, np.argsort(order)]
    np.save(copied / "probabilities.npy", p)
    text = (copied / "assignments.csv").read_text(encoding="utf-8")
    text = re.sub(r',"(\d)"\n', lambda m: f",{order[int(m[1])]}\n", text)
    (copied / "assignments.csv").write_text(text, encoding="utf-8")
    index = written(copied, where=tmp_path / "page")

    def named(found):  # a cluster that has no name is known by its images
        return {f: "" if re.fullmatch(r"cluster \d", t) else t for f, t in found.items()}

    shown.goto(index.as_uri())
    shown.reload()
    assert named(on_page(shown)) == named(before), "what the browser remembers"
    other = visit(written(copied, where=tmp_path / "other"))
    other.evaluate("localStorage.clear()")
    other.reload()
    assert named(on_page(other)) != named(before)
    other.locator("#import").set_input_files(saved)
    assert named(on_page(other)) == named(before), "the file"
    edits.take(copied, str(saved))
    written(copied)
    assert named(in_table(copied)) == named(before), "the next command"


def test_the_verdict_stands_at_the_top(made, opened, visit, tmp_path):
    """Above what was left out."""
    assert opened.locator("#head .verdict").inner_text() == VERDICT
    own = written_own(shutil.copytree(made, tmp_path / "run"))
    own.notes = [f"left out: 1 video: '{RAN}.mp4'", "left out: 2 files that cannot be read"]
    shown = visit(page.write(own))
    assert shown.locator("#head .verdict ~ .note").all_inner_texts() == own.notes


def test_every_change_can_be_undone_and_done_again(opened):
    first = on_page(opened)
    last = work(opened)
    for _ in range(4):
        opened.keyboard.press("Control+z")
    assert on_page(opened) == first and opened.locator("#undo").is_disabled()
    for _ in range(4):
        opened.keyboard.press("Control+Shift+z")
    assert on_page(opened) == last and opened.locator("#redo").is_disabled()


def test_two_clusters_of_one_name_are_merged_only_if_one_says_so(opened):
    for k in (0, 1):
        go(opened, f"cluster/{k}")
        opened.locator("input.name").fill("cats")
        opened.locator("input.name").press("Enter")
    titles = opened.locator("#clusters .title")
    assert titles.all_inner_texts() == ["All clusters", "cats", "cats", "cluster 2"]
    opened.get_by_role("button", name="Merge them").click()
    assert titles.all_inner_texts() == ["All clusters", "cats", "cluster 2"]


def test_by_keyboard_alone(opened):
    go(opened, "cluster/0")
    opened.locator(".tile .open").first.focus()
    for key in ("ArrowRight", "x", "ArrowDown", "ArrowLeft", "x"):
        opened.keyboard.press(key)
    assert opened.locator(".tile.selected").count() == 2
    opened.keyboard.press("m")
    opened.keyboard.type("birds")
    opened.keyboard.press("Enter")
    assert opened.locator("#clusters .title").all_inner_texts()[-1] == "birds"
    opened.locator(".tile .open").first.focus()
    opened.keyboard.press("Enter")
    first = opened.locator("#file").inner_text()
    opened.keyboard.press("ArrowRight")
    assert opened.locator("#file").inner_text() != first
    opened.keyboard.press("ArrowLeft")
    assert opened.locator("#file").inner_text() == first
    opened.keyboard.press("Escape")
    assert not opened.locator("#viewer").is_visible()
    opened.keyboard.press("/")
    opened.keyboard.type("TRIP 014")
    wait_for(opened, lambda tiles: tiles == 1)
    labels = opened.locator(".tile .open").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert len(labels) == 1 and labels[0].startswith("2023/trip/014.png")


def test_each_image_is_shown_large_with_those_like_it(made, opened):
    """Also by names that mean something in an address."""
    data = json.loads(opened.locator("#data").inner_text())
    for i, file in enumerate(data["files"]):
        if file not in FILES[:8]:
            continue
        opened.evaluate("i => enlarge(i)", i)
        opened.locator("#frame img").wait_for()
        size = opened.locator("#frame img").evaluate("i => [i.naturalWidth, i.naturalHeight]")
        assert size == [*Image.open(made.parent / "images" / file).size]
        assert opened.locator("#file").inner_text() == printable(file)
        assert opened.locator("#alike button").count() == 12
    features, files = np.load(made / "features.npy"), data["files"]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = np.argsort(-(unit @ unit[FILES.index(files[-1])]))[1:13]
    opened.evaluate("enlarge(N - 1)")
    labels = opened.locator("#alike button").evaluate_all("all => all.map(e => e.title)")
    assert [label.rpartition(", ")[0] for label in labels] == [printable(FILES[i]) for i in near]
    opened.locator("#alike button").first.click()
    assert opened.locator("#file").inner_text() == printable(FILES[near[0]])


def test_an_image_without_features_has_none_like_it_and_no_place(made, visit, tmp_path):
    run = shutil.copytree(made, tmp_path / "run")
    own = written_own(run)
    own.table.loc[4, ["typicality", "x", "y"]] = np.nan
    shown = visit(page.write(own))
    i = shown.evaluate("file => numberOf.get(file)", FILES[4])
    assert shown.evaluate("i => onMap.includes(i)", i) is False
    shown.evaluate("i => enlarge(i)", i)
    assert shown.locator("#alike button").count() == 0


def test_the_order_is_by_certainty_or_by_typicality(made, opened):
    table = tables.read(made / "clusters.csv")
    own = table[table["cluster"] == 1]
    go(opened, "cluster/1")
    for key, column, ascending in (
        ("typical", "typicality", False),
        ("odd", "typicality", True),
        ("sure", "probability", False),
        ("doubtful", "probability", True),
    ):
        opened.get_by_label("Order").select_option(key)
        files = opened.locator(".tile .open").evaluate_all("all => all.map(e => e.ariaLabel)")
        values = own.set_index(own["file"].map(edits.plain).map(printable))[column].round(3)
        shown = values[[file.removesuffix(", cluster 1") for file in files]]
        assert (np.diff(shown) * (1 if ascending else -1) >= -0.0011).all(), key


def test_the_map_shows_what_one_points_at(opened):
    go(opened, "map")
    opened.locator("#map").wait_for()
    box = opened.locator("#map").bounding_box()
    x, y = opened.evaluate("place(onMap[7])")
    opened.mouse.move(box["x"] + x, box["y"] + y)
    assert opened.locator("#hover").is_visible()
    i = opened.evaluate("view.near")
    file = opened.evaluate("i => run.files[i]", i)
    assert printable(file).rpartition("/")[2] in opened.locator("#hover").inner_text()
    opened.keyboard.down("Shift")
    opened.mouse.move(box["x"] + 14, box["y"] + 14)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] - 14, box["y"] + box["height"] - 14)
    opened.mouse.up()
    opened.keyboard.up("Shift")
    assert opened.locator("#selected").inner_text() == f"{len(FILES)} selected"


def test_the_map_says_what_a_hand_can_do(made, browser):
    for touch, said, other in ((True, "Tap one", "Shift"), (False, "with Shift", "Tap")):
        context = browser.new_context(has_touch=touch, is_mobile=touch)
        shown = context.new_page()
        shown.goto((made / "page" / "index.html").as_uri() + "#map")
        text = shown.locator("#head p").inner_text()
        context.close()
        assert said in text and other not in text


def test_on_a_telephone(made, visit):
    shown = visit(made / "page" / "index.html", width=390)
    go(shown, "cluster/0")
    shown.locator("input.name").fill("a long name " * 12)
    shown.locator("input.name").press("Enter")
    for where in ("all", "cluster/0", "map", "search/trip"):
        go(shown, where)
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390, where
    go(shown, "cluster/1")
    select(shown, 2)
    bar = shown.locator("#selection").bounding_box()
    assert bar["x"] >= 0 and bar["x"] + bar["width"] <= 390
    shown.locator("#clear").click()
    shown.locator(".tile .open").first.click()
    shown.locator("#frame img").wait_for()
    assert shown.locator("#move-one").is_visible()


def test_pictures_are_loaded_as_they_come_into_sight(made, visit):
    asked = []
    shown = visit("about:blank")
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto((made / "page" / "index.html").as_uri() + "#cluster/0")
    shown.wait_for_timeout(300)
    sheets = {url for url in asked if "/thumbs/" in url}
    assert len(sheets) == 1 and len([*(made / "page" / "thumbs").glob("*.jpg")]) == 2
    go(shown, "search/trip")
    shown.wait_for_timeout(200)
    assert shown.locator(".tile").count() == 120 < 142
    shown.mouse.move(600, 500)
    shown.mouse.wheel(0, 9000)
    wait_for(shown, lambda tiles: tiles == 142)


def test_nothing_runs_that_a_name_says(made, browser):
    """Nor does it where something gets past the text."""
    text = (made / "page" / "index.html").read_text(encoding="utf-8")
    assert "</script><script>document.title" not in text
    shown, refused = browser.new_page(), []
    shown.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    shown.goto((made / "page" / "index.html").as_uri())
    shown.evaluate("text => { document.querySelector('main').innerHTML = text }", RAN)
    shown.evaluate("""() => { const script = document.createElement("script");
        script.textContent = "document.title = 'ran'"; document.body.append(script) }""")
    shown.evaluate("document.body.append(el('img', '', {src: 'https://localhost/x.png'}))")
    shown.wait_for_timeout(300)
    assert shown.title() == "images" and ("https://localhost/x.png", "csp") in refused
    shown.close()


def test_files_that_are_no_clusters_json_are_said_to_be_none(opened, tmp_path):
    for text, said in (
        ("{", "is no JSON"),
        ("[]", "is no clusters.json"),
        ('{"format": 1, "moved": {"a.png": "x"}}', "is damaged"),
        ('{"format": 1, "names": {"0": 3}}', "is damaged"),
        ('{"format": 1, "merged": {"0": 1, "1": 0}}', "is damaged"),
    ):
        (tmp_path / "x.json").write_text(text)
        opened.locator("#import").set_input_files(tmp_path / "x.json")
        opened.locator("#note").get_by_text(said).wait_for()
    (tmp_path / "x.json").write_text('{"format": 1, "moved": {"gone.png": 0}}')
    opened.locator("#import").set_input_files(tmp_path / "x.json")
    opened.locator("#note").get_by_text("not in this run").wait_for()
    assert json.loads(save(opened).read_text())["moved"] == {"gone.png": 0}, "it is kept"


def test_small_pictures_are_all_there_or_as_before(tmp_path, monkeypatch):
    files, thumbs = ["a.png", "b.png"], tmp_path / "thumbs"
    for file in files:
        Image.new("RGB", (9, 9), "red").save(tmp_path / file)
    page.draw_sheets(tmp_path, files, thumbs)
    before = {path.name: path.read_bytes() for path in thumbs.iterdir()}
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "a.png")

    def full(sheet, path, **how):
        Path(path).write_bytes(b"cut")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Image.Image, "save", full)
        page.draw_sheets(tmp_path, files, thumbs)
    assert {path.name: path.read_bytes() for path in thumbs.iterdir()} == before
    page.draw_sheets(tmp_path, files, thumbs)
    assert (thumbs / "0000.jpg").read_bytes() != before["0000.jpg"]
    assert not (tmp_path / ".thumbs.tmp").exists()


def test_small_pictures_are_drawn_once_and_show_the_whole_image(made):
    sheet = made / "page" / "thumbs" / "0000.jpg"
    before = sheet.stat().st_mtime_ns
    written(made)
    assert sheet.stat().st_mtime_ns == before
    file = tables.read(made / "clusters.csv")["file"][1]
    small = np.asarray(page.small_picture(made.parent / "images" / file, 60))
    assert small.shape == (60, 60, 3)
    assert (small[0] > 250).all() and (small[30] < 250).any(0).all(), "wide, between white bars"
    missing = np.asarray(page.small_picture(made.parent / "images" / "no.png", 60))
    assert len(np.unique(missing.reshape(-1, 3), axis=0)) == 1
