"""Streams: which samples an experience has, and which column each of them is."""

from collections import Counter
from types import SimpleNamespace

import pytest
import small_incremental  # noqa: F401  (small_streams can be imported then)
import torch
from PIL import Image
from small_streams import Dicts, Listed, images, only_inputs, stream_of_sets, tensors
from torch.utils.data import TensorDataset

from kdtasks.engine.loader import Loader
from kdtasks.incremental.data import (
    BatchedSet,
    Experience,
    IncrementalSet,
    class_incremental,
    experiences,
    targets_of,
    unaugmented,
)

CLASSES, ORDER, SIZES = list("abcdef"), [4, 1, 5, 0, 3, 2], (2, 1, 3)
KINDS = [images, tensors, Listed, Dicts]


def stream(kind=images, order=ORDER, sizes=SIZES, **options):
    return class_incremental(kind(**options), sizes, order)


def pixels(dataset, index):
    """(b, …) inputs of samples, whatever kind the data set is of; without noise."""
    if hasattr(dataset, "batch"):
        return dataset.batch(torch.as_tensor(index), torch.zeros(len(index), dtype=torch.long), 0)[
            "input"
        ]
    return torch.stack(
        [dataset[i]["input"] if isinstance(dataset[i], dict) else dataset[i][0] for i in index]
    )


def quiet(kind):
    return kind() if kind in (images, tensors) else kind(noisy=False)


# Classes and columns ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", range(3))
def test_an_experience_has_its_classes_and_columns_follow_the_order(kind, t):
    """Each image is looked up in the data set: the class at its column in the order is the class
    that it has there.
    """
    source, made = quiet(kind), experiences(class_incremental(quiet(kind), SIZES, ORDER), t)
    target, start = targets_of(source), sum(SIZES[:t])
    assert type(made) is (BatchedSet if kind is images else IncrementalSet)
    assert made.classes == [
        str(c) if kind is tensors else CLASSES[c] for c in ORDER[: start + SIZES[t]]
    ]
    expected = [i for i in range(len(target)) if int(target[i]) in ORDER[start : start + SIZES[t]]]
    assert len(made) == len(expected) == 12 * SIZES[t]
    assert made.target.tolist() == [ORDER.index(int(target[i])) for i in expected]
    assert torch.equal(pixels(made, range(len(made))), pixels(source, expected))
    assert made.class_counts.tolist() == [0] * start + [12] * SIZES[t]


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_has_all_classes_so_far_in_the_same_columns(kind):
    source = kind(train=False, per_class=5)
    made = experiences(stream(kind, train=False, per_class=5), 1, test=True)
    expected = [
        i
        for classes in (ORDER[:2], ORDER[2:3])
        for i in range(30)
        if int(targets_of(source)[i]) in classes
    ]
    assert made.target.tolist() == [ORDER.index(int(targets_of(source)[i])) for i in expected]
    assert torch.equal(pixels(made, range(len(made))), pixels(source, expected))
    assert made.classes == experiences(stream(kind), 1).classes


def test_all_experiences_at_once():
    made = experiences(stream(), None, memory=5)
    assert made.class_counts.tolist() == [12] * 6 and made.classes == [CLASSES[c] for c in ORDER]
    assert len(experiences(stream(), None, test=True)) == 72


def test_names_are_as_good_as_numbers():
    by_name = experiences(stream(order=[CLASSES[c] for c in ORDER]), 2, memory=4)
    assert torch.equal(
        by_name.target, experiences(stream(), 2, memory=4).target
    ) and by_name.classes == [CLASSES[c] for c in ORDER]


