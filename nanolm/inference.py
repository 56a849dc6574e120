"""What is done with a finished checkpoint: score a split with it, draw text from it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from nanolm.calibration.intervals import Interval
from nanolm.config.schema import EvaluateScriptConfig, SampleScriptConfig
from nanolm.data import PreparedCorpus, open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.errors import ConfigError, DataError
from nanolm.evaluation import all_extras, calibration_json, evaluate, table, try_fit_on_split
from nanolm.files import require_writable, write_atomically
from nanolm.report import write_evaluation_report
from nanolm.sampling import sample, with_temperature
from nanolm.tracking import Console
from nanolm.training import Checkpoint, find_checkpoint
from nanolm.training.loop import loss_options


def evaluate_checkpoint(config: EvaluateScriptConfig) -> Path:
    """Score a split, print its table and leave three files in the folder that is returned.

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
    corpus = _open_corpus(checkpoint, config, console)
    split = corpus.splits.get(config.split)
    if split is None or split.num_tokens == 0:
        raise DataError(f"split={config.split}: this corpus has no such split; it has {', '.join(corpus.splits)}")
    require_writable(folder, "out")
    compute = resolve_compute(config.device, config.precision)
    model = checkpoint.load_model(compute.device)
    options = loss_options(checkpoint.config)
    how = (sequence_length, config.evaluate, options, compute)
    calibration = checkpoint.calibration()
    if calibration is None:  # a checkpoint of the middle of a run
        with console.progress("fitting the temperature", unit="tokens") as progress:
            calibration = calibration_json(try_fit_on_split(model, corpus.splits.get("calibration"), *how, progress))
    temperature = _interval(calibration["temperature"])
    if temperature is None:
        console.note(f"no fitted temperature: {calibration['reason']}")
    tokenizer, counted = checkpoint.tokenizer, corpus.splits.get("train", split)
    fitted = temperature.value if temperature else None
    extras = all_extras(fitted, counted, tokenizer.vocab_size, tokenizer.end_of_text_id, checkpoint.config.loss)
    with console.progress(f"scoring {config.split}", unit="tokens") as progress:
        evaluation = evaluate(model, split, *how, progress, extras)
    content = evaluation.as_json(checkpoint.step, temperature) | {
        "corpus": corpus.fingerprint,
        "calibration": calibration,
    }
    try:
        evaluation.write_documents(folder / f"documents-{config.split}.npz")
        write_evaluation_report(folder, checkpoint.path, content)
        write_atomically(folder / f"evaluation-{config.split}.json", json.dumps(content, indent=2) + "\n")
    finally:  # a disk that fails now must not take the numbers with it
        console.table(*table(content))
    console.result(str(folder / f"evaluation-{config.split}.json"))
    return folder


def _interval(entry: dict[str, float] | None) -> Interval | None:
    return None if entry is None else Interval(entry["value"], entry.get("low"), entry.get("high"))


def _open_corpus(checkpoint: Checkpoint, config: EvaluateScriptConfig, console: Console) -> PreparedCorpus:
    """The corpus of the training run, or another one in the checkpoint's own tokens."""
    data = config.data or checkpoint.config.data
    with console.progress(f"tokenizing {data.name}") as progress:
        corpus = open_prepared(prepare(data, checkpoint.tokenizer, progress))
    if config.data is None and corpus.fingerprint != checkpoint.manifest["corpus"]:
        console.note(f"data={data.name}: the text is not what this checkpoint was trained on; scored as it is now")
    return corpus


def sample_checkpoint(config: SampleScriptConfig) -> list[str]:
    """Draw texts from a checkpoint and print them; a prompt of ``-`` is read from standard input.

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
    Console().result("\n\n----\n\n".join(texts))
    return texts
