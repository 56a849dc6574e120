"""Time of an evaluation with all metrics compared with a pass that only sums the NLL.

    python benchmarks/evaluation.py checkpoint [--split val] [--repeats 5]

The contenders take turns within one run; printed are medians in seconds and ratios, and the peak memory of the process.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nanolm.config.schema import EvaluateConfig
from nanolm.data import TokenSplit, open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.evaluation import Extras, Scorer, windows
from nanolm.evaluation.slices import frequency_groups
from nanolm.evaluation.windows import read_batches
from nanolm.loss import linear_nll
from nanolm.metrics import Calibration, Interval
from nanolm.model import GPT
from nanolm.objective import loss_options
from nanolm.training import find_checkpoint


@torch.no_grad()
def nll_only(model: GPT, split: TokenSplit, sequence_length: int, batch_size: int) -> float:
    """The mean NLL and nothing else."""
    total = 0.0
    for batch in read_batches(split, windows(split.num_tokens, sequence_length, sequence_length), batch_size):
        hidden, targets = model(batch.tokens[:, :-1])[batch.is_scored], batch.tokens[:, 1:][batch.is_scored]
        total += float(linear_nll(hidden, model.head_weight, targets, statistics="none").objective)
    return total / split.num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    checkpoint = find_checkpoint(arguments.checkpoint)
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    corpus = open_prepared(prepare(config.data, tokenizer))
    split, calibration = corpus.splits[arguments.split], corpus.splits["calibration"]
    compute = resolve_compute("cpu", "fp32")
    model, options = checkpoint.load_model(compute.device), loss_options(config.loss)
    scorer = Scorer(model, config.trainer.sequence_length, EvaluateConfig(stride=None, batch_size=16), options, compute)
    groups = frequency_groups(corpus.splits["train"], tokenizer.vocab_size, tokenizer.end_of_text_id)
    scaled = Extras(Calibration(temperature=Interval(1.1)), groups)

    contenders: dict[str, Callable[[], object]] = {
        "NLL only": lambda: nll_only(model, split, config.trainer.sequence_length, 16),
        "all metrics": lambda: scorer.measure(split),
        "all metrics, slices": lambda: scorer.measure(split, Extras(frequency_group=groups)),
        "all metrics, slices, a second temperature": lambda: scorer.measure(split, scaled),
        "the fit of the temperature": lambda: scorer.fit_temperature(calibration),
        "intervals and JSON": lambda: measured.evaluation(step=0, num_classes=1).model_dump_json(),
    }
    measured = scorer.measure(split)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.repeats):
        for name, function in contenders.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{split.num_tokens:,} tokens of {arguments.split}, medians of {arguments.repeats}, torch {torch.__version__}"
    )
    for name, value in medians.items():
        print(f"  {name:42} {value:7.2f} s  {value / medians['NLL only']:5.2f}")
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
