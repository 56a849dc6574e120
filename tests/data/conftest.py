"""Configurations of the data room, with every key at a value that a test can do without."""

from pathlib import Path

import pytest

from nanolm.config.schema import DataConfig, TokenizerConfig


@pytest.fixture
def data_config(tmp_path: Path):
    """``data_config("jsonl", path=…)``: prepared below ``tmp_path/prepared``."""

    def make(name: str = "text", **keys) -> DataConfig:
        defaults = {
            "path": None,
            "root": str(tmp_path / "prepared"),
            "text_column": "text",
            "hub_path": None,
            "hub_name": None,
            "hub_revision": None,
            "max_documents": None,
            "held_out_documents": 10,
            "val_fraction": 0.1,
            "test_fraction": 0.1,
            "calibration_fraction": 0.1,
            "shifted_from_year": None,
            "split_seed": 0,
        }
        keys = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
        return DataConfig(name=name, **{**defaults, **keys})

    return make


@pytest.fixture
def tokenizer_config():
    """``tokenizer_config("bpe", 300)``."""

    def make(name: str = "byte", vocab_size: int | None = None, training_bytes: int | None = None) -> TokenizerConfig:
        return TokenizerConfig(name, vocab_size, training_bytes)

    return make
