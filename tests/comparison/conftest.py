"""Runs as training leaves them, with figures made up so that the answers are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nanolm.evaluation import Measurement
from nanolm.metrics import CalibrationMeter
from nanolm.metrics.sums import WIDTH, column

NUM_DOCUMENTS = 40


@pytest.fixture
def make_run(tmp_path: Path):
    """``make_run("0", seed=0, nll=1.9, **settings)``: a finished run below ``tmp_path/runs``, with 40 documents."""

    def make(
        name: str,
        seed: int = 0,
        nll: float = 1.9,
        noise: int = 0,
        split: str = "val",
        figures: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        """``noise`` is the seed of the documents' own NLL, which runs on one text share."""
        place = tmp_path / "runs" / name
        place.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"name": name, "seed": seed, "loss": {"label_smoothing": 0.0}}
        if not any(key.startswith("task") for key in settings):
            config["trainer"] = {"max_steps": 3}
        for key, value in settings.items():
            section, _, last = key.partition("__")
            if last:
                config.setdefault(section, {})[last] = value
            else:
                config[section] = value
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        tokens = np.random.default_rng(7).integers(50, 150, NUM_DOCUMENTS)
        own = np.random.default_rng(noise).normal(0, 0.05, NUM_DOCUMENTS)
        own -= (own * tokens).sum() / tokens.sum()  # so that the mean over tokens is nll
        sums = np.zeros((NUM_DOCUMENTS, WIDTH))
        column(sums, "tokens")[:] = tokens
        column(sums, "bytes")[:] = 3 * tokens
        column(sums, "nll")[:] = (nll + own) * tokens
        column(sums, "entropy")[:] = 1.8 * tokens
        column(sums, "nll_at_temperature")[:] = (nll - 0.01 + own) * tokens
        measured = Measurement(
            split=split, documents=sums, about_intervals="95 % intervals over 40 documents", meter=CalibrationMeter()
        )
        measured.write_documents(place / f"documents-{split}.npz")
        values = {
            "nll": nll,
            "perplexity": np.exp(nll),
            "ece": 0.02,
            "accuracy": 0.4,
            "confidence": 0.5,
            **(figures or {}),
        }
        content = {key: {"value": v, "low": None, "high": None} for key, v in values.items() if isinstance(v, float)}
        content |= {key: v for key, v in values.items() if not isinstance(v, float)}
        content |= {"split": split, "num_classes": 10, "intervals": "95 % intervals over 40 documents"}
        content.setdefault("step", 3)
        suffix = "" if split == "val" else f"-{split}"
        (place / f"evaluation{suffix}.json").write_text(json.dumps(content))
        return place

    return make
