"""The page of a comparison in a real browser: on a phone, in print, by keyboard, and with findings to show."""

import itertools
import json
import re
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from experiments.cli import main
from experiments.diagnosis import Diagnosis, diagnosed
from experiments.families import FAMILIES
from experiments.measure import measure
from experiments.report import page
from experiments.results import Comparison, Row, Run
from experiments.tasks import TASKS, Source, rings
from experiments.training import Training
from implicit import Equilibrium
from implicit.diagnostics import Finding
from solvers import ConvergenceError

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


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

    def few(source):
        whole = rings(source)
        train, test = (TensorDataset(*(part[:300] for part in data.tensors)) for data in (whole.train, whole.test))
        return replace(whole, train=train, test=test)

    folder = tmp_path_factory.mktemp("report") / "run"
    models = "gd,pgd-deq,heavy_ball-deq,fista-deq,mondeq"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "rings", few)
        assert (
            main(["compare", "rings", "--epochs", "2", "--seeds", "2", "--models", models, "--out", str(folder)]) == 0
        )
    return folder / "report.html"


@pytest.fixture(scope="module")
def comparison():
    """Three rows around untrained networks, none of them diagnosed."""
    task = TASKS["rings"](Source())
    rows = []
    for name in ("gd", "pgd-implicit", "pgd-deq"):
        contestant = FAMILIES["rings"](task)[name]
        torch.manual_seed(0)
        network = contestant.build(4)
        run = Run(0, Training([], []), measure(network, replace(task, measured=8), "cpu"), network)
        rows.append(Row(name, contestant, 1, 4, [run]))
    settings = {
        "command": "implicit compare rings",
        "terms": "equal parameter counts",
        "epochs": 1,
        "seeds": [0],
        "seconds": 1.0,
        "versions": {"python": "3"},
        "machine": {"device": "cpu", "system": "Linux", "cores": 1, "threads": 1},
    }
    return Comparison(task, rows, settings)


class Expanding(nn.Module):
    """`z ↦ −1.5 z + tanh(x)`: a fixed point that plain iteration runs away from."""

    def __init__(self, exploding=False):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(-1.5))
        self.exploding = exploding

    def forward(self, z, x):
        return self.factor * z + torch.tanh(x) / (0 if self.exploding else 1)


def boxes(tab, selector):
    """Of each: how wide it is and its content, whether it scrolls, its left and right edges on the page."""
    return tab.locator(selector).evaluate_all(
        """all => all.map(e => ({client: e.clientWidth, scroll: e.scrollWidth, left: e.getBoundingClientRect().left,
        right: e.getBoundingClientRect().right, flow: getComputedStyle(e).overflowX}))"""
    )


@pytest.mark.parametrize("size", [PHONE, DESK, {"width": 320, "height": 568}])
def test_the_page_is_as_wide_as_the_window_and_what_is_wider_scrolls_by_itself(report, opened, size):
    tab = opened(report, size)
    (whole,) = boxes(tab, "html")
    assert whole["scroll"] <= whole["client"] == size["width"]
    regions = boxes(tab, ".scroll")
    assert all(0 <= box["left"] < box["right"] <= size["width"] and box["flow"] == "auto" for box in regions)
    table, *figures = regions
    assert table["scroll"] > table["client"] or size is DESK
    assert any(box["scroll"] > box["client"] for box in figures) == (size is not DESK)
    for box in boxes(tab, "p, dl, li, figcaption, h1, h2, h3, nav"):
        assert box["right"] <= size["width"]
        assert box["scroll"] <= box["client"]


