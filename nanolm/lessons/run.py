"""The path from start to end: computed, printed, and left as one page."""

import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from nanolm.config import to_yaml
from nanolm.config.schema_first_principles import FirstPrinciplesConfig
from nanolm.errors import ConfigError
from nanolm.files import lock, write_atomically
from nanolm.lessons import (
    calibration,
    classifiers,
    confidence,
    information,
    language,
    likelihood,
    smoothing,
    stability,
)
from nanolm.lessons.language import ScoredSentence
from nanolm.lessons.sentence import score_sentence
from nanolm.lessons.step import COLUMNS_OF_WORDS, Step
from nanolm.tracking import Console
from nanolm.tracking.tables import aligned

PAGE = "first_principles.html"
ROWS_ON_A_TERMINAL = 40
WIDEST = 100
"""columns of text; fewer on a narrower terminal"""

WritePage = Callable[[Path, FirstPrinciplesConfig, Sequence[tuple[str, Step]]], None]


def run_first_principles(config: FirstPrinciplesConfig, run_dir: Path, write_page: WritePage) -> int:
    """Print every step with its identities, and leave ``config.yaml`` and ``first_principles.html``.

    Args:
        config: the run's configuration.
        run_dir: the run directory, which exists.
        write_page: writes the page from its path, the configuration and the steps, each with its part's name.

    Returns:
        The exit code: 0, or 1 where an identity does not hold on this machine.

    Raises:
        NanolmError: the checkpoint, the sentence or the run directory will not do.
    """
    with lock(run_dir / ".lock", ConfigError, purpose="writing the first principles"):
        path = run_dir / "config.yaml"
        if path.exists() and path.read_text(encoding="utf-8") != to_yaml(config):
            raise ConfigError(f"{run_dir}: this directory holds another run; give another hydra.run.dir")
        scored = score_sentence(config)
        console, width = Console(), min(WIDEST, shutil.get_terminal_size().columns)
        steps: list[tuple[str, Step]] = []
        for number, (part, step) in enumerate(walk(config.seed, scored), 1):
            if not steps or part != steps[-1][0]:
                console.result(f"{part.upper()}\n")
            console.result(text(number, step, width))
            steps.append((part, step))
        write_atomically(path, to_yaml(config))
        write_page(run_dir / PAGE, config, steps)
    identities = [identity for _, step in steps for identity in step.identities]
    broken = [identity for identity in identities if not identity.holds]
    console.result(f"{len(identities) - len(broken)} of {len(identities)} identities hold")
    console.result(str(run_dir / PAGE))
    return 1 if broken else 0


def walk(seed: int, scored: ScoredSentence) -> Iterator[tuple[str, Step]]:
    """The steps in their order, each computed as it is reached and with the name of its part of the path."""
    parts: dict[str, Sequence[Callable[[], Step]]] = {
        "From the probability of data to a loss": (
            likelihood.joint_probability,
            likelihood.two_readings,
            likelihood.product_to_sum,
            likelihood.shared_maximum,
            likelihood.coin,
            information.surprisal_table,
            information.entropy_and_divergence,
        ),
        "Classifiers": (
            classifiers.binary_cross_entropy,
            classifiers.logistic_regression,
            classifiers.softmax_scores,
            partial(classifiers.softmax_gradient, seed),
        ),
        "Computing it": (stability.stable_binary, stability.stable_softmax),
        "Language models": (
            partial(language.chain_rule, scored),
            partial(language.continuations, scored),
            partial(language.perplexity, scored),
        ),
        "What it does to confidence": (
            confidence.overconfidence,
            confidence.logits_without_end,
            partial(calibration.reliability, seed),
            partial(calibration.held_back_temperature, seed),
            calibration.top_label_and_whole,
            smoothing.smoothing_optimum,
            partial(smoothing.smoothing_and_calibration, seed),
        ),
    }
    for part, steps in parts.items():
        for step in steps:
            yield part, step()


def text(number: int, step: Step, width: int) -> str:
    """One step as a terminal of this many columns shows it; a table keeps its own width."""
    header, *rows = step.table
    left_out = len(rows) - ROWS_ON_A_TERMINAL
    shown = [header, *rows[:ROWS_ON_A_TERMINAL]]
    lines = [
        *_wrapped(f"{number}. {step.title}", width),
        *_wrapped(step.formula, width, "   "),
        "",
        *_wrapped(step.about, width),
        aligned("", shown, left=COLUMNS_OF_WORDS),
    ]
    if left_out > 0:
        lines.append(f"  … and {left_out:,} more rows on the page")
    for identity in step.identities:
        verdict = "holds" if identity.holds else "DOES NOT HOLD"
        values = f"{identity.left:.10g} and {identity.right:.10g}"
        words = f"{verdict} within {identity.tolerance:.2g}: {identity.statement}: {values}"
        lines += _wrapped(words, width, "  ", further="    ")
    return "\n".join(lines) + "\n"


def _wrapped(words: str, width: int, indent: str = "", further: str | None = None) -> list[str]:
    """Lines of at most this width; a path or another long word stays whole, so that it can be copied."""
    return textwrap.wrap(
        words,
        width,
        initial_indent=indent,
        subsequent_indent=indent if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )
