"""The page of a comparison in a real browser: on a phone, in print and by keyboard."""

import itertools
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


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
    called = "(e => e.getAttribute('href') ?? e.ariaLabel ?? e.id)"
    expected = tab.locator("a, .scroll, input").evaluate_all(f"all => all.map({called})")
    reached = []
    for _ in expected:
        tab.keyboard.press("Tab")
        assert "none" not in tab.evaluate(outline)
        assert int(tab.evaluate("parseInt(getComputedStyle(document.activeElement).outlineWidth)")) >= 2
        reached.append(tab.evaluate(f"{called}(document.activeElement)"))
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
    assert len(figures) + 1 == len(files) == 8  # the training is drawn in the page
    assert all(width > 300 for width, _ in figures)
    words = {alt for _, alt in figures}
    assert len(words) == len(figures)
    captions = tab.locator("figcaption").all_text_contents()
    assert not words & set(captions)
    assert any("largest modulus" in alt and "fista-deq" in alt for alt in words)
    assert any("rows stopped (%) against steps" in alt for alt in words)


def test_the_reader_picks_whose_training_is_drawn(report, opened):
    tab = opened(report, DESK)
    names = tab.locator(".picks label").all_text_contents()
    assert sorted(names) == sorted(["gd", "pgd-deq", "heavy_ball-deq", "fista-deq", "mondeq"])
    checked = tab.locator(".picks input").evaluate_all("all => all.map(e => e.checked)")
    assert checked.count(True) in (3, 4)  # the best three, and the baseline
    curves = "all => all.map(e => getComputedStyle(e).display != 'none')"
    for panel in (0, 1):
        assert tab.locator(f"[id^='curve-'][id$='-{panel}']").evaluate_all(curves) == checked
    first = checked.index(False)
    tab.locator(".picks label").nth(first).click()
    assert tab.locator(f"#curve-{first}-0").evaluate("e => getComputedStyle(e).display") != "none"
    assert "$" not in tab.locator(".drawing").text_content()


def test_the_first_columns_stay_in_sight_while_the_rest_scrolls(report, opened):
    tab = opened(report, PHONE)
    tab.locator("table").evaluate("table => table.parentElement.scrollLeft = 10000")
    for place in (1, 2):
        edges = tab.locator(f"tbody tr > :nth-child({place})").evaluate_all(
            "all => all.map(e => [e.getBoundingClientRect().left, e.getBoundingClientRect().right])"
        )
        assert all(0 <= left < right < 0.75 * PHONE["width"] for left, right in edges)


def test_the_page_opens_with_the_verdict(report, opened):
    tab = opened(report, PHONE)
    assert tab.locator("main h2").first.text_content() == "The verdict"
    text = tab.locator(".verdict").text_content()
    assert "gd" in text
    assert "2 seeds decide large differences only" in text


def test_figures_with_many_panels_wrap(report):
    for name in ("residuals", "eigenvalues", "boundaries"):
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
