"""The configuration as frozen dataclasses, one per component.

This is the only place that says which keys exist, of which type, and in which range. The values stand
in ``configs/``; ``nanolm.config.load`` composes them with Hydra and turns the result into these objects
once. Past that point nothing in nanolm reads a dictionary. Each field's meaning is the string in its
``key(...)``: it is the help text too. Ranges are declared beside the type; what spans several fields is
in ``nanolm.config.validation``.
"""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

DataName = Literal["sotu", "text", "jsonl", "parquet", "tinystories", "wikitext2", "wikitext103", "fineweb_edu"]
TokenizerName = Literal["bpe", "byte", "char"]
SplitName = Literal["train", "calibration", "val", "test", "shifted"]
ScoredSplit = Literal[SplitName, "all"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]

# Upper limits of keys: far above any sensible value, and small enough that sums and products of them stay exact.
MOST = 10**12
"""of what is counted (steps, documents, tokens, seconds), and of numbers without a limit of their own"""
WIDEST = 10**6
"""of what is held in memory at once (widths, heads, layers, sequences of a batch)"""
STEEPEST = 1e300
"""of learning rates: that a large one diverges is what a run finds out and reports"""


def key(
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    text: bool = False,
) -> Any:
    """A field with its meaning and its range; ``text`` marks free text and paths, which are never parsed.

    ``minimum`` and ``maximum`` are inclusive, ``above`` and ``below`` exclusive. Every number needs an upper limit.
    """
    return field(metadata=locals())


def section() -> Any:
    """A field that holds a dataclass of its own, whose docstring says what it is about."""
    return field()


def section_of(kind: Any) -> type | None:
    """The dataclass that a field's type holds, itself or as ``X | None``; None where the field is a leaf."""
    return next((m for m in (kind, *get_args(kind)) if isinstance(m, type) and is_dataclass(m)), None)


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Every key below a schema as its dotted name and its field, in the order of the schema."""
    for item in fields(schema):
        if section := section_of(item.type):
            yield from leaves(section, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item


def value_at(config: Any, name: str) -> Any:
    """The value under a dotted name; None below a section that is None."""
    for part in name.split("."):
        config = None if config is None else getattr(config, part)
    return config


@dataclass(frozen=True)
class DataConfig:
    """Which documents to train on and how they are split."""

    name: DataName = key("the corpus, set by data=NAME")
    path: str | None = key("file or glob of a local corpus (data=text|jsonl|parquet)", text=True)
    root: str = key("folder that holds the prepared corpora", text=True)
    text_column: str = key("field or column that holds a document's text (jsonl, parquet, Hub)", text=True)
    hub_path: str | None = key("dataset on the Hugging Face Hub, as owner/name", text=True)
    hub_name: str | None = key("configuration of the Hub dataset", text=True)
    hub_revision: str | None = key("branch, tag or commit of the Hub dataset", text=True)
    max_documents: int | None = key("stop after so many documents (null: all)", minimum=1, maximum=MOST)
    held_out_documents: int = key(
        "first documents held out where a Hub dataset has no validation split", minimum=1, maximum=MOST
    )
    val_fraction: float = key("share of the documents in val", above=0, below=1)
    test_fraction: float = key("share of the documents in test", minimum=0, below=1)
    calibration_fraction: float = key("share of the documents in calibration", minimum=0, below=1)
    shifted_from_year: int | None = key(
        "documents dated from this year on form the shifted split (sotu)", minimum=0, maximum=9999
    )
    split_seed: int = key("seed of the split by document; independent of the run's seed", minimum=0, below=2**63)


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    name: TokenizerName = key("the tokenizer, set by tokenizer=NAME")
    vocab_size: int | None = key(
        "size of the BPE vocabulary, end-of-text included (null: given by the data)", minimum=1, maximum=10**7
    )
    training_bytes: int | None = key(
        "BPE learns from at most so many bytes of the train split", minimum=1, maximum=MOST
    )


@dataclass(frozen=True)
class ModelConfig:
    """A Qwen3 decoder; the keys are those of Hugging Face's Qwen3 configuration."""

    name: str = key("the size, set by model=NAME")
    hidden_size: int = key("width of the residual stream", minimum=1, maximum=WIDEST)
    num_hidden_layers: int = key("number of blocks", minimum=1, maximum=WIDEST)
    num_attention_heads: int = key("query heads", minimum=1, maximum=WIDEST)
    num_key_value_heads: int = key("key and value heads; divides the query heads", minimum=1, maximum=WIDEST)
    head_dim: int | None = key("width of a head (null: hidden_size / num_attention_heads)", minimum=2, maximum=WIDEST)
    intermediate_size: int = key("width of the SwiGLU", minimum=1, maximum=WIDEST)
    tie_word_embeddings: bool = key("share the embedding with the output head")
    rope_theta: float = key("base of the rotary embedding", above=0, maximum=MOST)
    rms_norm_eps: float = key("epsilon of RMSNorm", above=0, maximum=1)
    initializer_range: float = key("standard deviation of the initial weights", minimum=0, maximum=WIDEST)
    dropout: float = key("dropout on embeddings, attention and residual branches", minimum=0, below=1)


