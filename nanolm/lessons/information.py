"""Surprisal, entropy, cross-entropy: what a negative log-likelihood measures, down to a sentence and its perplexity."""

import math

import numpy as np
import torch

from nanolm.lessons.step import Curve, Identity, Plot, Step
from nanolm.loss import reference as exact
from nanolm.loss import softmax_nll


def surprisal_table() -> Step:
    """-ln p: small for what was expected, large for what was not; it adds up over independent events."""
    probabilities = (0.9, 0.5, 0.01)
    nats = exact.surprisal(probabilities)
    p = np.linspace(0.005, 1, 200)
    return Step(
        title="Surprisal: the price of one observation",
        formula="s(x) = -ln p(x)",
        about="What a model pays for one observation. Certainty costs nothing and the price of the impossible has no "
        "bound: to be sure and wrong is far worse than to be unsure. The price of two independent events is the sum "
        "of their prices, because probabilities multiply; that is why it is a logarithm.",
        table=(
            ("probability", "surprisal (nats)", "surprisal (bits)"),
            *((f"{p_x:g}", f"{s:.3f}", f"{s / math.log(2):.3f}") for p_x, s in zip(probabilities, nats, strict=True)),
        ),
        identities=(
            Identity(
                "s(a and b) = s(a) + s(b) for independent a, b",
                float(exact.surprisal(0.9 * 0.01)),
                float(nats[0] + nats[2]),
            ),
            Identity("a fair coin costs one bit", float(nats[1]) / math.log(2), 1.0),
        ),
        plot=Plot(
            "probability that the model gave to what happened",
            "surprisal (nats)",
            (
                Curve("-ln p", p.tolist(), exact.surprisal(p).tolist()),
                Curve("0.9, 0.5, 0.01", probabilities, nats.tolist(), style="dots"),
            ),
        ),
    )


def entropy_and_divergence() -> Step:
    """The expected NLL is an entropy, which the world sets, and a divergence, which the model can mend."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    one_hot = np.array([1.0, 0.0, 0.0])
    h, cross, divergence = exact.entropy(p), exact.cross_entropy(p, q), exact.kl_divergence(p, q)
    ours = softmax_nll(torch.from_numpy(np.log(q))[None], torch.tensor([0])).nll
    classes = torch.tensor([0] * 7 + [1] * 2 + [2])  # ten observations with frequencies p
    mean = softmax_nll(torch.from_numpy(np.log(q)).expand(10, 3), classes, reduction="mean").objective
    grid = np.linspace(0.02, 0.98, 97)
    coin_p = np.array([0.7, 0.3])
    return Step(
        title="Cross-entropy is entropy and a divergence",
        formula="H(p, q) = H(p) + KL(p ‖ q)",
        about="The world draws from p, the model says q, and H(p, q) is the surprisal that it has to expect. No "
        "model pays less than H(p), which no parameter changes; what it pays above that is the divergence, 0 only "
        "where q = p. With a single right answer (one-hot p), H(p) = 0 and all of it is -ln q of that answer: the "
        "NLL. Make the data probable, match their distribution, waste the least: three names for one minimum.",
        table=(
            ("p", "q", "H(p)", "KL(p ‖ q)", "H(p, q)"),
            *(
                (
                    str(a.tolist()),
                    str(b.tolist()),
                    f"{exact.entropy(a):.4f}",
                    f"{exact.kl_divergence(a, b):.4f}",
                    f"{exact.cross_entropy(a, b):.4f}",
                )
                for a, b in ((p, q), (p, p), (one_hot, q))
            ),
        ),
        identities=(
            Identity("H(p, q) = H(p) + KL(p ‖ q)", cross, h + divergence),
            Identity("ten observations with frequencies p: H(p, q) = their mean NLL", cross, float(mean)),
            Identity(
                "one right answer: H(p, q) = the NLL of softmax_nll", exact.cross_entropy(one_hot, q), float(ours)
            ),
        ),
        plot=Plot(
            "q, what the model says of a coin with p = 0.7",
            "nats",
            (
                Curve("H(p, q)", grid.tolist(), [exact.cross_entropy(coin_p, np.array([x, 1 - x])) for x in grid]),
                Curve("KL(p ‖ q)", grid.tolist(), [exact.kl_divergence(coin_p, np.array([x, 1 - x])) for x in grid]),
            ),
            levels=(("H(p)", exact.entropy(coin_p)),),
        ),
    )
