"""From the joint probability of data to the training objective of a language model, in float64 NumPy.

This is the textbook that the fast code is tested against: every function derives what it computes and computes it
in the most literal stable way. Nothing here is fast.

Notation: θ are a model's parameters, x data, y a class or the probability of class 1, z logits, p and q distributions,
ln the natural logarithm; every NLL, entropy and divergence is in nats.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanolm.loss.options import LossOptions

Array = NDArray[np.float64]

# 1. From the probability of data to a sum of logarithms


def joint_probability(probabilities: ArrayLike) -> float:
    """Probability of independent observations together: p(x₁, …, xₙ) = Π p(xᵢ).

    Independence is what turns the joint probability into a product. The product of many numbers below 1 soon leaves the
    range of floating point: 1100 observations of probability 1/2 give 0.
    """
    return float(np.prod(_array(probabilities)))


def bernoulli_likelihood(y_true: ArrayLike, theta: float) -> float:
    """Likelihood L(θ; y) = Π θ^y (1-θ)^(1-y) of coin flips y in {0, 1} with probability θ of 1.

    It is the joint probability read the other way round: there θ is fixed and the data vary, here the data were
    observed and θ varies. As a function of θ it does not integrate to 1. θ^y (1-θ)^(1-y) is θ where y = 1 and 1-θ where
    y = 0: both cases in one expression.
    """
    y = _array(y_true)
    return joint_probability(theta**y * (1 - theta) ** (1 - y))


def log_likelihood(probabilities: ArrayLike) -> float:
    """ln L(θ) = ln Π p(xᵢ) = Σ ln p(xᵢ).

    ln is strictly increasing, so the likelihood and its logarithm have their maximum at the same θ; and the sum neither
    underflows nor couples the terms of a derivative, as the product does.
    """
    with np.errstate(divide="ignore"):
        return float(np.log(_array(probabilities)).sum())


def nll(probabilities: ArrayLike) -> float:
    """Negative log-likelihood -Σ ln p(xᵢ): maximising likelihood is minimising this."""
    return -log_likelihood(probabilities)


# 2. Information: surprisal, entropy, cross-entropy, divergence


def surprisal(probabilities: ArrayLike) -> Array:
    """-ln q(x) of each outcome: 0 where it was certain, unbounded as it approaches impossible.

    Surprisals of independent events add, because their probabilities multiply; up to the unit, minus the logarithm is
    the only continuous function that does so. At .9, .5 and .01 it is .105, .693 and 4.605: sure and wrong costs most.
    """
    with np.errstate(divide="ignore"):
        return -np.log(_array(probabilities))


def entropy(p: ArrayLike) -> float:
    """H(p) = -Σ p ln p, the expected surprisal when beliefs equal the true distribution; 0 ln 0 is 0, its limit."""
    return cross_entropy(p, p)


def cross_entropy(p: ArrayLike, q: ArrayLike) -> float:
    """H(p, q) = -Σ p ln q, the expected surprisal under beliefs q when outcomes follow p.

    With p one-hot at the observed class t only -ln q_t is left, the NLL of that observation; so the mean cross-entropy
    of a data set to a model is its mean NLL, and minimising either is maximum likelihood.
    """
    p, q = _array(p), _array(q)
    happens = p > 0
    return float((p[happens] * surprisal(q[happens])).sum())


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """KL(p‖q) = Σ p ln(p/q) = H(p, q) - H(p) >= 0: the surprisal that believing q rather than p costs.

    From H(p, q) = -Σ p ln q = -Σ p ln p + Σ p ln(p/q). H(p) does not depend on the model, so minimising
    cross-entropy is minimising KL(p‖q). It is 0 if and only if q = p (Gibbs), and infinite where q excludes what can
    happen.
    """
    p, q = _array(p), _array(q)
    happens = p > 0
    with np.errstate(divide="ignore"):
        return float((p[happens] * (np.log(p[happens]) - np.log(q[happens]))).sum())


# 3. Two classes


def sigmoid(z: ArrayLike) -> Array:
    """σ(z) = 1/(1 + exp(-z)), the probability whose log-odds ln(p/(1-p)) are z.

    For z < 0 it is written exp(z)/(1 + exp(z)), the same fraction expanded by exp(z), so that exp never overflows.
    """
    z = _array(z)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, small) / (1 + small)


def binary_nll_from_probs(y_true: ArrayLike, y_prob: ArrayLike, eps: float = 1e-12) -> float:
    """Mean of -[y ln ŷ + (1-y) ln(1-ŷ)], the NLL of ŷ^y (1-ŷ)^(1-y), known as binary cross-entropy.

    Probabilities are clipped to [eps, 1-eps], since ln 0 is infinite. The clip caps the penalty for being sure and
    wrong at -ln eps, and makes its gradient 0 exactly there: a reason to start from logits instead.
    """
    y, probability = _array(y_true), np.clip(_array(y_prob), eps, 1 - eps)
    return float(np.mean(-(y * np.log(probability) + (1 - y) * np.log1p(-probability))))


def binary_nll_from_logits(y_true: ArrayLike, logits: ArrayLike) -> float:
    """Mean of max(z, 0) - zy + ln(1 + exp(-|z|)), the NLL of ŷ = σ(z) with no probability in between.

    -[y ln σ(z) + (1-y) ln(1-σ(z))] = ln(1 + exp(z)) - zy, because ln σ(z) = z - ln(1 + exp(z)) and
    ln(1-σ(z)) = -ln(1 + exp(z)). For z > 0, exp(z) is taken out: ln(1 + exp(z)) = z + ln(1 + exp(-z)). Both cases are
    max(z, 0) + ln(1 + exp(-|z|)), whose exponent is never positive. Its derivative in z is σ(z) - y.
    """
    y, z = _array(y_true), _array(logits)
    return float(np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))))


# 4. Many classes


def log_sum_exp(z: ArrayLike) -> Array:
    """ln Σ exp(z) over the last axis = m + ln Σ exp(z - m) for any m; at m = max z no term is above 1, and one is 1."""
    z = _array(z)
    maximum = z.max(axis=-1, keepdims=True)
    return (maximum + np.log(np.exp(z - maximum).sum(axis=-1, keepdims=True))).squeeze(-1)


def softmax(logits: ArrayLike) -> Array:
    """p_i = exp(z_i)/Σ exp(z_j) over the last axis.

    Adding c to every logit multiplies numerator and denominator by exp(c): only differences matter, a class gains by
    what the others lose. Subtracting the maximum therefore changes nothing, and exp cannot overflow.
    """
    z = _array(logits)
    exponentials = np.exp(z - z.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def multiclass_nll(y_true: ArrayLike, logits: ArrayLike) -> float:
    """Mean over examples of -ln p_t = ln Σ exp(z_j) - z_t, for logits (N, K) and classes (N,).

    From the logarithm of the softmax's quotient. The logarithm of ``softmax(z)`` is another matter in floating point:
    shifting the logits keeps exp from overflowing, but a class 746 behind the first has p = 0 and an infinite NLL,
    where this has 746. The gradient in z is p - onehot(t): it vanishes only as p_t reaches 1,
    for which a logit has to grow without bound. That is the pull towards overconfidence.
    """
    z, y = _array(logits), np.asarray(y_true)
    return float(np.mean(log_sum_exp(z) - z[np.arange(len(y)), y]))


def smooth_labels(num_classes: int, target: int, epsilon: float) -> Array:
    """q = (1-ε) onehot(t) + ε/K: with probability ε the label is replaced by a class drawn at random from all K.

    The cross-entropy to q is least at p = q, that is at a finite difference of logits. K = 4 and ε = 0.1 give
    [0.025, 0.925, 0.025, 0.025] for t = 1.
    """
    return _smoothed(np.eye(num_classes)[target], epsilon)


# 5. Sequences


def sequence_nll(token_log_probs: ArrayLike) -> float:
    """NLL of a sequence from ln p(x_t | x_<t) of its tokens.

    By the chain rule p(x_1, …, x_T) = Π p(x_t | x_<t), with no assumption of independence, so the logarithm is a sum
    over tokens: training a language model on next tokens is maximum likelihood of whole texts.
    """
    return float(-_array(token_log_probs).sum())


def average_token_nll(token_log_probs: ArrayLike) -> float:
    """NLL per token, which compares texts of different lengths under one tokenizer."""
    return float(-_array(token_log_probs).mean())


def perplexity(token_log_probs: ArrayLike) -> float:
    """exp of the NLL per token: the inverse geometric mean of the tokens' probabilities.

    A model that spreads its belief evenly over k tokens has perplexity k.
    """
    return float(np.exp(average_token_nll(token_log_probs)))


# 6. The objective of nanolm.loss, whole


@dataclass(frozen=True)
class Objective:
    """Per token, (N,): the objective and the statistics of NLLResult; and the objective's gradient in u, (N, V)."""

    objective: Array
    nll: Array
    valid: NDArray[np.bool_]
    confidence: Array
    correct: NDArray[np.bool_]
    entropy: Array
    sum_squared_probabilities: Array
    logit_variance: Array
    gradient: Array


