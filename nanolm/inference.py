"""What is done with a finished checkpoint: score a split with it, draw text from it."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from nanolm.config.schema import DataConfig, EvaluateScriptConfig, SampleScriptConfig
from nanolm.data import PreparedCorpus, TokenSplit, open_prepared, prepare
from nanolm.data.splits import ALL
from nanolm.device import resolve_compute
from nanolm.errors import ConfigError, DataError
from nanolm.evaluation import all_extras, calibration_json, evaluate, table, try_fit_on_split
from nanolm.files import require_writable, write_atomically
from nanolm.metrics.intervals import Interval
from nanolm.report import write_evaluation_report
from nanolm.sampling import sample, why_empty, with_temperature
from nanolm.tracking import Console
from nanolm.training import Checkpoint, find_checkpoint
from nanolm.training.loop import loss_options


def evaluate_checkpoint(config: EvaluateScriptConfig) -> Path:
    """Score a split or a whole text, print its table and leave three files in the folder that is returned.

    They are ``documents-<split>.npz``, ``report-<split>.html`` and, last, ``evaluation-<split>.json``.

    Raises:
        NanolmError: no such checkpoint or split, or the text it needs is not there.
    """
    console = Console()
    checkpoint = find_checkpoint(config.checkpoint)
    sequence_length = checkpoint.config.trainer.sequence_length
    if config.evaluate.stride is not None and config.evaluate.stride > sequence_length:
        raise ConfigError(
            f"evaluate.stride: expected at most the {sequence_length} tokens of context that this checkpoint was "
            f"trained with, found {config.evaluate.stride}"
        )
    folder = Path(config.out) if config.out else checkpoint.run_dir
    if checkpoint.path.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"out={folder}: results are never written into a checkpoint; give another folder")
    name = config.split or ("val" if config.data is None else ALL)
    corpus, scored = _open_corpora(checkpoint, config, name == ALL, console)
    split = _chosen_split(scored, name, console)
    require_writable(folder, "out")
    compute = resolve_compute(config.device, config.precision)
    model = checkpoint.load_model(compute.device)
    options = loss_options(checkpoint.config)
    how = (sequence_length, config.evaluate, options, compute)
    calibration = checkpoint.calibration()
    if calibration is None and ALL in corpus.splits:
        calibration = calibration_json(f"this checkpoint has none, and split={ALL} leaves no other text to fit one on")
    if calibration is None:  # a checkpoint of the middle of a run
        with console.progress("fitting the temperature", unit="tokens") as progress:
            calibration = calibration_json(try_fit_on_split(model, corpus.splits.get("calibration"), *how, progress))
    temperature = _interval(calibration["temperature"])
    if temperature is None:
        console.note(f"no fitted temperature: {calibration['reason']}")
    tokenizer, counted = checkpoint.tokenizer, corpus.splits.get("train", split)
    fitted = temperature.value if temperature else None
    extras = all_extras(fitted, counted, tokenizer.vocab_size, tokenizer.end_of_text_id, checkpoint.config.loss)
    with console.progress(f"scoring {name}", unit="tokens") as progress:
        evaluation = evaluate(model, split, *how, progress, extras)
    content = evaluation.as_json(checkpoint.step, temperature) | {
        "corpus": scored.fingerprint,
        "calibration": calibration,
    }
    try:
        evaluation.write_documents(folder / f"documents-{name}.npz")
        write_evaluation_report(folder, checkpoint.path, content)
        write_atomically(folder / f"evaluation-{name}.json", json.dumps(content, indent=2) + "\n")
    finally:  # a disk that fails now must not take the numbers with it
        console.table(*table(content))
    console.result(str(folder / f"evaluation-{name}.json"))
    return folder


def _interval(entry: dict[str, float] | None) -> Interval | None:
    return None if entry is None else Interval(entry["value"], entry.get("low"), entry.get("high"))


def _open_corpora(
    checkpoint: Checkpoint, config: EvaluateScriptConfig, whole: bool, console: Console
) -> tuple[PreparedCorpus, PreparedCorpus]:
    """The corpus of the training run, or another one in the checkpoint's own tokens; and what is scored of it.

    They differ where the whole of the run's own text is scored: its train and calibration splits are needed as well.
    """
    data, trained_on = config.data or checkpoint.config.data, checkpoint.config.data

    def opened(whole: bool) -> PreparedCorpus:
        with console.progress(f"tokenizing {data.name}") as progress:
            return open_prepared(prepare(data, checkpoint.tokenizer, progress, whole))

    if whole and _place(data) == _place(trained_on):
        console.note(
            f"warning: split={ALL} of data={data.name} holds text that this checkpoint was trained on, so the metrics "
            "are not those of new text"
        )
    if config.data is not None:
        corpus = opened(whole)
        return corpus, corpus
    corpus = opened(False)
    if corpus.fingerprint != checkpoint.manifest["corpus"]:
        console.note(f"data={data.name}: the text is not what this checkpoint was trained on; scored as it is now")
    return corpus, opened(True) if whole else corpus


def _chosen_split(corpus: PreparedCorpus, name: str, console: Console) -> TokenSplit:
    """The split of this name, after a note that says how much of the text it is."""
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


def _place(data: DataConfig) -> tuple[str | None, ...]:
    """Where a corpus comes from, whatever is made of it."""
    return data.name, data.path and os.path.realpath(data.path), data.hub_path, data.hub_name


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
    compute = resolve_compute(config.device, config.precision)
    model = checkpoint.load_model(compute.device)
    context = checkpoint.config.trainer.sequence_length
    options = loss_options(checkpoint.config)
    config = with_temperature(config, *checkpoint.fitted_temperature())
    texts = sample(model, checkpoint.tokenizer, config, config.seed, context, options, compute)
    console = Console()
    for number, text in enumerate(texts, start=1):
        if reason := why_empty(text, config.prompt):
            console.note(f"sample {number} of {len(texts)}: {reason}; another seed or temperature may give more")
    console.result("\n\n----\n\n".join(texts))
    return texts
