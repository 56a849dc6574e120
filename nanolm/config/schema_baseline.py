"""The configuration of ``python scripts/baseline.py``: the classification tasks."""

from dataclasses import dataclass
from typing import Literal

from nanolm.config.schema import MOST, STEEPEST, WIDEST, LossConfig, WandbConfig, key, section


@dataclass(frozen=True)
class TaskConfig:
    """Which examples to classify, by which model, and how it is fitted."""

    name: Literal["binary", "softmax"] = key("the task, set by task=NAME: which loss, and which data by default")
    path: str | None = key("your own CSV file, a header and one example a row (null: bundled data)", text=True)
    target: str | None = key("column of that file that holds the class; all others are features", text=True)
    model: Literal["linear", "mlp"] = key("logistic regression, or one hidden layer")
    hidden_size: int = key("width of the hidden layer (mlp)", minimum=1, maximum=WIDEST)
    dropout: float = key("dropout after the hidden layer (mlp)", minimum=0, below=1)
    learning_rate: float = key("rate of Adam", above=0, maximum=STEEPEST)
    l2: float = key(
        "the penalty l2/2 · |weights|² is added to the mean objective; biases are free", minimum=0, maximum=WIDEST
    )
    batch_size: int | None = key("examples per step (null: all at once)", minimum=1, maximum=WIDEST)
    epochs: int = key("passes over the training part of each fold", minimum=1, maximum=MOST)
    patience: int | None = key(
        "early stopping: end a fold after so many epochs without a better NLL on its inner split, keep the best "
        "(null: off)",
        minimum=1,
        maximum=MOST,
    )
    eval_every: int = key("epochs between evaluations of the held-out folds", minimum=1, maximum=MOST)


@dataclass(frozen=True)
class CrossValidationConfig:
    """Which examples are learnt from, which calibrate, which are scored: each once a repeat."""

    folds: int = key("parts; each is scored by a model of the others", minimum=2, maximum=MOST)
    repeats: int = key("cross-validations, each with parts of its own", minimum=1, maximum=WIDEST)
    calibration_fraction: float = key(
        "share of the training folds that is not trained on: the temperature is fitted there", above=0, below=1
    )
    calibration_sizes: tuple[int, ...] = key(
        "sizes, in examples of a fold's calibration part, at which the temperature is fitted once more",
        minimum=1,
        maximum=MOST,
    )


@dataclass(frozen=True)
class SeparationConfig:
    """The study of maximum likelihood on separable data: weights, margins and confidence against epochs."""

    epochs: int | None = key(
        "full-batch steps of each of its fits at most; fewer once the gradient all but vanishes (null: no study)",
        minimum=1,
        maximum=MOST,
    )
    l2: float = key("penalty of the fit that L2 holds", above=0, maximum=WIDEST)
    label_smoothing: float = key("smoothing of the fit that label smoothing holds", above=0, below=1)


@dataclass(frozen=True)
class BaselineConfig:
    """``python scripts/baseline.py``"""

    name: str = key("name of the run: runs/<name>/<time>/", text=True)
    seed: int = key("seed of folds, weights, batches and dropout", minimum=0, below=2**63)
    task: TaskConfig = section()
    loss: LossConfig = section()
    cross_validation: CrossValidationConfig = section()
    separation: SeparationConfig = section()
    wandb: WandbConfig = section()
