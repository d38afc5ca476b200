"""The precision of losses."""

import pytest
import torch

from kdtasks.core.precision import raised, raised_dtype

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    "dtypes, expected",
    [
        ([HALF], SINGLE),
        ([BRAIN, HALF], SINGLE),
        ([SINGLE, HALF], SINGLE),
        ([HALF, DOUBLE], DOUBLE),
        ([torch.int64], SINGLE),
    ],
)
def test_float32_at_least_and_float64_where_one_has_it(dtypes, expected):
    tensors = [torch.ones(2, dtype=dtype) for dtype in dtypes]
    assert raised_dtype(*tensors) == expected
    assert {tensor.dtype for tensor in raised(*tensors)} == {expected}


def test_what_needs_nothing_is_not_copied():
    x = torch.ones(2)
    assert raised(x)[0] is x
