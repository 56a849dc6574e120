"""The probability of a dataset, the likelihood that it becomes, and why its logarithm is taken."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from nanolm.lessons.step import Curve, Identity, Plot, Step, figure
from nanolm.loss import bernoulli_nll
from nanolm.loss import reference as exact

HEADS, FLIPS = 7, 10
GRID = np.linspace(0.01, 0.99, 99)


RED, BALLS = 7, 10
DRAWN = (1, 1, 0, 1, 0)
"""an urn's red balls and all of its balls; the colours that are drawn from it, 1 for red"""


def joint_probability() -> Step:
    """The probability of a whole dataset: conditional factors, and equal ones where the draws are independent."""
    conditional = _not_put_back(DRAWN)
    theta = RED / BALLS
    independent = [theta if colour else 1 - theta for colour in DRAWN]
    without, with_return = exact.joint_probability(conditional), exact.joint_probability(independent)
    balls = [1] * RED + [0] * (BALLS - RED)
    sequences = list(itertools.permutations(balls, len(DRAWN)))
    every_colouring = list(itertools.product((0, 1), repeat=len(DRAWN)))
    places = list(range(1, len(DRAWN) + 1))
    so_far = zip(np.cumprod(conditional), np.cumprod(independent), strict=True)
    return Step(
        title="The probability of a dataset",
        formula="p(x₁ … xₙ) = Π p(xᵢ | x₁ … xᵢ₋₁) = Π p(xᵢ | θ) if the xᵢ are independent, given θ",
        about=f"An urn of {BALLS} balls, {RED} of them red, and {len(DRAWN)} draws. The chain rule holds for every "
        "dataset: each observation has its probability given those before it. Where a ball is not put back, these "
        "factors change with what was drawn. Where it is put back, the past tells nothing: the draws are independent "
        "and identically distributed (iid), every factor has the same parameter θ, and the joint probability is a "
        "plain product. That is an assumption about the data. Made wrongly here, it gives "
        f"{with_return:.4f} instead of {without:.4f}. The steps that follow make it; a language model does not.",
        table=(
            ("draw", "colour", "p given the past", "so far", "p if iid", "so far, if iid"),
            *(
                (str(place), "red" if colour else "blue", f"{p:.4f}", f"{a:.5f}", f"{q:.4f}", f"{b:.5f}")
                for place, colour, p, q, (a, b) in zip(places, DRAWN, conditional, independent, so_far, strict=True)
            ),
        ),
        identities=(
            Identity(
                f"the chain rule = this sequence's share of all {len(sequences):,} ordered draws",
                without,
                sum(sequence == DRAWN for sequence in sequences) / len(sequences),
            ),
            Identity(
                "iid: the product of the factors = θ^reds (1-θ)^blues",
                with_return,
                theta ** sum(DRAWN) * (1 - theta) ** (len(DRAWN) - sum(DRAWN)),
            ),
            Identity(
                f"by the chain rule, the probabilities of all {len(every_colouring)} sequences of colours sum to 1",
                sum(exact.joint_probability(_not_put_back(colours)) for colours in every_colouring),
                1.0,
            ),
        ),
        plot=Plot(
            "draw",
            "probability of what was drawn",
            (
                Curve("given the draws before it", places, conditional, style="bars"),
                Curve("if iid", places, independent, style="dots"),
            ),
            names=[("red" if colour else "blue") for colour in DRAWN],
        ),
    )


def _not_put_back(colours: Sequence[int]) -> list[float]:
    """The probability of each colour given those drawn before it."""
    left, found = [BALLS - RED, RED], []
    for place, colour in enumerate(colours):
        found.append(left[colour] / (BALLS - place))
        left[colour] = max(0, left[colour] - 1)  # what cannot come has probability 0, and so has the whole sequence
    return found


