"""The whole path in one process, where an identity is broken; tests/test_scripts.py has the path that holds."""

from types import SimpleNamespace

import pytest
import torch

from nanolm.config import load, to_yaml
from nanolm.errors import ConfigError
from nanolm.first_principles import run_first_principles, stability
from nanolm.report.first_principles import write_first_principles_page


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
    out = capsys.readouterr().out
    assert "DOES NOT HOLD within 1e-06: softmax_nll of [1000, 0, -1000], in float32: inf and 1000" in out
    assert "of 57 identities hold" in out
    assert "57 of 57" not in out
    assert "… and 8 more rows on the page" in out
    assert len(written[0]) == 19
