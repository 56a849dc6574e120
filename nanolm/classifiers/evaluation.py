"""The records that a classifier's ``evaluation.json`` holds in addition to a language model's."""

from nanolm.files import Count
from nanolm.metrics import Evaluation
from nanolm.metrics.records import Number, Record


class TaskSummary(Record):
    """The data and the model; ``examples_seen`` counts those that all folds learned from, over all epochs."""

    name: str
    model: str
    data: str
    features: list[str]
    classes: list[str]
    class_counts: list[Count]
    examples_seen: Count


class FoldSummary(Record):
    """The sizes of a fold's parts, its temperature or why there is none, and the epoch that early stopping kept."""

    repeat: Count
    fold: Count
    num_learning: Count
    num_calibration: Count
    num_scored: Count
    temperature: float | None
    reason: str | None
    stopped_at: Count | None


class SeparationPoint(Record):
    """Metrics of a fit after some epoch; ``nll``, ``accuracy`` and ``confidence`` are of held-out examples.

    ``margin`` is the median over the training examples of the logit of the right class less the largest other, in nats.
    """

    weight_norm: Number
    margin: Number
    train_nll: Number
    train_accuracy: Number
    nll: Number
    accuracy: Number
    confidence: Number


class Lowest(Record):
    """The lowest NLL of the held-out examples during a fit, found in hindsight."""

    epoch: Count
    nll: Number


class SeparationFit(Record):
    """One fit: its last epoch, the metrics after it, and a curve of each metric over the epochs of the study."""

    name: str
    epoch: Count
    final: SeparationPoint
    lowest: Lowest
    curves: dict[str, list[Number]]


class Separation(Record):
    """The study of separable data.

    Attributes:
        separated_at: the first epoch before which maximum likelihood had every training example right; or None.
        gradient_norm: of maximum likelihood at its end.
        epochs: the epochs at which the curves have points.
        fits: maximum likelihood, then with early stopping, an L2 penalty, and label smoothing.
    """

    num_learning: Count
    num_validation: Count
    num_scored: Count
    separated_at: Count | None
    gradient_norm: Number
    epochs: list[Count]
    fits: list[SeparationFit]


class ClassifierEvaluation(Evaluation):
    """The content of a classifier's ``evaluation.json``; a token is a prediction there, and a document an example."""

    task: TaskSummary
    folds: list[FoldSummary]
    separation: Separation | None