def test_words_and_figures_keep_a_size_that_can_be_read_on_a_phone(report, opened):
    tab = opened(report, PHONE)
    sizes = tab.locator("p, dd, dt, li, td, th, figcaption").evaluate_all(
        "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 14
    tab.locator("table").evaluate("table => table.parentElement.scrollLeft = 10000")
    names = tab.locator("tbody th").evaluate_all("all => all.map(e => e.getBoundingClientRect().left)")
    assert all(0 <= left < 40 for left in names)  # still in sight
    for figure in tab.locator("img").evaluate_all("all => all.map(e => [e.clientWidth, e.naturalWidth])"):
        shown, pixels = figure
        assert 9 / 72 * 150 * shown / pixels >= 9  # the height of its letters, of 9 points at 150 pixels an inch


def test_the_keyboard_reaches_everything_in_order_and_focus_is_seen(report, opened):
    tab = opened(report, PHONE)
    outline = "getComputedStyle(document.activeElement).outline"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.tagName") == "MAIN"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.matches('main .scroll')")  # past the sections' links

    tab = opened(report, PHONE)
    expected = tab.locator("a, .scroll").evaluate_all("all => all.map(e => e.getAttribute('href') ?? e.ariaLabel)")
    reached = []
    for _ in expected:
        tab.keyboard.press("Tab")
        assert "none" not in tab.evaluate(outline)
        assert int(tab.evaluate("parseInt(getComputedStyle(document.activeElement).outlineWidth)")) >= 2
        reached.append(tab.evaluate("document.activeElement.getAttribute('href') ?? document.activeElement.ariaLabel"))
    assert reached == expected
    assert len(expected) > 10

    table = tab.locator(".scroll").first
    table.focus()
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
    tab.wait_for_function("document.querySelector('.scroll').scrollLeft > 50")


