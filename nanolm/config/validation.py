"""What one key's type and range cannot say: keys that contradict each other, and what the machine lacks.

``validate`` looks at the configuration alone and holds on any machine. ``check_inputs`` looks at this machine:
files and devices that were asked for have to be there before a run begins.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanolm.config.convert import report
from nanolm.config.schema import (
    DataConfig,
    EvaluateScriptConfig,
    ModelConfig,
    OptimizerConfig,
    SampleScriptConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
    TrainerConfig,
    leaves,
    value_at,
)
from nanolm.config.schema_baseline import BaselineConfig, TaskConfig
from nanolm.config.schema_first_principles import FirstPrinciplesConfig
from nanolm.files import glob_paths

LOCAL_CORPORA = ("text", "jsonl", "parquet")
HUB_CORPORA = ("tinystories", "wikitext2", "wikitext103", "fineweb_edu")
BYTE_ALPHABET = 256
LONGEST_NAME = 100
_A_CHECKPOINT = "a run directory such as runs/NAME/TIME, or one of its checkpoints/step-…"


def validate(config: Any) -> None:
    """Check a configuration's keys against each other.

    Raises:
        ConfigError: with one line for each contradiction.
    """
    report(list(_contradictions(config)))


def check_inputs(config: Any) -> None:
    """Check that the files and the device that a configuration names are there; reads no data.

    Raises:
        ConfigError: with one line for each that is not.
    """
    report(list(_missing(config)))


def _contradictions(config: Any) -> Iterator[str]:
    for name, item in leaves(type(config)):
        value = value_at(config, name)
        if item.metadata["text"] and isinstance(value, str) and "\0" in value:
            yield f"{name}: text cannot hold the character NUL"
    if isinstance(config, TrainConfig):
        yield from _name(config.name)
        yield from _model(config.model)
        yield from _optimizer(config.optimizer)
        yield from _schedule(config.schedule)
        yield from _trainer(config.trainer)
        if config.sample.temperature == "fitted" and config.data.calibration_fraction == 0:
            yield (
                "sample.temperature: fitted needs a calibration split to fit it on; raise data.calibration_fraction, "
                "or give a number"
            )
        further = config.evaluate.further_splits
        if "val" in further or len(set(further)) < len(further):
            yield (
                f"evaluate.further_splits: expected splits other than val, each once, found {', '.join(further)}; "
                "val is always scored"
            )
        stride, length = config.evaluate.stride, config.trainer.sequence_length
        if stride is not None and stride > length:
            yield (
                f"evaluate.stride: expected at most trainer.sequence_length, {length}, found {stride}: "
                "a window scores no more tokens than it holds"
            )
    if isinstance(config, BaselineConfig):
        yield from _name(config.name)
        yield from _task(config.task)
    if isinstance(config, FirstPrinciplesConfig):
        yield from _name(config.name)
        yield from _sentence(config)
    if isinstance(getattr(config, "data", None), DataConfig):
        yield from _data(config.data)
    if isinstance(getattr(config, "tokenizer", None), TokenizerConfig):
        yield from _tokenizer(config.tokenizer)
    if isinstance(config, EvaluateScriptConfig | SampleScriptConfig) and not config.checkpoint:
        yield "checkpoint: expected the path of a run directory or of one checkpoint, found an empty text"


def _name(name: str) -> Iterator[str]:
    unfit = "/" in name or "\\" in name or not name.isprintable() or name != name.strip() or name in (".", "..")
    if not name or unfit or len(name) > LONGEST_NAME:
        yield (
            f"name: expected a folder's name of 1 to {LONGEST_NAME} printable characters without slashes, "
            f"found {name[: LONGEST_NAME + 20]!r}; runs land in runs/<name>/, or anywhere with hydra.run.dir=PATH"
        )


def _sentence(config: FirstPrinciplesConfig) -> Iterator[str]:
    least = "one character" if config.checkpoint else "two characters (the bigram takes the first as given)"
    if len(config.sentence) < (1 if config.checkpoint else 2):
        yield f"sentence: expected at least {least}, found {config.sentence!r}"
    if any("\ud800" <= character <= "\udfff" for character in config.sentence):
        yield f"sentence: expected text in UTF-8, found {config.sentence!r}"


def _data(data: DataConfig) -> Iterator[str]:
    local, hub = data.name in LOCAL_CORPORA, data.name in HUB_CORPORA
    if local and not data.path:
        yield f"data.path: data={data.name} needs it; give data.path=FILE, or a glob such as data.path='texts/*.txt'"
    if not local and data.path is not None:
        yield (
            f"data.path: data={data.name} reads no local file, found {data.path!r}; "
            "choose data=text, data=jsonl or data=parquet for files of your own"
        )
    if hub and not data.hub_path:
        yield f"data.hub_path: data={data.name} needs it; give data.hub_path=OWNER/NAME"
    if not hub:
        for name in ("hub_path", "hub_name", "hub_revision"):
            if getattr(data, name) is not None:
                yield f"data.{name}: data={data.name} is not read from the Hub; leave it null or choose a Hub corpus"
    if data.shifted_from_year is not None and data.name != "sotu":
        yield f"data.shifted_from_year: only data=sotu has dated documents; leave it null with data={data.name}"
    held_out = data.val_fraction + data.test_fraction + data.calibration_fraction
    if held_out >= 1:
        yield (
            f"data.val_fraction, data.test_fraction and data.calibration_fraction: expected a sum below 1, "
            f"found {held_out:g}: nothing would be left to train on"
        )
    for name in ("root", "text_column"):
        if not getattr(data, name):
            yield f"data.{name}: expected a text that is not empty"


def _tokenizer(tokenizer: TokenizerConfig) -> Iterator[str]:
    size = tokenizer.vocab_size
    if tokenizer.name != "bpe":
        for name in ("vocab_size", "training_bytes"):
            if getattr(tokenizer, name) is not None:
                yield f"tokenizer.{name}: only tokenizer=bpe has it; leave it null with tokenizer={tokenizer.name}"
    elif size is None or size <= BYTE_ALPHABET:
        yield (
            f"tokenizer.vocab_size: expected at least {BYTE_ALPHABET + 1}, the {BYTE_ALPHABET} bytes and end-of-text, "
            f"found {'null' if size is None else size}; for fewer choose tokenizer=byte or tokenizer=char"
        )


def _model(model: ModelConfig) -> Iterator[str]:
    heads, key_value_heads, hidden = model.num_attention_heads, model.num_key_value_heads, model.hidden_size
    if heads % key_value_heads:
        yield (
            f"model.num_key_value_heads: expected a divisor of model.num_attention_heads, {heads}, "
            f"found {key_value_heads}; {_divisors(heads)} would do"
        )
    if model.head_dim is None and hidden % heads:
        yield (
            f"model.num_attention_heads: expected a divisor of model.hidden_size, {hidden}, found {heads}; "
            f"{_divisors(hidden, even_quotient=True)} would do, or set model.head_dim"
        )
    elif (model.head_dim or hidden // heads) % 2:
        width = model.head_dim or hidden // heads
        cause = "model.head_dim" if model.head_dim else "model.hidden_size / model.num_attention_heads"
        yield f"{cause}: expected an even width of a head, for its rotary halves, found {width}"


def _divisors(number: int, even_quotient: bool = False) -> str:
    fitting = [n for n in range(1, min(number, 256) + 1) if number % n == 0 and not (even_quotient and number // n % 2)]
    return ", ".join(map(str, fitting[-8:])) or "none"


def _optimizer(optimizer: OptimizerConfig) -> Iterator[str]:
    rate = optimizer.matrix_learning_rate
    if optimizer.name == "muon" and rate is None:
        yield "optimizer.matrix_learning_rate: optimizer=muon needs it; 0.02 is a usual value"
    if optimizer.name == "adamw" and rate is not None:
        yield (
            f"optimizer.matrix_learning_rate: optimizer=adamw has one rate for all, optimizer.learning_rate; "
            f"expected null, found {rate:g}"
        )


def _schedule(schedule: ScheduleConfig) -> Iterator[str]:
    if schedule.name == "wsd" and schedule.warmup_fraction + schedule.decay_fraction > 1:
        yield (
            f"schedule.warmup_fraction and schedule.decay_fraction: expected a sum of at most 1, "
            f"found {schedule.warmup_fraction + schedule.decay_fraction:g}"
        )
    if schedule.name != "wsd" and schedule.decay_fraction:
        yield (
            f"schedule.decay_fraction: only schedule=wsd has it; expected 0 with schedule={schedule.name}, "
            f"found {schedule.decay_fraction:g}"
        )
    if schedule.name == "constant" and schedule.final_fraction != 1:
        yield (
            "schedule.final_fraction: schedule=constant ends at its peak; "
            f"expected 1, found {schedule.final_fraction:g}"
        )


def _trainer(trainer: TrainerConfig) -> Iterator[str]:
    if trainer.max_steps is None and trainer.max_seconds is None:
        yield "trainer.max_steps and trainer.max_seconds: both are null, so training would never end; give one of them"
    micro = trainer.micro_batch_size
    if micro is not None and micro > trainer.batch_size:
        yield (
            f"trainer.micro_batch_size: expected at most trainer.batch_size, {trainer.batch_size}, found {micro}; "
            "null takes the whole batch at once"
        )


def _task(task: TaskConfig) -> Iterator[str]:
    for given, absent in (("path", "target"), ("target", "path")):
        if getattr(task, given) is not None and getattr(task, absent) is None:
            yield f"task.{absent}: task.{given} needs it; give task.path=FILE.csv and task.target=COLUMN together"


def _missing(config: Any) -> Iterator[str]:
    data, checkpoint = getattr(config, "data", None), getattr(config, "checkpoint", None)
    if isinstance(config, BaselineConfig) and config.task.path is not None and not os.path.isfile(config.task.path):
        path, what = config.task.path, "a folder, not" if os.path.isdir(config.task.path) else "no such file; give"
        yield f"task.path: {path!r} is {what} a CSV file, seen from {os.getcwd()}{tilde(path)}"
    if data is not None and data.path is not None:
        yield from _missing_corpus(data.path)
    if checkpoint is not None:
        yield from _missing_folder("checkpoint", checkpoint, _A_CHECKPOINT)
    if isinstance(config, TrainConfig | BaselineConfig) and config.loss.distillation.teacher is not None:
        expected = _A_CHECKPOINT if isinstance(config, TrainConfig) else "the run directory of a finished baseline"
        yield from _missing_folder("loss.distillation.teacher", config.loss.distillation.teacher, expected)
    for name, _ in leaves(type(config)):
        value = value_at(config, name)
        if name in ("data.root", "out") and str(value).startswith("~"):
            yield f"{name}: {value!r} would be a folder of that name here{tilde(value)}"
        if name.rpartition(".")[2] == "device" and value == "cuda":
            import torch

            if not torch.cuda.is_available():
                yield f"{name}: cuda was asked for, but torch finds no CUDA device here; use {name}=auto or cpu"


def _missing_folder(name: str, path: str, expected: str) -> Iterator[str]:
    if not os.path.isdir(path):
        what = "a file, not a folder" if os.path.exists(path) else "no such folder"
        yield f"{name}: {path!r} is {what}; give {expected}{tilde(path)}"


def _missing_corpus(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        yield f"data.path: {path!r} is a folder; give a file, or a glob such as data.path='{path.rstrip('/')}/*.txt'"
    elif not os.path.exists(path) and not any(map(os.path.isfile, glob_paths(Path(path)))):
        what = "no file matches" if glob.has_magic(path) else "no such file"
        yield f"data.path: {what} {path!r}, seen from {os.getcwd()}{tilde(path)}"


def tilde(path: str) -> str:
    """A hint for a path that no shell has expanded."""
    return "; the shell leaves ~ alone after =, so write $HOME" if path.startswith("~") else ""
