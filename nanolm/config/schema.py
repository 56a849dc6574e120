"""The configuration as frozen classes: one for each component, and one for each choice where their keys differ.

Only this file defines which keys exist, their types and ranges, and the rules between them. Their values are in
``configs/``; ``nanolm.config.load`` composes those and builds these objects once.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Strict

from nanolm.config.keys import Configuration, display_key, key, leaves, rules

# Upper limits are far above any sensible value, and small enough that sums and products of them stay exact.
MOST = 10**12
"""of what is counted (steps, documents, tokens, seconds), and of numbers without a limit of their own"""
WIDEST = 10**6
"""of what is held in memory at once (widths, heads, layers, sequences of a batch)"""
STEEPEST = 1e300
"""of learning rates: that a large one diverges is what a run finds out and reports"""


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


def _on_or_off(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # as YAML reads a bare on or off


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("text cannot hold the character NUL")
    return text


def _filled(text: str) -> str:
    if not text:
        raise ValueError("expected a text that is not empty")
    return text


def _folder_name(name: str) -> str:
    unfit = "/" in name or "\\" in name or not name.isprintable() or name != name.strip() or name in (".", "..")
    if unfit or not 1 <= len(name) <= 100:
        found = f"found {name[:120]!r}; to choose a place give hydra.run.dir=PATH"
        raise ValueError(f"expected a folder's name of 1 to 100 printable characters without slashes, {found}")
    return name


Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1, le=MOST)]
Size = Annotated[Whole, Field(ge=1, le=WIDEST)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Real = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0, le=MOST)]
Temperature = Annotated[Real, Field(gt=0, le=WIDEST)]
Weight = Annotated[Real, Field(ge=0, le=WIDEST)]
Rate = Annotated[Real, Field(gt=0, le=STEEPEST)]
Epsilon = Annotated[Real, Field(gt=0, le=1)]
Share = Annotated[Real, Field(ge=0, le=1)]
ShareBelowOne = Annotated[Real, Field(ge=0, lt=1)]
ShareWithin = Annotated[Real, Field(gt=0, lt=1)]
Switch = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), AfterValidator(_without_nul)]
"""Free text and paths, which the command line never parses."""
FilledText = Annotated[Text, AfterValidator(_filled)]
RunName = Annotated[Text, AfterValidator(_folder_name)]
Year = Annotated[Whole, Field(ge=0, le=9999)]
OnOff = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]

SplitName = Literal["train", "calibration", "val", "test", "shifted"]
ScoredSplit = Literal[SplitName, "all"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]

device_key = partial(key, "auto takes CUDA where there is one; never run on a GPU so far", place="device")
precision_key = partial(key, "auto is bf16 autocast on CUDA, fp32 on the CPU")
name_key = partial(display_key, "name of the run: runs/<name>/<time>/")
checkpoint_key = partial(key, "a run directory (its newest valid checkpoint) or one checkpoint", place="run")


class DataConfig(Configuration):
    """Which documents to train on and how they are split: the keys that every corpus has."""

    name: str
    root: FilledText = display_key("folder that holds the prepared corpora", place="output")
    max_documents: Count | None = key("maximum number of documents to read (null: all)")
    val_fraction: ShareWithin = key("share of the documents in val")
    test_fraction: ShareBelowOne = key("share of the documents in test")
    calibration_fraction: ShareBelowOne = key("share of the documents in calibration")
    split_seed: Seed = key("seed of the split by document; independent of the run's seed")

    @rules
    def _leave_something_to_train_on(self) -> Iterator[str]:
        held_out = self.val_fraction + self.test_fraction + self.calibration_fraction
        if held_out >= 1:
            yield f"val_fraction, test_fraction and calibration_fraction: expected a sum below 1, found {held_out:g}"


class SotuConfig(DataConfig):
    """The embedded corpus of dated messages."""

    name: Literal["sotu"] = "sotu"
    shifted_from_year: Year | None = key("documents dated from this year on form the shifted split")


class LocalConfig(DataConfig):
    """Files of one's own."""

    path: FilledText = key("file or glob of a local corpus, such as 'texts/*.txt'", place="corpus", changeable=True)


class TextConfig(LocalConfig):
    """Plain text files, one document each."""

    name: Literal["text"] = "text"


