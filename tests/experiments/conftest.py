"""What tests of whole comparisons share."""

import shutil
from dataclasses import replace

import pytest
from torch.utils.data import TensorDataset

from experiments.cli import main
from experiments.tasks.small import rings

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def latency_of_one_row(monkeypatch):
    """Every latency is that of one row: 256 pictures of 224 × 224 take a minute a pass."""
    monkeypatch.setattr("experiments.measuring.measure._repeated", lambda inputs, size: inputs[:1])


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file in a window of this size; whatever it logs or asks the network for fails the test."""
    wrong, tabs = [], []

    def intercept(route):
        if route.request.url.startswith(("file:", "data:")):
            route.continue_()
        else:
            wrong.append(f"asked for {route.request.url}")
            route.abort()

    def open_file(path, size):
        tab = browser.new_page(viewport=size)
        tabs.append(tab)
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("requestfailed", lambda request: wrong.append(f"no answer from {request.url[:80]}"))
        tab.route("**/*", intercept)
        tab.goto(path.as_uri())
        return tab

    yield open_file
    for tab in tabs:
        tab.close()
    assert not wrong


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a small run, on few of the points."""

    def few():
        whole = rings()
        train, test = (TensorDataset(*(part[:300] for part in data.tensors)) for data in (whole.train, whole.test))
        return replace(whole, train=train, test=test)

    folder = tmp_path_factory.mktemp("report") / "run"
    models = "gd,pgd-deq,heavy_ball-deq,fista-deq,mondeq"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.tasks.small.rings", few)
        assert (
            main(
                [
                    "compare",
                    "rings",
                    "--no-search",
                    "--epochs",
                    "2",
                    "--seeds",
                    "2",
                    "--models",
                    models,
                    "--out",
                    str(folder),
                ]
            )
            == 0
        )
    return folder / "report.html"
