"""Peak memory beyond the inputs and one set of gradients, as the operating system counts it."""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
from nanolm.loss import linear_nll

num_tokens, statistics, reduction = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.manual_seed(0)
hidden = torch.randn(num_tokens, 256, requires_grad=True)
weight = torch.randn(50304, 256).mul_(0.05).requires_grad_()
targets = torch.randint(50304, (num_tokens,))
linear_nll(hidden[:2], weight[:300], targets[:2] % 300).objective.backward()  # libraries load, threads start
hidden.grad = weight.grad = None
gradients = [torch.zeros_like(tensor) for tensor in (hidden, weight)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
del gradients
linear_nll(hidden, weight, targets, statistics=statistics, reduction=reduction).objective.sum().backward()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print((after - before) * unit / 2**20)
"""


def peak_mebibytes(num_tokens: int, statistics: str = "basic", reduction: str = "sum") -> float:
    arguments = [sys.executable, "-c", MEASURE, str(num_tokens), statistics, reduction]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is Unix's")
@pytest.mark.parametrize(("statistics", "reduction"), [("basic", "sum"), ("full", "none")])
def test_peak_memory_is_bounded_and_does_not_grow_with_the_tokens(statistics, reduction):
    few, many = (peak_mebibytes(tokens, statistics, reduction) for tokens in (1024, 2048))
    assert many <= 128
    assert many - few <= 8
