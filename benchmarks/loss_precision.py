"""Error of the weight's gradient in bfloat16 against float64, by the number of chunks that it is summed over.

    python benchmarks/loss_precision.py [--plot docs/loss-precision.svg]

N, D, V = 4096, 256, 4096. torch's chunked loss is measured with each of its policies of accumulation.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolm.loss import linear_nll, rows

NUM_TOKENS, WIDTH, NUM_CLASSES = 4096, 256, 4096
CHUNKS = (1, 4, 16, 64, 256)
POLICIES = ("compact", "balanced", "accurate")


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets: the same rounded numbers in any dtype."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(NUM_TOKENS, WIDTH), torch.randn(NUM_CLASSES, WIDTH) * 0.1
    targets = torch.randint(NUM_CLASSES, (NUM_TOKENS,))
    return hidden.bfloat16().to(dtype), weight.bfloat16().to(dtype).requires_grad_(), targets


def errors() -> dict[str, list[float]]:
    """Relative errors in the Frobenius norm, for each contender one for each number of chunks."""
    hidden, weight, targets = problem(torch.float64)
    exact = torch.autograd.grad(F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum"), weight)[0]
    hidden, weight, targets = problem(torch.bfloat16)

    def error(objective: Tensor) -> float:
        return ((torch.autograd.grad(objective, weight)[0].double() - exact).norm() / exact.norm()).item()

    found: dict[str, list[float]] = {"linear_nll": []}
    for chunks in CHUNKS:
        num_rows = NUM_TOKENS // chunks
        rows.WORKSPACES["cpu"] = rows.Workspace(num_rows * NUM_CLASSES * 4, num_rows * NUM_CLASSES * 4, 1)
        found["linear_nll"].append(error(linear_nll(hidden, weight, targets).objective))
        for policy in POLICIES if hasattr(F, "linear_cross_entropy") else ():
            options = torch.nn.LinearCrossEntropyOptions(
                batch_chunk_size=num_rows, chunking_method=None, acc_policy=policy
            )
            objective = F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)
            found.setdefault(f"F.linear_cross_entropy {policy}", []).append(error(objective))
    naive = error(F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum"))
    return found | {"F.cross_entropy(F.linear)": [naive] * len(CHUNKS)}


def plot(found: dict[str, list[float]], path: str) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, values in found.items():
        axes.plot(CHUNKS, [100 * value for value in values], "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="chunks", ylabel="error of dW in bfloat16 (%)")
    axes.set_xticks(CHUNKS, [str(chunks) for chunks in CHUNKS])
    axes.legend(frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "nanolm"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", help="also draw the table, as SVG")
    arguments = parser.parse_args()
    found = errors()
    print(f"torch {torch.__version__}\n{'chunks':34}" + "".join(f"{chunks:>9}" for chunks in CHUNKS))
    for name, values in found.items():
        print(f"{name:34}" + "".join(f"{value:9.2%}" for value in values))
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
