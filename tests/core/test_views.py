"""view_hash: against arithmetic on Python's integers, against values written down, and as a source
of uniform numbers.
"""

import random

import pytest
import torch

from kdtasks.core.views import random_numbers, view_hash

MASK = 2**64 - 1


def mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def slow_hash(seed, index, view, salt=0):
    h = 0
    for value in (seed, salt, index, view):
        h = mix(h + 0x9E3779B97F4A7C15 * (value + 1) & MASK)
    return h % 2**63


def test_values_do_not_change():
    """A saved run resumes under a later version only while these stay."""
    assert view_hash(0, torch.arange(3), 0).tolist() == [
        2391539541053276776,
        1686945488949104677,
        3197024143330230309,
    ]
    assert view_hash(-7, torch.arange(2), 3, salt=5).tolist() == [
        966061436685462292,
        931066497017060820,
    ]


def test_equals_arithmetic_modulo_2_to_64():
    draw = random.Random(0)
    for seed, salt in [
        (0, 0),
        (1, 0),
        (0, 1),
        (-1, 2**63),
        (2**64 + 3, 7),
        (draw.getrandbits(62), draw.getrandbits(62)),
    ]:
        index = [0, 1, -1, 2**62, 2**63 - 1] + [draw.getrandbits(63) for _ in range(50)]
        view = [draw.getrandbits(10) for _ in index]
        expected = [slow_hash(seed, i, v, salt) for i, v in zip(index, view)]
        assert view_hash(seed, torch.tensor(index), torch.tensor(view), salt).tolist() == expected


def test_a_number_does_not_depend_on_its_batch_or_shape():
    index, view = (
        torch.randperm(1000, generator=torch.Generator().manual_seed(0)),
        torch.arange(1000) % 7,
    )
    whole = view_hash(3, index, view)
    assert torch.equal(whole[200:210], view_hash(3, index[200:210], view[200:210]))
    assert torch.equal(whole.view(10, 100), view_hash(3, index.view(10, 100), view.view(10, 100)))
    assert whole[5] == view_hash(3, index[5], int(view[5]))
    grid = view_hash(3, torch.arange(4)[:, None], torch.arange(5))
    assert grid.shape == (4, 5) and grid[2, 3] == slow_hash(3, 2, 3)


def test_random_numbers_are_those_of_splitmix64():
    keys = [0, 1, 2**63 - 1, 1234567]
    found = random_numbers(torch.tensor(keys), 3, 5)
    for row, key in zip(found.tolist(), keys):
        assert row == [mix(key + 0x9E3779B97F4A7C15 * k & MASK) % 2**63 for k in range(4, 9)]
    # the first output of the published generator for the seed 1234567
    assert random_numbers(torch.tensor([1234567]), 0, 1).item() == 6457827717110365317 % 2**63
    assert random_numbers(torch.tensor(keys), 0, 0).shape == (4, 0)


def numbers_along(axis, n=1 << 16):
    at, still = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    if axis == "index":
        return view_hash(0, at, 0)
    if axis == "view":
        return view_hash(0, still, at)
    names = range(1 << 10)
    return torch.stack(
        [view_hash(**{"seed": 0, "salt": 0, axis: k}, index=at[:64], view=0) for k in names]
    ).T.flatten()


@pytest.mark.parametrize("axis", ["index", "view", "seed", "salt"])
def test_uniform_along_every_argument(axis):
    numbers = numbers_along(axis)
    n = len(numbers)
    assert numbers.min() >= 0 and len(numbers.unique()) == n
    bits = (numbers[:, None] >> torch.arange(63) & 1).double()  # (n, 63)
    assert (bits.mean(0) - 0.5).abs().max() < 5 * 0.5 / n**0.5
    # bits know nothing of each other
    assert (torch.corrcoef(bits.T) - torch.eye(63)).abs().max() < 5.5 / n**0.5
    x = numbers.double() / 2**63
    # nor do neighbours
    assert torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1].abs() < 5 / n**0.5
    for base in (2, 9, 10, 1000):
        count = torch.bincount(numbers % base, minlength=base).double()
        chi2 = ((count - n / base).square() / (n / base)).sum()
        assert abs(chi2 - (base - 1)) < 5 * (2 * (base - 1)) ** 0.5 + 5


def test_one_bit_moves_half_of_the_bits():
    index = torch.arange(2000)
    for bit in range(0, 62, 5):
        changed = view_hash(0, index, 0) ^ view_hash(0, index ^ (1 << bit), 0)
        share = (changed[:, None] >> torch.arange(63) & 1).double().mean()
        assert abs(share - 0.5) < 0.01


def test_seed_index_view_and_salt_do_not_stand_for_each_other():
    one = torch.tensor(1)
    numbers = [
        view_hash(seed, one * i, v, salt)
        for seed in (0, 1)
        for i in (0, 1)
        for v in (0, 1)
        for salt in (0, 1)
    ]
    assert len({int(x) for x in numbers}) == 16


def test_wants_int64():
    with pytest.raises(
        TypeError,
        match=r"int64 for index and view, got torch\.int32 and "
        r"torch\.int64",
    ):
        view_hash(0, torch.arange(3, dtype=torch.int32), 0)


def test_moves_no_random_stream():
    before = torch.get_rng_state()
    view_hash(0, torch.arange(3), 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
def test_the_same_on_cuda():
    index, view = torch.arange(10_000) * 977, torch.arange(10_000) % 13
    assert torch.equal(
        view_hash(5, index.cuda(), view.cuda(), 2).cpu(), view_hash(5, index, view, 2)
    )
    assert torch.equal(view_hash(5, index.cuda(), 4).cpu(), view_hash(5, index, 4))
