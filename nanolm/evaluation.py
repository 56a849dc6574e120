"""One deterministic pass over a split: every token scored exactly once, with its context stated.

The split is one stream, ``<end-of-text> document <end-of-text> document … <end-of-text>``; its targets are all
tokens but the first. A window of ``sequence_length`` tokens slides over it by ``stride`` targets, and each window
scores the targets that no window before it has scored. Every target but those at the start of the split so has at
least ``sequence_length - stride`` tokens of context before the token it is predicted from, documents before its own
included.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nanolm.config.schema import EvaluateConfig
from nanolm.data import TokenSplit
from nanolm.device import Compute
from nanolm.files import write_atomically
from nanolm.loss import LossOptions, linear_nll
from nanolm.model import GPT

MEANINGS = {
    "nll": "nats per token, end-of-text included",
    "perplexity": "exp(NLL)",
    "bits_per_byte": "all NLL / ln 2 / UTF-8 bytes of the text",
    "accuracy": "share of tokens where the most likely one is right",
    "confidence": "mean probability of the most likely token",
}


@dataclass(frozen=True)
class Window:
    """Targets ``first_scored`` to ``end`` are scored from inputs ``start`` to ``end``."""

    start: int
    first_scored: int
    end: int


def windows(num_tokens: int, sequence_length: int, stride: int) -> Iterator[Window]:
    """Windows that score each of ``num_tokens`` targets exactly once.

    All are ``sequence_length`` long unless the split is shorter: the last is moved back to end where the split ends.
    """
    scored = 0
    while scored < num_tokens:
        end = min(max(scored + stride, sequence_length), num_tokens)
        yield Window(max(0, end - sequence_length), scored, end)
        scored = end


@dataclass(frozen=True)
class Evaluation:
    """Sums over a split, per document. NLL in nats; the tokens include each document's end-of-text."""

    split: str
    sequence_length: int
    stride: int
    nll_sum: npt.NDArray[np.float64]
    """(num_documents,)"""
    confidence_sum: npt.NDArray[np.float64]
    """(num_documents,)"""
    num_correct: npt.NDArray[np.int64]
    """(num_documents,)"""
    num_tokens: npt.NDArray[np.int64]
    """(num_documents,)"""
    num_bytes: npt.NDArray[np.int64]
    """(num_documents,) UTF-8 bytes of the text"""

    def metrics(self) -> dict[str, float]:
        """The figures of the whole split: ratios of sums, never means of documents' means.

        ``nll`` is in nats per token and ``perplexity`` its exponential; ``bits_per_byte`` is all NLL,
        end-of-text included, over ln 2 and the UTF-8 bytes of the split, and does not depend on the tokenizer.
        Both can be infinite: an exponential that overflows, a split of empty documents.
        """
        tokens, num_bytes = int(self.num_tokens.sum()), int(self.num_bytes.sum())
        nll_sum = math.fsum(self.nll_sum)
        nll = nll_sum / tokens
        return {
            "nll": nll,
            "perplexity": math.exp(nll) if nll < 700 else math.inf,
            "bits_per_byte": nll_sum / math.log(2) / num_bytes if num_bytes else math.inf,
            "accuracy": int(self.num_correct.sum()) / tokens,
            "confidence": math.fsum(self.confidence_sum) / tokens,
        }

    def table(self, step: int) -> tuple[str, list[tuple[str, float, str]]]:
        """Title and rows (name, value, meaning) of the table that a person reads."""
        title = f"{self.split} after {step:,} steps: {int(self.num_tokens.sum()):,} tokens, each scored once"
        return title, [(name, value, MEANINGS[name]) for name, value in self.metrics().items()]

    def write_documents(self, path: Path) -> None:
        """Leave the sums per document in an ``.npz`` file."""
        content = io.BytesIO()
        np.savez(
            content,
            nll_sum=self.nll_sum,
            confidence_sum=self.confidence_sum,
            num_correct=self.num_correct,
            num_tokens=self.num_tokens,
            num_bytes=self.num_bytes,
        )
        write_atomically(path, content.getvalue())

    def as_json(self, step: int) -> dict[str, Any]:
        """The content of ``evaluation.json``; null where a value is not finite, and for intervals not computed."""
        values = {name: value if math.isfinite(value) else None for name, value in self.metrics().items()}
        intervals = {name: {"value": value, "low": None, "high": None} for name, value in values.items()}
        return {
            "split": self.split,
            "step": step,
            "num_tokens": int(self.num_tokens.sum()),
            "num_documents": len(self.num_tokens),
            "num_bytes": int(self.num_bytes.sum()),
            "sequence_length": self.sequence_length,
            "stride": self.stride,
            **intervals,
        }


@torch.no_grad()
def evaluate(
    model: GPT,
    split: TokenSplit,
    sequence_length: int,
    config: EvaluateConfig,
    loss: LossOptions,
    compute: Compute,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a split. Draws no random number and leaves the model in the mode it was in.

    Args:
        model: any model whose ``head_weight`` maps hidden states to logits.
        split: the tokens, with the documents they belong to.
        sequence_length: tokens per window.
        config: stride and number of windows per forward pass.
        loss: softcap and temperature of the model; smoothing and z-loss play no part in an NLL.
        compute: where to run.
        progress: called with the targets scored so far and their total; what it raises ends the pass.
    """
    stride = min(config.stride or sequence_length, sequence_length)
    first_targets, num_tokens = split.documents.first_target, split.documents.num_tokens
    nll_sum, confidence_sum, num_correct = (np.zeros(split.num_documents) for _ in range(3))
    was_training = model.training
    model.eval()
    try:
        done = 0
        for batch in _batches(windows(split.num_tokens, sequence_length, stride), config.batch_size):
            tokens = np.stack([split.read(window.start, window.end - window.start + 1) for window in batch])
            position = np.stack([np.arange(window.start, window.end) for window in batch])
            is_scored = position >= np.array([[window.first_scored] for window in batch])

            stream = torch.from_numpy(tokens).to(compute.device)
            scored = torch.from_numpy(is_scored).to(compute.device)
            with compute.autocast():
                hidden = model(stream[:, :-1])
                result = linear_nll(hidden[scored], model.head_weight, stream[:, 1:][scored], options=loss)

            document = np.searchsorted(first_targets, position[is_scored], side="right") - 1
            first, last = document[0], document[-1]
            assert result.confidence is not None and result.correct is not None, "asked for by default"  # noqa: PT018
            for total, values in (
                (nll_sum, result.nll),
                (confidence_sum, result.confidence),
                (num_correct, result.correct),
            ):
                total[first : last + 1] += np.bincount(document - first, values.double().cpu().numpy())
            done += len(document)
            progress(done, split.num_tokens)
    finally:
        model.train(was_training)
    return Evaluation(
        split=split.name,
        sequence_length=sequence_length,
        stride=stride,
        nll_sum=nll_sum,
        confidence_sum=confidence_sum,
        num_correct=num_correct.astype(np.int64),
        num_tokens=np.asarray(num_tokens, dtype=np.int64),
        num_bytes=np.asarray(split.documents.num_bytes, dtype=np.int64),
    )


def _batches(items: Iterator[Window], size: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
