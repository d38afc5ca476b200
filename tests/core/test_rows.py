"""Labelled rows of all that a batch may hold."""

import pytest
import torch

from kdtasks.core.rows import LabelledRows

LABELLED = {
    "first": [True, True, False, False],
    "between": [False, True, False, True],
    "all": [True] * 4,
    "none": [False] * 4,
}


@pytest.mark.parametrize("labelled", LABELLED.values(), ids=LABELLED)
def test_rows_of_tensors_lists_and_dicts(labelled):
    rows = LabelledRows(torch.tensor(labelled))
    places = [k for k, known in enumerate(labelled) if known]
    x, names = torch.randn(4, 3), ["a", "b", "c", "d"]
    assert rows.count == len(places)
    assert torch.equal(rows.select(x), x[places])
    assert rows.select(names) == [names[k] for k in places]
    assert all(torch.equal(part, x[places]) for part in rows.select([x, x]))
    found = rows.select({"x": x, "names": names})
    assert torch.equal(found["x"], x[places]) and found["names"] == [names[k] for k in places]


@pytest.mark.parametrize(
    "value", [torch.tensor(4.0), torch.randn(3, 4), ["a", "b"], [], "text", None, 4]
)
def test_what_has_no_rows_stays(value):
    assert LabelledRows(torch.tensor([True, False, True, False])).select(value) is value


def test_no_copy_where_the_labelled_rows_come_first():
    x = torch.randn(4, 3)
    assert (
        LabelledRows(torch.tensor([True, True, False, False])).select(x).data_ptr() == x.data_ptr()
    )
