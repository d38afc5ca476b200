"""What models return."""

import collections

import pytest
import torch

from kdtasks.core.outputs import describe_output, entries_of, map_tensors, tensors_in

Pair = collections.namedtuple("Pair", "logits features")
A, B = torch.zeros(2, 3), torch.ones(2)


@pytest.mark.parametrize(
    "output, names",
    [
        (A, set()),
        (None, set()),
        ({"logits": A, 1: B}, {"logits", "1"}),
        ((A, B), {"0", "1", "-1", "-2"}),
        (Pair(A, B), {"0", "1", "-1", "-2", "logits", "features"}),
    ],
)
def test_entries_have_names(output, names):
    assert entries_of(output).keys() == names


def test_the_entries_are_the_parts():
    entries = entries_of(Pair(A, B))
    assert entries["-1"] is entries["1"] is entries["features"] is B and entries["logits"] is A


def test_each_tensor_is_mapped_and_the_containers_stay_what_they_are():
    output = {"pair": Pair(A, [B, "text"]), "none": None}
    mapped = map_tensors(lambda tensor: tensor + 1, output)
    assert isinstance(mapped["pair"], Pair) and mapped["pair"].features[1] == "text"
    assert torch.equal(mapped["pair"].logits, A + 1) and mapped["none"] is None
    assert [id(tensor) for tensor in tensors_in(output)] == [id(A), id(B)]


def test_a_description_names_the_entries():
    assert describe_output("student", A) == "a tensor (2, 3)"
    assert describe_output("student", 3) == "a int"
    assert describe_output("t", (A, None)) == "a tuple of 't.0' (2, 3), 't.1' NoneType"
    assert describe_output("t", [A] * 9).endswith("'t.7' (2, 3), …")
