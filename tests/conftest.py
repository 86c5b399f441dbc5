import os
import random
import shutil
from pathlib import Path
from urllib.parse import urlparse

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def plain_style():
    """The style of the notebooks, set by one test, does not reach the next."""
    with matplotlib.rc_context():
        yield


@pytest.fixture
def each_epoch():
    """A checkpoint at the end of each epoch, however short it is, and at none of its steps."""
    from reproduce.loop.keeping import Keeper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "late", lambda keeper: keeper.at.order is None)
        yield


# ---- pages in Chromium

CHROMIUM = "chromium", "chromium-browser", "google-chrome"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), "")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Opens an address at a width; nothing may fail on the console or ask a network."""
    context, wrong = browser.new_context(), []
    context.set_default_timeout(20_000)

    def only_here(route):
        where = urlparse(route.request.url)
        if where.scheme in ("file", "data", "blob") or where.hostname == "127.0.0.1":
            return route.continue_()
        wrong.append(f"asked {route.request.url}")
        route.abort()

    context.route("**/*", only_here)
    context.on("console", lambda m: m.type == "error" and wrong.append(f"console: {m.text}"))
    context.on("weberror", lambda e: wrong.append(f"error: {e.error}"))

    def visit(address, width=1280):
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        return page

    yield visit
    context.close()
    assert not wrong
