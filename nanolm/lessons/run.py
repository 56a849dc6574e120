"""Compute the path from start to end, print it, and write it as one page."""

import shutil
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from nanolm.config import check_same_config, to_yaml
from nanolm.config.schema import FirstPrinciplesConfig
from nanolm.errors import ConfigError
from nanolm.files import lock, write_atomically
from nanolm.lessons import calibration, classifiers, confidence, language, likelihood, stability
from nanolm.lessons.page import write_page
from nanolm.lessons.sentence import ScoredSentence, score_sentence
from nanolm.lessons.step import Step
from nanolm.tracking import Console
from nanolm.tracking.tables import aligned

PAGE = "first_principles.html"
ROWS_ON_A_TERMINAL = 40
WIDEST = 100
"""columns of text; fewer on a narrower terminal"""


def run_first_principles(config: FirstPrinciplesConfig, run_dir: Path) -> int:
    """Print every step with its identities, and write ``config.yaml`` and the page into an existing directory.

    Return the exit code: 0, or 1 where an identity does not hold on this machine.

    Raises:
        NanolmError: the checkpoint, the sentence or the run directory cannot be used.
    """
    with lock(run_dir / ".lock", ConfigError, purpose="writing the first principles"):
        check_same_config(config, run_dir)
        scored = score_sentence(config)
        console, width = Console(), min(WIDEST, shutil.get_terminal_size().columns)
        steps: list[tuple[str, Step]] = []
        for number, (part, step) in enumerate(walk(config.seed, scored), 1):
            if not steps or part != steps[-1][0]:
                console.result(f"{part.upper()}\n")
            console.result(text(number, step, width))
            steps.append((part, step))
        write_atomically(run_dir / "config.yaml", to_yaml(config))
        write_page(run_dir / PAGE, config, steps)
    held = [identity.holds for _, step in steps for identity in step.identities]
    console.result(f"{sum(held)} of {len(held)} identities hold")
    console.result(str(run_dir / PAGE))
    return 0 if all(held) else 1


def walk(seed: int, scored: ScoredSentence) -> Iterator[tuple[str, Step]]:
    """Compute the steps in their order, and yield each with the name of its part."""
    part = "From the probability of data to a loss"
    yield part, likelihood.joint_probability()
    yield part, likelihood.two_readings()
    yield part, likelihood.product_to_sum()
    yield part, likelihood.shared_maximum()
    yield part, likelihood.coin()
    yield part, likelihood.surprisal()
    yield part, likelihood.entropy_and_divergence()
    part = "Classifiers"
    yield part, classifiers.binary_cross_entropy()
    yield part, classifiers.logistic_regression()
    yield part, classifiers.one_optimum()
    yield part, classifiers.softmax_scores()
    yield part, classifiers.softmax_gradient(seed)
    part = "Computing it"
    yield part, stability.stable_binary()
    yield part, stability.stable_softmax()
    part = "Language models"
    yield part, language.chain_rule(scored)
    yield part, language.continuations(scored)
    yield part, language.perplexity(scored)
    part = "What it does to confidence"
    yield part, confidence.overconfidence()
    yield part, confidence.logits_without_end()
    yield part, calibration.reliability(seed)
    yield part, calibration.held_out_temperature(seed)
    yield part, calibration.top_label_and_whole()
    yield part, confidence.smoothing_optimum()
    yield part, confidence.smoothing_and_calibration(seed)


def text(number: int, step: Step, width: int) -> str:
    """Return one step as text of ``width`` columns; a table keeps its own width, and a long word or path is whole."""
    wrap = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    formula = wrap(step.formula, initial_indent="   ", subsequent_indent="   ")
    lines = [*wrap(f"{number}. {step.title}"), *formula, "", *wrap(step.about)]
    lines.append(aligned("", step.table[: ROWS_ON_A_TERMINAL + 1], left=step.words))
    if left_out := len(step.table[ROWS_ON_A_TERMINAL + 1 :]):
        lines.append(f"  … and {left_out:,} more rows on the page")
    for identity in step.identities:
        verdict = "holds" if identity.holds else "DOES NOT HOLD"
        lines += wrap(f"{verdict} {identity}", initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"
