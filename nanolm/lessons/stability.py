"""The same loss from logits and from probabilities: exact, or infinite, clipped, and not a number."""

import math

import numpy as np
import torch

from nanolm.lessons.step import Curve, Identity, Plot, Step, figure
from nanolm.loss import bernoulli_nll, softmax_nll
from nanolm.loss import reference as exact

CLIP = 1e-12


def stable_binary() -> Step:
    """-ln(1 - σ(z)) of a confident mistake: from probabilities it breaks, from the logit it is z."""
    logits = (2.0, 10.0, 20.0, 40.0, 1000.0)
    z32 = torch.tensor(logits)
    ours = bernoulli_nll(z32, torch.zeros(len(logits), dtype=torch.long), reduction="none").nll
    truth = [exact.binary_nll_from_logits([0], [z]) for z in logits]
    grid = np.linspace(0, 50, 201)
    grid32 = torch.from_numpy(grid).float()
    naive32 = _naive(grid32).numpy()
    finite = np.isfinite(naive32)
    return Step(
        title="From logits it is stable, from probabilities it breaks",
        formula="-ln(1 - σ(z)) = max(z, 0) + ln(1 + exp(-|z|))",
        about="The label is 0 and the model says ŷ = σ(z); label 1 and ŷ near 0 is its mirror image. In float32, ŷ "
        f"is rounded to 1 above z = {24 * math.log(2):.1f} and -ln(1 - ŷ) is infinite. Clipping ŷ at {CLIP:g} makes "
        f"it {-math.log(CLIP):.1f} for every worse mistake, with a gradient of 0: the worst mistakes teach nothing. "
        f"(And that takes float64: in float32, 1 - {CLIP:g} is 1, and the clip does nothing.) From the logit it is "
        "exact.",
        table=(
            ("logit", "naive, float32", "clipped, float64", "bernoulli_nll, float32", "exact"),
            *(
                (
                    f"{z:g}",
                    figure(float(_naive(z32[i]))),
                    figure(exact.binary_nll_from_probs([0], exact.sigmoid([z]), eps=CLIP)),
                    figure(float(ours[i])),
                    figure(truth[i]),
                )
                for i, z in enumerate(logits)
            ),
        ),
        identities=tuple(
            Identity(f"bernoulli_nll at z = {z:g}, in float32", float(ours[i]), truth[i], 1e-6)
            for i, z in enumerate(logits)
        ),
        plot=Plot(
            "logit of a mistake",
            "loss (nats)",
            (
                Curve("naive, float32, until it is infinite", grid[finite].tolist(), naive32[finite].tolist()),
                Curve(
                    f"clipped at {CLIP:g}, float64",
                    grid.tolist(),
                    [exact.binary_nll_from_probs([0], exact.sigmoid([z]), eps=CLIP) for z in grid],
                ),
                Curve(
                    "bernoulli_nll, float32",
                    grid[::10].tolist(),
                    bernoulli_nll(
                        grid32[::10], torch.zeros(len(grid[::10]), dtype=torch.long), reduction="none"
                    ).nll.tolist(),
                    style="dots",
                ),
            ),
        ),
    )


def _naive(logits: torch.Tensor) -> torch.Tensor:
    return -torch.log(1 - torch.sigmoid(logits))


def stable_softmax() -> Step:
    """exp overflows for a large logit; a shift mends that, not the underflow of the others; log-sum-exp mends both."""
    cases = {"[2, 1, 0]": [2.0, 1.0, 0.0], "[100, 0, -100]": [100.0, 0.0, -100.0], "[1000, 0, -1000]": [1e3, 0.0, -1e3]}
    rows, identities = [], []
    for name, logits in cases.items():
        z, targets = torch.tensor([logits]), torch.tensor([1])
        ours, truth = float(softmax_nll(z, targets).nll), exact.multiclass_nll([1], [logits])
        shifted = [float(_nll_of_shifted_softmax(z.to(dtype))[0]) for dtype in (torch.float32, torch.float64)]
        rows.append((name, *(figure(value) for value in (float(_nll_of_softmax(z)[0]), *shifted, ours, truth))))
        identities.append(Identity(f"softmax_nll of {name}, in float32", ours, truth, 1e-6))
    base = np.array([2.0, 1.0, 0.0])
    change = float(np.abs(exact.softmax(base + 1e3) - exact.softmax(base)).max())
    identities.append(Identity("largest change of softmax by adding 1,000", change, 0.0))
    return Step(
        title="Shift against overflow, stay in logarithms against underflow",
        formula="-ln pₜ = m + ln Σ exp(zₖ - m) - zₜ,  m = max z",
        about="The NLL of the second class. exp(89) is more than float32 can hold: the plain softmax divides by "
        "infinity. Softmax does not change when all logits move together, so the largest is moved to 0, and nothing "
        "overflows. But a class far behind still has exp(-1000) = 0, in float64 too, and its logarithm is minus "
        "infinity: the shift alone is not enough. The last form, log-sum-exp, takes no logarithm of a probability.",
        table=(
            ("logits", "plain, float32", "shifted, float32", "shifted, float64", "softmax_nll, float32", "exact"),
            *rows,
        ),
        identities=tuple(identities),
        plot=_softmax_plot(),
    )


def _nll_of_softmax(z: torch.Tensor) -> torch.Tensor:
    return -torch.log(z.exp() / z.exp().sum(dim=1, keepdim=True))[:, 1]


def _nll_of_shifted_softmax(z: torch.Tensor) -> torch.Tensor:
    return _nll_of_softmax(z - z.amax(dim=1, keepdim=True))


def _softmax_plot() -> Plot:
    """The NLL of a class that is behind by up to 200, in three ways."""
    behind = torch.arange(0.0, 200.5, 0.5)
    z = torch.stack([behind, torch.zeros_like(behind)], dim=1)
    curves = []
    for label, nll in (
        ("shifted, then ln, until exp underflows", _nll_of_shifted_softmax(z)),
        ("plain, until exp overflows", _nll_of_softmax(z)),
    ):
        finite = torch.isfinite(nll)
        curves.append(Curve(label, behind[finite].tolist(), nll[finite].tolist()))
    ours = softmax_nll(z[::20], torch.ones(len(z[::20]), dtype=torch.long), reduction="none").nll
    curves.append(Curve("softmax_nll", behind[::20].tolist(), ours.tolist(), style="dots"))
    return Plot("largest logit, that of the class being 0; all in float32", "NLL (nats)", tuple(curves))