class JsonlConfig(LocalConfig):
    """JSON lines, one document each."""

    name: Literal["jsonl"] = "jsonl"
    text_column: FilledText = key("field or column that holds a document's text")


class ParquetConfig(LocalConfig):
    """Parquet files, one document a row."""

    name: Literal["parquet"] = "parquet"
    text_column: FilledText = key("field or column that holds a document's text")


class HubConfig(DataConfig):
    """A dataset on the Hugging Face Hub."""

    name: Literal["tinystories", "wikitext2", "wikitext103", "fineweb_edu"]
    text_column: FilledText = key("field or column that holds a document's text")
    hub_path: FilledText = key("dataset on the Hugging Face Hub, as owner/name")
    hub_name: Text | None = key("configuration of the Hub dataset")
    hub_revision: Text | None = key("branch, tag or commit of the Hub dataset")
    held_out_documents: Count = key("first documents held out where the dataset has no validation split")


DataChoice = Annotated[SotuConfig | TextConfig | JsonlConfig | ParquetConfig | HubConfig, Discriminator("name")]


class TokenizerConfig(Configuration):
    """How text becomes token ids."""

    name: str


class BpeConfig(TokenizerConfig):
    """Byte-level BPE, trained on the train split."""

    name: Literal["bpe"] = "bpe"
    vocab_size: Annotated[Whole, Field(ge=257, le=10**7)] = key("tokens, 256 bytes and end-of-text included")
    training_bytes: Count | None = key("maximum bytes of the train split to learn from (null: all)")


class ByteConfig(TokenizerConfig):
    """Bytes."""

    name: Literal["byte"] = "byte"


class CharConfig(TokenizerConfig):
    """Characters of the train split."""

    name: Literal["char"] = "char"


TokenizerChoice = Annotated[BpeConfig | ByteConfig | CharConfig, Discriminator("name")]