def softmax_objective(
    u: ArrayLike, targets: ArrayLike, options: LossOptions, soft_targets: ArrayLike | None = None
) -> Objective:
    """Compute what softmax_nll and linear_nll compute, for logits u (N, V), by the definitions in LossOptions.

    With s = c tanh(u/c), z = s/T and J = lse(z) - q·z + λ lse(z)²:

        ∂lse/∂z = p,    ∂J/∂z = p - q + 2λ lse p,    ∂z/∂u = (1 - tanh²(u/c))/T

    For a linear head u = hWᵀ + b the chain rule gives the rest: dh = (∂J/∂u) W, dW = (∂J/∂u)ᵀ h, db = Σ ∂J/∂u.

    With β = 1/T and s fixed, dNLL/dβ = E_p[s] - s_t, so dNLL/d ln β = E_p[z] - z_t = NLL - entropy: the entropy gap.
    Its derivative in ln β, once more, is Var_p[z] plus the gap itself.
    """
    u, y = _array(u), np.asarray(targets)
    valid = y != options.ignore_index
    t = np.where(valid, y, 0)
    tokens, num_classes = np.arange(len(u)), u.shape[1]

    z, slope = _logits(u, options)
    p, lse = softmax(z), log_sum_exp(z)
    true = np.eye(num_classes)[t] if soft_targets is None else _array(soft_targets)
    q = _smoothed(true, options.label_smoothing)

    objective = lse - _dot(q, z) + options.z_loss * lse**2
    gradient = ((1 + 2 * options.z_loss * lse[:, None]) * p - q) * slope
    shifted = z - z.max(axis=1, keepdims=True)
    mean = _dot(p, shifted)
    return Objective(
        objective=np.where(valid, objective, 0),
        nll=np.where(valid, lse - z[tokens, t], 0),
        valid=valid,
        confidence=p.max(axis=1),
        correct=(z.argmax(axis=1) == t) & valid,
        entropy=np.array([entropy(row) for row in p]).reshape(len(p)),
        sum_squared_probabilities=(p**2).sum(axis=1),
        logit_variance=_dot(p, (shifted - mean[:, None]) ** 2),
        gradient=gradient * valid[:, None],
    )


