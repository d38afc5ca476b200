"""Which images are taken: against plain sorting, however the pool is cut, and without keeping it."""

import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from kdtasks.core.views import view_hash
from kdtasks.incremental import sampling
from kdtasks.incremental.sampling import (
    confident_indices,
    coreset_indices,
    coreset_quota,
    sample_external,
    scores_of,
)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def chunks(scores, size):
    """A stream: it can be gone through once."""
    return (chunk for chunk in scores.split(size))


def slow_confident(scores, per_class):
    best = set()
    for column in scores.T.tolist():
        best |= set(sorted(range(len(column)), key=lambda i: (-column[i], i))[:per_class])
    return sorted(best)


# ------------------------------------------------------------------------------------ the confident
@pytest.mark.parametrize("per_class", [0, 1, 3, 10, 57, 100])
@pytest.mark.parametrize("kind", ["random", "tied", "rising", "falling", "equal", "infinite"])
def test_the_best_of_each_column_however_the_pool_is_cut(kind, per_class, monkeypatch):
    scores = torch.randn(57, 4)
    scores = {
        "random": scores,
        "tied": scores.round(),
        "rising": scores.sort(0).values,
        "falling": -scores.sort(0).values,
        "equal": 0 * scores,
        "infinite": scores.where(scores > 0, -torch.inf),
    }[kind]
    expected = slow_confident(scores, per_class)
    for cut in (1, 2, 5, 56, 57, 1000):
        found = confident_indices(chunks(scores, cut), per_class)
        assert found.dtype == torch.int64 and found.tolist() == expected
    monkeypatch.setattr(sampling, "ENTRIES", 24)
    # a tensor is cut too: blocks of 6 rows
    assert confident_indices(scores, per_class).tolist() == expected
    assert confident_indices(scores.half().requires_grad_(), per_class).tolist() == slow_confident(
        scores.half(), per_class
    )


def test_a_column_is_a_class_and_a_row_an_image():
    scores = torch.tensor([[9.0, 0, 5], [8, 7, 0], [0, 0, 6]])
    assert confident_indices(scores, 1).tolist() == [0, 1, 2]
    assert confident_indices(scores[:, :2], 1).tolist() == [0, 1]
    assert confident_indices(scores[:, :1], 2).tolist() == [0, 1]


def test_a_pool_that_is_empty_and_chunks_that_are():
    empty = torch.zeros(0, 3)
    for scores in (empty, [], [empty, empty], torch.zeros(5, 0)):
        assert (
            confident_indices(scores, 2).tolist() == []
            and confident_indices(scores, 2).dtype == torch.int64
        )
    assert confident_indices([empty, torch.eye(3), empty, 2 * torch.eye(3)], 1).tolist() == [
        3,
        4,
        5,
    ]


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([torch.zeros(3, 2), torch.zeros(3, 4)], r"\(3, 4\) after 3 rows of 2"),
        (torch.zeros(3), r"\(3,\)"),
        ([torch.zeros(3, 2), torch.tensor([[0, 0], [0, torch.nan]])], "row 4, class 1 is NaN"),
    ],
    ids=["columns", "flat", "nan"],
)
def test_scores_that_are_none(scores, expected):
    with pytest.raises(ValueError, match=expected):
        confident_indices(scores, 2)
    with pytest.raises(ValueError, match=expected):
        sample_external(scores, 40)


@pytest.mark.parametrize("per_class", [-1, 1.5])
def test_a_number_that_is_none(per_class):
    with pytest.raises(ValueError, match=f"per_class.*{per_class}"):
        confident_indices(torch.zeros(3, 2), per_class)
    with pytest.raises(ValueError, match=f"total.*{per_class}"):
        sample_external(torch.zeros(3, 2), per_class)


# ----------------------------------------------------------------------------------- a whole sample
def test_a_sample_is_the_confident_and_the_smallest_hashes():
    """N = 25: 17.5 rounds to 18 (even), so 7 are left, 2 for each of 3 classes."""
    scores = torch.randn(200, 3)
    confident, random = sample_external(scores, 25, seed=4, draw=2)
    order = view_hash(4, torch.arange(200), 2, sampling._POOL).argsort().tolist()
    assert confident.tolist() == slow_confident(scores, 2)
    assert random.tolist() == sorted(set(order[:18]) - set(confident.tolist()))


@pytest.mark.parametrize("flattest", [False, True])
def test_a_sample_does_not_depend_on_the_chunks(flattest):
    scores = torch.randn(300, 4)
    expected = sample_external(scores, 60, flattest=flattest)
    for cut in (1, 7, 299):
        found = sample_external(chunks(scores, cut), 60, flattest=flattest)
        assert torch.equal(found.confident, expected.confident) and torch.equal(
            found.random, expected.random
        )