@dataclass(frozen=True)
class DistillationConfig:
    """A teacher whose softened probabilities are targets too: (1 - weight) * hard + weight * temperature^2 * soft."""

    teacher: str | None = key(
        "run directory of a trained model; of a language model also one checkpoint (null: no teacher)", text=True
    )
    weight: float = key("share of the soft part in the objective", minimum=0, maximum=1)
    temperature: float = key("both models' logits are divided by this in the soft part", above=0, maximum=WIDEST)


@dataclass(frozen=True)
class LossConfig:
    """The training objective; the NLL that is logged and evaluated is never smoothed."""

    label_smoothing: float = key("weight of the uniform distribution in the target", minimum=0, below=1)
    z_loss: float = key("weight of lse(z)^2", minimum=0, maximum=WIDEST)
    softcap: float | None = key("logits are capped to softcap * tanh(u / softcap) (null: off)", above=0, maximum=MOST)
    temperature: float = key("logits are divided by this in training", above=0, maximum=WIDEST)
    distillation: DistillationConfig = section()


@dataclass(frozen=True)
class OptimizerConfig:
    """Muon for matrices with AdamW for the rest, or AdamW for all."""

    name: Literal["muon", "adamw"] = key("the optimizer, set by optimizer=NAME")
    learning_rate: float = key("peak rate of AdamW's parameters", above=0, maximum=STEEPEST)
    matrix_learning_rate: float | None = key(
        "peak rate of Muon's matrices (null with adamw)", above=0, maximum=STEEPEST
    )
    momentum: float = key("Muon's Nesterov momentum", minimum=0, below=1)
    beta1: float = key("AdamW's first moment", minimum=0, below=1)
    beta2: float = key("AdamW's second moment", minimum=0, below=1)
    epsilon: float = key("AdamW's epsilon", above=0, maximum=1)
    weight_decay: float = key(
        "decoupled decay of matrices, per step and unit of learning rate", minimum=0, maximum=WIDEST
    )


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate's factor as a pure function of the run's progress from 0 to 1."""

    name: Literal["wsd", "cosine", "constant"] = key("the schedule, set by schedule=NAME")
    warmup_fraction: float = key("share of the run spent rising linearly to the peak", minimum=0, below=1)
    decay_fraction: float = key("share of the run spent falling at its end (wsd)", minimum=0, maximum=1)
    final_fraction: float = key("rate at the end as a share of the peak", minimum=0, maximum=1)


@dataclass(frozen=True)
class TrainerConfig:
    """How long, how large, where."""

    max_steps: int | None = key(
        "number of optimizer steps (null: as many as max_seconds allows)", minimum=1, maximum=MOST
    )
    max_seconds: float | None = key(
        "stop after so many seconds of training; the schedule decays over them", above=0, maximum=MOST
    )
    batch_size: int = key("sequences per step, all processes together", minimum=1, maximum=WIDEST)
    micro_batch_size: int | None = key("sequences per forward pass (null: the whole batch)", minimum=1, maximum=WIDEST)
    sequence_length: int = key("tokens of context", minimum=1, maximum=WIDEST)
    device: Device = key("auto takes CUDA where there is one; never run on a GPU so far")
    precision: Precision = key("auto is bf16 autocast on CUDA, fp32 on the CPU")
    compile: Literal["auto", "on", "off"] = key("torch.compile; auto is on for CUDA only")
    max_grad_norm: float | None = key("gradients are clipped to this norm (null: off)", above=0, maximum=MOST)
    eval_every: int | None = key("steps between evaluations on val (null: only at the end)", minimum=1, maximum=MOST)
    checkpoint_every: int | None = key("steps between checkpoints (null: only at the end)", minimum=1, maximum=MOST)
    keep_checkpoints: int = key("newest checkpoints that are kept", minimum=1, maximum=MOST)
    log_every: int = key("steps between lines on a console that is no terminal", minimum=1, maximum=MOST)
    resume: Literal["auto", "never"] = key("auto continues a run directory; never refuses one that has checkpoints")


@dataclass(frozen=True)
class EvaluateConfig:
    """How a split is scored: every token once, with at least sequence_length - stride tokens of context."""

    stride: int | None = key("tokens scored per window (null: sequence_length, no overlap)", minimum=1, maximum=WIDEST)
    batch_size: int = key("windows per forward pass", minimum=1, maximum=WIDEST)


@dataclass(frozen=True)
class FinalEvaluationConfig(EvaluateConfig):
    """How val is scored, and what besides val is looked at when the training is done."""

    further_splits: tuple[SplitName, ...] = key("splits scored at the end as val is, such as [test,shifted]")
    calibration_sizes: tuple[int, ...] = key(
        "sizes, in tokens of the calibration split, at which the temperature is fitted once more",
        minimum=1,
        maximum=MOST,
    )


@dataclass(frozen=True)
class SamplingConfig:
    """How text is drawn from a model."""

    prompt: str = key("text to continue; - reads standard input", text=True)
    num_samples: int = key("texts to draw", minimum=1, maximum=WIDEST)
    max_new_tokens: int = key("longest continuation, in tokens", minimum=1, maximum=MOST)
    temperature: float | Literal["fitted"] = key(
        "0 takes the most likely token; fitted takes the checkpoint's", minimum=0, maximum=WIDEST
    )
    top_k: int | None = key("draw among the k most likely tokens (null: all)", minimum=1, maximum=MOST)
    top_p: float | None = key(
        "draw among the most likely tokens that hold this probability (null: all)", above=0, maximum=1
    )


@dataclass(frozen=True)
class WandbConfig:
    """The mirror of metrics.jsonl at Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = key("auto is online with a key, offline without")
    project: str | None = key("project that the run belongs to (null: WANDB_PROJECT, else nanolm)", text=True)
    entity: str | None = key("user or team (null: the account's default)", text=True)
    group: str | None = key("group of runs, for sweeps", text=True)
    tags: tuple[str, ...] = key("words to find the run by")