def distilled_objective(
    u: ArrayLike,
    targets: ArrayLike,
    options: LossOptions,
    teacher_u: ArrayLike,
    teacher_options: LossOptions,
    weight: float,
    temperature: float,
) -> Objective:
    """The objective with a teacher, (1-w)·J + w·τ²·H(p', p), for logits u and teacher_u (N, V); the rest is J's.

    p = softmax(z/τ) and p' = softmax(z'/τ) with z and z' of the student and the teacher by their own options. From
    H(p', p) = lse(z/τ) - p'·z/τ follows ∂H/∂z = (p - p')/τ, so the soft part adds w·τ·(p - p') to the gradient in z.
    """
    hard = softmax_objective(u, targets, options)
    (z, slope), (teacher_z, _) = _logits(_array(u), options), _logits(_array(teacher_u), teacher_options)
    p, teacher_p = softmax(z / temperature), softmax(teacher_z / temperature)
    soft = np.array([cross_entropy(q, r) for q, r in zip(teacher_p, p, strict=True)]).reshape(len(z))
    gradient = (1 - weight) * hard.gradient + weight * temperature * (p - teacher_p) * slope * hard.valid[:, None]
    return replace(
        hard,
        objective=np.where(hard.valid, (1 - weight) * hard.objective + weight * temperature**2 * soft, 0),
        gradient=gradient,
    )


def _logits(u: Array, options: LossOptions) -> tuple[Array, Array]:
    """z = s/T with s = c tanh(u/c), and ∂z/∂u = (1 - tanh²(u/c))/T; without a cap s = u."""
    if options.softcap is None:
        return u / options.temperature, np.full_like(u, 1 / options.temperature)
    hyperbolic = np.tanh(u / options.softcap)
    return options.softcap * hyperbolic / options.temperature, (1 - hyperbolic**2) / options.temperature


def _smoothed(q: Array, epsilon: float) -> Array:
    """(1-ε) q + ε/K: a share ε of each target distribution is spread evenly over all K classes."""
    return (1 - epsilon) * q + epsilon / q.shape[-1]


def _dot(weights: Array, values: Array) -> Array:
    """Row by row Σ weight · value, where a weight of 0 takes part in nothing, not even with an infinite value."""
    return np.where(weights == 0, 0, weights * np.where(weights == 0, 0, values)).sum(axis=1)


def _array(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)