def two_readings() -> Step:
    """One formula, read as a probability of data and as a likelihood of parameters."""
    sequences = [np.array(flips, dtype=float) for flips in itertools.product((0, 1), repeat=FLIPS)]
    sums = {theta: sum(exact.bernoulli_likelihood(flips, theta) for flips in sequences) for theta in (0.5, 0.7)}
    # Gauss and Legendre's rule with 6 nodes is exact for polynomials up to degree 11; this one has degree 10.
    nodes, weights = np.polynomial.legendre.leggauss(6)
    seen = _flips(HEADS, FLIPS)
    area = sum(w / 2 * exact.bernoulli_likelihood(seen, (x + 1) / 2) for x, w in zip(nodes, weights, strict=True))
    formula = math.factorial(HEADS) * math.factorial(FLIPS - HEADS) / math.factorial(FLIPS + 1)
    return Step(
        title="One formula, two readings: the likelihood",
        formula="L(θ; x) = p(x | θ) = Π θ^xᵢ (1-θ)^(1-xᵢ)",
        about="Flips of a coin, iid. θ^x (1-θ)^(1-x) is θ for heads, x = 1, and 1-θ for tails, x = 0. With θ fixed and "
        "the flips free the product is a probability: over all that can happen it sums to 1. With the flips observed "
        "and θ free it is the likelihood: which θ makes plausible what was seen? Over θ it has no reason to sum to 1, "
        "and does not. The θ with the largest likelihood is the maximum likelihood estimate.",
        table=(
            ("held fixed", "summed over", "sum"),
            *(
                (f"θ = {theta:g}", f"all {len(sequences):,} sequences of {FLIPS} flips", f"{total:.9f}")
                for theta, total in sums.items()
            ),
            (f"{HEADS} heads, then {FLIPS - HEADS} tails", "θ from 0 to 1 (the integral)", f"{area:.9f}"),
        ),
        identities=(
            *(Identity(f"the probabilities at θ = {theta:g} sum to 1", total, 1.0) for theta, total in sums.items()),
            Identity("the integral of the likelihood = k! (n-k)! / (n+1)!", float(area), formula),
        ),
        plot=Plot(
            "θ, the probability of heads",
            "likelihood",
            tuple(
                Curve(
                    f"{heads} heads seen in {FLIPS} flips",
                    GRID.tolist(),
                    [exact.bernoulli_likelihood(_flips(heads, FLIPS), float(theta)) for theta in GRID],
                )
                for heads in (6, HEADS, 8)
            ),
        ),
    )


def product_to_sum(num_flips: int = 1100, theta: float = 0.5) -> Step:
    """The likelihood of independent observations, a product, underflows; its logarithm, a sum, does not."""
    probabilities = np.full(num_flips, theta)
    products = {
        f"float{bits}": np.cumprod(probabilities.astype(f"float{bits}"), dtype=f"float{bits}") for bits in (32, 64)
    }
    vanished = {name: int(np.argmax(values == 0)) + 1 for name, values in products.items() if values[-1] == 0}
    counts = sorted({10, 100, num_flips} | {n - 1 for n in vanished.values()} | set(vanished.values()))
    rows = [
        (f"{n:,}", *(figure(float(products[name][n - 1])) for name in products), f"{_log_likelihood(n, theta):.4f}")
        for n in counts
        if n <= num_flips
    ]
    few = min(50, num_flips)
    flips = np.arange(1, num_flips + 1)
    lost = "; ".join(f"in {name} at {n:,} flips" for name, n in vanished.items())
    return Step(
        title="Why its logarithm: a product becomes a sum",
        formula="ln L(θ) = ln Π p(xᵢ | θ) = Σ ln p(xᵢ | θ)",
        about=f"The likelihood of a coin with θ = {theta:g}, flip after flip. Rounded to floating point the product "
        f"becomes 0, as if the data were impossible: {lost or 'not within these flips'}. The sum of logarithms goes "
        "on, and each observation has a term of its own in it, and in its derivative. This is the log-likelihood. Its "
        "negative, the NLL, is the same thing for optimisers that go downhill.",
        table=(("flips", "product, float32", "product, float64", "sum of ln p"), *rows),
        identities=(
            Identity(
                f"ln of the product of {few} = the sum of {few} logarithms",
                math.log(exact.joint_probability(probabilities[:few])),
                exact.log_likelihood(probabilities[:few]),
            ),
            Identity(
                f"the sum of {num_flips:,} logarithms = {num_flips:,} ln {theta:g}",
                exact.log_likelihood(probabilities),
                num_flips * math.log(theta),
            ),
        ),
        plot=Plot(
            "flips",
            "log₁₀ of the probability",
            (
                *(
                    Curve(
                        f"log of the product, {name}", flips[values > 0].tolist(), np.log10(values[values > 0]).tolist()
                    )
                    for name, values in reversed(products.items())
                ),
                Curve("sum of logs", flips[::50].tolist(), (flips[::50] * math.log10(theta)).tolist(), style="dots"),
            ),
            levels=(("the smallest float32", math.log10(2.0**-149)), ("the smallest float64", -1074 * math.log10(2))),
        ),
    )


def _log_likelihood(num_flips: int, theta: float) -> float:
    return exact.log_likelihood(np.full(num_flips, theta))