class ModelConfig(Configuration):
    """A Qwen3 decoder; the keys are those of Hugging Face's Qwen3 configuration."""

    name: Text = key("the size, set by model=NAME")
    hidden_size: Size = key("width of the residual stream")
    num_hidden_layers: Size = key("number of blocks")
    num_attention_heads: Size = key("query heads")
    num_key_value_heads: Size = key("key and value heads; divides the query heads")
    head_dim: Size | None = key("width of a head, an even number (null: hidden_size / num_attention_heads)")
    intermediate_size: Size = key("width of the SwiGLU")
    tie_word_embeddings: Switch = key("share the embedding with the output head")
    rope_theta: Positive = key("base of the rotary embedding")
    rms_norm_eps: Epsilon = key("epsilon of RMSNorm")
    initializer_range: Weight = key("standard deviation of the initial weights")
    dropout: ShareBelowOne = key("dropout on embeddings, attention and residual branches")

    @rules
    def _divide_into_heads(self) -> Iterator[str]:
        heads, key_value_heads, hidden = self.num_attention_heads, self.num_key_value_heads, self.hidden_size
        if heads % key_value_heads:
            yield f"num_key_value_heads: expected a divisor of num_attention_heads, {heads}, found {key_value_heads}"
        if self.head_dim is None and hidden % heads:
            yield f"num_attention_heads: expected a divisor of hidden_size, {hidden}, found {heads}; or set head_dim"
        elif (width := self.head_dim or hidden // heads) % 2:
            cause = "head_dim" if self.head_dim else "hidden_size / num_attention_heads"
            yield f"{cause}: expected an even width of a head, for its rotary halves, found {width}"


class DistillationConfig(Configuration):
    """A teacher whose softened probabilities are targets too: (1 - weight) * hard + weight * temperature^2 * soft."""

    # The path may change: the weights are compared with those that the checkpoints name.
    teacher: Text | None = key("run or checkpoint of a trained model (null: none)", place="run", changeable=True)
    weight: Share = key("share of the soft part in the objective")
    temperature: Temperature = key("both models' logits are divided by this in the soft part")


class LossConfig(Configuration):
    """The training objective; the NLL that is logged and evaluated is never smoothed."""

    label_smoothing: ShareBelowOne = key("weight of the uniform distribution in the target")
    z_loss: Weight = key("weight of lse(z)^2")
    softcap: Positive | None = key("logits are capped to softcap * tanh(u / softcap) (null: off)")
    temperature: Temperature = key("logits are divided by this in training")
    distillation: DistillationConfig


class OptimizerConfig(Configuration):
    """The keys of AdamW, which every optimizer has for some of its parameters."""

    name: str
    learning_rate: Rate = key("peak rate of AdamW's parameters")
    beta1: ShareBelowOne = key("AdamW's first moment")
    beta2: ShareBelowOne = key("AdamW's second moment")
    epsilon: Epsilon = key("AdamW's epsilon")
    weight_decay: Weight = key("decoupled decay of matrices, per step and unit of learning rate")


class AdamWConfig(OptimizerConfig):
    """AdamW for all parameters."""

    name: Literal["adamw"] = "adamw"


class MuonConfig(OptimizerConfig):
    """Muon for matrices, AdamW for the rest."""

    name: Literal["muon"] = "muon"
    matrix_learning_rate: Rate = key("peak rate of Muon's matrices; 0.02 is a usual value")
    momentum: ShareBelowOne = key("Muon's Nesterov momentum")


OptimizerChoice = Annotated[MuonConfig | AdamWConfig, Discriminator("name")]


class ScheduleConfig(Configuration):
    """The learning rate's factor as a pure function of the run's progress from 0 to 1."""

    name: str
    warmup_fraction: ShareBelowOne = key("share of the run spent rising linearly to the peak")


class WsdConfig(ScheduleConfig):
    """A rise, a plateau, a straight line down."""

    name: Literal["wsd"] = "wsd"
    decay_fraction: Share = key("share of the run spent falling at its end")
    final_fraction: Share = key("rate at the end as a share of the peak")

    @rules
    def _do_not_fall_before_the_peak(self) -> Iterator[str]:
        if (total := self.warmup_fraction + self.decay_fraction) > 1:
            yield f"warmup_fraction and decay_fraction: expected a sum of at most 1, found {total:g}"


class CosineConfig(ScheduleConfig):
    """A rise, then half a cosine down."""

    name: Literal["cosine"] = "cosine"
    final_fraction: Share = key("rate at the end as a share of the peak")


class ConstantConfig(ScheduleConfig):
    """A rise, then the peak to the end."""

    name: Literal["constant"] = "constant"


ScheduleChoice = Annotated[WsdConfig | CosineConfig | ConstantConfig, Discriminator("name")]


class TrainerConfig(Configuration):
    """How long, how large, where."""

    max_steps: Count | None = key("optimizer steps (null: as many as max_seconds allows)", changeable=True)
    max_seconds: Positive | None = key("stop after this many seconds; the schedule decays over them", changeable=True)
    batch_size: Size = key("sequences per step, all processes together")
    micro_batch_size: Size | None = key("sequences per forward pass (null: the whole batch)", grows_memory=True)
    sequence_length: Size = key("tokens of context", grows_memory=True)
    device: Device = device_key()
    precision: Precision = precision_key()
    compile: OnOff = key("torch.compile; auto is on for CUDA only")
    max_grad_norm: Positive | None = key("gradients are clipped to this norm (null: off)")
    eval_every: Count | None = key("steps between evaluations on val (null: only at the end)", compared=False)
    checkpoint_every: Count | None = display_key("steps between checkpoints (null: only at the end)")
    keep_checkpoints: Count = display_key("newest checkpoints that are kept")
    log_every: Count = display_key("steps between lines on a console that is not a terminal")
    resume: Literal["auto", "never"] = display_key("auto continues a run; never refuses one that has checkpoints")

    @rules
    def _come_to_an_end(self) -> Iterator[str]:
        if self.max_steps is None and self.max_seconds is None:
            yield "max_steps and max_seconds: both are null, so training would never end; give one of them"
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            yield f"micro_batch_size: expected at most batch_size, {self.batch_size}, found {self.micro_batch_size}"


class EvaluateConfig(Configuration):
    """How a split is scored: every token once, with at least sequence_length - stride tokens of context."""

    stride: Size | None = key("tokens scored per window (null: sequence_length, no overlap)")
    batch_size: Size = key("windows per forward pass", compared=False, grows_memory=True)


class FinalEvaluationConfig(EvaluateConfig):
    """How val is scored, and what else is looked at when the training is done."""

    further_splits: tuple[SplitName, ...] = display_key("further splits to score at the end, such as [test,shifted]")
    calibration_sizes: tuple[Count, ...] = display_key("also fit the temperature on this many calibration tokens")

    @rules
    def _name_each_split_once(self) -> Iterator[str]:
        further = self.further_splits
        if "val" in further or len(set(further)) < len(further):
            yield f"further_splits: expected splits other than val, each once, found {', '.join(further)}"


class SamplingConfig(Configuration):
    """How text is drawn from a model."""

    prompt: Text = display_key("text to continue; - reads standard input")
    num_samples: Size = display_key("texts to draw")
    max_new_tokens: Count = display_key("longest continuation, in tokens", grows_memory=True)
    temperature: Weight | Literal["fitted"] = display_key("0 takes the most likely token; fitted is the checkpoint's")
    top_k: Count | None = display_key("draw among the k most likely tokens (null: all)")
    top_p: Epsilon | None = display_key("draw among the most likely tokens that hold this probability (null: all)")


class WandbConfig(Configuration):
    """The mirror of metrics.jsonl at Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = display_key("auto is online with a key, offline without")
    project: Text | None = display_key("project that the run belongs to (null: WANDB_PROJECT, else nanolm)")
    entity: Text | None = display_key("user or team (null: the account's default)")
    group: Text | None = display_key("group of runs, for sweeps")
    tags: tuple[Annotated[str, Field(strict=True)], ...] = display_key("words to find the run by")


class TrainConfig(Configuration):
    """``python scripts/train.py``"""

    name: RunName = name_key()
    seed: Seed = key("seed of weights, batches and dropout", compared=False)
    data: DataChoice
    tokenizer: TokenizerChoice
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerChoice
    schedule: ScheduleChoice
    trainer: TrainerConfig
    evaluate: FinalEvaluationConfig
    sample: SamplingConfig
    wandb: WandbConfig

    @rules
    def _fit_together(self) -> Iterator[str]:
        if self.sample.temperature == "fitted" and self.data.calibration_fraction == 0:
            yield "sample.temperature: fitted needs a calibration split; raise data.calibration_fraction, or give T"
        stride, length = self.evaluate.stride, self.trainer.sequence_length
        if stride is not None and stride > length:
            yield f"evaluate.stride: expected at most trainer.sequence_length, {length}, found {stride}"


class TokenizeConfig(Configuration):
    """``python scripts/tokenize.py``"""

    data: DataChoice
    tokenizer: TokenizerChoice


class EvaluateScriptConfig(Configuration):
    """``python scripts/evaluate.py``"""

    checkpoint: FilledText = checkpoint_key()
    split: ScoredSplit | None = key("split to score (null: val of the corpus trained on, all of another)")
    out: Text | None = key("folder for the results (null: the run directory)", place="output")
    data: DataChoice | None
    device: Device = device_key()
    precision: Precision = precision_key()
    evaluate: EvaluateConfig


class SampleScriptConfig(SamplingConfig):
    """``python scripts/sample.py``"""

    checkpoint: FilledText = checkpoint_key()
    seed: Seed = key("seed of the draws")
    device: Device = device_key()
    precision: Precision = precision_key()


class FirstPrinciplesConfig(Configuration):
    """``python scripts/first_principles.py``"""

    name: RunName = name_key()
    seed: Seed = key("seed of the random logits and of the simulated draws")
    checkpoint: Text | None = key("run or checkpoint that scores the sentence (null: a character bigram)", place="run")
    sentence: Text = key("the text that the chain rule is shown on")
    device: Device = device_key()
    precision: Precision = precision_key()

    @rules
    def _give_enough_text(self) -> Iterator[str]:
        least = 1 if self.checkpoint else 2  # the bigram takes the first character as given
        if len(self.sentence) < least:
            yield f"sentence: expected a text of {least} or more characters, found {self.sentence!r}"
        if any("\ud800" <= character <= "\udfff" for character in self.sentence):
            yield f"sentence: expected text in UTF-8, found {self.sentence!r}"


class TaskConfig(Configuration):
    """Which examples to classify, by which model, and how it is fitted."""

    name: Literal["binary", "softmax"] = key("the loss and the default data, set by task=NAME")
    path: Text | None = key("your own CSV file, a header and one example a row (null: bundled data)", place="csv")
    target: Text | None = key("column of that file that holds the class; all others are features")
    model: Literal["linear", "mlp"] = key("logistic regression, or one hidden layer")
    hidden_size: Size = key("width of the hidden layer (mlp)", grows_memory=True)
    dropout: ShareBelowOne = key("dropout after the hidden layer (mlp)")
    learning_rate: Rate = key("rate of Adam")
    l2: Weight = key("the penalty l2/2 · |weights|² is added to the mean objective; biases are free")
    batch_size: Size | None = key("examples per step (null: all at once)", grows_memory=True)
    epochs: Count = key("passes over the training part of each fold")
    patience: Count | None = key("early stopping: epochs without a better NLL on a fold's inner split (null: off)")
    eval_every: Count = key("epochs between evaluations of the held-out folds", compared=False)

    @rules
    def _name_file_and_column_together(self) -> Iterator[str]:
        for given, absent in (("path", "target"), ("target", "path")):
            if getattr(self, given) is not None and getattr(self, absent) is None:
                yield f"{absent}: task.{given} needs it; give task.path=FILE.csv and task.target=COLUMN together"


class BaselineDistillationConfig(DistillationConfig):
    """A teacher whose softened probabilities are targets too: (1 - weight) * hard + weight * temperature^2 * soft."""

    teacher: Text | None = key("run directory of a finished baseline (null: no teacher)", place="baseline")


class BaselineLossConfig(LossConfig):
    """The training objective; the NLL that is logged and evaluated is never smoothed."""

    distillation: BaselineDistillationConfig


class CrossValidationConfig(Configuration):
    """Which examples are learnt from, which calibrate, which are scored: each once a repeat."""

    folds: Annotated[Whole, Field(ge=2, le=MOST)] = key("number of folds; each is scored by a model of the others")
    repeats: Size = key("cross-validations, each with its own folds")
    calibration_fraction: ShareWithin = key("share of the training folds kept for fitting the temperature")
    calibration_sizes: tuple[Count, ...] = key("also fit the temperature on this many examples", compared=False)


class SeparationConfig(Configuration):
    """The study of maximum likelihood on separable data: weights, margins and confidence against epochs."""

    epochs: Count | None = key("longest fit, in full-batch steps (null: no study)", compared=False)
    l2: Temperature = key("L2 penalty of the penalized fit", compared=False)
    label_smoothing: ShareWithin = key("label smoothing of the smoothed fit", compared=False)


class BaselineConfig(Configuration):
    """``python scripts/baseline.py``"""

    name: RunName = name_key()
    seed: Seed = key("seed of folds, weights, batches and dropout", compared=False)
    task: TaskConfig
    loss: BaselineLossConfig
    cross_validation: CrossValidationConfig
    separation: SeparationConfig
    wandb: WandbConfig


class CompareConfig(Configuration):
    """``python scripts/compare.py``"""

    runs: Text = key("folder of finished runs, such as sweeps/<name>")
    split: ScoredSplit = key("split whose metrics are compared; splits other than val need evaluation-<split>.json")
    baseline: Text | None = key("value of the cell to compare with, such as loss.z_loss=0 (null: the first run's cell)")
    margin: Annotated[Real, Field(gt=0, lt=100)] | None = key("NLL margin of equivalence, in nats (null: no such test)")
    out: Text | None = key("folder for comparison.csv and comparison.html (null: that of the runs)", place="output")


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "tokenize": TokenizeConfig,
    "evaluate": EvaluateScriptConfig,
    "sample": SampleScriptConfig,
    "baseline": BaselineConfig,
    "compare": CompareConfig,
    "first_principles": FirstPrinciplesConfig,
}
"""The configuration of each script."""


def has_run_directory(schema: type) -> bool:
    """Return whether a script works in ``hydra.run.dir``: the scripts whose runs have a name do."""
    return "name" in leaves(schema)


def irrelevant_keys() -> frozenset[str]:
    """Return the dotted keys that do not distinguish runs in a comparison: seeds, and keys that change no metric."""
    return frozenset(name for schema in SCHEMAS.values() for name, key in leaves(schema).items() if not key.compared)
