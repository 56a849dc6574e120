"""From the probability of data to a loss: likelihood, its logarithm, surprisal, cross-entropy."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from nanolm.lessons.logistic import LogisticRegressionTorch
from nanolm.lessons.step import Step
from nanolm.loss import reference as exact
from nanolm.loss import softmax_nll
from nanolm.loss.reference import Array

RED, BALLS, DRAWN = 7, 10, (1, 1, 0, 1, 0)
"""red balls and all balls of an urn; the colours drawn from it, 1 for red"""
HEADS, FLIPS = 7, 10
THETAS = np.linspace(0.01, 0.99, 99)
"""probabilities of heads"""


def joint_probability() -> Step:
    """Factor the probability of a dataset by the chain rule, and under independence."""
    theta = RED / BALLS
    conditional, independent = _without_return(DRAWN), [theta if red else 1 - theta for red in DRAWN]
    joint, joint_if_iid = exact.joint_probability(conditional), exact.joint_probability(independent)
    step = Step(
        title="The probability of a dataset",
        formula="p(x₁ … xₙ) = Π p(xᵢ | x₁ … xᵢ₋₁) = Π p(xᵢ | θ) if the xᵢ are independent, given θ",
        about=f"An urn of {BALLS} balls, {RED} of them red, and {len(DRAWN)} draws. The chain rule holds for every "
        "dataset: each observation has its probability given those before it. If no ball is put back, these factors "
        "change with what was drawn. If each is put back, the draws are independent and identically distributed (iid), "
        "and every factor has the same parameter θ. That is an assumption about the data: made wrongly here, it gives "
        f"{joint_if_iid:.4f} instead of {joint:.4f}. The steps that follow make it; a language model does not.",
    )
    places, colours = range(1, len(DRAWN) + 1), ["red" if red else "blue" for red in DRAWN]
    step.column("draw", places)
    step.column("colour", colours, "words")
    step.column("p given the past", conditional, ".4f")
    step.column("so far", np.cumprod(conditional), ".5f")
    step.column("p if iid", independent, ".4f")
    step.column("so far, if iid", np.cumprod(independent), ".5f")
    draws = list(itertools.permutations([1] * RED + [0] * (BALLS - RED), len(DRAWN)))
    share = draws.count(DRAWN) / len(draws)
    step.identity(f"the chain rule = this sequence's share of all {len(draws):,} ordered draws", joint, share)
    by_colour = theta ** colours.count("red") * (1 - theta) ** colours.count("blue")
    step.identity("iid: the product of the factors = θ^reds (1-θ)^blues", joint_if_iid, by_colour)
    colourings = list(itertools.product((0, 1), repeat=len(DRAWN)))
    total = sum(exact.joint_probability(_without_return(drawn)) for drawn in colourings)
    step.identity(f"by the chain rule, the probabilities of all {len(colourings)} sequences sum to 1", total, 1)
    step.plot("draw", "probability of what was drawn")
    step.bars("given the draws before it", places, conditional, colours)
    step.dots("if iid", places, independent)
    return step


def _without_return(drawn: Sequence[int]) -> list[float]:
    """Return the probability of each colour given those drawn before it."""
    left, factors = [BALLS - RED, RED], []
    for place, colour in enumerate(drawn):
        factors.append(left[colour] / (BALLS - place))
        left[colour] = max(0, left[colour] - 1)  # what cannot come has probability 0, and so has the whole sequence
    return factors


def two_readings() -> Step:
    """Read one formula as a probability of data and as a likelihood of parameters."""
    step = Step(
        title="One formula, two readings: the likelihood",
        formula="L(θ; x) = p(x | θ) = Π θ^xᵢ (1-θ)^(1-xᵢ)",
        about="Flips of a coin, iid. θ^x (1-θ)^(1-x) is θ for heads, x = 1, and 1-θ for tails, x = 0. With θ fixed "
        "the product is a probability of the flips: over all of them it sums to 1. With the flips observed and θ free "
        "it is the likelihood: which θ makes them plausible? Over θ it need not sum to 1, and does not. The θ with the "
        "largest likelihood is the maximum likelihood estimate.",
    )
    sequences = [np.array(flips) for flips in itertools.product((0, 1), repeat=FLIPS)]
    sums = {theta: sum(exact.bernoulli_likelihood(flips, theta) for flips in sequences) for theta in (0.5, 0.7)}
    # Gauss and Legendre's rule with 6 nodes is exact for polynomials up to degree 11; this one has degree 10.
    nodes, weights = np.polynomial.legendre.leggauss(6)
    area = weights / 2 @ _likelihood(HEADS, FLIPS, (nodes + 1) / 2)
    over_flips, over_theta = f"all {2**FLIPS:,} sequences of {FLIPS} flips", "θ from 0 to 1 (the integral)"
    step.column("held fixed", [*(f"θ = {theta:g}" for theta in sums), f"{HEADS} heads, then {FLIPS - HEADS} tails"])
    step.column("summed over", [over_flips, over_flips, over_theta], "words")
    step.column("sum", [*sums.values(), area], ".9f")
    for theta, total in sums.items():
        step.identity(f"the probabilities at θ = {theta:g} sum to 1", total, 1)
    by_formula = math.factorial(HEADS) * math.factorial(FLIPS - HEADS) / math.factorial(FLIPS + 1)
    step.identity("the integral of the likelihood = k! (n-k)! / (n+1)!", area, by_formula)
    step.plot("θ, the probability of heads", "likelihood")
    for heads in (6, HEADS, 8):
        step.line(f"{heads} heads seen in {FLIPS} flips", THETAS, _likelihood(heads, FLIPS))
    return step


def _flips(heads: int, num_flips: int) -> Array:
    return np.repeat([1.0, 0.0], [heads, num_flips - heads])


def _likelihood(heads: int, num_flips: int, thetas: Array = THETAS) -> Array:
    return np.array([exact.bernoulli_likelihood(_flips(heads, num_flips), theta) for theta in thetas.tolist()])


def product_to_sum() -> Step:
    """Show that the likelihood, a product, underflows and its logarithm, a sum, does not."""
    theta, num_flips = 0.5, 1100
    p, flips = np.full(num_flips, theta), np.arange(1, num_flips + 1)
    products = {name: np.cumprod(p.astype(name)) for name in ("float32", "float64")}
    vanished = {name: int(np.argmax(product == 0)) + 1 for name, product in products.items()}
    step = Step(
        title="Why its logarithm: a product becomes a sum",
        formula="ln L(θ) = ln Π p(xᵢ | θ) = Σ ln p(xᵢ | θ)",
        about=f"The likelihood of a coin with θ = {theta:g}, flip after flip. Rounded to floating point the product "
        f"becomes 0, as if the data were impossible: in float32 at {vanished['float32']:,} flips, in float64 at "
        f"{vanished['float64']:,}. The sum, the log-likelihood, goes on, and each observation has a term of its own in "
        "it and in its derivative. Its negative, the NLL, is what optimisers minimise.",
    )
    counts = sorted({10, 100, num_flips, *vanished.values(), *(n - 1 for n in vanished.values())})
    step.column("flips", counts, ",")
    for name, product in products.items():
        step.column(f"product, {name}", [product[n - 1] for n in counts], "digits")
    step.column("sum of ln p", [exact.log_likelihood(p[:n]) for n in counts], ".4f")
    few, log_likelihood = p[:50], exact.log_likelihood(p)
    ln_of_product = math.log(exact.joint_probability(few))
    step.identity("ln of the product of 50 = the sum of 50 logarithms", ln_of_product, exact.log_likelihood(few))
    step.identity(f"the sum of 1,100 logarithms = 1,100 ln {theta:g}", log_likelihood, num_flips * math.log(theta))
    step.plot("flips", "log₁₀ of the probability")
    for name, n in reversed(vanished.items()):
        step.line(f"log of the product, {name}", flips[: n - 1], np.log10(products[name][: n - 1]))
    step.dots("sum of logs", flips[::50], flips[::50] * math.log10(theta))
    step.level("the smallest float32", math.log10(2.0**-149))
    step.level("the smallest float64", -1074 * math.log10(2))
    return step


def shared_maximum() -> Step:
    """Show that likelihood and log-likelihood peak together as long as floats hold the former."""
    step = Step(
        title="Likelihood and log-likelihood share their maximum",
        formula="arg max L(θ) = arg max ln L(θ)",
        about="ln is strictly increasing, so whatever makes the one larger makes the other larger. Seven heads in ten, "
        "in ever longer experiments: both peak at 0.7, until the likelihood is 0 at every θ and has no peak.",
    )
    counts, share = (10, 100, 1000, 10_000), HEADS / FLIPS
    likelihoods = [_likelihood(round(share * n), n) for n in counts]
    logs = [n * (share * np.log(THETAS) + (1 - share) * np.log1p(-THETAS)) for n in counts]
    peaks = [f"{THETAS[found.argmax()]:.2f}" if found.any() else "none: 0 at every θ" for found in likelihoods]
    step.column("flips", counts, ",")
    step.column("θ of the largest L", peaks)
    step.column("largest L", [found.max() for found in likelihoods], "digits")
    step.column("θ of the largest ln L", [THETAS[found.argmax()] for found in logs], ".2f")
    step.column("largest ln L", [found.max() for found in logs], ".2f")
    ten, log_ten = likelihoods[0], logs[0]
    step.identity("the two arg max of ten flips", THETAS[ten.argmax()], THETAS[log_ten.argmax()])
    step.identity("ln of the largest likelihood of ten flips", math.log(ten.max()), log_ten.max())
    step.plot("θ, the probability of heads", "as a share of the peak's height")
    step.line("likelihood / its maximum", THETAS, ten / ten.max())
    step.line("log-likelihood, shifted and scaled to [0, 1]", THETAS, (log_ten - log_ten.min()) / np.ptp(log_ten))
    return step


def coin() -> Step:
    """Find the maximum of a coin's likelihood by trying, by the formula, and by gradient descent."""
    flips, no_features = _flips(HEADS, FLIPS), np.zeros((FLIPS, 0))

    def nll(theta: float) -> float:
        return exact.nll(np.where(flips == 1, theta, 1 - theta)) / FLIPS

    # The curvature in z is θ(1-θ) <= 1/4: up to a rate of 4 no step overshoots.
    model = LogisticRegressionTorch(0)  # a bias alone
    first_gradient = model.gradient(no_features, flips)[1]
    path = [0.5] + [model.fit(no_features, flips, lr=1.0, epochs=1).predict_proba(no_features)[0] for _ in range(200)]
    step = Step(
        title="The most likely coin",
        formula="arg max Π θ^xᵢ (1-θ)^(1-xᵢ) = k/n,  k heads in n flips",
        about=f"{HEADS} heads in {FLIPS} flips. By hand: the derivative of k ln θ + (n-k) ln(1-θ) is k/θ - "
        "(n-k)/(1-θ), and it is 0 at θ = k/n. The gradient's way is that of a network: a logit z with θ = σ(z), "
        f"bernoulli_nll, and {len(path) - 1} steps downhill from θ = 0.5.",
    )
    thetas = (min(THETAS.tolist(), key=nll), HEADS / FLIPS, path[-1])
    step.column("found by", ["trying 99 values", "the formula k/n", "gradient descent on z"])
    step.column("θ", thetas, ".6f")
    step.column("NLL per flip", map(nll, thetas), ".6f")
    step.identity("θ by gradient = k/n", path[-1], HEADS / FLIPS, 1e-9)
    step.identity("the gradient at z = 0 is σ(0) - k/n", first_gradient, 0.5 - HEADS / FLIPS)
    step.identity("NLL at k/n = the entropy of the flips", nll(HEADS / FLIPS), exact.entropy([0.7, 0.3]))
    step.plot("θ, the probability of heads", "NLL (nats per flip)")
    step.line("NLL", THETAS, [nll(theta) for theta in THETAS.tolist()])
    step.dots("gradient descent", path[:12], [nll(theta) for theta in path[:12]])
    return step


