"""What a person reads of a baseline's ``evaluation.json``, on a terminal and on the page."""

from typing import Any

from nanolm.evaluation import MEANINGS as OF_LANGUAGE_MODELS
from nanolm.evaluation import calibrator_cells
from nanolm.tracking.tables import aligned

MEANINGS = {name: meaning for name, meaning in OF_LANGUAGE_MODELS.items() if name != "bits_per_byte"} | {
    "nll": "nats per prediction, never smoothed",
    "accuracy": "share of predictions where the most likely class is right",
    "confidence": "mean probability of the most likely class",
    "brier": "Σ (probability - outcome)² over the classes",
    "entropy": "nats per prediction that the model expects to lose",
    "temperature": "T of the lowest NLL on all inner splits together",
    "nll_at_temperature": "NLL with each fold's logits divided by the T of its inner split",
}
"""The figures of the table, in its order; ``evaluation.json`` holds more."""

SEPARATION_COLUMNS = (
    "weight_norm",
    "margin",
    "train_nll",
    "train_accuracy",
    "nll",
    "accuracy",
    "confidence",
)


def title(content: dict[str, Any]) -> str:
    """The title of the table of figures."""
    task = content["task"]
    return (
        f"{task['data']}, {task['model']}, after {content['step']:,} epochs: {content['num_tokens']:,} out-of-fold "
        f"predictions of {content['num_documents']:,} examples; {content['intervals']}"
    )


def separation_rows(content: dict[str, Any]) -> list[list[str]]:
    """Header and one row for each fit of the separation study."""
    header = ["fit", "epoch", *(name.replace("_", " ") for name in SEPARATION_COLUMNS)]
    return [
        header,
        *(
            [fit["name"], f"{fit['epoch']:,}", *(_cell(fit["final"][name]) for name in SEPARATION_COLUMNS)]
            for fit in content["separation"]["fits"]
        ),
    ]


def agreement_rows(content: dict[str, Any]) -> list[list[str]]:
    """Header and one row for each implementation and problem."""
    header = ["problem", "by", "NLL", "norm of weights", "bias", "largest distance of a weight"]
    return [
        header,
        *(
            [
                row["problem"],
                row["by"],
                *(f"{row['nll']:.8f}", f"{row['weight_norm']:.6f}", f"{row['bias']:.6f}"),
                "-" if row["distance"] is None else f"{row['distance']:.1e}",
            ]
            for row in content["agreement"]
        ),
    ]


def agreement_table(content: dict[str, Any]) -> str:
    """Logistic regression three ways, for a terminal."""
    return aligned("logistic regression three ways, on all of the data:", agreement_rows(content))


def calibrator_table(content: dict[str, Any]) -> str:
    """The calibrators for a terminal."""
    return aligned("calibrators, each fitted within the training folds:", calibrator_cells(content["calibrators"]))


def separation_table(content: dict[str, Any]) -> str:
    """The separation study for a terminal."""
    found = content["separation"]
    about = (
        f"what grows with epochs ({found['num_learning']:,} examples learnt from; nll, accuracy and confidence on "
        f"{found['num_scored']:,} others):"
    )
    return aligned(about, separation_rows(content))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:#.4g}"
