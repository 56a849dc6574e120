"""Milliseconds of one optimizer step: ours, torch.optim.Muon, torch.optim.AdamW.

    python benchmarks/optimizer_step.py [--threads N] [--rounds N]

Times the matrices of the blocks alone, for a few model sizes, contenders interleaved, medians.
"""

import argparse
import statistics
import time

import torch

from nanolm.config import load
from nanolm.model import GPT
from nanolm.optim import Muon

# (width, layers, heads, SwiGLU width)
SIZES = [(128, 4, 4, 384), (256, 4, 4, 704), (384, 6, 6, 1024)]


def block_matrices(width: int, layers: int, heads: int, intermediate: int) -> list[torch.nn.Parameter]:
    """Fresh copies of the matrices that Muon updates, with random gradients."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": intermediate}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    config = load("train", [f"model.{key}={value}" for key, value in sizes.items()]).model
    matrices = [parameter for parameter in GPT(config, 16).model.layers.parameters() if parameter.ndim == 2]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    return matrices


def milliseconds(optimizer: torch.optim.Optimizer) -> float:
    """Wall time of one step."""
    start = time.perf_counter()
    optimizer.step()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Print one line per model size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, median of {arguments.rounds} rounds, ms per step")
    print("Newton-Schulz iterations: nanolm 3 (the default) and 5, torch 5 (in bfloat16)")
    print(f"{'width':>6}{'layers':>7}{'numbers':>12}{'nanolm 3':>10}{'nanolm 5':>10}{'torch 5':>10}{'AdamW':>8}")
    for size in SIZES:
        contenders = {
            "nanolm 3": Muon(block_matrices(*size), lr=0.02),
            "nanolm 5": Muon(block_matrices(*size), lr=0.02, num_iterations=5),
            "torch": torch.optim.Muon(block_matrices(*size), lr=0.02),
            "adamw": torch.optim.AdamW(block_matrices(*size), lr=1e-3, fused=True),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(arguments.rounds + 1):
            for name, optimizer in contenders.items():
                elapsed = milliseconds(optimizer)
                if round_ > 0:  # the first step allocates
                    times[name].append(elapsed)
        numbers = sum(matrix.numel() for matrix in block_matrices(*size))
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"{size[0]:>6}{size[1]:>7}{numbers:>12,}{medians['nanolm 3']:>10.1f}{medians['nanolm 5']:>10.1f}"
            f"{medians['torch']:>10.1f}{medians['adamw']:>8.2f}"
        )


if __name__ == "__main__":
    main()
