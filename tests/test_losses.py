"""What all public losses have in common: a NaN stays one, float64 stays, masked classes are 0,
second derivatives are right or refused, torch.func can transform those with a kernel, and which of
them ``torch.compile`` takes whole.
"""

import math
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import Tensor, distributed

import kdtasks
from kdtasks.core.gather import _GatherRows
from kdtasks.detection import (
    WeightedSoftCrossEntropyLoss,
    adl_loss,
    bounded_regression_loss,
    weighted_soft_cross_entropy,
)
from kdtasks.general import binary_kd_loss, bss_loss, dkd_loss, kd_loss, mutual_divergences
from kdtasks.incremental import (
    GlobalDistillationLoss,
    global_distillation_losses,
    lwf_loss,
    lwf_mc_loss,
    lwm_distill,
    lwm_distill_bce,
    one_hot_bce,
)
from tests.all_losses import CALLS, OTHER, TARGET, TASKS, Case, cases, public_losses, total

F64, INF = torch.float64, math.inf
CASES = cases()


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def test_the_table_names_what_is_there():
    exported = {
        name for task in TASKS for name in getattr(import_module(f"kdtasks.{task}"), "__all__", ())
    }
    assert public_losses().keys() <= CALLS.keys() and len(CASES) > 70
    assert CALLS.keys() | OTHER <= exported


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_nan_that_is_read_makes_the_loss_nan(case: Case):
    """Wherever it stands: in the student, the teacher, the target or a weight."""
    assert case(*case.tensors).isfinite()
    for k in range(len(case.tensors)):
        for place in case.read(k):
            tensors = [tensor.clone() for tensor in case.tensors]
            tensors[k].view(-1)[place] = math.nan
            assert case(*tensors).isnan(), (k, place)


@pytest.mark.parametrize("half", ["student", "teacher", "target"])
def test_a_box_that_costs_nothing_hides_no_nan_but_may_hold_an_infinity(half):
    """A diverged regressor: boxes that were better than the teacher's, until one entry is NaN."""
    boxes = {
        "student": torch.zeros(3, 4),
        "teacher": torch.full((3, 4), 0.5),
        "target": torch.zeros(3, 4),
    }
    assert bounded_regression_loss(**boxes) == 0
    boxes[half][1, 2] = math.nan
    assert bounded_regression_loss(**boxes).isnan()
    boxes[half][1, 2] = 0.0
    assert bounded_regression_loss(**boxes | {"teacher": torch.full((3, 4), INF)}) == 0


@pytest.mark.parametrize("case", [case for case in CASES if len(case.tensors) > 1], ids=str)
@pytest.mark.parametrize("wide", ["student", "others"])
def test_float64_stays_beside_float32(case: Case, wide):
    """The result has the digits of float64 wherever one tensor has: as if the others had been
    raised first.
    """
    tensors = [
        tensor if (k == 0) == (wide == "student") or 0 in case.unread else tensor.float()
        for k, tensor in enumerate(case.tensors)
    ]
    found = case(*tensors)
    assert found.dtype is F64
    torch.testing.assert_close(
        found, case(*(tensor.double() for tensor in tensors)), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name.startswith(("lwm_distill", "HintLoss", "grad_cam"))],
    ids=str,
)
def test_half_precision_beside_float64(case: Case):
    for k in range(2):
        tensors = [tensor.half() if i == k else tensor for i, tensor in enumerate(case.tensors)]
        torch.testing.assert_close(
            case(*tensors), case(*(tensor.double() for tensor in tensors)), rtol=1e-11, atol=1e-13
        )


# ----------------------------------------------------------------------------------- masked classes
def masked(*shape: int, where: tuple[int, ...] = (1, 3)) -> Tensor:
    logits = 2 * torch.randn(*shape, dtype=F64)
    logits[:, list(where)] = -INF
    return logits.requires_grad_()


def without(logits: Tensor) -> Tensor:
    return logits.detach()[:, [0, 2, 4]]


# a loss of (B, 5) logits, and what it is divided by besides B
LOGITS = {
    "kd_loss": (kd_loss, 1),
    "kd_loss of maps": (lambda s, t: kd_loss(s[..., None], t[..., None]), 1),
    "lwf_loss": (lwf_loss, 1),
    "mutual_divergences": (lambda s, t: mutual_divergences([s, t])[0], 1),
    "bss_loss": (bss_loss, 1),
    "binary_kd_loss": (binary_kd_loss, 1),
    "lwm_distill_bce": (lwm_distill_bce, 1),
    "lwm_distill": (lwm_distill, 1),
    "lwm_distill_bce, mean": (lambda s, t: lwm_distill_bce(s, t, "mean"), 5 / 3),
    "dkd_loss": (lambda s, t: dkd_loss(s, t, torch.zeros(len(s), dtype=torch.long)), 1),
    "weighted": (lambda s, t: weighted_soft_cross_entropy(s, t, [1.0] * s.shape[1]), 1),
    "weighted, module": (lambda s, t: WeightedSoftCrossEntropyLoss()(s, t), 1),
    "lwf_mc_loss": (lambda s, t: lwf_mc_loss(s, t, torch.zeros(len(s), dtype=torch.long)), 5 / 3),
    "adl_loss": (lambda s, t: adl_loss(s, t, normalizer=1.0), 1),
    "adl_loss, ce": (
        lambda s, t: adl_loss(s, t, base="ce", alpha=0.5, gamma=2.0, normalizer=1.0),
        1,
    ),
}


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_masked_class_counts_as_if_it_were_not_there(name, dtype):
    loss, scale = LOGITS[name]
    student, teacher = masked(6, 5), masked(6, 5)
    value = loss(student.to(dtype), teacher.detach().to(dtype))
    (gradient,) = torch.autograd.grad(value, student)
    few = without(student).to(dtype).requires_grad_()
    expected = loss(few, without(teacher).to(dtype))
    (slope,) = torch.autograd.grad(expected, few)
    tight = {"rtol": 1e-11, "atol": 1e-13} if dtype is F64 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(value * scale, expected, **tight)
    torch.testing.assert_close(gradient[:, [0, 2, 4]] * scale, slope.double(), **tight)
    assert (gradient[:, [1, 3]] == 0).all()


@pytest.mark.parametrize("name", LOGITS)
def test_a_class_masked_by_the_student_alone_costs_infinity_by_the_teacher_alone_it_does_not(name):
    loss, _ = LOGITS[name]
    student, teacher = masked(6, 5), masked(6, 5)
    assert loss(student, masked(6, 5, where=(1,)).detach()) == INF
    found = loss(masked(6, 5, where=(1,)), teacher.detach())
    assert found.isfinite() and found > 0


def test_a_masked_class_in_global_distillation():
    """An old class and a new one, in all models; and labels are never of one."""
    student, previous, current = (
        masked(8, 5),
        masked(8, 3, where=(1,)).detach(),
        masked(8, 2, where=(0,)).detach(),
    )
    target = torch.tensor([0, 2, 4, 0, 2, 4, -100, -100])
    losses = [
        global_distillation_losses(student, previous, current, target, target >= 0),
        *(
            GlobalDistillationLoss(terms=terms)(student, previous, current, target)
            for terms in ("PC", "PCQ")
        ),
    ]
    for found in losses:
        (gradient,) = torch.autograd.grad(total(found), student)
        assert all(value.isfinite() and value >= 0 for value in found.values())
        assert (
            gradient.isfinite().all() and (gradient[:, [1, 3]] == 0).all() and gradient[:, 0].all()
        )
    assert (
        global_distillation_losses(
            student, previous.nan_to_num(neginf=0), current, target, target >= 0
        )["loss_p"]
        == INF
    )
    assert one_hot_bce(student, TARGET.clamp(min=0) * 2 % 6 % 4).isfinite()


# ------------------------------------------------------------------------------- second derivatives
def own_functions() -> set[type]:
    """All of the package's own autograd functions."""
    for module in pkgutil.walk_packages(kdtasks.__path__, "kdtasks."):
        if module.name.split(".")[-1] not in (
            "mmdet_distiller",
            "plugin",
        ) and not module.name.startswith("kdtasks.engine"):
            import_module(module.name)
    found, queue = set(), [torch.autograd.Function]
    while queue:
        for kind in queue.pop().__subclasses__():
            queue.append(kind)
            if kind.__module__.startswith("kdtasks."):
                found.add(kind)
    return found


