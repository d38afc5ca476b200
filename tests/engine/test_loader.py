"""The Loader: what it gives must follow from (seed, epoch, iteration) alone, and nothing else may
move.
"""

import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from kdtasks.classification import data
from kdtasks.engine.loader import Loader


class Batched:
    """``n`` numbers; remembers which were asked for."""

    def __init__(self, n):
        self.n, self.asked = n, []

    def __len__(self):
        return self.n

    def batch(self, index, view, seed):
        self.asked += index.tolist()
        return {"input": index[:, None].float() + view[:, None] * 1000, "target": index % 10}


class Noisy:
    """Map-style; the sample consists of numbers drawn from the three global streams."""

    def __init__(self, n=23):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.tensor(
            [i, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64
        ), i % 10


class Broken(Noisy):
    def __init__(self, n=23, bad=()):
        super().__init__(n)
        self.broken = bad
        self.samples = [(f"folder/{i}.png", i % 10) for i in range(n)]

    def __getitem__(self, i):
        if i in self.broken:
            raise OSError("image file is truncated")
        return super().__getitem__(i)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 real digits as PNG files, in a folder for each of three classes."""
    digits = load_digits()
    root = tmp_path_factory.mktemp("digits")
    for i in np.flatnonzero(digits.target < 3)[:60]:
        (root / str(digits.target[i])).mkdir(exist_ok=True)
        pixels = (digits.images[i] * 15).astype(np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(root / str(digits.target[i]) / f"{i:04d}.png")
    return root


def same(a, b):
    """Two lists of batches, bit for bit."""
    assert len(a) == len(b) and len(a) > 0
    for one, other in zip(a, b):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), (
                name
            )


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


def joined(batches):
    return [i for batch in batches for i in batch["index"].tolist()]


def random_states():
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()


KINDS = {
    "batched": (lambda: data.digits(augment={"crop": 1}), {}),
    "map": (Noisy, {}),
    "map with workers": (Noisy, {"workers": 2}),
    "half labelled": (Noisy, {"labelled": range(10), "unlabelled_per_batch": 2}),
    "length": (Noisy, {"length": 9}),
    "few labelled": (Noisy, {"labelled": [3, 5], "unlabelled_per_batch": 2, "length": 5}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_start_in_the_middle_equals_skipping(kind):
    make, options = KINDS[kind]
    loader, again = Loader(make(), 5, seed=3, **options), Loader(make(), 5, seed=3, **options)
    for epoch, start in [(0, 0), (2, 1), (7, len(loader) - 1)]:
        whole = list(loader.epoch(epoch))
        assert len(whole) == len(loader)
        same(whole[start:], list(again.epoch(epoch, start)))
    assert list(loader.epoch(1, len(loader))) == []


def test_skipped_batches_are_not_read():
    dataset = Batched(100)
    rest = list(Loader(dataset, 10).epoch(4, start=7))
    assert dataset.asked == joined(rest) and len(rest) == 3


def test_an_epoch_is_a_permutation_and_epochs_and_seeds_differ():
    epochs = [
        joined(Loader(Batched(50), 5, seed=seed).epoch(epoch))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 6 and list(range(50)) not in epochs


def test_the_order_is_uniform():
    """Over many epochs each sample is at each place equally often."""
    loader, count = Loader(Batched(8), 8), torch.zeros(8, 8)
    for epoch in range(4000):
        count[torch.arange(8), next(loader.epoch(epoch))["index"]] += 1
    # 49 degrees of freedom: 49 +- 10
    chi2 = ((count - 500).square() / 500).sum()
    assert 15 < chi2 < 100


def test_length_and_drop_last():
    assert (
        len(Loader(Batched(23), 5)) == 4
        and [len(i) for i in indices(Loader(Batched(23), 5))] == [5] * 4
    )
    kept = list(Loader(Batched(23), 5, drop_last=False))
    assert [len(i) for i in indices(kept)] == [5, 5, 5, 5, 3] and sorted(joined(kept)) == list(
        range(23)
    )
    # fewer samples than rows: they come again
    assert len(Loader(Batched(3), 5)) == 1


def test_evaluation_is_each_sample_once_in_order():
    batches = list(Loader(Batched(23), 5, shuffle=False))
    assert joined(batches) == list(range(23)) and len(batches) == 5
    assert joined(Loader(Batched(23), 5, shuffle=False, drop_last=True)) == list(range(20))


def test_endless_passes_lose_nothing():
    """With length, and with a pool smaller than a batch, whole passes follow each other across
    batches and epochs.
    """
    for loader in (Loader(Batched(7), 3, length=5), Loader(Batched(7), 10)):
        rows = [
            (i, v)
            for epoch in range(14)
            for batch in loader.epoch(epoch)
            for i, v in zip(batch["index"].tolist(), batch["view"].tolist())
        ]
        assert len(rows) == 14 * len(loader) * loader.plan.take and len(set(rows)) == len(rows)
        for turn in range(len(rows) // 7):
            assert sorted(rows[7 * turn : 7 * turn + 7]) == [(i, turn) for i in range(7)]


def test_a_view_is_the_epoch_or_one_of_k():
    for epoch in (0, 5):
        assert all((batch["view"] == epoch).all() for batch in Loader(Batched(20), 5).epoch(epoch))
        assert all(
            (batch["view"] == epoch % 4).all()
            for batch in Loader(Batched(20), 5, views=4).epoch(epoch)
        )
    fixed = Loader(Noisy(), 23, views=2)
    by_index = [next(fixed.epoch(e)) for e in range(4)]
    rows = [batch["input"][batch["index"].argsort()] for batch in by_index]
    assert (
        torch.equal(rows[0], rows[2])
        and torch.equal(rows[1], rows[3])
        and (rows[0] != rows[1])[:, 1:].all()
    )


# Random states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_stream_moves(workers):
    before = random_states()
    loader = Loader(
        Noisy(),
        5,
        workers=workers,
        collate=lambda samples: (torch.rand(2, 2), torch.tensor([random.random()])),
    )
    for _ in loader.epoch(1):
        assert random_states() == before
    next(loader.epoch(2))
    list(Loader(data.digits(augment={"crop": 1}), 64))
    assert random_states() == before


def test_streams_go_back_after_an_error_too():
    before = random_states()
    with pytest.raises(RuntimeError):
        list(Loader(Broken(bad=[4]), 5))
    assert random_states() == before


def test_the_world_outside_does_not_matter():
    whole = list(Loader(Noisy(), 5, seed=1))
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    same(whole, list(Loader(Noisy(), 5, seed=1)))
    drawn = torch.cat([batch["input"] for batch in whole])[:, 1:]
    # each sample, each library: its own numbers
    assert len(drawn.unique()) == drawn.numel()


def test_workers_change_nothing(folder):
    """Real files, random crops, a collate that draws: the same with no, one, two workers, over two
    epochs.
    """
    files = data.image_folder(folder, small=False, size=12)

    def collate(samples):
        return {
            "input": torch.stack([s[0] for s in samples]) + torch.rand(1),
            "target": torch.tensor([s[1] for s in samples]),
        }

    loaders = [Loader(files, 8, seed=2, workers=workers, collate=collate) for workers in (0, 1, 2)]
    runs = [list(loader.epoch(0)) + list(loader.epoch(3, start=2)) for loader in loaders]
    assert runs[0][0]["input"].shape == (8, 3, 12, 12)
    same(runs[0], runs[1])
    same(runs[0], runs[2])


def test_a_sample_does_not_depend_on_its_batch():
    small = {
        int(i): row
        for batch in Loader(Noisy(), 2, drop_last=False)
        for i, row in zip(batch["index"], batch["input"])
    }
    large = {
        int(i): row
        for batch in Loader(Noisy(), 23)
        for i, row in zip(batch["index"], batch["input"])
    }
    assert small.keys() == large.keys() and all(torch.equal(small[i], large[i]) for i in small)


# Labelled and unlabelled --------------------------------------------------------------------------

LABELLED = [1, 4, 8, 9, 15, 16, 22]


@pytest.mark.parametrize("length", [None, 11])
def test_alone_and_distilled_see_the_same_labelled_rows(length):
    alone = Loader(Noisy(), 3, seed=5, labelled=LABELLED, length=length)
    taught = Loader(
        Noisy(), 3 + 4, seed=5, labelled=LABELLED, unlabelled_per_batch=4, length=length
    )
    assert len(alone) == len(taught) == (length or 2)
    for epoch in range(5):
        for a, b in zip(alone.epoch(epoch), taught.epoch(epoch), strict=True):
            assert "labelled" not in a and set(a["index"].tolist()) <= set(LABELLED)
            for name in ("input", "target", "index", "view"):
                assert torch.equal(a[name], b[name][:3])


@pytest.mark.parametrize("make", [lambda: Batched(23), Noisy])
def test_labelled_rows_come_first_and_other_labels_are_hidden(make):
    for batch in Loader(make(), 7, labelled=np.array(LABELLED), unlabelled_per_batch=4):
        assert (
            batch["labelled"].tolist() == [True] * 3 + [False] * 4
            and batch["labelled"].device.type == "cpu"
        )
        assert batch["target"][:3].tolist() == [i % 10 for i in batch["index"][:3].tolist()]
        assert batch["target"][3:].tolist() == [-100] * 4
        assert set(batch["index"][:3].tolist()) <= set(LABELLED) and not set(
            batch["index"][3:].tolist()
        ) & set(LABELLED)


def test_hiding_labels_leaves_the_data_sets_own_tensor():
    class Whole(Batched):
        target = torch.zeros(7, dtype=torch.int64)

        def batch(self, index, view, seed):
            return {"input": index.float(), "target": self.target}

    batch = next(iter(Loader(Whole(23), 7, labelled=LABELLED, unlabelled_per_batch=4)))
    assert batch["target"].tolist() == [0] * 3 + [-100] * 4 and Whole.target.tolist() == [0] * 7


def test_unlabelled_passes_are_endless():
    loader = Loader(Batched(23), 7, labelled=LABELLED, unlabelled_per_batch=4)
    # 8 x 2 x 4
    rows = [i for epoch in range(8) for batch in indices(loader.epoch(epoch)) for i in batch[3:]]
    rest = sorted(set(range(23)) - set(LABELLED))
    assert [sorted(rows[at : at + 16]) for at in range(0, 64, 16)] == [rest] * 4
    assert rows[:16] != rows[16:32]


def test_a_batch_has_enough_labelled_rows_even_when_they_are_few():
    loader = Loader(Batched(23), 8, labelled=[3, 5], unlabelled_per_batch=3)
    assert len(loader) == 1
    first = next(loader.epoch(0))
    assert set(first["index"][:5].tolist()) == {3, 5} and first["labelled"].sum() == 5
    # what comes again comes in a new view
    assert first["view"][:5].tolist() == [0, 0, 1, 1, 2]


def test_labelled_by_mask_and_by_target():
    digits = data.digits(train=False)
    digits.target[20:] = -100
    mask = torch.arange(len(digits)) < 20
    runs = [
        list(Loader(digits, 12, labelled=labelled, unlabelled_per_batch=4))
        for labelled in (range(20), mask, "target")
    ]
    same(runs[0], runs[1])
    same(runs[0], runs[2])


# Processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length": 7},
        {"labelled": LABELLED, "unlabelled_per_batch": 4},
        {"drop_last": True, "shuffle": False},
    ],
)
@pytest.mark.parametrize("make", [lambda: data.digits(augment={"crop": 1}), Noisy])
def test_two_ranks_together_are_one(make, options):
    one = Loader(make(), 8, seed=1, **options)
    two = [Loader(make(), 8, seed=1, rank=rank, world=2, **options) for rank in (0, 1)]
    assert len(one) == len(two[0]) == len(two[1])
    for epoch in (0, 3):
        for whole, *parts in zip(
            one.epoch(epoch), *(loader.epoch(epoch) for loader in two), strict=True
        ):
            for name in whole:
                for rank, part in enumerate(parts):
                    assert torch.equal(whole[name][rank::2], part[name]), name


def test_ranks_share_an_evaluation_without_padding():
    for n in (23, 24, 2):
        parts = [Loader(Batched(n), 8, shuffle=False, rank=rank, world=3) for rank in range(3)]
        seen = [joined(part) for part in parts]
        assert seen == [list(range(n))[rank::3] for rank in range(3)]
        assert all(len(i) <= 3 for part in parts for i in indices(part))


# Classes ------------------------------------------------------------------------------------------


class Classes(Batched):
    """Class c of ``sizes`` has ``sizes[c]`` samples, scattered."""

    def __init__(self, sizes):
        super().__init__(sum(sizes))
        target = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.target = target[
            torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
        ]

    def batch(self, index, view, seed):
        return {"input": super().batch(index, view, seed)["input"], "target": self.target[index]}


class ClassFiles(Noisy):
    """The same, map-style; sample 4 cannot be read."""

    def __init__(self, sizes):
        super().__init__(sum(sizes))
        self.target = Classes(sizes).target

    def __getitem__(self, i):
        if i == 4:
            raise OSError("broken")
        return super().__getitem__(i)[0], int(self.target[i])


SIZES = [10, 7, 12, 9, 8, 11, 30]


def test_a_batch_has_m_different_samples_of_each_of_its_classes():
    loader = Loader(Classes(SIZES), 9, per_class=3, seed=5)
    assert len(loader) == sum(SIZES) // 9
    for epoch in (0, 1, 8):
        for batch in loader.epoch(epoch):
            groups = batch["target"].view(3, 3)
            assert (groups == groups[:, :1]).all() and len(groups[:, 0].unique()) == 3
            assert len(batch["index"].unique()) == 9


def test_classes_take_turns_and_so_do_the_samples_of_each():
    # an epoch: one pass over 6 of 7 classes
    loader = Loader(Classes(SIZES), 9, per_class=3, seed=1, length=2)
    seen, turns = torch.zeros(7), {c: [] for c in range(7)}
    for epoch in range(700):
        batches = list(loader.epoch(epoch))
        target, index = (
            torch.cat([batch[name] for batch in batches]) for name in ("target", "index")
        )
        assert len(target.unique()) == 6
        seen += torch.bincount(target, minlength=7) / 3
        for c in target.unique().tolist():
            turns[c].append((epoch, index[target == c].tolist()))
    # a class waits one time in seven
    assert seen.sum() == 4200 and (seen - 600).abs().max() < 50
    for c, size in enumerate(SIZES):
        for (a, first), (b, second) in zip(turns[c], turns[c][1:]):
            # in one pass over the class
            if a // (size // 3) == b // (size // 3):
                assert not set(first) & set(second)
        times = torch.bincount(
            torch.tensor([i for _, group in turns[c] for i in group]), minlength=sum(SIZES)
        )
        own = times[times > 0].double()
        assert len(own) == size and (own - own.mean()).abs().max() < 0.25 * own.mean() + 10


def test_a_class_with_fewer_than_m_samples_gives_all_of_them():
    loader = Loader(Classes([2, 3, 8]), 10, per_class=5, length=30)
    for batch in loader:
        for group, own in zip(batch["index"].view(2, 5), batch["target"].view(2, 5)[:, 0].tolist()):
            assert len(group.unique()) == min((2, 3, 8)[own], 5)
        # a repeated one in another view
        assert len(torch.stack([batch["index"], batch["view"]], 1).unique(dim=0)) == 10


CLASSED = {
    "batched": (Classes, {}),
    "map": (ClassFiles, {"skip_bad": True}),
    "workers": (ClassFiles, {"workers": 2, "skip_bad": True}),
    "length": (Classes, {"length": 5}),
    "views": (Classes, {"views": 2}),
    "half labelled": (
        Classes,
        {"labelled": range(60), "unlabelled_per_batch": 2, "batch_size": 14},
    ),
}


@pytest.mark.parametrize("kind", CLASSED)
@pytest.mark.filterwarnings("ignore:skipped an unreadable")
def test_classes_go_on_in_the_middle_of_an_epoch(kind):
    make, options = CLASSED[kind]
    loader, again = (
        Loader(make(SIZES), **{"batch_size": 12, "per_class": 3, "seed": 2, **options})
        for _ in range(2)
    )
    for epoch, start in [(0, 0), (3, 2), (1, 4)]:
        same(list(loader.epoch(epoch))[start:], list(again.epoch(epoch, start)))
    other = Loader(make(SIZES), **{"batch_size": 12, "per_class": 3, "seed": 3, **options})
    assert indices(other.epoch(0)) != indices(loader.epoch(0)) != indices(loader.epoch(1))


def test_ranks_share_whole_classes():
    for options in ({}, {"labelled": range(60), "unlabelled_per_batch": 6, "batch_size": 18}):
        options = {"batch_size": 12, "per_class": 3, "seed": 4, **options}
        one = Loader(Classes(SIZES), **options)
        parts = [Loader(Classes(SIZES), **options, rank=rank, world=2) for rank in (0, 1)]
        for whole, *pieces in zip(one.epoch(2), *(part.epoch(2) for part in parts), strict=True):
            for rank, piece in enumerate(pieces):
                assert torch.equal(
                    piece["target"][:6], whole["target"][:12].view(4, 3)[rank::2].flatten()
                )
                assert torch.equal(
                    piece["index"][:6], whole["index"][:12].view(4, 3)[rank::2].flatten()
                )
                assert torch.equal(piece["index"][6:], whole["index"][12:][rank::2])


def test_alone_and_distilled_see_the_same_classes():
    alone = Loader(Classes(SIZES), 12, per_class=3, labelled=range(60), length=9)
    taught = Loader(
        Classes(SIZES), 20, per_class=3, labelled=range(60), unlabelled_per_batch=8, length=9
    )
    for one, two in zip(alone.epoch(2), taught.epoch(2), strict=True):
        assert torch.equal(one["index"], two["index"][:12]) and torch.equal(
            one["view"], two["view"][:12]
        )
        assert (
            torch.equal(one["target"], two["target"][:12])
            and two["labelled"].tolist() == [True] * 12 + [False] * 8
        )


def test_an_unreadable_sample_gives_way_to_one_of_its_class():
    with pytest.warns(UserWarning, match="unreadable"):
        loader = Loader(ClassFiles(SIZES), 12, per_class=3, skip_bad=True, length=20)
        for batch in loader:
            groups = batch["target"].view(4, 3)
            assert (groups == groups[:, :1]).all()
    assert list(loader.bad) == [4]


@pytest.mark.parametrize(
    "message, options",
    [
        ("a batch of 10 labelled rows cannot have per_class=3", {"batch_size": 10, "per_class": 3}),
        ("has 8 different classes, but the data has 7", {"batch_size": 24, "per_class": 3}),
        ("per_class must be at least 1, got 0", {"per_class": 0}),
        ("2 processes cannot share the 3 classes", {"batch_size": 18, "per_class": 6, "world": 2}),
        ("not with an evaluation", {"per_class": 3, "shuffle": False}),
    ],
)
def test_wrong_class_sizes_are_named(message, options):
    with pytest.raises(ValueError, match=message):
        Loader(Classes(SIZES), **{"batch_size": 12, **options})


def test_per_class_wants_class_numbers():
    with pytest.raises(ValueError, match="Batched has none"):
        Loader(Batched(20), 4, per_class=2)


# What can go wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_sample_is_named(workers):
    with pytest.raises(
        RuntimeError,
        match=r"cannot read sample 4, folder/4\.png: OSError: image "
        r"file is truncated",
    ):
        list(Loader(Broken(bad=[4]), 5, workers=workers))


def test_an_unreadable_file_is_named(folder, tmp_path):
    (tmp_path / "a").mkdir()
    picture = next(folder.glob("*/*.png")).read_bytes()
    (tmp_path / "a" / "good.png").write_bytes(picture)
    (tmp_path / "a" / "half.png").write_bytes(picture[: len(picture) // 2])
    with pytest.raises(RuntimeError, match=r"cannot read sample 1, .*half\.png: "):
        list(Loader(data.image_folder(tmp_path, small=False), 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_bad_takes_the_next_one_of_the_same_pool(workers):
    bad = [4, 5, 9, 16]
    options = {"labelled": LABELLED, "unlabelled_per_batch": 4, "seed": 5}
    loader = Loader(Broken(bad=bad), 7, skip_bad=True, workers=workers, **options)
    with pytest.warns(
        UserWarning,
        match=r"skipped an unreadable sample: folder/\d+\.png: "
        r"OSError",
    ) as seen:
        got = [batch for epoch in range(4) for batch in loader.epoch(epoch)]
    assert len(seen) == 1
    assert (
        sorted(loader.bad) == bad
        and loader.bad[4] == "folder/4.png: OSError: image file is truncated"
    )
    rest = sorted(set(range(23)) - set(LABELLED))

    def follows(i, pool):
        while i in bad:
            i = pool[(pool.index(i) + 1) % len(pool)]
        return i

    clean = Loader(Noisy(), 7, **options)
    for a, b in zip(
        got, [batch for epoch in range(4) for batch in clean.epoch(epoch)], strict=True
    ):
        expected = [
            follows(i, LABELLED if row < 3 else rest) for row, i in enumerate(b["index"].tolist())
        ]
        assert a["index"].tolist() == expected == a["input"][:, 0].tolist()
        assert a["target"][:3].tolist() == [i % 10 for i in expected[:3]]


@pytest.mark.parametrize("workers", [0, 2])
def test_in_evaluation_an_unreadable_sample_is_left_out(workers):
    """Nothing stands in its place; a batch that would be empty (samples 5 to 9) does not come;
    ranks miss their own.
    """
    bad = [1, 5, 6, 7, 8, 9, 22]
    loader = Loader(Broken(bad=bad), 5, shuffle=False, skip_bad=True, workers=workers)
    with pytest.warns(
        UserWarning, match="left out an unreadable sample: folder/1.png: OSError"
    ) as seen:
        got = list(loader)
    assert len(seen) == 1 and [len(batch["target"]) for batch in got] == [4, 5, 5, 2]
    kept = [i for i in range(23) if i not in bad]
    assert (
        torch.cat([batch["index"] for batch in got]).tolist()
        == kept
        == torch.cat([batch["input"][:, 0] for batch in got]).tolist()
    )
    assert loader.unreadable == {f"folder/{i}.png": "OSError: image file is truncated" for i in bad}
    # again
    assert [batch["index"].tolist() for batch in loader] == [
        batch["index"].tolist() for batch in got
    ]
    parts = [
        [
            i
            for batch in Loader(
                Broken(bad=bad), 6, shuffle=False, skip_bad=True, rank=rank, world=2
            )
            for i in batch["index"].tolist()
        ]
        for rank in range(2)
    ]
    assert parts == [[i for i in kept if i % 2 == rank] for rank in range(2)]
    with pytest.raises(
        RuntimeError, match="none of the 23 samples can be read; the first: folder/0.png: OSError"
    ):
        list(Loader(Broken(bad=range(23)), 5, shuffle=False, skip_bad=True))


def test_skip_bad_gives_up_when_nothing_can_be_read():
    with pytest.raises(
        RuntimeError,
        match=r"cannot read sample \d+ nor the 22 after it; the last "
        r"is folder/\d+\.png",
    ):
        list(Loader(Broken(bad=range(23)), 5, skip_bad=True))


def test_a_good_data_set_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(Loader(Noisy(), 5, skip_bad=True, workers=1))) == 4


@pytest.mark.parametrize(
    "message, n, options",
    [
        ("batch_size must be at least 1, got 0", 9, {"batch_size": 0}),
        ("the data set Batched is empty", 0, {}),
        (
            "2 processes cannot share batch_size=5 and unlabelled_per_batch=0 equally: expected "
            "multiples of 2",
            9,
            {"world": 2},
        ),
        (
            "cannot share batch_size=4 and unlabelled_per_batch=1",
            9,
            {"batch_size": 4, "world": 2, "labelled": [1], "unlabelled_per_batch": 1},
        ),
        ("rank must be in \\[0, world\\), got rank=2, world=2", 9, {"rank": 2, "world": 2}),
        (
            "unlabelled_per_batch must be in \\[0, batch_size\\), got 5 of 5",
            9,
            {"unlabelled_per_batch": 5},
        ),
        ("all 9 samples are labelled", 9, {"unlabelled_per_batch": 2}),
        ("no sample is labelled", 9, {"labelled": []}),
        ("mask of shape \\(9,\\), got \\(2,\\)", 9, {"labelled": [True, False]}),
        ("needs dataset.target, which Batched has not", 9, {"labelled": "target"}),
        ("indices, a bool mask, 'target' or None, got 'first'", 9, {"labelled": "first"}),
        ("length must be at least 1, got 0", 9, {"length": 0}),
        ("drop_last=False gives a short last batch", 9, {"shuffle": False, "length": 3}),
        ("views must be 0", 9, {"views": -1}),
    ],
)
def test_wrong_arguments_are_named(message, n, options):
    with pytest.raises(ValueError, match=message):
        Loader(Batched(n), **{"batch_size": 5, **options})


def test_other_errors():
    with pytest.raises(IndexError, match=r"labelled has 1\.\.9, the data set has samples 0\.\.8"):
        Loader(Batched(9), 2, labelled=[1, 9])
    with pytest.raises(
        TypeError,
        match=r"__len__ and either batch\(index, view, seed\) or "
        r"__getitem__\(i\), got generator",
    ):
        Loader((i for i in range(3)), 2)
    with pytest.raises(
        ValueError,
        match=r"start must be in \[0, 4\], the length of an epoch, got "
        r"5",
    ):
        Loader(Batched(9), 2).epoch(0, start=5)
    with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
        Loader(Batched(9), 2).epoch(-1)


def test_two_iterators_at_once():
    """Without workers they are independent; with workers the older one stops loudly, never with
    wrong batches.
    """
    loader = Loader(Noisy(), 5)
    one, two = loader.epoch(0), loader.epoch(1)
    mixed = [next(one), next(two), next(one), next(two)]
    same([mixed[0], mixed[2]], list(loader.epoch(0))[:2])
    same([mixed[1], mixed[3]], list(loader.epoch(1))[:2])
    loader = Loader(Noisy(), 5, workers=1)
    one = loader.epoch(0)
    next(one)
    same(list(loader.epoch(1)), list(Loader(Noisy(), 5).epoch(1)))
    with pytest.raises(RuntimeError, match="a newer iterator"):
        next(one)


# What a batch is ----------------------------------------------------------------------------------


class Listed(list):
    """A list of samples as a map-style data set."""


def test_samples_may_be_pairs_or_dicts():
    pair = next(iter(Loader(Listed([(np.float32(i), i) for i in range(4)]), 4, shuffle=False)))
    assert pair["input"].tolist() == [0, 1, 2, 3] == pair["target"].tolist()
    assert pair["input"].dtype == torch.float32 and pair["target"].dtype == torch.int64
    named = next(
        iter(
            Loader(
                Listed([{"input": torch.ones(2) * i, "name": f"n{i}"} for i in range(4)]),
                2,
                shuffle=False,
            )
        )
    )
    assert (
        named["input"].tolist() == [[0, 0], [1, 1]]
        and named["name"] == ["n0", "n1"]
        and named["index"].tolist() == [0, 1]
    )
    assert named["view"].dtype == named["index"].dtype == torch.int64


def test_samples_that_do_not_stack():
    with pytest.raises(
        ValueError,
        match=r"'input' has \[\(1,\), \(2,\)\]; resize them to one "
        r"shape, or pass collate=",
    ):
        list(Loader(Listed([(torch.ones(1 + i), 0) for i in range(2)]), 2, shuffle=False))
    with pytest.raises(
        TypeError,
        match=r"'input' must be a tensor, an array or a number, got "
        r"Image; .*ToImage",
    ):
        list(Loader(Listed([(Image.new("L", (2, 2)), 0)] * 2), 2, shuffle=False))
    with pytest.raises(TypeError, match=r"must be \(input, target\) or a dict, got Tensor"):
        list(Loader(Listed([torch.ones(3)] * 2), 2, shuffle=False))


def test_channels_last():
    batch = next(
        iter(Loader(data.arrays(torch.zeros(4, 3, 5, 5, dtype=torch.uint8)), 2, channels_last=True))
    )
    assert batch["input"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["arrays on the GPU", "arrays on the CPU", "map"])
def test_on_cuda_the_same_batches(kind):
    make = Noisy if kind == "map" else lambda: data.digits(augment={"crop": 1})
    dataset = make().to("cuda") if kind == "arrays on the GPU" else make()
    options = {"labelled": LABELLED, "unlabelled_per_batch": 4}
    for a, b in zip(
        Loader(dataset, 7, device="cuda", **options), Loader(make(), 7, **options), strict=True
    ):
        assert {name for name in a if a[name].is_cuda} == {"input", "target"}
        for name in a:
            assert torch.equal(a[name].cpu(), b[name])