@pytest.mark.parametrize(
    "order, sizes, message",
    [
        ([4, 1, 5, 0, 3], (2, 1, 2), r"order leaves out 1 of the data's 6 classes: \['c'\]"),
        ([4, 1, 5, 0, 3, 4], SIZES, "order has the class 'e' more than once"),
        ([4, 1, 5, 0, 3, "e"], SIZES, "order has the class 'e' more than once"),
        ([4, 1, 5, 0, 3, 6], SIZES, r"order has the class 6, the data has 0\.\.5"),
        ([4, 1, 5, 0, 3, -1], SIZES, r"order has the class -1, the data has 0\.\.5"),
        (["a", "b", "c", "d", "e", "g"], SIZES, "order has the class 'g'"),
        (ORDER, (2, 1, 2), r"sizes=\(2, 1, 2\) are 5 classes, the order has 6"),
        (ORDER, (2, 1, 4), r"sizes=\(2, 1, 4\) are 7 classes, the order has 6"),
        (None, (2, 1, 2), r"sizes=\(2, 1, 2\) are 5 classes, the order has 6"),
        (ORDER, (6, 0), r"every class belongs to one experience"),
    ],
)
def test_classes_that_do_not_add_up(order, sizes, message):
    with pytest.raises(ValueError, match=message):
        class_incremental(images(), sizes, order)


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_drawn_is_that_of_the_seed_for_training_and_test_alike(kind):
    """Listed and Dicts draw from torch's stream whenever a training sample is read, and Dicts has
    to be read for its labels.
    """
    drawn = {}
    for seed in range(3):
        for train in (True, False):
            torch.manual_seed(seed)
            drawn[seed, train] = [
                one.classes_in_this_experience for one in stream(kind, None, train=train)
            ]
        assert drawn[seed, True] == drawn[seed, False]
        assert sorted(c for classes in drawn[seed, True] for c in classes) == list(range(6))
    assert len({str(drawn[seed, True]) for seed in range(3)}) > 1


def test_sets_of_classes_have_one_order_for_training_and_test():
    """As a set, {8, 0} comes out as it went in; the columns must not depend on that."""
    train, test = stream_of_sets(True), stream_of_sets(False)
    assert [list(a.classes_in_this_experience) for a in train] != [
        list(b.classes_in_this_experience) for b in test
    ]
    a, b = experiences(train, 2), experiences(test, 2, test=True)
    assert a.classes == b.classes == ["8", "32", "40", "0", "16", "24"]
    for t, one in enumerate(train):
        made = experiences(train, t)
        labels = one.dataset.tensors[1][torch.tensor([i for i in range(len(made))])]
        assert [made.classes[column] for column in made.target.tolist()] == [
            str(int(label)) for label in labels
        ]


@pytest.mark.parametrize("experience", [3, -1])
def test_no_such_experience(experience):
    with pytest.raises(ValueError, match=rf"experience={experience}, the stream has 0\.\.2"):
        experiences(stream(), experience)


def test_each_class_is_in_one_experience_and_labels_are_of_it():
    data = images()
    with pytest.raises(ValueError, match="the class 1 is in experience 1 and in an earlier one"):
        experiences([Experience(data, [0, 1]), Experience(data, [1, 2])], 1)
    with pytest.raises(
        ValueError,
        match=r"an experience of the classes \[0, 1\] has a sample of "
        r"class 2",
    ):
        experiences([Experience(data, [0, 1])], 0)
    with pytest.raises(ValueError, match="has a sample of class -1"):
        experiences(
            [
                SimpleNamespace(
                    dataset=TensorDataset(torch.zeros(2, 1), torch.tensor([0, -1])),
                    classes_in_this_experience=[0],
                )
            ],
            0,
        )


@pytest.mark.slow
def test_an_avalanche_benchmark():
    """Slow to import. Its sets of classes come sorted; its data sets have their own numbers of
    places.
    """
    pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
    from small_streams import avalanche_benchmark

    from kdtasks.incremental.data import avalanche_stream

    benchmark = avalanche_benchmark()
    train, test = (avalanche_stream(benchmark, part) for part in ("train", "test"))
    made, tested = experiences(train, 2, memory=6), experiences(test, 2, test=True)
    assert made.classes == tested.classes == ["1", "4", "0", "5", "2", "3", "6"]
    assert (
        made.class_counts.tolist() == [1, 1, 2, 2, 12, 12, 12]
        and tested.class_counts.tolist() == [12] * 7
    )
    for one in (made, tested):
        shown = torch.stack([one[i]["input"] for i in range(len(one))]).flatten(1)
        brightness = torch.stack([shown[one.target == column].mean() for column in range(7)])
        assert ((brightness - 0.17) / 0.215).round().int().tolist() == [
            int(name) // 2 for name in one.classes
        ]
    with pytest.raises(ValueError, match="part must be 'train' or 'test', got 'valid'"):
        avalanche_stream(benchmark, "valid")