def functions_of(value: Tensor) -> set[str]:
    names, queue = set(), [value.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in names:
            names.add(node)
            queue += [following for following, _ in node.next_functions]
    return {type(node).__name__.removesuffix("Backward") for node in names}


DIFFERENTIABLE = [
    case
    for case in CASES
    if 0 not in case.unread
    and case(*(t.clone().requires_grad_() for t in case.tensors)).requires_grad
]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_the_second_derivative_is_right_or_refused(case: Case):
    """Compared with differences of the gradient, along one direction."""
    student, *others = case.tensors
    student = student.clone().requires_grad_()
    direction, step = torch.randn_like(student), 1e-6

    def slope(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(case(at, *others), at)[0]

    try:
        (gradient,) = torch.autograd.grad(case(student, *others), student, create_graph=True)
    except RuntimeError as error:
        assert "differentiated once" in str(error) and "create_graph" in str(error)
        return
    second = torch.zeros_like(student)
    if gradient.requires_grad:
        (second,) = torch.autograd.grad((gradient * direction).sum(), student, allow_unused=True)
        second = torch.zeros_like(student) if second is None else second
    expected = (slope(student + step * direction) - slope(student - step * direction)) / (2 * step)
    torch.testing.assert_close(
        second, expected, rtol=1e-3, atol=1e-5 * (1 + float(expected.abs().max()))
    )


WITH_KERNEL = ("adl_loss", "ADLLoss", "rkd", "RKDLoss", "darkrank", "DarkRank", "kd_loss", "KDLoss")


@pytest.mark.parametrize(
    "case", [case for case in DIFFERENTIABLE if case.name.startswith(WITH_KERNEL)], ids=str
)
def test_torch_func_transforms_a_loss(case: Case):
    """Gradients of two students at once, with one teacher or one each; and forward mode."""
    student, teacher = case.tensors
    students = torch.stack([student, student.flip(0) + 0.1])
    teachers = torch.stack([teacher, 2 * teacher.flip(0)])
    shared, own = (
        torch.stack([slope_of(case, s, t) for s, t in zip(students, taught)])
        for taught in ([teacher, teacher], teachers)
    )
    slope = torch.func.grad(case)
    close = {"rtol": 1e-8, "atol": 1e-11}
    together = torch.func.vmap(slope, in_dims=(0, None))(students, teacher)
    torch.testing.assert_close(together, shared, **close)
    torch.testing.assert_close(torch.func.vmap(slope)(students, teachers), own, **close)
    if "released" not in case.name:  # of its gradient, which is not that of the value
        direction = torch.randn_like(student)
        _, along = torch.func.jvp(lambda s: case(s, teacher), (student,), (direction,))
        torch.testing.assert_close(along, (shared[0] * direction).sum(), **close)


def slope_of(case: Case, student: Tensor, *others: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(case(student, *others), student)[0]


def test_the_cases_go_through_every_autograd_function_of_the_package():
    """One that no loss above uses would not have been tried; rows of several processes have a test
    of their own, below.
    """
    used = set().union(
        *(
            functions_of(case(case.tensors[0].clone().requires_grad_(), *case.tensors[1:]))
            for case in DIFFERENTIABLE
        )
    )
    assert own_functions() and {kind.__name__ for kind in own_functions() - {_GatherRows}} <= used


def test_gathered_rows_refuse_a_second_derivative_that_would_be_wrong(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        rows = torch.randn(3, 2, dtype=F64, requires_grad=True)
        (gradient,) = torch.autograd.grad(
            _GatherRows.apply(rows).pow(3).sum(), rows, create_graph=True
        )
        torch.testing.assert_close(gradient, 3 * rows.detach() ** 2)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()
    finally:
        distributed.destroy_process_group()


# -------------------------------------------------------------------------------------- compilation
def compiled_equals_plain(case: Case, backend: str) -> None:
    torch.compiler.reset()
    found = []
    for loss in (
        torch.compile(lambda *tensors: case(*tensors), fullgraph=True, backend=backend),
        case,
    ):
        student = case.tensors[0].clone().requires_grad_()
        value = loss(student, *case.tensors[1:])
        found.append(
            [value, *torch.autograd.grad(value, student, allow_unused=True)]
            if value.requires_grad
            else [value]
        )
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["darkrank_soft_loss()", "kd_loss()", "affinity_loss()"])
def test_a_loss_compiles_as_one_graph(name):
    """Dynamo alone, which is what a full graph is a matter of; all losses, and their derivatives by
    AOTAutograd: slow.
    """
    compiled_equals_plain(next(case for case in CASES if case.name == name), "eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_loss_compiles_as_one_graph(case: Case):
    compiled_equals_plain(case, "aot_eager")
