"""The training loop.

A step: fetch all micro-batches, count the valid tokens, forward and backward, clip, pass the finite gate, update,
log. A batch, a learning rate and a dropout mask are pure functions of the seed and the step.
"""

import math
import os
import shutil
import time
from collections.abc import Callable
from functools import partial

import torch

from nanolm.config.schema import TrainConfig, TrainerConfig
from nanolm.data import Loader
from nanolm.device import Compute
from nanolm.errors import ConfigError, NonFiniteError, out_of_memory
from nanolm.evaluation import Evaluation
from nanolm.loss import LossOptions, NLLResult
from nanolm.metrics import confidence_histogram
from nanolm.optim import learning_rate_factor
from nanolm.seeds import derive_seed
from nanolm.tracking import Scalar, Throughput, Tracker
from nanolm.training.memory import activation_bytes, free_memory, too_large
from nanolm.training.state import TrainingState
from nanolm.training.stop import StopSignal

# Inputs (B, T), hidden states (B, T, D), the head's weight (V, D) and targets (B, T) to their summed objective.
Objective = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], NLLResult]

MAX_SKIPPED_IN_A_ROW = 10
MAX_DOCUMENTS_NAMED = 8


def loss_options(config: TrainConfig) -> LossOptions:
    """The options of ``nanolm.loss`` that a configuration asks for."""
    loss = config.loss
    return LossOptions(
        label_smoothing=loss.label_smoothing, z_loss=loss.z_loss, softcap=loss.softcap, temperature=loss.temperature
    )


