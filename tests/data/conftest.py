"""Configurations of the data room: a tenth of the documents in each of val, calibration and test."""

import json
from pathlib import Path

import pytest

from nanolm.config import load
from nanolm.data import open_prepared, prepare


def configure(root, *overrides):
    """``configure(root, "data=jsonl", f"data.path={path}")``: the configuration of scripts/tokenize.py."""
    tenths = [f"data.{split}_fraction=0.1" for split in ("val", "test", "calibration")]
    return load("tokenize", ["tokenizer=byte", f"data.root={root}", *tenths, *overrides])


def write_jsonl(path: Path, texts) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path):
    """``config("data=sotu", …)``: prepared below ``tmp_path/prepared``."""
    return lambda *overrides: configure(tmp_path / "prepared", *overrides)


@pytest.fixture
def tokenize(config):
    """``tokenize("data=sotu", …)``: the prepared corpus, opened."""

    def run(*overrides):
        chosen = config(*overrides)
        return open_prepared(prepare(chosen.data, chosen.tokenizer))

    return run
