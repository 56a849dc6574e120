"""Speed of the fused loss beside torch's own and beside bare matrix products.

    python benchmarks/loss.py [--shapes 2048x256x50304 768x128x65] [--repeats 7] [--threads 1] [--device cpu]

Every contender runs once per round, in an order that rotates, so that a slow moment of the machine falls on all of them
alike. Printed are medians in milliseconds and ratios of speed to F.cross_entropy(F.linear): 2.00 is twice as fast.
Forward and backward, with gradients for hidden states and weight, except where it says loss only. The bare products
write into new tensors as the losses do, or, "in place", into tensors that they keep. With --threads 1 it is processor
time that is measured, which other programs on the machine disturb less.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolm.loss import linear_nll

SHAPES = ("2048x256x50304", "4096x256x4096", "8192x384x32000", "768x128x65")
BASELINE = "F.cross_entropy(F.linear)"

Contenders = dict[str, Callable[[], object]]


def contenders(num_tokens: int, width: int, num_classes: int, device: str, dtype: torch.dtype) -> Contenders:
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, width, device=device, dtype=dtype).requires_grad_()
    weight = (torch.randn(num_classes, width, device=device, dtype=dtype) * 0.05).requires_grad_()
    targets = torch.randint(num_classes, (num_tokens,), device=device)

    def backward(objective: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(objective(), (hidden, weight))

    def ours(choice: str) -> Callable[[], object]:
        return backward(lambda: linear_nll(hidden, weight, targets, statistics=choice).objective)

    logits = torch.empty(num_tokens, num_classes, device=device, dtype=dtype)
    hidden_out, weight_out = torch.empty_like(hidden), torch.empty_like(weight)

    @torch.no_grad()
    def three_products() -> None:
        z = hidden @ weight.t()
        z @ weight, z.t() @ hidden

    @torch.no_grad()
    def three_products_in_place() -> None:
        one_product_in_place()
        torch.mm(logits, weight, out=hidden_out)
        torch.mm(logits.t(), hidden, out=weight_out)

    @torch.no_grad()
    def one_product_in_place() -> None:
        torch.mm(hidden, weight.t(), out=logits)

    found: Contenders = {
        BASELINE: backward(lambda: F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum"))
    }
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["F.linear_cross_entropy chunked"] = backward(
            lambda: F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)
        )
    return found | {
        "linear_nll none": ours("none"),
        "linear_nll basic": ours("basic"),
        "linear_nll full": ours("full"),
        "three products": three_products,
        "three products in place": three_products_in_place,
        "linear_nll loss only": torch.no_grad()(lambda: linear_nll(hidden, weight, targets)),
        "one product": torch.no_grad()(lambda: hidden @ weight.t()),
        "one product in place": one_product_in_place,
    }


def measure(functions: Contenders, repeats: int, device: str, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each, over rounds in which each is called as often as fills a fiftieth of a second."""

    def seconds_of(function: Callable[[], object], calls: int) -> float:
        start = clock()
        for _ in range(calls):
            function()
        if device == "cuda":
            torch.cuda.synchronize()
        return (clock() - start) / calls

    names = list(functions)
    calls = {}
    for name in names:
        seconds_of(functions[name], 1)  # libraries load, kernels are chosen
        calls[name] = max(1, int(0.02 / seconds_of(functions[name], 1)))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(repeats):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(functions[name], calls[name]))
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="tokens x width x vocabulary, as 2048x256x50304")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float64"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    alone = arguments.device == "cpu" and arguments.threads == 1
    clock = time.process_time if alone else time.perf_counter

    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} threads"
    print(f"torch {torch.__version__}, {arguments.device} ({where}), {arguments.dtype}, medians of {arguments.repeats}")
    for shape in arguments.shapes:
        sizes = tuple(int(size) for size in shape.split("x"))
        functions = contenders(*sizes, arguments.device, getattr(torch, arguments.dtype))
        seconds = measure(functions, arguments.repeats, arguments.device, clock)
        print(f"\nN, D, V = {', '.join(map(str, sizes))}")
        print(f"  {'':34} {'ms':>10} {'speed':>7}")
        for name, value in seconds.items():
            print(f"  {name:34} {value * 1e3:10.3f} {seconds[BASELINE] / value:7.2f}")
        none, basic, full = (seconds[f"linear_nll {choice}"] for choice in ("none", "basic", "full"))
        print(f"  basic statistics {basic / none - 1:+.1%}, full {full / none - 1:+.1%}; with basic ones ", end="")
        print(f"{seconds['three products'] / basic:.3f} of the speed of three products", end="")
        print(f" ({seconds['three products in place'] / basic:.3f} in place); loss only ", end="")
        print(f"{seconds['linear_nll loss only'] / seconds['one product']:.2f} of one product's time")


if __name__ == "__main__":
    main()
