"""Time of an evaluation with all metrics beside a pass that only sums the NLL.

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
from nanolm.evaluation import Extras, evaluate, fit_on_split, frequency_groups, windows
from nanolm.evaluation.windows import read_batches
from nanolm.loss import linear_nll
from nanolm.model import GPT
from nanolm.training import find_checkpoint
from nanolm.training.loop import loss_options


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
    compute, evaluation = resolve_compute("cpu", "fp32"), EvaluateConfig(stride=None, batch_size=16)
    model = checkpoint.load_model(compute.device)
    how = (config.trainer.sequence_length, evaluation, loss_options(config), compute)
    groups = frequency_groups(corpus.splits["train"], tokenizer.vocab_size, tokenizer.end_of_text_id)

    contenders: dict[str, Callable[[], object]] = {
        "NLL only": lambda: nll_only(model, split, config.trainer.sequence_length, 16),
        "all metrics": lambda: evaluate(model, split, *how),
        "all metrics, slices": lambda: evaluate(model, split, *how, extras=Extras(groups=groups)),
        "all metrics, slices, a second temperature": lambda: evaluate(model, split, *how, extras=Extras(1.1, groups)),
        "the fit of the temperature": lambda: fit_on_split(model, calibration, *how),
        "intervals and JSON": lambda: evaluated.as_json(0),
    }
    evaluated = evaluate(model, split, *how)
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