# Exemplars ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "memory, quotas",
    [
        (7, [[3, 4], [2, 2, 3]]),
        (5, [[2, 3], [1, 2, 2]]),
        (1, [[0, 1], [0, 0, 1]]),
        (600, [[12] * 2, [12] * 3]),
    ],
)
def test_exemplars_are_of_earlier_classes_in_equal_shares(memory, quotas):
    data = stream()
    assert experiences(data, 0, memory=memory).class_counts.tolist() == [12, 12]
    for t, quota in ((1, quotas[0]), (2, quotas[1])):
        made = experiences(data, t, memory=memory)
        assert made.class_counts.tolist() == quota + [12] * SIZES[t]
        assert made.class_counts.tolist() == [
            int((made.target == c).sum()) for c in range(sum(SIZES[: t + 1]))
        ]
        # the experience's own come first
        assert made.target[: 12 * SIZES[t]].min() >= sum(SIZES[:t])
        own = data[t].index
        assert made.places[: len(own)].tolist() == own.tolist()
        classes = [ORDER.index(int(c)) for c in targets_of(data[0].dataset)[made.places]]
        assert classes == made.target.tolist()


def kept(t, memory, seed=0, kind=images):
    made = experiences(stream(kind), t, memory=memory, seed=seed)
    return {int(i) for i in made.places[12 * SIZES[t] :]}


def test_what_is_kept_later_was_kept_before():
    target = targets_of(images())
    for memory in (4, 7, 12):
        first, later = kept(1, memory), kept(2, memory)
        assert {i for i in later if int(target[i]) in ORDER[:2]} < first and len(later) == memory
    assert kept(2, 5) < kept(2, 9) and kept(2, 9) == kept(2, 9, kind=Listed)
    assert kept(2, 9) != kept(2, 9, seed=1)


def test_without_memory_there_is_none():
    assert len(experiences(stream(), 2)) == 36


def test_exemplars_of_several_data_sets():
    """The images themselves are those of the classes: the place counts in the right data set."""
    data = stream_of_sets()
    made = experiences(data, 2, memory=6)
    assert made.class_counts.tolist() == [2, 2, 2, 12, 12, 12]
    for i in range(36, 42):
        inside = [data[k].dataset for k in range(2)]
        place = [
            (d, int(row))
            for d in inside
            for row in ((d.tensors[0] == made[i]["input"]).flatten(1).all(1)).nonzero()
        ]
        ((found, row),) = place
        assert made.classes[made[i]["target"]] == str(int(found.tensors[1][row]))


# Unlabelled samples -------------------------------------------------------------------------------
def pool(kind=images, **options):
    return (
        kind(labelled=False, per_class=4, **options)
        if kind is images
        else kind(per_class=4, **options)
    )


@pytest.mark.parametrize("kind, pool_kind", [(images, images), (Listed, only_inputs)])
def test_external_samples_have_no_label_and_count_for_no_class(kind, pool_kind):
    without = experiences(stream(kind), 1, memory=4, pool=pool(pool_kind))
    index = torch.tensor([3, 9, 20])
    made = without.with_external(index)
    assert (
        made.target[:16].tolist() == without.target.tolist()
        and made.target[16:].tolist() == [-100] * 3
        and len(made) == 19
    )
    assert (
        made.class_counts.tolist() == without.class_counts.tolist() == [2, 2, 12]
        and made.classes == without.classes
    )
    assert torch.equal(pixels(made, range(16, 19)), pixels(pool(pool_kind), index))
    assert type(made) is type(without) and len(without) == 16
    alone = without.whole_pool()
    assert len(alone) == 24 and torch.equal(
        pixels(alone, range(24)), pixels(pool(pool_kind), range(24))
    )


def test_the_pool_is_gone_through_without_augmentation():
    augmented = pool(augment={"crop": 2})
    made = experiences(stream(), 1, pool=augmented)
    index = torch.arange(24)
    assert (
        torch.equal(pixels(made.whole_pool(), index), pixels(pool(), index))
        and augmented.augment is not None
    )
    assert not torch.equal(pixels(made.with_external(index), range(12, 36)), pixels(pool(), index))
    other = tensors()
    assert unaugmented(other) is other