def surprisal() -> Step:
    """Show -ln p of one observation, and that it adds up over independent events."""
    step = Step(
        title="Surprisal: the price of one observation",
        formula="s(x) = -ln p(x)",
        about="What a model pays for one observation: nothing for certainty, and without bound for the impossible. To "
        "be sure and wrong is far worse than to be unsure. It is a logarithm because the probabilities of independent "
        "events multiply, and their prices add up.",
    )
    probabilities, grid = (0.9, 0.5, 0.01), np.linspace(0.005, 1, 200)
    nats = exact.surprisal(probabilities)
    step.column("probability", probabilities)
    step.column("surprisal (nats)", nats, ".3f")
    step.column("surprisal (bits)", nats / math.log(2), ".3f")
    step.identity("s(a and b) = s(a) + s(b) for independent a, b", exact.surprisal(0.9 * 0.01), nats[0] + nats[2])
    step.identity("a fair coin costs one bit", nats[1] / math.log(2), 1)
    step.plot("probability that the model gave to what happened", "surprisal (nats)")
    step.line("-ln p", grid, exact.surprisal(grid))
    step.dots("0.9, 0.5, 0.01", probabilities, nats)
    return step


def entropy_and_divergence() -> Step:
    """Split the expected NLL into an entropy, which the data set, and a divergence, which the model can reduce."""
    step = Step(
        title="Cross-entropy is entropy and a divergence",
        formula="H(p, q) = H(p) + KL(p ‖ q)",
        about="Data are drawn from p, the model says q, and H(p, q) is its expected surprisal. No model pays less than "
        "H(p); what it pays above that is the divergence, 0 only where q = p. With a single right answer (one-hot p), "
        "H(p) = 0 and all of it is -ln q of that answer: the NLL. To make the data probable and to match their "
        "distribution is the same thing.",
    )
    p, q, one_hot = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0]
    pairs = ((p, q), (p, p), (one_hot, q))
    entropy = [exact.entropy(a) for a, _ in pairs]
    divergence = [exact.kl_divergence(a, b) for a, b in pairs]
    cross_entropy = [exact.cross_entropy(a, b) for a, b in pairs]
    step.column("p", [str(a) for a, _ in pairs])
    step.column("q", [b for _, b in pairs], "words")
    step.column("H(p)", entropy, ".4f")
    step.column("KL(p ‖ q)", divergence, ".4f")
    step.column("H(p, q)", cross_entropy, ".4f")
    classes = torch.tensor([0] * 7 + [1] * 2 + [2])  # ten observations with frequencies p
    observed = softmax_nll(torch.tensor(q, dtype=torch.float64).log().expand(10, 3), classes, reduction="mean")
    step.identity("H(p, q) = H(p) + KL(p ‖ q)", cross_entropy[0], entropy[0] + divergence[0])
    step.identity("ten observations with frequencies p: H(p, q) = their mean NLL", cross_entropy[0], observed.objective)
    step.identity("one right answer: H(p, q) = the NLL of softmax_nll", cross_entropy[2], observed.nll[0])
    coin, grid = [0.7, 0.3], np.linspace(0.02, 0.98, 97)
    step.plot("q, what the model says of a coin with p = 0.7", "nats")
    step.line("H(p, q)", grid, [exact.cross_entropy(coin, [x, 1 - x]) for x in grid])
    step.line("KL(p ‖ q)", grid, [exact.kl_divergence(coin, [x, 1 - x]) for x in grid])
    step.level("H(p)", exact.entropy(coin))
    return step
