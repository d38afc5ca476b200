"""Text cut to a length, and colours made darker."""

import pytest

from kdtasks.images.display import darker, shortened


@pytest.mark.parametrize(
    "text, short", [("seven", "seven"), ("a long one", "a lo…"), ("$x$", r"\$x\$")]
)
def test_text_is_cut_to_so_many_characters(text, short):
    assert shortened(text, 5) == short


def test_a_colour_is_made_darker():
    assert darker("#FF8000") == "#B85C00"