def coin() -> Step:
    """The maximum of a coin's likelihood in three ways: by trying, by the formula, by following the gradient."""
    flips = _flips(HEADS, FLIPS)
    nll = np.array([exact.nll(np.where(flips == 1, theta, 1 - theta)) for theta in GRID]) / FLIPS
    by_hand, by_formula = float(GRID[nll.argmin()]), HEADS / FLIPS
    path, first_gradient = _descend(torch.from_numpy(flips).long())
    by_gradient = path[-1]

    def mean_nll(theta: float) -> float:
        return exact.nll(np.where(flips == 1, theta, 1 - theta)) / FLIPS

    return Step(
        title="The most likely coin",
        formula="arg max Π θ^xᵢ (1-θ)^(1-xᵢ) = k/n,  k heads in n flips",
        about=f"{HEADS} heads in {FLIPS} flips. By hand: the derivative of k ln θ + (n-k) ln(1-θ) is k/θ - "
        "(n-k)/(1-θ), and it is 0 at θ = k/n. The gradient's way is that of a network: a logit z with θ = σ(z), "
        f"bernoulli_nll, and {len(path) - 1} steps downhill from θ = 0.5.",
        table=(
            ("found by", "θ", "NLL per flip"),
            ("trying 99 values", f"{by_hand:.6f}", f"{mean_nll(by_hand):.6f}"),
            ("the formula k/n", f"{by_formula:.6f}", f"{mean_nll(by_formula):.6f}"),
            ("gradient descent on z", f"{by_gradient:.6f}", f"{mean_nll(by_gradient):.6f}"),
        ),
        identities=(
            Identity("θ by gradient = k/n", by_gradient, by_formula, 1e-9),
            Identity("the gradient at z = 0 is σ(0) - k/n", first_gradient, 0.5 - by_formula),
            Identity("NLL at k/n = the entropy of the flips", mean_nll(by_formula), exact.entropy([0.7, 0.3])),
        ),
        plot=Plot(
            "θ, the probability of heads",
            "NLL (nats per flip)",
            (
                Curve("NLL", GRID.tolist(), nll.tolist()),
                Curve("gradient descent", path[:12], [mean_nll(theta) for theta in path[:12]], style="dots"),
            ),
        ),
    )


def _flips(heads: int, num_flips: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([1.0] * heads + [0.0] * (num_flips - heads))


def _descend(flips: torch.Tensor, num_steps: int = 200, rate: float = 1.0) -> tuple[list[float], float]:
    """θ after each step of gradient descent on the mean NLL, and the first gradient in z.

    The curvature in z is θ(1-θ) <= 1/4: up to a rate of 4 no step overshoots.
    """
    z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    path, gradients = [0.5], []
    for _ in range(num_steps):
        (gradient,) = torch.autograd.grad(bernoulli_nll(z.expand(len(flips)), flips, reduction="mean").objective, z)
        gradients.append(float(gradient))
        with torch.no_grad():
            z -= rate * gradient
        path.append(float(z.detach().sigmoid()))
    return path, gradients[0]


def shared_maximum() -> Step:
    """The logarithm is increasing: likelihood and log-likelihood peak together, while floats can hold the former."""
    rows = []
    for num_flips in (10, 100, 1000, 10_000):
        flips = _flips(HEADS * num_flips // FLIPS, num_flips)
        likelihood = np.array([exact.bernoulli_likelihood(flips, float(theta)) for theta in GRID])
        logs = _bernoulli_log_likelihood(flips.sum(), num_flips)
        best = f"{GRID[likelihood.argmax()]:.2f}" if likelihood.max() > 0 else "none: 0 at every θ"
        rows.append(
            (f"{num_flips:,}", best, figure(float(likelihood.max())), f"{GRID[logs.argmax()]:.2f}", f"{logs.max():.2f}")
        )
    flips = _flips(HEADS, FLIPS)
    likelihood = np.array([exact.bernoulli_likelihood(flips, float(theta)) for theta in GRID])
    logs = _bernoulli_log_likelihood(HEADS, FLIPS)
    return Step(
        title="Likelihood and log-likelihood share their maximum",
        formula="arg max L(θ) = arg max ln L(θ)",
        about="ln is strictly increasing, so whatever makes the one larger makes the other larger. Seven heads in "
        "ten, in ever longer experiments: both peak at 0.7 for as long as a float can hold the likelihood; where "
        "that is 0 at every θ it has no peak, and the log-likelihood still has.",
        table=(("flips", "θ of the largest L", "largest L", "θ of the largest ln L", "largest ln L"), *rows),
        identities=(
            Identity(
                "the two arg max of ten flips",
                float(GRID[likelihood.argmax()]),
                float(GRID[logs.argmax()]),
            ),
            Identity("ln of the largest likelihood of ten flips", math.log(likelihood.max()), float(logs.max())),
        ),
        plot=Plot(
            "θ, the probability of heads",
            "as a share of the peak's height",
            (
                Curve("likelihood / its maximum", GRID.tolist(), (likelihood / likelihood.max()).tolist()),
                Curve(
                    "log-likelihood, shifted and scaled to [0, 1]",
                    GRID.tolist(),
                    ((logs - logs.min()) / (logs.max() - logs.min())).tolist(),
                ),
            ),
        ),
    )


def _bernoulli_log_likelihood(heads: float, num_flips: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return heads * np.log(GRID) + (num_flips - heads) * np.log1p(-GRID)
