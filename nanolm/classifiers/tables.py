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
    names = [name.replace("_", " ") for name in SEPARATION_COLUMNS]
    return [
        ["fit", "epoch", *names, "lowest nll", "at epoch"],
        *(
            [
                fit["name"],
                f"{fit['epoch']:,}",
                *(_cell(fit["final"][name]) for name in SEPARATION_COLUMNS),
                _cell(fit["lowest"]["nll"]),
                f"{fit['lowest']['epoch']:,}",
            ]
            for fit in content["separation"]["fits"]
        ),
    ]


def separation_words(content: dict[str, Any]) -> list[str]:
    """What the separation study measured, in sentences that its numbers choose."""
    found = content["separation"]
    free = found["fits"][0]
    final, lowest, curves = free["final"], free["lowest"], free["curves"]
    end = f"epoch {free['epoch']:,}"
    if found["separated_at"] is None:
        words = [
            f"Maximum likelihood did not separate its training data: at {end} {final['train_accuracy']:.2%} of "
            f"{found['num_learning']:,} examples are classified correctly, and the norm of its gradient is "
            f"{found['gradient_norm']:.1e}. This run is no evidence of growth without bound."
        ]
    else:
        place = next(i for i, epoch in enumerate(found["epochs"]) if epoch >= found["separated_at"])
        changes = ", ".join(
            f"{label} went from {curves[name][place]:.3g} to {final[name]:.3g}"
            for name, label in (("weight_norm", "the norm of its weights"), ("train_nll", "its training NLL"))
        )
        words = [
            f"Maximum likelihood classified all {found['num_learning']:,} training examples correctly for the first "
            f"time at epoch {found['separated_at']:,}. From there to {end} {changes}; {final['train_accuracy']:.2%} of "
            "them are classified correctly at the end."
        ]
    num_wrong = round((1 - final["accuracy"]) * found["num_scored"])
    change = (
        f"Its NLL on held-out examples was lowest, {lowest['nll']:.4g}, at epoch {lowest['epoch']:,} and is "
        f"{final['nll']:.4g} at the end"
        if lowest["nll"] < final["nll"]
        else f"Its NLL on held-out examples is lowest, {final['nll']:.4g}, at the end"
    )
    best = min(found["fits"], key=lambda fit: fit["final"]["nll"])
    words.append(f"{change}, where {num_wrong:,} of {found['num_scored']:,} are misclassified.")
    words.append(
        f"Of the four fits as they end, {best['name']} has the lowest NLL on held-out examples, "
        f"{best['final']['nll']:.4g}. This is one split and one seed, without intervals."
    )
    return words


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
        f"separation ({found['num_learning']:,} training examples; nll, accuracy and confidence on "
        f"{found['num_scored']:,} held-out ones):"
    )
    return "\n".join([*separation_words(content), aligned(about, separation_rows(content))])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:#.4g}"
