"""The whole path in one process, its text and its page; tests/test_scripts.py has the command."""

import re
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
import torch

from nanolm.config import load, to_yaml
from nanolm.errors import ConfigError
from nanolm.lessons import Step, run_first_principles, stability
from nanolm.lessons.page import draw, write_page
from nanolm.lessons.run import text


def make_step(title="A title", about="about <i>it</i>", *identities):
    step = Step(title, "a = b", about)
    step.column("n", ["'<b>'"])
    for statement, left, right in identities:
        step.identity(statement, left, right)
    step.plot("across", "up")
    step.line("curve", [1, 2], [1.0, 4.0])
    return step


@pytest.mark.parametrize("content", [to_yaml(load("first_principles", ["seed=1"])).encode(), b"\xff"])
def test_another_run_is_not_overwritten(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        run_first_principles(load("first_principles"), tmp_path)
    assert not (tmp_path / "first_principles.html").exists()


def test_all_steps_are_shown_and_broken_identities_fail_the_run(tmp_path, capsys, monkeypatch):
    def forgetful(logits, targets, **_):
        return SimpleNamespace(nll=-logits.softmax(dim=1).log()[torch.arange(len(targets)), targets])

    monkeypatch.setattr(stability, "softmax_nll", forgetful)
    assert run_first_principles(load("first_principles", ["device=cpu"]), tmp_path) == 1
    out, page = capsys.readouterr().out, (tmp_path / "first_principles.html").read_text(encoding="utf-8")
    assert "\n70 of 72 identities hold\n" in out
    assert out.count("DOES NOT HOLD") == page.count('class="broken"') == 2
    assert "inf and 1000" in " ".join(out.split())
    assert "8 more rows" in out
    titles = re.findall(r"(?m)^(\d+)\. (.+)$", out)
    assert [int(number) for number, _ in titles] == list(range(1, 25))
    # The likelihood, a product, comes before its logarithm.
    assert [word in title for (_, title), word in zip(titles, ("dataset", "likelihood", "logarithm"), strict=False)]
    assert page.count("<svg") == page.count("<table>") == page.count("<section") == 24


@pytest.mark.parametrize("width", [40, 100])
def test_the_words_of_a_step_are_wrapped(width):
    about = "one two three " * 30 + "a/path/that-is-longer-than-the-terminal-is-wide"
    lines = text(7, make_step("A title", about, ("so", 1.0, 1.0)), width).splitlines()
    assert " ".join(about.split()) in " ".join(map(str.strip, lines))
    assert width - 8 < max(map(len, lines)) <= max(width, 47)


@pytest.mark.parametrize(("columns", "widest"), [(70, 70), (300, 100)])
def test_text_is_as_wide_as_the_terminal_up_to_100_columns(columns, widest, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("nanolm.lessons.run.walk", lambda seed, scored: iter([("part", stability.stable_binary())]))
    assert run_first_principles(load("first_principles"), tmp_path) == 0
    words = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
    assert widest - 15 < max(map(len, words[:-1])) <= widest


def test_the_page_is_self_contained_escaped_and_in_parts(tmp_path):
    steps = [("one", make_step("A & B", "<i>it</i>", ("a & b", 1.0, 1.0))), ("one", make_step()), ("two", make_step())]
    config = load("first_principles", ["sentence=<script>alert(1)</script> 本 & é"])
    write_page(tmp_path / "page.html", config, steps)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for escaped in ("&lt;script&gt;alert(1)&lt;/script&gt; 本 &amp; é", "&lt;i&gt;it", "&lt;b&gt;", "A &amp; B"):
        assert escaped in page
    for unescaped in ("<script", "<i>it", "<b>'"):
        assert unescaped not in page
    assert not re.search(r"(src|href)=\"(?!#)", page.replace("xlink:href", "href"))
    assert re.findall(r'<section id="(.*?)">', page) == ["step-1", "step-2", "step-3"]
    assert re.findall(r'<ol start="(\d+)">', page) == ["1", "3"]


@pytest.mark.parametrize(("names", "shown"), [(("'$x$'", "'$$'"), True), (("'本'", "'a'"), False)])
def test_a_plot_names_its_series_and_axes_and_those_bars_that_its_font_can(names, shown):
    step = make_step()
    step.curves.clear()
    step.bars("bars", [0, 1], [1.0, 2.0], names)
    step.line("curve", [0, 1], [1.0, 2.0])
    step.dots("dots", [1], [2.0])
    step.level("level", 1.5)
    nodes = ElementTree.fromstring(draw(step)).iter("{http://www.w3.org/2000/svg}text")
    drawn = {"".join(node.itertext()).strip() for node in nodes}
    assert {"across", "up", "bars", "curve", "dots", "level"} <= drawn
    assert (set(names) <= drawn, bool(set(names) & drawn)) == (shown, shown)
