"""Runs as training leaves them, with metrics made up so that the answers are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nanolm.comparison import find_runs, make_panels

NUM_DOCUMENTS = 40


@pytest.fixture
def panel_of(tmp_path: Path):
    """``panel_of()``: the one panel of the runs that were made so far."""

    def make(split: str = "val"):
        (panel,) = make_panels(find_runs(tmp_path / "runs", split)[0])
        return panel

    return make


@pytest.fixture
def make_run(tmp_path: Path):
    """``make_run("0", seed=0, nll=1.9, **settings)``: a finished run below ``tmp_path/runs``, with 40 documents."""

    def make(
        name: str,
        seed: int = 0,
        nll: float = 1.9,
        noise: int = 0,
        split: str = "val",
        found: dict[str, Any] | None = None,
        change_sums=lambda sums: sums,
        **settings: Any,
    ) -> Path:
        """Make a run.

        Args:
            noise: the seed of the documents' own NLL, which runs on one text share.
            found: metrics (floats) and other keys of its evaluation.
            change_sums: changes the arrays of ``documents-<split>.npz``.
            settings: ``loss__label_smoothing=0.1`` is that key of the configuration.
        """
        place = tmp_path / "runs" / name
        place.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"name": name, "seed": seed, "loss": {"label_smoothing": 0.0}}
        if not any(key.startswith("task") for key in settings):
            config["trainer"] = {"max_steps": 3}
        for key, value in settings.items():
            section, _, last = key.partition("__")
            config.setdefault(section, {})[last] = value
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        tokens = np.random.default_rng(7).integers(50, 150, NUM_DOCUMENTS)
        own = np.random.default_rng(noise).normal(0, 0.05, NUM_DOCUMENTS)
        own -= (own * tokens).sum() / tokens.sum()  # so that the mean over tokens is nll
        sums = {"num_tokens": tokens, "num_bytes": 3 * tokens, "nll_sum": (nll + own) * tokens}
        sums |= {"entropy_sum": 1.8 * tokens, "nll_at_temperature_sum": (nll - 0.01 + own) * tokens}
        sums |= dict.fromkeys(("num_correct", "confidence_sum", "brier_sum"), 0 * tokens)
        sums |= dict.fromkeys(("bin_count", "bin_confidence", "bin_correct"), np.zeros((NUM_DOCUMENTS, 15)))
        np.savez(place / f"documents-{split}.npz", **change_sums(sums))
        content: dict[str, Any] = {"split": split, "step": 3, "num_tokens": int(tokens.sum()), "num_classes": 10}
        content |= {"num_documents": NUM_DOCUMENTS, "intervals": "95 % intervals over 40 documents", "reliability": {}}
        content |= {"nll": nll, "perplexity": float(np.exp(nll)), "ece": 0.02, "accuracy": 0.4, "confidence": 0.5}
        content |= found or {}
        content = {key: {"value": value} if isinstance(value, float) else value for key, value in content.items()}
        suffix = "" if split == "val" else f"-{split}"
        (place / f"evaluation{suffix}.json").write_text(json.dumps(content))
        return place

    return make