class TrainingLoop:
    """Trains a state in place up to the limits of its configuration.

    Args:
        state: model, optimizers and counters, new or from a checkpoint.
        loader: the batches of the train split.
        config: the run's configuration.
        compute: device and precision; the model is there already.
        peak_flops: what MFU is a share of, see ``nanolm.device.measure_peak_flops``.
        objective: what is minimised; see ``nanolm.training.objective``.
    """

    def __init__(
        self,
        state: TrainingState,
        loader: Loader,
        config: TrainConfig,
        compute: Compute,
        peak_flops: float,
        objective: Objective,
    ) -> None:
        self.state = state
        self.loader = loader
        self.config = config
        self.compute = compute
        self.options = loss_options(config)
        self.objective = objective
        self.stop = StopSignal()
        self.forward: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(state.model) if _wants_compile(config.trainer, compute) else state.model
        )
        self._flops_per_token = state.model.flops_per_token(config.trainer.sequence_length)
        self._peak_flops: float | None = peak_flops

    def run(
        self,
        tracker: Tracker,
        evaluate: Callable[[bool], Evaluation],
        save_checkpoint: Callable[[], None],
    ) -> Evaluation | None:
        """Train until a limit is reached.

        Args:
            tracker: receives one line per step.
            evaluate: scores val; called every ``eval_every`` steps, and with True after the last step.
            save_checkpoint: publishes the state; called every ``checkpoint_every`` steps and at the end.

        Returns:
            The evaluation after the last step; None where no step was known to be the last one when it ended: there
            was none left to do, or the time ran out during a later evaluation.

        Raises:
            StopRequested: a signal came; the state is that after the last completed step.
            NonFiniteError: the gradient was not finite for too many steps in a row, or a weight is not.
            OutOfMemoryError: a micro-batch does not fit in memory.
        """
        state, trainer = self.state, self.config.trainer
        if not self.finished:
            self._require_memory()
        throughput = Throughput()
        started = time.monotonic() - state.seconds
        while state.unlogged or not self.finished:
            if not state.unlogged:
                tokens, began = state.tokens, time.monotonic()
                line = self._step_in_memory()
                if state.skipped_in_a_row:
                    tracker.note(f"warning: {self._skipped()}")
                tokens_per_second = throughput.add(state.tokens - tokens, time.monotonic() - began)
                state.unlogged = line | {
                    "train/tokens_per_second": tokens_per_second,
                    "train/mfu": self._mfu(tokens_per_second, tracker),
                }
                state.seconds = time.monotonic() - started
            last = self.finished  # asked once a step: the clock goes on during an evaluation
            if last or _is_due(state.step, trainer.eval_every):
                evaluation = evaluate(last)
                state.unlogged |= {f"val/{name}": value for name, value in evaluation.metrics().items()}
                state.seconds = time.monotonic() - started
            tracker.log(state.unlogged | {"train/seconds": state.seconds})
            state.unlogged = {}
            if last or _is_due(state.step, trainer.checkpoint_every):
                save_checkpoint()
            else:
                self.stop.check()
            if last:
                return evaluation
        return None

    @property
    def finished(self) -> bool:
        """Whether a limit of steps or seconds is reached."""
        return run_progress(self.config.trainer, self.state.step, self.state.seconds) >= 1

    def step(self) -> dict[str, Scalar]:
        """One optimizer step over one global batch; returns its line of metrics."""
        state, trainer = self.state, self.config.trainer
        micro_batch_size = trainer.micro_batch_size or trainer.batch_size
        micro_batches = [
            self.loader.rows(state.step, first, min(first + micro_batch_size, trainer.batch_size))
            for first in range(0, trainer.batch_size, micro_batch_size)
        ]
        num_tokens = sum(int((targets != self.options.ignore_index).sum()) for _, targets in micro_batches)
        factor = learning_rate_factor(self.config.schedule, run_progress(trainer, state.step + 0.5, state.seconds))

        state.model.train()
        torch.manual_seed(derive_seed(self.config.seed, state.step))  # dropout, a function of seed and step
        sums = torch.zeros(5, dtype=torch.float64, device=self.compute.device)
        histogram = torch.zeros(3, 15, dtype=torch.float64, device=self.compute.device)
        for inputs, targets in micro_batches:
            self.stop.check()
            result = self._forward(inputs, targets)
            (result.objective / max(num_tokens, 1)).backward()  # type: ignore[no-untyped-call]
            sums += _sums(result)
            histogram += confidence_histogram(result)

        parameters = list(state.model.parameters())
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, trainer.max_grad_norm or math.inf))
        objective, nll, correct, confidence, entropy = (sums / max(num_tokens, 1)).tolist()
        if math.isfinite(grad_norm) and math.isfinite(objective):
            state.optimizers.step(factor)
            state.trailing.add(histogram)
            state.skipped_in_a_row = 0
        else:
            self._skip()
        state.optimizers.zero_grad()
        state.step += 1
        state.tokens += num_tokens
        return {
            "step": state.step,
            "tokens": state.tokens,
            "train/objective": objective,
            "train/nll": nll,
            "train/perplexity": math.exp(nll) if nll < 700 else math.inf,
            "train/accuracy": correct,
            "train/confidence": confidence,
            "train/entropy": entropy,
            "train/entropy_gap": nll - entropy,
            "train/ece": state.trailing.ece(),
            "train/grad_norm": grad_norm,
            "train/learning_rate": factor * self.config.optimizer.learning_rate,
            "train/skipped_steps": state.skipped_steps,
        }

    def _mfu(self, tokens_per_second: float, tracker: Tracker) -> float | None:
        """The share of the measured ceiling that is used; None from the step on that proves the ceiling wrong."""
        if self._peak_flops is None:
            return None
        mfu = tokens_per_second * self._flops_per_token / self._peak_flops
        if mfu <= 1:
            return mfu
        self._peak_flops = None
        tracker.note(
            f"train/mfu: step {self.state.step:,} was {mfu:.2f} times as fast as the best matrix product measured at "
            "the start, so that ceiling is too low (the machine was busy then, most likely) and the values before are "
            "too high; the metric is null from here on"
        )
        return None

    def _forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> NLLResult:
        inputs, targets = (tokens.to(self.compute.device, non_blocking=True) for tokens in (inputs, targets))
        return self._score(self.forward, inputs, targets)

    def _score(
        self, model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor
    ) -> NLLResult:
        with self.compute.autocast():
            return self.objective(inputs, model(inputs), self.state.model.head_weight, targets)

    def _require_memory(self) -> None:
        """Refuse what the memory of a CPU cannot hold: there the system would kill the run without a word.

        The need without compiling is known to be at least this; a GPU says so itself when its memory is full.
        """
        if self.compute.device.type != "cpu" or self.forward is not self.state.model:
            return
        trainer, per_token, free = self.config.trainer, self._bytes_per_token(), free_memory(self.compute.device)
        needed = per_token * (trainer.micro_batch_size or trainer.batch_size) * trainer.sequence_length
        if needed > free:
            reason = f"its activations take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free"
            raise too_large(trainer, per_token, free, reason)

    def _step_in_memory(self) -> dict[str, Scalar]:
        """``step``, with an estimate of what would fit where its batch does not."""
        try:
            return self.step()
        except (MemoryError, RuntimeError) as error:
            if (reason := out_of_memory(error)) is None:
                raise
        # Outside of the handler, whose traceback holds the tensors of the step.
        self.state.optimizers.zero_grad()
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in self.state.model.parameters())
        moments = 0 if self.state.step else self.state.optimizers.num_moment_bytes()
        free = max(0.0, free_memory(self.compute.device) - gradients - moments)
        raise too_large(self.config.trainer, self._bytes_per_token(), free, reason)

    def _bytes_per_token(self) -> float:
        try:
            return activation_bytes(partial(self._score, self.state.model), self.state.model, self.loader)
        except (MemoryError, RuntimeError) as error:
            if out_of_memory(error) is None:
                raise
            return math.inf

    def _skip(self) -> None:
        """Count the step under way, number ``state.step + 1``, as skipped; too many in a row end the run.

        Where the weights themselves are not finite, no later step can be, and the run ends at once.
        """
        state = self.state
        state.check_finite()
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"steps {state.step + 2 - state.skipped_in_a_row:,} to {state.step + 1:,}: expected a finite loss and "
                f"gradient, found NaN or infinity {state.skipped_in_a_row} times in a row; none of them changed the "
                f"weights, which are those after step {state.step + 1 - state.skipped_in_a_row:,}. The last batch is "
                f"of {self._documents_of(state.step)}."
            )

    def _skipped(self) -> str:
        """What is told of the step just completed if it was skipped."""
        state = self.state
        return (
            f"step {state.step:,} was skipped, its loss or gradient being NaN or infinite: no weight was changed "
            f"({state.skipped_steps:,} skipped so far). Its batch is of {self._documents_of(state.step - 1)}."
        )

    def _documents_of(self, batch: int) -> str:
        numbers = [f"{number:,}" for number in self.loader.documents(batch).tolist()]
        more = f" and {len(numbers) - MAX_DOCUMENTS_NAMED:,} more" if len(numbers) > MAX_DOCUMENTS_NAMED else ""
        return (
            f"document(s) {', '.join(numbers[:MAX_DOCUMENTS_NAMED])}{more} of the {self.loader.split.name} split, "
            "counted from 0"
        )


def run_progress(trainer: TrainerConfig, step: float, seconds: float) -> float:
    """The share of a run that is done, by the limit that will end it: steps or seconds."""
    by_steps = step / trainer.max_steps if trainer.max_steps else 0.0
    by_seconds = seconds / trainer.max_seconds if trainer.max_seconds else 0.0
    return max(by_steps, by_seconds)


def _sums(result: NLLResult) -> torch.Tensor:
    """Objective, NLL, correct, confidence and entropy of a micro-batch, summed in float64, on its device."""
    parts = (result.objective.detach(), result.nll, result.correct, result.confidence, result.entropy)
    return torch.stack([part.double().sum() for part in parts if part is not None])


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _wants_compile(trainer: TrainerConfig, compute: Compute) -> bool:
    on_cpu = compute.device.type == "cpu"
    if trainer.compile == "on" and on_cpu and not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))):
        raise ConfigError(
            "trainer.compile: on the CPU torch.compile needs a C++ compiler, and neither g++ nor clang++ is found; "
            "install one, or use trainer.compile=off"
        )
    return trainer.compile == "on" or (trainer.compile == "auto" and not on_cpu)
