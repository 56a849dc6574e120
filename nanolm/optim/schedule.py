"""The learning rate as a pure function of a run's progress."""

import math

from nanolm.config.schema import CosineConfig, ScheduleConfig, WsdConfig


def learning_rate_factor(config: ScheduleConfig, progress: float) -> float:
    """Return the share of the peak rate to use at ``progress``, the completed share of the run in [0, 1].

    Pass the middle of the step about to be taken: (step + 1/2) / max_steps for step 0, 1, ...; with a limit in seconds,
    the larger of that and seconds / max_seconds. The first step then has a positive rate under any warmup, the last a
    rate just above ``final_fraction``, and the mean over the steps is the area under the curve.

    - warmup, all schedules: a line from 0 to 1 over ``warmup_fraction``;
    - ``constant``: 1 to the end;
    - ``cosine``: half a cosine from 1 to ``final_fraction`` over all that follows the warmup;
    - ``wsd`` (warmup, stable, decay; Hu et al. 2024, arXiv:2404.06395): 1, then a line down to ``final_fraction``
      over the last ``decay_fraction`` of the run.
    """
    progress = min(max(progress, 0.0), 1.0)
    warmup = min(1.0, progress / config.warmup_fraction) if config.warmup_fraction else 1.0
    if isinstance(config, CosineConfig):
        decayed = max(0.0, (progress - config.warmup_fraction) / (1 - config.warmup_fraction))
        remaining = (1 + math.cos(math.pi * decayed)) / 2
    elif isinstance(config, WsdConfig):
        remaining = min(1.0, (1 - progress) / config.decay_fraction) if config.decay_fraction else 1.0
    else:
        return warmup
    return min(warmup, config.final_fraction + (1 - config.final_fraction) * remaining)
