"""What a run needs before its first step, and what it reports then."""

from collections.abc import Iterator
from dataclasses import replace

from nanolm.config.schema import TrainConfig
from nanolm.data import PreparedCorpus, open_prepared, prepare
from nanolm.device import Compute
from nanolm.errors import DataError, sentence
from nanolm.sampling import encode_prompt
from nanolm.tracking import Console
from nanolm.training.objective import Objective
from nanolm.training.state import TrainingState


def open_corpus(config: TrainConfig, console: Console) -> PreparedCorpus:
    """Open the corpus, tokenized unless that was done before.

    Raises:
        DataError: the text cannot be read, or nothing of it is left for training or val.
    """
    with console.progress(f"tokenizing {config.data.name}") as progress:
        folder = prepare(config.data, config.tokenizer, progress)
    corpus = open_prepared(folder)
    for name in ("train", "val"):
        if name not in corpus.splits or corpus.splits[name].num_tokens == 0:
            raise DataError(f"data={config.data.name}: the {name} split is empty; give more text, or raise its share")
    return corpus


def with_possible_prompt(config: TrainConfig, corpus: PreparedCorpus, console: Console) -> TrainConfig:
    """Return the configuration with an empty prompt if the vocabulary lacks the given one: that must not cost a run."""
    try:
        encode_prompt(corpus.tokenizer, config.sample)
    except DataError as error:
        console.note(f"sample.{sentence(error)} The samples will begin a new document instead.")
        return replace(config, sample=replace(config.sample, prompt=""))
    return config


def introduction(
    config: TrainConfig,
    corpus: PreparedCorpus,
    objective: Objective,
    compute: Compute,
    state: TrainingState,
    command: str,
) -> Iterator[str]:
    """Yield the lines that say what is about to be done."""
    trainer, train = config.trainer, corpus.splits["train"]
    limits = [f"{trainer.max_steps:,} steps"] if trainer.max_steps else []
    limits += [f"{trainer.max_seconds:,.0f} seconds"] if trainer.max_seconds else []
    yield (
        f"corpus: {config.data.name}, {train.num_documents:,} documents, {train.num_tokens:,} tokens to train on, "
        f"vocabulary of {corpus.tokenizer.vocab_size:,}"
    )
    yield f"model: {config.model.name}, {state.model.num_parameters():,} parameters, on {compute}"
    yield from objective.notes
    yield f"length: {' or '.join(limits)} of {trainer.batch_size * trainer.sequence_length:,} tokens"
    if state.step:
        yield f"continuing after step {state.step:,}"
    yield f"to continue this run after an interruption: {command}"
