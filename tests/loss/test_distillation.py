"""The objective with a teacher: against the textbook, torch's own divergence and finite differences."""

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, linear

from nanolm.errors import ConfigError
from nanolm.loss import Distillation, LossOptions, TeacherTargets, distilled_linear_nll, linear_nll, reference
from nanolm.loss.distillation import soft_probabilities
from tests.loss.problems import OPTIONS, assert_reduced, assert_same, assert_statistics, combined, make_problem

CASES = combined(
    60,
    **OPTIONS,
    teacher_softcap=(None, 1.5),
    teacher_temperature=(1.0, 1.7),
    weight=(0.0, 0.3, 1.0),
    softening=(0.5, 1.0, 4.0),
    reduction=("sum", "mean", "none"),
    rows=(1, 4, 100),
)


def make_teacher(width=3, num_tokens=11, num_classes=13, dtype=torch.float64):
    """Hidden states and a head of another width than the student's."""
    teacher = make_problem(num_tokens, width, num_classes, seed=1, dtype=dtype)
    return teacher.hidden.detach(), teacher.weight.detach()


def distil(p, teacher, distillation, options=LossOptions(), teacher_options=LossOptions(), **kwargs):  # noqa: B008
    """The loss of a problem with a teacher's hidden states and head."""
    targets = TeacherTargets(*teacher, distillation.softened(teacher_options))
    return distilled_linear_nll(p.hidden, p.weight, p.targets, targets, distillation, options, **kwargs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_objective_is_the_reference(case, set_chunk):
    set_chunk(case["rows"])
    options = LossOptions(**{name: case[name] for name in OPTIONS})
    theirs = LossOptions(softcap=case["teacher_softcap"], temperature=case["teacher_temperature"])
    share = (case["weight"], case["softening"])
    p, teacher = make_problem(), make_teacher()
    answer = reference.distilled_objective(p.logits.detach(), p.targets, options, linear(*teacher), theirs, *share)
    result = distil(p, teacher, Distillation(*share), options, theirs, reduction=case["reduction"])
    assert_statistics(result, answer)
    p.assert_gradients(assert_reduced(result, answer, case["reduction"]))


@pytest.mark.parametrize("softening", [0.5, 1.0, 3.0])
def test_up_to_the_teachers_entropy_the_soft_part_is_torchs_divergence(softening):
    p, teacher = make_problem(ignored=None), make_teacher()
    soft = distil(p, teacher, Distillation(1.0, softening)).objective
    ours, theirs = ((z / softening).log_softmax(dim=1) for z in (p.hidden @ p.weight.T, linear(*teacher)))
    divergence = kl_div(ours, theirs, reduction="sum", log_target=True)
    entropy = -(theirs.exp() * theirs).sum()
    torch.testing.assert_close(soft, softening**2 * (divergence + entropy))
    gradients = [torch.autograd.grad(value, p.inputs) for value in (soft, softening**2 * divergence)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_finite_differences(reduction):
    p, (hidden, weight) = make_problem(num_tokens=6, width=3), make_teacher(num_tokens=6)
    options, distillation = LossOptions(0.1, 0.02, 2.0, 0.6), Distillation(0.4, 2.5)
    targets = TeacherTargets(hidden, weight, distillation.softened(LossOptions()))
    assert torch.autograd.gradcheck(
        lambda h, w: distilled_linear_nll(h, w, p.targets, targets, distillation, options, reduction).objective,
        p.inputs,
        nondet_tol=1e-12,  # a second backward forms the gradients anew, scaled at another place
    )


def test_to_first_order_the_gradient_does_not_depend_on_the_softening():
    """It tends to (z - z')/V of logits of mean 0, each time closer by the factor that τ grew by."""
    p, teacher = make_problem(ignored=None), linear(*make_teacher())
    difference = p.logits.detach() - teacher
    limit = (difference - difference.mean(dim=1, keepdim=True)) / difference.shape[1]
    identity = torch.eye(13, dtype=torch.float64)
    p.hidden, p.weight, distances = p.logits, identity, []
    for softening in (1e2, 1e3, 1e4):
        result = distil(p, (teacher, identity), Distillation(1.0, softening))
        (gradient,) = torch.autograd.grad(result.objective, p.hidden)
        distances.append(float((gradient - limit).norm() / limit.norm()))
    assert distances[0] < 0.05
    np.testing.assert_allclose(np.array(distances[:-1]) / distances[1:], 10, rtol=0.1)


@pytest.mark.parametrize("statistics", ["basic", "full"])
def test_a_weight_of_0_is_training_without_a_teacher_in_every_bit(statistics):
    p, teacher = make_problem(dtype=torch.float32), make_teacher(dtype=torch.float32)
    options = LossOptions(label_smoothing=0.1, z_loss=0.01)
    taught = distil(p, teacher, Distillation(0.0, 2.0), options, statistics=statistics)
    plain = linear_nll(p.hidden, p.weight, p.targets, options=options, statistics=statistics)
    assert_same(taught, plain)
    for one, other in zip(*(torch.autograd.grad(r.objective, p.inputs) for r in (taught, plain)), strict=True):
        assert torch.equal(one, other)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it():
    p, options = make_problem(), LossOptions(softcap=2.0, temperature=0.7, label_smoothing=0.1)
    distil(p, (p.hidden, p.weight), Distillation(1.0, 3.0), options, options).objective.backward()
    for tensor in p.inputs:
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor.grad), atol=1e-14, rtol=0)


def test_the_teachers_probabilities_are_formed_by_chunks_and_the_same_as_all_at_once(set_chunk):
    set_chunk(4)
    p, teacher = make_problem(), make_teacher()
    distillation = Distillation(0.5, 2.0)
    options = distillation.softened(LossOptions(softcap=1.5, temperature=1.7))
    lazy, asked = TeacherTargets(*teacher, options), []

    class Watched:
        shape = lazy.shape

        def __getitem__(self, rows):
            asked.append(rows)
            return lazy[rows]

    whole = soft_probabilities(linear(*teacher), options)
    torch.testing.assert_close(lazy[2:5], whole[2:5])
    results = [distilled_linear_nll(p.hidden, p.weight, p.targets, t, distillation) for t in (Watched(), whole)]
    assert_same(*results, tolerance=1e-12)
    assert asked == [slice(0, 4), slice(4, 8), slice(8, 12)]


def test_log_odds_are_the_logits_of_two_classes():
    odds = torch.linspace(-3, 3, 7, dtype=torch.float64)
    two = torch.stack([torch.zeros_like(odds), 2 * torch.tanh(odds / 2)], dim=1) / 2
    found = soft_probabilities(odds, Distillation(0.5, 2.0).softened(LossOptions(softcap=2.0)))
    torch.testing.assert_close(found, two.softmax(dim=1)[:, 1])


def test_bfloat16_states_give_float32_probabilities():
    hidden, weight = make_teacher(dtype=torch.bfloat16)
    found = TeacherTargets(hidden, weight, LossOptions(temperature=2.0))[0:11]
    assert found.dtype == torch.float32
    exact = (linear(hidden.double(), weight.double()) / 2).softmax(dim=1)
    torch.testing.assert_close(found.double(), exact, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("name", "value"), [("weight", -0.1), ("weight", 1.1), ("temperature", 0.0)])
def test_what_is_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        Distillation(**{"weight": 0.5, "temperature": 1.0, name: value})


def test_a_teacher_of_other_tokens_is_refused():
    with pytest.raises(ConfigError, match="soft_targets"):
        distil(make_problem(), make_teacher(num_classes=12), Distillation(0.5, 2.0))
