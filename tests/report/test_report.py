import json
import re
import zipfile

import numpy as np
import pytest
from browser import chromium, needs_chromium

from anysigma.metrics.anchors import Anchor
from anysigma.report.page import collect, page, write_report
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table, save_pictures, write_results

ETAS, STEPS = (0.0, 1.0), (10, 20, 50)
NASTY = '<img src="http://example.org/x.png" onerror="alert(1)"> & x_T'


def evaluated(folder, run="digits-unet-69df004f", shift=0.0):
    """An evaluation with a table, plots of the same caption, pictures, a study that nobody knows and hostile text."""
    card = {"checkpoint": f"logs/train/{run}/checkpoints/last.ckpt", "step": 20, "weights": "ema 0.995", "n": 100, "sets": 2}
    card["schedule"] = {"_target_": "anysigma.diffusion.schedules.cosine.Cosine", "T": 1000}
    rows = []
    for eta in ETAS:
        for S in STEPS:
            params = {"sampler": "Generalized", "S": S, "sigma": f"Eta(eta={eta})", "tau": "Uniform()", "clip": True}
            facts = {"better": -1, "label": "Fréchet distance", "features": "digits"}
            facts |= {"sets": [0.0, 1.0], "anchors": {"real images": Anchor(2.0, 0.1, 0.01, 200)}}
            rows.append(Row("fd_digits", 100 / S + eta + shift, 0.5, 100, params, card=params, **facts))
    plot = Plot(NASTY, "S", "fd", [Curve("η = 0", STEPS, [3, 2, 1], [0.1] * 3), Curve(NASTY, STEPS, [4, 3, 2])], log_x=True)
    grid = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    table = Table(NASTY, ["σ", *(f"S = {S}, and quite a long heading" for S in STEPS)], [["η = 0", "3", "2", "1"]], NASTY)
    known = Result(
        "table",
        "Steps and noise",
        "One network.",
        rows,
        card,
        {"grid": grid, "strip": grid[:20]},
        {"grid": NASTY},
        {"a": plot, "b": plot},
        [table],
    )
    unknown = Result("new_study", card={"checkpoint": card["checkpoint"]}, lines=[NASTY])
    folder.mkdir(parents=True)
    save_pictures(known, folder)
    config = {"key": NASTY, "name": "a" * 200}
    write_results(
        folder / "results.json", [known, unknown], command=f"python {NASTY}", config=config, versions={"torch": "2"}
    )
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page over one evaluation and a page over two."""
    root = tmp_path_factory.mktemp("report")
    first, second = evaluated(root / "all" / "a"), evaluated(root / "all" / "b", run="another", shift=5.0)
    assert second.exists()
    (root / "both").mkdir()
    return write_report(first), write_report(root / "both", collect(str(root / "all")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


def test_nothing_on_the_page_comes_from_elsewhere(pages):
    for path in pages:
        text = path.read_text()
        places = re.findall(r'<[^>]*\b(?:src|href|srcset|action)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
        assert places
        assert all(place.startswith(("data:", "#")) for place in places)
        assert not re.search(r"<script|@import|<[^>]*onerror=\"", text)


def test_what_came_in_is_escaped_and_every_id_is_one_of_its_kind(pages):
    for path in pages:
        text = path.read_text()
        assert '<img src="http' not in text
        assert "&lt;img src=" in text
        ids = re.findall(r'\bid="([^"]*)"', text)
        assert len(ids) == len(set(ids))
        assert {place for place in re.findall(r'(?:href="|url\()#([^")]*)', text)} <= set(ids)


def test_one_evaluation_has_its_summary_figures_and_making(pages):
    text = pages[0].read_text()
    for part in (
        "<h1>digits-unet-69df004f</h1>",
        "Key figures",
        "Steps and noise",
        "New study",
        "How it was made",
    ):
        assert part in text
    assert text.count("<h1") == 1
    assert re.search(r"<b>10\.00</b> <span class=\"pm\">± 0\.50</span>", text)
    assert "real images 2.00 ± 0.10" in text
    assert "S = 10, η = 0, uniform τ, clipped" in text


def test_several_evaluations_are_ranked_and_drawn_against_S(pages):
    text = pages[1].read_text()
    assert "2 runs compared" in text
    assert "Side by side" in text
    assert "Fréchet distance in digits features against the number of steps S" in text
    assert "another, η = 1" in text
    assert "not ranked" not in text


def test_cards_that_differ_are_not_ranked_on_the_page_either(tmp_path):
    evaluated(tmp_path / "a")
    content = json.loads((evaluated(tmp_path / "b", run="another") / "results.json").read_text())
    content["cards"] = {name: {**card, "n": 500} for name, card in content["cards"].items()}
    (tmp_path / "b" / "results.json").write_text(json.dumps(content))
    assert "not ranked: the cards differ in n." in page(collect(str(tmp_path)))


def test_a_picture_that_is_gone_leaves_a_line(tmp_path):
    folder = evaluated(tmp_path / "a")
    (folder / "grid.png").unlink()
    assert "grid.png: no picture beside results.json" in write_report(folder).read_text()


def test_an_evaluation_without_figures_or_checkpoint_makes_a_page(tmp_path):
    write_results(tmp_path / "results.json", [Result("new_study", lines=["α_T = 0"])])
    text = write_report(tmp_path).read_text()
    assert "<h1>New study</h1>" in text
    assert "<i>α</i><sub>T</sub> = 0" in text
    with pytest.raises(ValueError, match="at least one"):
        page([])


def test_the_style_is_part_of_the_wheel(tmp_path):
    hatchling = pytest.importorskip(
        "hatchling.builders.wheel", reason="hatchling is not installed: no wheel can be built here"
    )
    (wheel,) = hatchling.WheelBuilder(".").build(directory=str(tmp_path), versions=["standard"])
    assert "anysigma/report/report.css" in zipfile.ZipFile(wheel).namelist()


@needs_chromium
@pytest.mark.parametrize("which", [0, 1])
def test_in_a_browser_all_is_there_and_nothing_is_asked_for(pages, browser, which):
    browser.requests(), browser.console()
    browser.open(pages[which], dark=bool(which))
    assert browser.js("document.querySelectorAll('table').length") >= 2
    assert browser.js("document.querySelectorAll('figure svg').length") >= 2
    widths = browser.js("[...document.images].map(i => i.naturalWidth)")
    assert len(widths) == 2 * (which + 1)
    assert all(widths)
    assert browser.js("document.querySelectorAll('th:not([scope])').length") == 0
    assert browser.console() == []
    assert {address.split(":")[0] for address in browser.requests()} <= {"file", "data"}


@needs_chromium
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(pages, browser, which, width):
    browser.open(pages[which], width, phone=width < 500)
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.js("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_the_page_follows_light_and_dark(pages, browser):
    paper, ink, axis = (
        f"getComputedStyle({of}).{what}.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"
        for of, what in (
            ("document.documentElement", "backgroundColor"),
            ("document.documentElement", "color"),
            ("document.querySelector('figure svg text')", "fill"),
        )
    )
    browser.open(pages[0])
    assert browser.js(paper) > 600 > 200 > browser.js(ink) == browser.js(axis)
    browser.open(pages[0], dark=True)
    assert browser.js(paper) < 200 < 600 < browser.js(ink) == browser.js(axis)
