import re
import xml.etree.ElementTree as ElementTree

import pytest

from nanolm.config import load
from nanolm.lessons import Curve, Identity, Plot, Step
from nanolm.lessons.page import draw, write_first_principles_page

PLOT = Plot("x", "y", (Curve("line", [1.0, 2.0], [1.0, 4.0]), Curve("dots", [1.0], [2.0], "dots")), (("level", 3.0),))


def step(title, *identities, plot=PLOT):
    return Step(title, "a = b", "about <i>it</i>", (("token", "n"), ("'<b>'", "1")), identities, plot)


@pytest.fixture
def page(tmp_path):
    def write(*steps, sentence="the sentence"):
        path = tmp_path / "page.html"
        write_first_principles_page(path, load("first_principles", [f"sentence={sentence}"]), steps)
        return path.read_text(encoding="utf-8")

    return write


def test_the_page_is_self_contained_escaped_and_well_formed(page):
    steps = (("one", step("A", Identity("a & b", 1.0, 1.0))), ("one", step("B")), ("two", step("C")))
    text = page(*steps, sentence="<script>alert(1)</script> 本 & é")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 本 &amp; é" in text
    assert "<script" not in text
    assert "<i>it" not in text
    assert "&lt;b&gt;" in text
    assert not re.search(r"(src|href)=\"(?!#)", text.replace("xlink:href", "href"))
    assert text.count("<svg") == 3
    assert re.findall(r'<section id="(.*?)">', text) == ["step-1", "step-2", "step-3"]
    assert '<ol start="3">' in text
    assert page(*steps, sentence="<script>alert(1)</script> 本 & é") == text


def test_it_says_how_many_identities_hold(page):
    whole = ("part", step("A", Identity("a", 1.0, 1.0), Identity("b", 2.0, 2.0)))
    assert "All 2 identities below hold" in page(whole)
    broken = ("part", step("B", Identity("c", 1.0, 2.0)))
    text = page(whole, broken)
    assert "1 of 3 identities do not hold" in text
    assert text.count('<li class="broken"><b>does not hold</b>') == 1


@pytest.mark.parametrize("style", ["line", "dots", "bars"])
def test_a_plot_names_its_curves_levels_and_axes(style):
    svg = draw(Plot("across", "up", (Curve("curve", [1, 2], [1.0, 2.0], style),), (("level", 1.5),)))
    texts = {
        "".join(node.itertext()).strip()
        for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    }
    assert {"across", "up", "curve", "level", "1", "2"} <= texts
    assert "1.5" not in {text for text in texts if text.startswith("1")} or style != "bars"


def test_names_on_an_axis_are_no_formulas_and_ascii():
    def texts(*names):
        plot = Plot("token", "", (Curve("c", list(range(len(names))), [1.0] * len(names), "bars"),), names=names)
        svg = draw(plot)
        return {
            "".join(node.itertext()).strip()
            for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
        }

    assert {"'$x$'", "'$$'"} <= texts("'$x$'", "'$$'")
    assert "'本'" not in texts("'本'", "'a'")
