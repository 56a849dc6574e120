"""Losses from given logits: a binary task and a softmax task.

Everything is written in logits shifted by their maximum, z - m. The probabilities do not change, exp never overflows,
and the negative log-likelihood -ln p_t = ln Σ exp(z - m) - (z_t - m) loses no digits however large the logits are.
"""

import torch
from torch import Tensor

from nanolm.loss.options import LossOptions, Reduction, check_choice, expect
from nanolm.loss.result import NLLResult, reduce
from nanolm.loss.rows import without_autocast
from nanolm.loss.targets import class_targets, expect_shape, expect_soft_targets, probability_targets


def softmax_nll(
    logits: Tensor,
    targets: Tensor,
    soft_targets: Tensor | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    reduction: Reduction = "sum",
) -> NLLResult:
    """Compute the negative log-likelihood of a softmax task, with every statistic.

    logits: (N, V) floating point; low precision is computed in float32
    targets: (N,) int32 or int64 in [0, V), or options.ignore_index
    soft_targets: (N, V) target distributions, constants, that take the one-hot's place in the objective
    options, reduction: see LossOptions; "sum", "mean" over valid tokens (0 over none) or "none"

    A logit of minus infinity excludes its class; one of plus infinity, like NaN, makes the token's results NaN.
    Differentiable in logits, twice if need be. Raises ConfigError for wrong shapes, dtypes and, on the CPU, targets.
    """
    check_choice("reduction", reduction, Reduction)
    two_dimensional = logits.dim() == 2 and logits.shape[1] > 0
    expect(two_dimensional, "logits", "shape (N, V) with V >= 1", tuple(logits.shape))
    num_tokens, num_classes = logits.shape
    expect_shape("logits", logits, (num_tokens, num_classes), "(N, V)")
    indices, mask = class_targets(targets, num_tokens, num_classes, options.ignore_index)
    valid = torch.ones_like(indices, dtype=torch.bool) if mask is None else mask
    if soft_targets is not None:
        expect_soft_targets(soft_targets, (num_tokens, num_classes))

    with without_autocast(logits.device):
        capped = soft_capped(logits if logits.dtype == torch.float64 else logits.float(), options.softcap)
        maximum = capped.detach().amax(dim=1, keepdim=True)
        shifted = (capped - maximum) / options.temperature  # z - m
        log_sum = shifted.logsumexp(dim=1)  # lse(z) - m
        nll = log_sum - shifted.gather(1, indices[:, None]).squeeze(1)

        objective = nll
        if soft_targets is not None:
            soft_targets = soft_targets.to(shifted.dtype)
            # q·z = q·(z - m) + m Σq; where q is 0 its term is 0, even for a logit of minus infinity
            products = torch.where(soft_targets == 0, 0, soft_targets * shifted).sum(dim=1)
            excess = (1 - soft_targets.sum(dim=1)) * (maximum.squeeze(1) / options.temperature)
            objective = log_sum - products + excess
        if options.label_smoothing:
            uniform = log_sum - shifted.mean(dim=1)
            objective = (1 - options.label_smoothing) * objective + options.label_smoothing * uniform
        if options.z_loss:
            log_normalizer = log_sum + maximum.squeeze(1) / options.temperature  # lse(z)
            objective = objective + options.z_loss * log_normalizer.square()
        count = valid.sum()
        objective = reduce(torch.where(valid, objective, 0), count, reduction)

        with torch.no_grad():
            probabilities = shifted.softmax(dim=1)
            # a probability of 0 times a logit of minus infinity is 0
            bounded = torch.where(probabilities == 0, 0, shifted)
            mean = (probabilities * bounded).sum(dim=1, keepdim=True)  # E_p[z] - m
            return NLLResult(
                objective=objective,
                nll=torch.where(valid, nll.detach(), 0),
                valid=valid,
                count=count,
                confidence=(-log_sum).exp(),
                correct=(capped.argmax(dim=1) == indices) & valid,
                entropy=log_sum - mean.squeeze(1),
                sum_squared_probabilities=probabilities.square().sum(dim=1),
                logit_variance=(probabilities * (bounded - mean).square()).sum(dim=1),
            )


def bernoulli_nll(
    logits: Tensor,
    targets: Tensor,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    reduction: Reduction = "sum",
) -> NLLResult:
    """Compute the negative log-likelihood of a binary task: softmax_nll of the logits [0, z], with every statistic.

    logits: (N,) floating point, the log-odds of class 1
    targets: (N,) any dtype, in [0, 1]: the class, or a probability of class 1; or options.ignore_index
    options, reduction: as for softmax_nll, with V = 2

    For a target y between 0 and 1, nll is the expected one, -y ln p - (1-y) ln(1-p), and for ``correct`` the class is 1
    where y > 1/2. At a logit of exactly 0 the first arg max is class 0. Infinite log-odds are certainty: the NLL of the
    other class is infinite, and its gradient is that of any large logit. Derivatives and errors: as for softmax_nll.
    """
    check_choice("reduction", reduction, Reduction)
    expect_shape("logits", logits, (logits.numel(),), "(N,)")
    valid = probability_targets(targets, logits.shape[0], options.ignore_index)

    with without_autocast(logits.device):
        z = model_logits(logits if logits.dtype == torch.float64 else logits.float(), options)
        y = torch.where(valid, targets, 0).to(z.dtype)
        nll_of_one, nll_of_zero = softplus(-z), softplus(z)

        nll = weighted(y, nll_of_one) + weighted(1 - y, nll_of_zero)
        q = (1 - options.label_smoothing) * y + options.label_smoothing / 2
        objective = weighted(q, nll_of_one) + weighted(1 - q, nll_of_zero)
        if options.z_loss:
            objective = objective + options.z_loss * nll_of_zero.square()  # lse([0, z]) = softplus(z)
        count = valid.sum()
        objective = reduce(torch.where(valid, objective, 0), count, reduction)

        with torch.no_grad():
            magnitude = z.abs().clamp(max=torch.finfo(z.dtype).max)  # infinity times 0 is to be 0
            confidence, other = magnitude.sigmoid(), (-magnitude).sigmoid()  # of the likelier and the other class
            return NLLResult(
                objective=objective,
                nll=torch.where(valid, nll.detach(), 0),
                valid=valid,
                count=count,
                confidence=confidence,
                correct=((z > 0) == (y > 0.5)) & valid,
                entropy=softplus(-magnitude) + other * magnitude,
                sum_squared_probabilities=1 - 2 * confidence * other,
                logit_variance=other * magnitude * confidence * magnitude,
            )


def softplus(z: Tensor) -> Tensor:
    """ln(1 + exp(z)), the NLL of the outcome that z makes less likely; exact where tiny, z itself where large.

    Its derivative is the sigmoid of z everywhere: at 0, where max(z, 0) + ln(1 + exp(-|z|)) has none for autograd to
    find, and at both infinities, where that of logaddexp is NaN.
    """
    return -torch.nn.functional.logsigmoid(-z)


def weighted(weight: Tensor, nll: Tensor) -> Tensor:
    """weight · nll, where a weight of 0 makes even an infinite nll 0."""
    return torch.where(weight == 0, 0, weight * nll)


def soft_capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Squeeze logits smoothly into (-softcap, softcap); near 0 they are left as they are."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def model_logits(u: Tensor, options: LossOptions) -> Tensor:
    """z = softcap · tanh(u / softcap) / temperature, the logits of the model's distribution; any shape."""
    return soft_capped(u, options.softcap) / options.temperature