def test_the_shares_of_the_paper():
    """CIFAR-100, 10 + 10 classes: 7000 = 4900 + 2100, 210 for each of 10 classes, 23 for each of
    90.
    """
    scores = torch.randn(20_000, 10)
    confident, random = sample_external(scores, 7000)
    assert torch.equal(confident, confident_indices(scores, 210)) and 1900 < len(confident) < 2100
    assert set(confident.tolist()).isdisjoint(random.tolist())
    # of those drawn, so many were confident already
    both = 4900 * len(confident) / len(scores)
    assert len(random) == pytest.approx(4900 - both, abs=80)
    scores = torch.randn(4000, 90)
    with pytest.warns(UserWarning, match="4000 images, fewer than the 7000"):
        assert torch.equal(sample_external(scores, 7000).confident, confident_indices(scores, 23))


def test_random_ones_are_uniform_and_each_draw_and_seed_has_its_own():
    """Over 400 draws each of 30 rows comes 400 · 6 / 30 = 80 times, with a standard deviation of 8."""
    times = torch.zeros(30)
    for draw in range(400):
        times[sample_external(30, 6, draw=draw).random] += 1
    assert times.sum() == 2400 and times.min() > 80 - 35 and times.max() < 80 + 35
    draws = [
        tuple(sample_external(1000, 20, seed=seed, draw=draw).random.tolist())
        for seed in (0, 1)
        for draw in (0, 1)
    ]
    assert len(set(draws)) == 4


def test_the_first_experience_draws_all_at_random():
    expected = sample_external(500, 40, seed=3)
    assert len(expected.confident) == 0 and len(expected.random) == 40
    for scores in (torch.zeros(500, 0), chunks(torch.zeros(500, 0), 11)):
        found = sample_external(scores, 40, seed=3, flattest=True)
        assert len(found.confident) == 0 and torch.equal(found.random, expected.random)
    assert sample_external(500, 0).random.tolist() == []


def test_all_or_none_at_random():
    scores = torch.randn(100, 4)
    confident, random = sample_external(scores, 20, out_of_distribution=0.0)
    assert confident.tolist() == slow_confident(scores, 5) and len(random) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confident, random = sample_external(scores, 20, out_of_distribution=1.0)
    assert len(confident) == 0 and len(random) == 20
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"got {share}"):
            sample_external(scores, 20, out_of_distribution=share)


def test_more_classes_than_confident_images():
    with pytest.warns(UserWarning, match="3 confident images are fewer than the 4 classes"):
        confident, random = sample_external(
            [torch.zeros(0, 4), torch.randn(50, 4), torch.randn(50, 4)], 10
        )
    assert len(confident) == 0 and len(random) == 7


def test_a_pool_that_is_too_small_is_taken_whole():
    with pytest.warns(UserWarning, match="5 images, fewer than the 8"):
        assert sample_external(5, 8).random.tolist() == [0, 1, 2, 3, 4]
    with pytest.warns(UserWarning, match="0 images"):
        assert [len(part) for part in sample_external([], 8)] == [0, 0]


def test_the_flattest_are_those_of_the_highest_mean_log_softmax():
    scores = torch.randn(80, 5) * torch.linspace(0.1, 5, 80)[
        torch.randperm(80), None
    ] + 30 * torch.randn(80, 1)
    confident, random = sample_external(scores, 40, flattest=True)
    flat = [sum(row.log_softmax(0).tolist()) for row in scores.double()]
    best = sorted(range(80), key=lambda i: -flat[i])[:28]
    assert random.tolist() == sorted(set(best) - set(confident.tolist()))
    as_logs = sample_external(scores.double().log_softmax(1), 40, flattest=True)
    assert set(random.tolist()) <= set(as_logs.random.tolist()) | set(as_logs.confident.tolist())


@pytest.mark.parametrize("flattest", [False, True])
def test_no_chunk_is_kept(flattest):
    """Nor a view of one: a tensor's storage holds the array that it was made of."""
    arrays, alive = [], []

    def stream():
        for _ in range(40):
            array = np.random.default_rng(len(arrays)).standard_normal((50, 4))
            arrays.append(weakref.ref(array))
            yield torch.from_numpy(array)
            del array
            alive.append(sum(known() is not None for known in arrays))

    sample_external(stream(), 100, flattest=flattest)
    confident_indices(stream(), 20)
    assert max(alive) <= 2


