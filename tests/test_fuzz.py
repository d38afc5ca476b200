"""Every public loss of anything that has the look of its tensors: a finite value with a finite
gradient, or a ValueError or TypeError that says what was expected.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.all_losses import Case, cases

CASES = cases()
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# of the values, whose size is 1 or so; the greatest squares are finite in float32
VALUES = ("drawn", "same rows", "zeros", "ones", "1e-30", "1e4", "hot", "equal")
LAYOUTS = ("contiguous", "columns first", "every other", "expanded", "flipped view")
# of the tensors' sizes: of all at once, or of one of them
SIZES = ("as they are", *(f"{n} rows" for n in (0, 1, 2)), "no last", "no second", "no inner")
SIZES += ("one more row", "one more column", "one row fewer", "a dimension more", "one fewer")


@dataclass(frozen=True)
class Look:
    """How the tensors of a case are changed."""

    dtypes: tuple
    values: tuple
    layouts: tuple
    size: str
    which: int


def looks(number: int) -> st.SearchStrategy:
    """Each case begins elsewhere, so that few examples of each go through all of it."""

    def some(choices: tuple, count: int = 3) -> st.SearchStrategy:
        turned = choices[number % len(choices) :] + choices[: number % len(choices)]
        one = st.sampled_from(turned)
        return st.one_of(one.map(lambda c: (c,) * count), st.tuples(*[one] * count))

    sizes = SIZES[number % len(SIZES) :] + SIZES[: number % len(SIZES)]
    size = st.one_of(st.sampled_from(sizes), st.just(SIZES[0]))
    return st.builds(
        Look, some(DTYPES), some(VALUES), some(LAYOUTS), size, st.sampled_from((1, 0, 2))
    )


def valued(tensor: Tensor, kind: str) -> Tensor:
    """In float64; what is not negative stays so."""
    sign = tensor.sign() + (tensor == 0)
    if kind == "same rows":
        return tensor[:1].expand_as(tensor).clone()
    if kind == "hot":
        return sign * (torch.arange(tensor.numel()).view(tensor.shape) % 3 == 0) * 1e3
    if kind == "equal":
        return torch.full_like(tensor, 0.5)
    scales = {"drawn": 1.0, "zeros": 0.0, "1e-30": 1e-30, "1e4": 1e4}
    return sign if kind == "ones" else tensor * scales[kind]


def resized(tensors: list[Tensor], rest: list, size: str, which: int) -> tuple[list, list]:
    """All with so many rows, their labels too; or one of another size than it was."""
    rows = tensors[0].shape[0]
    which %= len(tensors)
    one = tensors[which]
    if size.endswith(" rows"):
        count = int(size[0])
        cut = [t[:count] if t.ndim and t.shape[0] == rows else t for t in tensors]
        is_rows = [isinstance(r, Tensor) and r.ndim and r.shape[0] == rows for r in rest]
        return cut, [r[:count] if of_rows else r for r, of_rows in zip(rest, is_rows)]
    if size.startswith("no "):
        place = {"no last": -1, "no second": 1, "no inner": 2}[size]
        return [t.narrow(place, 0, 0) if -t.ndim <= place < t.ndim else t for t in tensors], rest
    if size == "one more row":
        one = torch.cat([one, one[-1:]])
    elif size == "one more column":
        one = torch.cat([one, one[..., -1:]], -1)
    elif size == "one row fewer":
        one = one[:-1]
    elif size == "a dimension more":
        one = one[..., None]
    elif size == "one fewer":
        one = one[..., 0]
    return [*tensors[:which], one, *tensors[which + 1 :]], rest


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    if not tensor.ndim:
        return tensor
    if layout == "columns first":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "every other":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if layout == "expanded" and tensor.shape[0]:
        return tensor[:1].expand_as(tensor)
    if layout == "flipped view":
        return torch.stack([tensor, tensor])[1]
    return tensor


def value_and_gradient(case: Case, student: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = case(student, *others)
    found = None
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, student, allow_unused=True)
    return value.detach(), torch.zeros_like(student) if found is None else found


def tried(case: Case, look: Look) -> None:
    if case.name == "LwFLoss(heads)":
        # whose columns the case itself deals out
        look = replace(look, size=SIZES[0])
    tensors = [valued(t, kind) for t, kind in zip(case.tensors, look.values * 2)]
    tensors, rest = resized(tensors, list(case.rest), look.size, look.which)
    # of which float16 has no more
    tensors = [t.clamp(-6e4, 6e4).to(dtype) for t, dtype in zip(tensors, look.dtypes * 2)]
    tensors = [laid_out(t, layout) for t, layout in zip(tensors, look.layouts * 2)]
    called = replace(case, rest=tuple(rest))
    try:
        value, gradient = value_and_gradient(called, *tensors)
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 15
        return
    assert value.isfinite()
    if tensors[0].dtype == torch.float16 and gradient.isinf().any():
        # it is beyond what float16 has, as loss scaling knows
        _, gradient = value_and_gradient(called, tensors[0].float(), *tensors[1:])
        assert gradient.abs().max() > 65504
    assert gradient.isfinite().all()


def fuzzed(number: int, examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(looks(number))
    def run(look):
        tried(CASES[number], look)

    run()


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_any_tensors_give_a_finite_value_or_a_clear_error(number):
    fuzzed(number, 10)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_many_more(number):
    fuzzed(number, 150)
