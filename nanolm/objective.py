"""What training minimises, from the configuration: the same for language models and classifiers."""

from nanolm.config.schema import LossConfig
from nanolm.loss import Distillation, LossOptions

TEACHER = "loss.distillation.teacher"


def loss_options(loss: LossConfig) -> LossOptions:
    """Return the options of ``nanolm.loss`` that a configuration asks for."""
    return LossOptions(
        label_smoothing=loss.label_smoothing, z_loss=loss.z_loss, softcap=loss.softcap, temperature=loss.temperature
    )


def distillation_of(loss: LossConfig) -> Distillation:
    """Return how a teacher's probabilities enter the objective."""
    return Distillation(loss.distillation.weight, loss.distillation.temperature)