@pytest.mark.parametrize("kind, pool_kind", [(images, only_inputs), (tensors, images)])
def test_the_pool_is_of_the_same_kind(kind, pool_kind):
    made = experiences(stream(kind), 1, pool=pool(pool_kind))
    for call in (lambda: made.with_external(torch.arange(2)), made.whole_pool):
        with pytest.raises(ValueError, match="must both be batched, or both map-style"):
            call()


def test_without_a_pool():
    for call in (
        lambda: experiences(stream(), 1).with_external(torch.arange(2)),
        experiences(stream(), 1).whole_pool,
    ):
        with pytest.raises(ValueError, match="there is no pool of unlabelled samples"):
            call()


# Batches ------------------------------------------------------------------------------------------
def test_a_batch_of_several_sources_keeps_its_order():
    made = experiences(
        [Experience(images(seed=k), [k], torch.arange(k, 72, 6)) for k in range(3)],
        None,
        pool=pool(),
    ).with_external(torch.arange(5))
    index = torch.randperm(len(made), generator=torch.Generator().manual_seed(0))
    batch = made.batch(index, torch.zeros_like(index), 0)
    assert batch["target"].tolist() == made.target[index].tolist() and batch[
        "class_counts"
    ].tolist() == [12, 12, 12]
    for row, i in enumerate(index.tolist()):
        source = pool() if i >= 36 else images(seed=i // 12)
        place = i - 36 if i >= 36 else i // 12 + 6 * (i % 12)
        assert torch.equal(batch["input"][row], pixels(source, [place])[0]), i


def test_views_and_seed_reach_the_data_set():
    source = images(augment={"crop": 2})
    made = experiences(class_incremental(source, SIZES, ORDER), 1)
    index, view = torch.arange(4), torch.tensor([0, 3, 1, 7])
    assert torch.equal(
        made.batch(index, view, 5)["input"], source.batch(made.places[index], view, 5)["input"]
    )


@pytest.mark.parametrize(
    "kind, pool_kind",
    [(images, images), (Listed, only_inputs), (Dicts, only_inputs), (tensors, tensors)],
)
def test_through_the_loader(kind, pool_kind):
    """Labelled rows first, -100 after; the labelled ones are the same as without the others."""
    without = experiences(stream(kind), 1, memory=4, pool=pool(pool_kind))
    plain = Loader(without, 5, labelled="target", seed=3)
    mixed = Loader(
        without.with_external(torch.arange(7)), 8, labelled="target", unlabelled_per_batch=3, seed=3
    )
    assert len(plain) == len(mixed) == 3
    seen = Counter()
    for a, b in zip(plain.epoch(1), mixed.epoch(1), strict=True):
        assert (
            torch.equal(a["input"], b["input"][:5])
            and torch.equal(a["target"], b["target"][:5])
            and torch.equal(a["index"], b["index"][:5])
        )
        assert (
            b["target"][5:].tolist() == [-100] * 3
            and b["labelled"].tolist() == [True] * 5 + [False] * 3
        )
        assert (
            b["class_counts"].tolist() == a["class_counts"].tolist() == [2, 2, 12]
            and (b["index"][5:] >= 16).all()
        )
        seen.update(b["index"][5:].tolist())
    assert len(seen) == 7 and max(seen.values()) == 2


class Files(Listed):
    def __getitem__(self, i):
        return Image.new("L", (6, 6)), self.targets[i]


def test_images_that_are_no_tensors_are_said_to_be_so():
    with pytest.raises(
        TypeError, match="'input' must be a tensor, .*got Image; a PIL image becomes one through"
    ):
        next(iter(Loader(experiences(class_incremental(Files(), SIZES, ORDER), 0), 4)))


def test_a_data_set_is_read_once_for_all_its_experiences():
    read = []

    class Counted(Dicts):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    data = class_incremental(Counted(), SIZES, ORDER)
    for t in range(3):
        experiences(data, t, memory=5)
    assert sorted(read) == list(range(72))
