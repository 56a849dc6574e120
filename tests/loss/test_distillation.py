"""The objective with a teacher: against the textbook, torch's own divergence and finite differences."""

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, linear

from nanolm.errors import ConfigError
from nanolm.loss import Distillation, LossOptions, TeacherTargets, distilled_linear_nll, linear_nll, reference
from nanolm.loss.distillation import soft_probabilities
from tests.loss.problems import assert_same, assert_statistics, make_problem, pairwise

CASES = pairwise(
    {
        "label_smoothing": (0.0, 0.1),
        "z_loss": (0.0, 0.02),
        "softcap": (None, 2.0),
        "temperature": (1.0, 0.6),
        "teacher_softcap": (None, 1.5),
        "teacher_temperature": (1.0, 1.7),
        "weight": (0.0, 0.3, 1.0),
        "softening": (0.5, 1.0, 4.0),
        "reduction": ("sum", "mean", "none"),
        "rows": (1, 4, 100),
    }
)


def make_teacher(width=3, num_tokens=11, num_classes=13, dtype=torch.float64):
    """Hidden states and a head of another width than the student's."""
    teacher = make_problem(num_tokens, width, num_classes, seed=1, dtype=dtype)
    return teacher.hidden.detach(), teacher.weight.detach()


def teacher_targets(hidden, weight, distillation, options=LossOptions()):  # noqa: B008
    return TeacherTargets(hidden, weight, distillation.softened(options))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_objective_is_the_reference(case, set_chunk):
    set_chunk(case["rows"])
    options = LossOptions(case["label_smoothing"], case["z_loss"], case["softcap"], case["temperature"])
    teacher_options = LossOptions(softcap=case["teacher_softcap"], temperature=case["teacher_temperature"])
    distillation = Distillation(case["weight"], case["softening"])
    p, (hidden, weight) = make_problem(), make_teacher()
    answer = reference.distilled_objective(
        (p.hidden @ p.weight.T).detach(),
        p.targets,
        options,
        hidden @ weight.T,
        teacher_options,
        case["weight"],
        case["softening"],
    )
    targets = teacher_targets(hidden, weight, distillation, teacher_options)
    result = distilled_linear_nll(p.hidden, p.weight, p.targets, targets, distillation, options, case["reduction"])
    assert_statistics(result, answer)

    upstream = np.linspace(-1, 2, len(p.hidden))
    expected, factor = answer.objective, torch.from_numpy(upstream)
    if case["reduction"] != "none":
        scale = 1 / answer.valid.sum() if case["reduction"] == "mean" else 1.0
        upstream, expected = np.full(len(p.hidden), 0.7 * scale), answer.objective.sum() * scale
        factor = torch.tensor(0.7, dtype=torch.float64)
    np.testing.assert_allclose(result.objective.detach(), expected, rtol=1e-11, atol=1e-11)
    result.objective.backward(factor)
    residual = upstream[:, None] * answer.gradient
    np.testing.assert_allclose(p.hidden.grad, residual @ p.weight.detach().numpy(), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(p.weight.grad, residual.T @ p.hidden.detach().numpy(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("softening", [0.5, 1.0, 3.0])
def test_up_to_the_teachers_entropy_the_soft_part_is_torchs_divergence(softening):
    p, (hidden, weight) = make_problem(ignored=None), make_teacher()
    distillation = Distillation(1.0, softening)
    soft = distilled_linear_nll(
        p.hidden, p.weight, p.targets, teacher_targets(hidden, weight, distillation), distillation
    )
    student, teacher = ((z / softening).log_softmax(dim=1) for z in (p.hidden @ p.weight.T, hidden @ weight.T))
    divergence = kl_div(student, teacher, reduction="sum", log_target=True)
    entropy = -(teacher.exp() * teacher).sum()
    torch.testing.assert_close(soft.objective, softening**2 * (divergence + entropy))
    gradients = [torch.autograd.grad(value, p.inputs) for value in (soft.objective, softening**2 * divergence)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_finite_differences(reduction):
    p, (hidden, weight) = make_problem(num_tokens=6, width=3), make_teacher(num_tokens=6)
    options, distillation = LossOptions(0.1, 0.02, 2.0, 0.6), Distillation(0.4, 2.5)
    targets = teacher_targets(hidden, weight, distillation)
    assert torch.autograd.gradcheck(
        lambda h, w: distilled_linear_nll(h, w, p.targets, targets, distillation, options, reduction).objective,
        p.inputs,
        nondet_tol=1e-12,  # a second backward forms the gradients anew, scaled at another place
    )


def test_to_first_order_the_gradient_does_not_depend_on_the_softening():
    """It tends to (z - z')/V of logits of mean 0, each time closer by the factor that τ grew by."""
    p, (hidden, weight) = make_problem(ignored=None), make_teacher()
    student, teacher = p.hidden @ p.weight.T, hidden @ weight.T
    difference = (student - teacher).detach()
    limit = (difference - difference.mean(dim=1, keepdim=True)) / difference.shape[1]
    distances = []
    for softening in (1e2, 1e3, 1e4):
        distillation, identity = Distillation(1.0, softening), torch.eye(13, dtype=torch.float64)
        logits = student.detach().requires_grad_()
        targets = teacher_targets(teacher, identity, distillation)
        distilled_linear_nll(logits, identity, p.targets, targets, distillation).objective.backward()
        distances.append(float((logits.grad - limit).norm() / limit.norm()))
    assert distances[0] < 0.05
    np.testing.assert_allclose(np.array(distances[:-1]) / distances[1:], 10, rtol=0.1)


@pytest.mark.parametrize("statistics", ["basic", "full"])
def test_a_weight_of_0_is_training_without_a_teacher_in_every_bit(statistics):
    p, (hidden, weight) = make_problem(dtype=torch.float32), make_teacher(dtype=torch.float32)
    options, distillation = LossOptions(label_smoothing=0.1, z_loss=0.01), Distillation(0.0, 2.0)
    targets = teacher_targets(hidden, weight, distillation)
    taught = distilled_linear_nll(p.hidden, p.weight, p.targets, targets, distillation, options, statistics=statistics)
    plain = linear_nll(p.hidden, p.weight, p.targets, options=options, statistics=statistics)
    assert_same(taught, plain)
    for one, other in zip(*(torch.autograd.grad(r.objective, p.inputs) for r in (taught, plain)), strict=True):
        assert torch.equal(one, other)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it():
    p = make_problem()
    distillation, options = Distillation(1.0, 3.0), LossOptions(softcap=2.0, temperature=0.7, label_smoothing=0.1)
    targets = teacher_targets(p.hidden, p.weight, distillation, options)
    distilled_linear_nll(p.hidden, p.weight, p.targets, targets, distillation, options).objective.backward()
    for tensor in p.inputs:
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor.grad), atol=1e-14, rtol=0)


def test_the_teachers_probabilities_are_formed_by_chunks_and_the_same_as_all_at_once(set_chunk):
    set_chunk(4)
    p, (hidden, weight) = make_problem(), make_teacher()
    distillation, options = Distillation(0.5, 2.0), LossOptions(softcap=1.5, temperature=1.7)
    lazy = teacher_targets(hidden, weight, distillation, options)
    asked = []

    class Watched:
        shape = lazy.shape

        def __getitem__(self, rows):
            asked.append(rows)
            return lazy[rows]

    whole = soft_probabilities(linear(hidden, weight), distillation.softened(options))
    torch.testing.assert_close(lazy[2:5], whole[2:5])
    results = [distilled_linear_nll(p.hidden, p.weight, p.targets, t, distillation) for t in (Watched(), whole)]
    assert_same(*results, tolerance=1e-12)
    assert asked == [slice(0, 4), slice(4, 8), slice(8, 12)]


def test_log_odds_are_the_logits_of_two_classes():
    odds = torch.linspace(-3, 3, 7, dtype=torch.float64)
    options = Distillation(0.5, 2.0).softened(LossOptions(softcap=2.0))
    capped = 2 * torch.tanh(odds / 2)
    two = torch.stack([torch.zeros_like(odds), capped], dim=1) / 2
    torch.testing.assert_close(soft_probabilities(odds, options), two.softmax(dim=1)[:, 1])


def test_bfloat16_states_give_float32_probabilities():
    hidden, weight = make_teacher(dtype=torch.bfloat16)
    found = TeacherTargets(hidden, weight, LossOptions(temperature=2.0))[0:11]
    assert found.dtype == torch.float32
    exact = ((hidden.double() @ weight.double().T) / 2).softmax(dim=1)
    torch.testing.assert_close(found.double(), exact, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("weight", "temperature", "told"),
    [(-0.1, 1.0, "weight: "), (1.1, 1.0, "weight: "), (0.5, 0.0, "temperature: "), (0.5, float("inf"), "temperature")],
)
def test_what_is_out_of_range_is_refused(weight, temperature, told):
    with pytest.raises(ConfigError, match=told):
        Distillation(weight, temperature)


def test_a_teacher_of_other_tokens_is_refused():
    p, (hidden, weight) = make_problem(), make_teacher(num_classes=12)
    distillation = Distillation(0.5, 2.0)
    with pytest.raises(ConfigError, match=r"soft_targets: expected shape \(N, V\) = \(11, 13\), found \(11, 12\)"):
        distilled_linear_nll(p.hidden, p.weight, p.targets, teacher_targets(hidden, weight, distillation), distillation)
