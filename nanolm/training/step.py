"""One training step: fetch all micro-batches, count the valid tokens, forward and backward, clip, finite gate, update.

A batch, a learning rate and a dropout mask are pure functions of the seed and the step.
"""

import math
import os
import shutil
import time
from collections.abc import Callable

import torch
from torch import Tensor

from nanolm.config.schema import TrainConfig, TrainerConfig
from nanolm.data import Loader
from nanolm.device import Compute, measure_peak_flops
from nanolm.errors import ConfigError, NonFiniteError
from nanolm.loss import NLLResult
from nanolm.metrics import Tally
from nanolm.metrics.definitions import of_rows
from nanolm.optim import learning_rate_factor
from nanolm.seeds import derive_seed
from nanolm.stop import StopSignal
from nanolm.tracking import Scalar, Throughput
from nanolm.training.memory import MemoryGuard
from nanolm.training.objective import Objective
from nanolm.training.state import TrainingState

MAX_SKIPPED_IN_A_ROW = 10
MAX_DOCUMENTS_NAMED = 8
LOGGED = ("nll", "perplexity", "accuracy", "confidence", "entropy", "entropy_gap")


def run_progress(trainer: TrainerConfig, step: float, seconds: float) -> float:
    """Return the share of a run that is done, by the limit that will end it: steps or seconds."""
    by_steps = step / trainer.max_steps if trainer.max_steps else 0.0
    by_seconds = seconds / trainer.max_seconds if trainer.max_seconds else 0.0
    return max(by_steps, by_seconds)