def test_every_link_leads_to_a_heading_and_headings_are_in_order(report, opened):
    tab = opened(report, DESK)
    for target in tab.locator("nav a").evaluate_all("all => all.map(e => e.getAttribute('href'))"):
        tab.locator(f"nav a[href='{target}']").press("Enter")
        assert -1 <= tab.locator(target).evaluate("e => e.getBoundingClientRect().top") < DESK["height"]
        assert tab.locator(target).evaluate("e => e.tagName") == "H2"
    levels = [int(name[1]) for name in tab.locator("h1, h2, h3, h4").evaluate_all("all => all.map(e => e.tagName)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for landmark in ("header", "nav[aria-label]", "main"):
        assert tab.locator(landmark).count() == 1
    assert tab.locator("html[lang]").count() == 1
    ids = tab.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    assert len(set(ids)) == len(ids)


def test_figures_are_decoded_and_told_in_words(report, opened):
    tab = opened(report, DESK)
    figures = tab.locator("img").evaluate_all("all => all.map(e => [e.naturalWidth, e.alt])")
    files = sorted(report.parent.glob("*.png"))
    assert len(figures) == len(files) == 8
    assert all(width > 300 for width, _ in figures)
    words = {alt for _, alt in figures}
    assert len(words) == len(files)
    captions = tab.locator("figcaption").all_text_contents()
    assert not words & set(captions)
    assert any("largest modulus" in alt and "fista-deq" in alt for alt in words)
    assert any("rows stopped (%) against steps" in alt for alt in words)


def test_figures_with_many_panels_wrap(report):
    for name in ("residuals", "steps", "eigenvalues", "boundaries"):
        with Image.open(report.with_name(f"{name}.png")) as picture:
            width, height = (pixels / 150 for pixels in picture.size)  # inches
        assert width <= 11.2
        assert height >= 5


def contrast(first, second):
    """WCAG's, of two colours `rgb(…)`."""

    def luminance(colour):
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_words_stand_out_from_their_ground(report, opened):
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    tab = opened(report, DESK)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    colours = tab.locator("p, a, dd, dt, td, th, figcaption, h1, h2").evaluate_all(
        "all => [...new Set(all.map(e => getComputedStyle(e).color))]"
    )
    assert min(contrast(colour, "rgb(255, 255, 255)") for colour in colours) >= 7


def test_print_shows_everything_and_clips_nothing(report, opened, tmp_path):
    tab = opened(report, {"width": 1000, "height": 700})  # the width of a landscape page within its margins
    tab.emulate_media(media="print")
    for box in boxes(tab, "html, .scroll, table, img, figure, p, dl"):
        assert box["scroll"] <= box["client"]
        assert box["right"] <= 1000
    assert all(box["flow"] == "visible" for box in boxes(tab, ".scroll"))
    assert not tab.locator("nav").is_visible()
    assert tab.locator("figure").evaluate_all("all => all.every(e => getComputedStyle(e).breakInside == 'avoid')")
    heights = tab.locator("figure").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
    assert max(heights) <= 700  # of a page within its margins


def printed(content):
    """Of a PDF as Chromium writes it, page by page: its size, and its images' boxes as (left, low, right, high)."""
    bodies = dict(re.findall(rb"(?:^|\n)(\d+) 0 obj\n(.*?)endobj", content, re.DOTALL))
    pages = []
    for body in bodies.values():
        if b"/Type /Page\n" not in body:
            continue
        size = [float(number) for number in re.search(rb"/MediaBox \[([^]]*)\]", body)[1].split()]
        stream = bodies[re.search(rb"/Contents (\d+) 0 R", body)[1]].split(b"stream\n", 1)[1]
        pages.append((size, placed(zlib.decompressobj().decompress(stream))))
    return pages


def placed(drawing):
    """Where the unit squares, which are what images fill, land."""
    matrix, kept, boxes = np.eye(3), [], []
    for numbers, operator in re.findall(rb"((?:-?[\d.]+\s+){6}|/X\d+\s+|)\b(q|Q|cm|Do)\s", drawing):
        if operator == b"q":
            kept.append(matrix)
        elif operator == b"Q":
            matrix = kept.pop()
        elif operator == b"cm":
            inner = np.array(numbers.split(), dtype=float).reshape(3, 2)
            matrix = np.column_stack((inner, [0, 0, 1])) @ matrix
        else:
            corners = np.array([[0, 0, 1], [1, 1, 1]]) @ matrix
            boxes.append((*corners[:, :2].min(axis=0), *corners[:, :2].max(axis=0)))
    return boxes


@pytest.mark.parametrize("settings", [{"prefer_css_page_size": True}, {"format": "A4"}, {"format": "Letter"}])
def test_printed_pages_hold_every_figure_whole(report, opened, settings):
    tab = opened(report, DESK)
    shapes = tab.locator("img").evaluate_all("all => all.map(e => e.naturalWidth / e.naturalHeight)")
    pages = printed(tab.pdf(**settings))
    found = []
    for (_, _, width, height), images in pages:
        for left, low, right, high in images:
            assert 30 < left < right < width - 30  # the margins are of 12 mm, 34 points
            assert 30 < low < high < height - 30
            found.append((right - left) / (high - low))
    assert found == pytest.approx(shapes, rel=0.02)
    assert any(len(images) > 1 for _, images in pages)
    assert len(pages) <= len(shapes) + 3


def rendered(comparison, tmp_path, **diagnoses):
    """The page with these diagnoses of its rows, as a file."""
    rows = [replace(row, diagnosis=diagnoses.get(row.name.replace("-", "_"))) for row in comparison.rows]
    path = tmp_path / "page.html"
    path.write_text(page(replace(comparison, rows=rows), []), encoding="utf-8")
    return path


def section(tab):
    """The text of what the diagnosis found."""
    text = tab.locator("main").inner_text()
    return text[text.index("What the diagnosis found") : text.index("The figures")]


def test_a_planted_fault_is_found_and_shown_with_its_remedy(comparison, opened, tmp_path):
    found = diagnosed(nn.Sequential(nn.Linear(2, 3), Equilibrium(Expanding())), torch.randn(20, 2))
    assert found.rows == 16
    assert found.layers == list(found.eigenvalues) == ["1"]
    torch.testing.assert_close(found.eigenvalues["1"], torch.full((4, 3), -1.5 + 0j, dtype=torch.complex128))
    (finding,) = found.findings
    assert finding.name == "spectral radius above 1"
    healthy = diagnosed(comparison.rows[1].runs[0].network, torch.randn(20, 2))
    assert healthy.healthy
    assert len(healthy.layers) == 6
    assert list(healthy.eigenvalues) == [healthy.layers[place] for place in (0, 2, 5)]
    tab = opened(rendered(comparison, tmp_path, pgd_deq=found, pgd_implicit=healthy), PHONE)
    text = section(tab)
    assert tab.locator("h3").all_text_contents() == ["pgd-deq"]
    for words in (
        "Spectral radius above 1",
        finding.evidence,
        finding.remedy,
        "Nothing was found in pgd-implicit (6 la",
    ):
        assert words in text
    assert "gd: no equilibrium is solved there" in text
    (whole,) = boxes(tab, "html")
    assert whole["scroll"] <= whole["client"]


def test_the_same_finding_in_several_layers_is_said_once(comparison, opened, tmp_path):
    def finding(layer, remedy="normalise"):
        return Finding("rows coupled", f"by 0.{layer}", remedy, layer)

    layers = [str(i) for i in range(1, 6)]
    one = Diagnosis([finding("1"), finding("3")], layers, 16, 1.0)
    several = Diagnosis([finding("2", "lower rtol to 1e-5"), finding("4", "lower rtol to 1e-6")], layers, 16, 1.0)
    text = section(opened(rendered(comparison, tmp_path, pgd_implicit=one, pgd_deq=several), DESK))
    first, second = text.split("pgd-deq\n")
    assert first.count("Rows coupled, in 2 of 5 layers") == first.count("What to do: normalise.") == 1
    assert "Layer 1 (1): by 0.1." in first
    assert "Layer 3 (3): by 0.3." in first
    assert "Layer 4 (4): by 0.4. What to do: lower rtol to 1e-6." in second


def test_names_are_text_not_markup(comparison, opened, tmp_path):
    odd = Diagnosis([Finding("<b>x", "1 < 2 & 3", "<script>alert(1)</script>")], ["<i>"], 16, 1.0)
    tab = opened(rendered(comparison, tmp_path, pgd_deq=odd), DESK)
    assert "<script>alert(1)</script>" in section(tab)
    assert tab.locator("script, main b").count() == 0


def test_a_diagnosis_that_ends_early_says_so_and_loses_nothing(comparison, opened, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ConvergenceError("no reference\nand more")

    network = comparison.rows[2].runs[0].network
    monkeypatch.setattr("experiments.diagnosis.diagnose", fail)
    found = diagnosed(network, torch.randn(3, 2))
    assert found.failures == ["the diagnosis ended with ConvergenceError: no reference"]
    assert found.rows == 3
    assert found.eigenvalues
    text = section(opened(rendered(comparison, tmp_path, pgd_deq=found), DESK))
    assert "Not known: the diagnosis ended with ConvergenceError: no reference." in text
    monkeypatch.setattr("experiments.diagnosis.eigenvalues", fail)
    assert "the eigenvalues of 1.equilibrium" in diagnosed(network, torch.randn(3, 2)).failures[1]
    monkeypatch.setattr("experiments.diagnosis.diagnose", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a fault of the toolkit is no finding
        diagnosed(network, torch.randn(3, 2))


def test_of_large_pictures_fewer_are_looked_at():
    found = diagnosed(Equilibrium(Expanding()), torch.randn(16, 3, 19, 19))
    assert found.rows == 4
    (values,) = found.eigenvalues.values()
    assert values.shape == (1, 6)


def test_rows_that_are_not_finite_are_found_and_have_no_eigenvalues():
    found = diagnosed(Equilibrium(Expanding(exploding=True)), torch.randn(5, 2))
    assert [finding.name for finding in found.findings] == ["rows that are not finite"]
    assert not found.eigenvalues
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_page_without_equilibria_says_that_there_was_nothing_to_diagnose(comparison, opened, tmp_path):
    assert "there was nothing to diagnose" in section(opened(rendered(comparison, tmp_path), DESK))


def test_results_hold_the_diagnosis(report):
    models = json.loads(report.with_name("results.json").read_text())["models"]
    assert models["gd"]["diagnosis"] is None
    for name in ("pgd-deq", "mondeq"):
        diagnosis = models[name]["diagnosis"]
        assert diagnosis["rows"] == 16
        assert diagnosis["failures"] == []
        assert all(set(finding) == {"name", "evidence", "remedy", "layer"} for finding in diagnosis["findings"])
        (values,) = diagnosis["eigenvalues"].values()
        assert np.shape(values) == (4, 6, 2)
