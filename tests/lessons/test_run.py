"""The whole path in one process, where an identity is broken; tests/test_scripts.py has the path that holds."""

import os
from types import SimpleNamespace

import pytest
import torch

from nanolm.config import load, to_yaml
from nanolm.errors import ConfigError
from nanolm.lessons import Identity, Plot, Step, run_first_principles, stability
from nanolm.lessons.page import write_first_principles_page
from nanolm.lessons.run import text


def test_another_run_is_not_overwritten(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(load("first_principles", ["seed=1"])))
    with pytest.raises(ConfigError, match="holds another run"):
        run_first_principles(load("first_principles"), tmp_path, write_first_principles_page)
    assert not (tmp_path / "first_principles.html").exists()


def test_an_identity_that_does_not_hold_is_told_and_fails_the_run(tmp_path, capsys, monkeypatch):
    def forgetful(logits, targets, **_):
        return SimpleNamespace(nll=-logits.softmax(dim=1).log()[torch.arange(len(targets)), targets])

    monkeypatch.setattr(stability, "softmax_nll", forgetful)
    written = []
    config = load("first_principles", ["device=cpu"])
    assert run_first_principles(config, tmp_path, lambda path, config, steps: written.append(steps)) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "DOES NOT HOLD within 1e-06: softmax_nll of [1000, 0, -1000], in float32: inf and 1000" in out
    assert "of 68 identities hold" in out
    assert "68 of 68" not in out
    assert "… and 8 more rows on the page" in out
    titles = [step.title for _, step in written[0]]
    assert len(titles) == 23
    # The likelihood, a product, comes before its logarithm; the metrics of calibration before what is said of them.
    assert "dataset" in titles[0]
    assert "likelihood" in titles[1]
    assert "logarithm" in titles[2]
    for _, step in written[0]:
        assert " ".join(step.about.split()) in out


def test_the_words_of_a_step_are_printed_and_wrapped():
    about = "one two three " * 30 + "a/path/that-is-longer-than-the-terminal-is-wide"
    step = Step("A title", "a = b", about, (("n",), ("1",)), (Identity("so", 1.0, 1.0),), Plot("", "", ()))
    for width in (40, 100):
        lines = text(7, step, width).splitlines()
        assert " ".join(about.split()) in " ".join(line.strip() for line in lines)
        assert max(map(len, lines)) <= max(width, 47)
        assert max(map(len, lines)) > width - 8
        assert lines.index("  n") < next(place for place, line in enumerate(lines) if "holds" in line)


@pytest.mark.parametrize(("columns", "widest"), [(70, 70), (300, 100)])
def test_text_is_as_wide_as_the_terminal_up_to_100_columns(columns, widest, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", str(columns))
    monkeypatch.setattr("nanolm.lessons.run.walk", lambda seed, scored: iter([("part", stability.stable_binary())]))
    assert run_first_principles(load("first_principles"), tmp_path, lambda *_: None) == 0
    words = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
    assert widest - 15 < max(map(len, words[:-1])) <= widest
