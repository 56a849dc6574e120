"""A finished checkpoint at work: score a split or a text with it, draw text from it."""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from nanolm.config.schema import DataConfig, EvaluateScriptConfig, SampleScriptConfig
from nanolm.data import PreparedCorpus, TokenSplit, open_prepared, prepare
from nanolm.data.splits import ALL
from nanolm.device import resolve_compute
from nanolm.errors import ConfigError, DataError
from nanolm.evaluation import Extras, Scorer
from nanolm.files import require_writable
from nanolm.metrics import Calibration
from nanolm.objective import loss_options
from nanolm.report import publish, summary, write_split_page
from nanolm.sampling import sample, why_empty, with_temperature
from nanolm.tracking import Console
from nanolm.training import Checkpoint, find_checkpoint


def evaluate_checkpoint(config: EvaluateScriptConfig) -> Path:
    """Score a split or a whole text, print its table and leave three files in the folder that is returned.

    They are ``documents-<split>.npz``, ``report-<split>.html`` and, last, ``evaluation-<split>.json``.

    Raises:
        NanolmError: no such checkpoint or split, or the text it needs is not there.
    """
    console = Console()
    checkpoint = find_checkpoint(config.checkpoint)
    context = checkpoint.config.trainer.sequence_length
    if config.evaluate.stride is not None and config.evaluate.stride > context:
        raise ConfigError(
            f"evaluate.stride: expected at most the {context} tokens of context that this checkpoint was trained with, "
            f"found {config.evaluate.stride}"
        )
    folder = Path(config.out) if config.out else checkpoint.run_dir
    if checkpoint.path.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"out={folder}: results are never written into a checkpoint; give another folder")
    require_writable(folder, "out")
    name = config.split or ("val" if config.data is None else ALL)
    corpus, scored = _open_corpora(checkpoint, config, name == ALL, console)
    split = _chosen_split(scored, name, console)
    compute = resolve_compute(config.device, config.precision)
    model, options = checkpoint.load_model(compute.device), loss_options(checkpoint.config.loss)
    scorer = Scorer(model, context, config.evaluate, options, compute)
    calibration = _calibration(checkpoint, scorer, corpus, console)
    if calibration.reason is not None:
        console.note(f"no fitted temperature: {calibration.reason}")
    counted = corpus.splits.get("train", split)
    extras = Extras.all(calibration, counted, checkpoint.tokenizer, checkpoint.config.loss)
    with console.progress(f"scoring {name}", unit="tokens") as progress:
        measured, evaluation = scorer.evaluate(split, checkpoint.step, extras, progress, corpus=scored.fingerprint)
    try:
        page = partial(write_split_page, folder, checkpoint.path, evaluation)
        publish(folder, measured, evaluation, page, f"-{name}")
    finally:  # a disk that fails now must not take the numbers with it
        title, rows, _ = summary(evaluation)
        console.table(title, rows)
    console.result(str(folder / f"evaluation-{name}.json"))
    return folder


def _calibration(checkpoint: Checkpoint, scorer: Scorer, corpus: PreparedCorpus, console: Console) -> Calibration:
    """Return the checkpoint's temperature, or, in the middle of a run, one that is fitted now."""
    calibration = checkpoint.calibration()
    if calibration is not None:
        return calibration
    if ALL in corpus.splits:
        return Calibration.none(f"this checkpoint has none, and split={ALL} leaves no other text to fit one on")
    with console.progress("fitting the temperature", unit="tokens") as progress:
        return scorer.fit_temperature(corpus.splits.get("calibration"), progress)


def _open_corpora(
    checkpoint: Checkpoint, config: EvaluateScriptConfig, whole: bool, console: Console
) -> tuple[PreparedCorpus, PreparedCorpus]:
    """Open the corpus of the training run, or another one in the checkpoint's own tokens; and what is scored of it.

    They differ if the whole of the run's own text is scored: its train and calibration splits are needed as well.
    """
    data, trained_on = config.data or checkpoint.config.data, checkpoint.config.data

    def opened(whole: bool) -> PreparedCorpus:
        with console.progress(f"tokenizing {data.name}") as progress:
            return open_prepared(prepare(data, checkpoint.tokenizer, progress, whole))

    if whole and _source(data) == _source(trained_on):
        console.note(
            f"warning: split={ALL} of data={data.name} holds text that this checkpoint was trained on, so the metrics "
            "are not those of new text"
        )
    if config.data is not None:
        corpus = opened(whole)
        return corpus, corpus
    corpus = opened(False)
    if corpus.fingerprint != checkpoint.manifest.corpus:
        console.note(f"data={data.name}: the text is not what this checkpoint was trained on; scored as it is now")
    return corpus, opened(True) if whole else corpus


def _chosen_split(corpus: PreparedCorpus, name: str, console: Console) -> TokenSplit:
    """Return the split of this name, after a note that says how much of the text it is."""
    split = corpus.splits.get(name)
    if split is None or split.num_tokens == 0:
        raise DataError(
            f"split={name}: this corpus has no such split; it has {', '.join(corpus.splits)}, and {ALL}, the whole text"
        )
    num_tokens = sum(other.num_tokens for other in corpus.splits.values())
    num_documents = [other.num_documents for other in corpus.splits.values()]
    units = "documents" if name == ALL or max(num_documents) > 1 else "documents or parts of one"
    console.note(
        f"split={name}: {split.num_tokens:,} of {num_tokens:,} tokens are scored, in {split.num_documents:,} of "
        f"{sum(num_documents):,} {units}" + ("" if name == ALL else f"; split={ALL} scores the whole text")
    )
    return split


def _source(data: DataConfig) -> tuple[str | None, ...]:
    """Return what names the text of a corpus, however it is split and tokenized."""
    path = getattr(data, "path", None)
    hub = (getattr(data, "hub_path", None), getattr(data, "hub_name", None))
    return data.name, path and os.path.realpath(path), *hub


def sample_checkpoint(config: SampleScriptConfig) -> list[str]:
    """Draw texts from a checkpoint and print them; a prompt of ``-`` is read from standard input.

    A note on standard error names each text with nothing to read after its prompt.

    Raises:
        NanolmError: no such checkpoint, or the prompt cannot be read or represented.
    """
    checkpoint = find_checkpoint(config.checkpoint)
    if config.prompt == "-":
        if sys.stdin is None:
            raise DataError("prompt=-: expected a text on standard input, found it closed")
        try:
            config = replace(config, prompt=sys.stdin.buffer.read().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"prompt=-: standard input is not UTF-8: {error}") from None
    calibration = checkpoint.calibration() or Calibration.none(
        "it is not the last checkpoint of a finished run. Finish the run: its train.log has the command that continues "
        "it"
    )
    config = with_temperature(
        config, calibration.value, f"{checkpoint.path} has no fitted temperature: {calibration.reason}"
    )
    compute = resolve_compute(config.device, config.precision)
    model, options = checkpoint.load_model(compute.device), loss_options(checkpoint.config.loss)
    context = checkpoint.config.trainer.sequence_length
    texts = sample(model, checkpoint.tokenizer, config, config.seed, context, options, compute)
    console = Console()
    for number, text in enumerate(texts, start=1):
        if reason := why_empty(text, config.prompt):
            console.note(f"sample {number} of {len(texts)}: {reason}; another seed or temperature may give more")
    console.result("\n\n----\n\n".join(texts))
    return texts