# ------------------------------------------------------------------------------------------- scores
@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "dict"])
def test_scores_of_batches_of_any_form(form):
    model, images = nn.Linear(4, 3), torch.randn(10, 4)
    wrap = {
        "tensor": lambda x: x,
        "tuple": lambda x: (x, 0),
        "list": lambda x: [x],
        "dict": lambda x: {"target": 0, "input": x},
    }[form]
    logits = model(images).detach()
    found = torch.cat(list(scores_of(model, (wrap(x) for x in images.split(3)))))
    torch.testing.assert_close(found, logits)
    probability = torch.cat(
        list(scores_of(model, (wrap(x) for x in images.split(3)), score="prob"))
    )
    torch.testing.assert_close(probability.exp(), logits.softmax(1))


def test_logit_and_probability_rank_differently():
    """The first row has the larger logit of class 0, the second the larger probability."""
    logits, logs = (
        next(scores_of(nn.Identity(), [torch.tensor([[5.0, 5], [4, 0]])], score=score))
        for score in ("logit", "prob")
    )
    assert confident_indices(logits[:, :1], 1).tolist() == [0] and confident_indices(
        logs[:, :1], 1
    ).tolist() == [1]


def test_scores_leave_the_model_as_it_was():
    """In eval while it runs; a part that was in eval before stays so; nothing learns, and the
    caller's gradient mode stays.
    """
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4)
    ).train()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(6, 4)
    stream = scores_of(model, [images, images])
    first = next(stream)
    assert torch.is_grad_enabled() and not first.requires_grad and not model.training
    torch.testing.assert_close(next(stream), first)  # no dropout
    assert list(stream) == []
    assert [m.training for m in model] == [True, True, True, False] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stream = scores_of(model, [images, images])
    next(stream)
    stream.close()  # given up half-way
    assert model[2].training


def test_half_precision_scores_are_raised_and_wrong_ones_named():
    assert (
        next(scores_of(nn.Identity(), [torch.zeros(2, 3, dtype=torch.bfloat16)])).dtype
        == torch.float32
    )
    with pytest.raises(ValueError, match="did you mean 'logit'"):
        next(scores_of(nn.Identity(), [], score="logits"))
    with pytest.raises(ValueError, match="'image'"):
        next(scores_of(nn.Identity(), [{"image": torch.zeros(2, 3)}]))
    with pytest.raises(ValueError, match="got str"):
        next(scores_of(nn.Identity(), ["x"]))


# ------------------------------------------------------------------------------------------ coreset
@pytest.mark.parametrize(
    "total, classes, expected",
    [
        (2000, 10, [200] * 10),
        (7, 3, [2, 2, 3]),
        (8, 3, [2, 3, 3]),
        (2, 4, [0, 0, 1, 1]),
        (0, 2, [0, 0]),
        (2000, 90, [22] * 70 + [23] * 20),
    ],
)
def test_what_is_left_over_goes_to_the_latest_classes(total, classes, expected):
    assert coreset_quota(total, classes) == expected


def test_quotas_that_are_none():
    for total, classes, named in (
        (-1, 3, "total"),
        (2.5, 3, "total"),
        (5, 0, "1 class"),
        (5, -1, "classes"),
    ):
        with pytest.raises(ValueError, match=named):
            coreset_quota(total, classes)
    with pytest.raises(ValueError, match="quota"):
        coreset_indices([0, 1], [1, -1])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        coreset_indices([0, 1], [1, 1], index=torch.arange(3))


def test_a_coreset_is_the_smallest_hashes_of_each_class():
    # class 5 has no quota, class 3 has fewer than 40
    target, quota = torch.randint(-1, 6, (90,)), [3, 0, 5, 40, 1]
    order = view_hash(9, torch.arange(90), 0, sampling._CORESET).argsort().tolist()
    expected = [[i for i in order if target[i] == k][:number] for k, number in enumerate(quota)]
    found = coreset_indices(target, quota, seed=9)
    assert found.dtype == torch.int64 and found.tolist() == sorted(
        i for part in expected for i in part
    )
    assert (
        found.tolist()
        == coreset_indices(target.tolist(), quota, seed=9).tolist()
        == coreset_indices(target.int(), quota, 9).tolist()
    )
    assert found.tolist() != coreset_indices(target, quota, seed=8).tolist()
    assert coreset_indices([], quota).tolist() == coreset_indices([5, -1], quota).tolist() == []


def test_redrawing_from_what_was_kept_is_drawing_from_all():
    target = torch.arange(60) % 6
    first = coreset_indices(target, coreset_quota(20, 4), seed=2)
    # the coreset of four classes, and all of two new ones
    both = torch.cat([first, (target >= 4).nonzero().squeeze(1)])
    again = coreset_indices(target[both], coreset_quota(20, 6), seed=2, index=both)
    assert (
        both[again].sort().values.tolist()
        == coreset_indices(target, coreset_quota(20, 6), seed=2).tolist()
    )
    assert torch.bincount(target[both[again]]).tolist() == [3, 3, 3, 3, 4, 4]