class TrainingStep:
    """Changes a state by one optimizer step at each call."""

    def __init__(
        self,
        state: TrainingState,
        loader: Loader,
        objective: Objective,
        config: TrainConfig,
        compute: Compute,
        stop: StopSignal,
        note: Callable[[str], None],
    ) -> None:
        """Prepare to train.

        Args:
            state: model, optimizers and counters; the model is on the device of ``compute``.
            objective: what is minimised.
            stop: a signal that it has received ends a step before it changes anything.
            note: reports what the user should know while training goes on.
        """
        self.state, self.loader, self.config, self.compute = state, loader, config, compute
        self._objective, self._stop, self._note = objective, stop, note
        compiled = _wants_compile(config.trainer, compute)
        self._model: Callable[[Tensor], Tensor] = torch.compile(state.model) if compiled else state.model
        self._memory = MemoryGuard(state, loader, config.trainer, lambda *rows: self._forward(state.model, *rows))
        if not compiled and run_progress(config.trainer, state.step, state.seconds) < 1:
            self._memory.require()  # without compiling, the need is known to be at least what is measured
        self._throughput = Throughput()
        self._peak_flops: float | None = measure_peak_flops(compute)

    def __call__(self) -> dict[str, Scalar]:
        """Take one step over one global batch and return its line of metrics.

        Raises:
            StopRequested: a signal came; the state is that after the last completed step.
            NonFiniteError: the gradient was not finite for too many steps in a row, or a weight is not.
            OutOfMemoryError: a micro-batch does not fit in memory.
        """
        tokens, began = self.state.tokens, time.monotonic()
        with self._memory.explain():
            line = self._take()
        rate = self._throughput.add(self.state.tokens - tokens, time.monotonic() - began)
        return line | {"train/tokens_per_second": rate, "train/mfu": self._utilization(rate)}

    def _take(self) -> dict[str, Scalar]:
        state, trainer, device = self.state, self.config.trainer, self.compute.device
        size = trainer.micro_batch_size or trainer.batch_size
        micro_batches = [
            self.loader.rows(state.step, first, min(first + size, trainer.batch_size))
            for first in range(0, trainer.batch_size, size)
        ]
        num_tokens = sum(int((targets != self._objective.options.ignore_index).sum()) for _, targets in micro_batches)
        factor = learning_rate_factor(self.config.schedule, run_progress(trainer, state.step + 0.5, state.seconds))

        state.model.train()
        torch.manual_seed(derive_seed(self.config.seed, state.step))  # dropout, a function of seed and step
        tally, total = Tally(device=device), torch.zeros((), dtype=torch.float64, device=device)
        for inputs, targets in micro_batches:
            self._stop.check()
            result = self._forward(self._model, inputs, targets)
            (result.objective / max(num_tokens, 1)).backward()  # type: ignore[no-untyped-call]
            tally.add(result)
            total += result.objective.detach()

        parameters = list(state.model.parameters())
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, trainer.max_grad_norm or math.inf))
        objective = float(total) / max(num_tokens, 1)
        row = tally.rows()[0]
        if math.isfinite(grad_norm) and math.isfinite(objective):
            state.optimizers.step(factor)
            state.trailing.add(row)
            state.skipped_in_a_row = 0
        else:
            self._skip()
        state.optimizers.zero_grad()
        state.step += 1
        state.tokens += num_tokens
        metrics, trailing = of_rows(row), of_rows(state.trailing.total())
        return {
            "step": state.step,
            "tokens": state.tokens,
            "train/objective": objective,
            **{f"train/{name}": metrics.get(name) for name in LOGGED},
            "train/ece": trailing.get("ece"),
            "train/grad_norm": grad_norm,
            "train/learning_rate": factor * self.config.optimizer.learning_rate,
            "train/skipped_steps": state.skipped_steps,
        }

    def _forward(self, model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> NLLResult:
        inputs, targets = (tokens.to(self.compute.device, non_blocking=True) for tokens in (inputs, targets))
        with self.compute.autocast():
            return self._objective(inputs, model(inputs), self.state.model.head_weight, targets)

    def _skip(self) -> None:
        """Count the current step as skipped; too many in a row end the run.

        If the weights themselves are not finite, no later step can be, and the run ends at once.
        """
        state = self.state
        state.check_finite()
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        step, documents = state.step + 1, self._documents_of(state.step)
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            first = step + 1 - state.skipped_in_a_row
            raise NonFiniteError(
                f"steps {first:,} to {step:,}: expected a finite loss and gradient, found NaN or infinity "
                f"{state.skipped_in_a_row} times in a row; none of them changed the weights, which are those after "
                f"step {first - 1:,}. The last batch holds {documents}."
            )
        self._note(
            f"warning: step {step:,} was skipped because its loss or gradient is not finite: no weight was changed "
            f"({state.skipped_steps:,} skipped so far). Its batch holds {documents}."
        )

    def _documents_of(self, batch: int) -> str:
        numbers = [f"{number:,}" for number in self.loader.documents(batch).tolist()]
        more = f" and {len(numbers) - MAX_DOCUMENTS_NAMED:,} more" if len(numbers) > MAX_DOCUMENTS_NAMED else ""
        return (
            f"document(s) {', '.join(numbers[:MAX_DOCUMENTS_NAMED])}{more} of the {self.loader.split.name} split, "
            "counted from 0"
        )

    def _utilization(self, tokens_per_second: float) -> float | None:
        """Return the share of the measured peak that is used; None from the step on that proves the peak wrong."""
        if self._peak_flops is None:
            return None
        flops_per_token = self.state.model.flops_per_token(self.config.trainer.sequence_length)
        mfu = tokens_per_second * flops_per_token / self._peak_flops
        if mfu <= 1:
            return mfu
        self._peak_flops = None
        self._note(
            f"train/mfu: step {self.state.step:,} was {mfu:.2f} times as fast as the best matrix product measured at "
            "the start, so that peak is too low (the machine was busy then, most likely) and the values before are "
            "too high; the metric is null from here on"
        )
        return None


def _wants_compile(trainer: TrainerConfig, compute: Compute) -> bool:
    on_cpu = compute.device.type == "cpu"
    if trainer.compile == "on" and on_cpu and not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))):
        raise ConfigError(
            "trainer.compile: on the CPU torch.compile needs a C++ compiler, and neither g++ nor clang++ is found; "
            "install one, or use trainer.compile=off"
        )
    return trainer.compile == "on" or (trainer.compile == "auto" and not on_cpu)