@dataclass(frozen=True)
class TrainConfig:
    """``python scripts/train.py``"""

    name: str = key("name of the run: runs/<name>/<time>/", text=True)
    seed: int = key("seed of weights, batches and dropout", minimum=0, below=2**63)
    data: DataConfig = section()
    tokenizer: TokenizerConfig = section()
    model: ModelConfig = section()
    loss: LossConfig = section()
    optimizer: OptimizerConfig = section()
    schedule: ScheduleConfig = section()
    trainer: TrainerConfig = section()
    evaluate: FinalEvaluationConfig = section()
    sample: SamplingConfig = section()
    wandb: WandbConfig = section()


@dataclass(frozen=True)
class TokenizeConfig:
    """``python scripts/tokenize.py``"""

    data: DataConfig = section()
    tokenizer: TokenizerConfig = section()


@dataclass(frozen=True)
class EvaluateScriptConfig:
    """``python scripts/evaluate.py``"""

    checkpoint: str = key("a run directory (its newest valid checkpoint) or one checkpoint", text=True)
    split: ScoredSplit | None = key(
        "the split to score; all is the whole text (null: val of the corpus trained on, all of another one)"
    )
    out: str | None = key("folder for the results (null: the run directory)", text=True)
    data: DataConfig | None = key("another corpus than the one trained on, set by data=NAME")
    device: Device = key("auto takes CUDA where there is one; never run on a GPU so far")
    precision: Precision = key("auto is bf16 autocast on CUDA, fp32 on the CPU")
    evaluate: EvaluateConfig = section()


@dataclass(frozen=True)
class SampleScriptConfig(SamplingConfig):
    """``python scripts/sample.py``"""

    checkpoint: str = key("a run directory (its newest valid checkpoint) or one checkpoint", text=True)
    seed: int = key("seed of the draws", minimum=0, below=2**63)
    device: Device = key("auto takes CUDA where there is one; never run on a GPU so far")
    precision: Precision = key("auto is bf16 autocast on CUDA, fp32 on the CPU")
