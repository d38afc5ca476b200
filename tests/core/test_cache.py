"""Teacher outputs kept between epochs: what comes back, what is refused, and what a crash leaves."""

import copy
import json
import multiprocessing
import os
import re
import signal
import threading
import zlib

import numpy as np
import pytest
import torch

from kdtasks.core import cache_files, cache_writer
from kdtasks.core.cache import TeacherCache

KEY = {"teacher": "abc", "data": ["digits", {"n": 7, "k": 8}], "seed": 0, "views": 3}
SAMPLES, VIEWS = 7, 3


def batches(samples=SAMPLES, views=VIEWS, size=4, skip=(), seed=0):
    """Every (index, view) not in ``skip`` once, shuffled."""
    pairs = [(i, v) for i in range(samples) for v in range(views) if (i, v) not in skip]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    for start in range(0, len(pairs), size):
        index, view = zip(*(pairs[k] for k in order[start : start + size]))
        yield {"index": torch.tensor(index), "view": torch.tensor(view)}


class Slow:
    """The obvious cache: a dict of rows, made up as they are asked for."""

    def __init__(self, **make):
        self.make, self.rows, self.calls = make, {}, 0

    def __call__(self, batch):
        self.calls += 1
        for pair in zip(batch["index"].tolist(), batch["view"].tolist()):
            self.rows.setdefault(pair, {name: f(*pair) for name, f in self.make.items()})
        return self.of(batch["index"], batch["view"])

    def of(self, index, view):
        rows = [self.rows[pair] for pair in zip(index.tolist(), view.tolist())]
        return {name: torch.stack([row[name] for row in rows]) for name in self.make}


def noise(*shape, scale=1.0):
    return lambda i, v: (
        scale * torch.randn(shape, generator=torch.Generator().manual_seed(1000 * i + v))
    )


def write(folder, outputs, key=KEY, samples=SAMPLES, views=VIEWS, **kw):
    return TeacherCache.write(folder, key, samples, views, batches(samples, views), outputs, **kw)


def constant(value, dtype=torch.float32, at=(2, 1)):
    """1 everywhere, ``value`` once, in the row ``at``."""
    return Slow(
        teacher=lambda i, v: torch.tensor([1, value if (i, v) == at else 1, 1], dtype=dtype)
    )


def leftovers(folder):
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


# ---------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("limit", [0, 700, 2**30], ids=["mapped", "mixed", "resident"])
def test_roundtrip_equals_a_dict_of_rows(tmp_path, limit, monkeypatch):
    # the conversion crosses many chunks, the last one not full
    monkeypatch.setattr(cache_writer, "CHUNK", 10)
    slow = Slow(
        **{
            "teacher": noise(5),
            "teacher.layer3": noise(2, 3, 4, scale=30),
            "assistant": lambda i, v: torch.tensor(i + v / 8),
        }
    )
    written = write(tmp_path / "c", slow)
    assert leftovers(tmp_path / "c") == []
    opened = TeacherCache.open(tmp_path / "c", KEY)
    # any order, one row twice
    index, view = torch.tensor([6, 0, 3, 3, 0, 6]), torch.tensor([0, 2, 1, 1, 0, 2])
    for cache in (written, opened, opened.to("cpu", limit)):
        got = cache.fetch(index, view)
        assert list(got) == list(cache.names) == ["teacher", "teacher.layer3", "assistant"]
        for name, want in slow.of(index, view).items():
            assert got[name].dtype == cache.dtypes[name] == torch.float16
            assert torch.equal(got[name], want.half()) and cache.shapes[name] == want.shape[1:]
    # smallest first: 42, 210, 1008 bytes
    assert len(opened._resident) == {0: 0, 700: 2, 2**30: 3}[limit]
    assert (
        opened.nbytes
        == 42 + 210 + 1008
        == sum((tmp_path / "c" / f"{i}.bin").stat().st_size for i in range(3))
    )


def test_file_is_plain_little_endian_views_first(tmp_path):
    write(tmp_path / "c", Slow(teacher=lambda i, v: torch.tensor([i, v, 0.1])))
    array = np.fromfile(tmp_path / "c" / "0.bin", "<f2").reshape(VIEWS, SAMPLES, 3)
    assert array[2, 5].tolist() == [5, 2, np.float16(0.1)]
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    checksum = zlib.crc32((tmp_path / "c" / "0.bin").read_bytes())
    assert meta["arrays"] == [
        {"name": "teacher", "shape": [3], "dtype": "float16", "bytes": 126, "crc32": checksum}
    ]
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["0.bin", "meta.json"]


def test_fetched_rows_are_the_callers_own(tmp_path):
    cache = write(tmp_path / "c", Slow(teacher=noise(5)))
    row = torch.tensor([1]), torch.tensor([1])
    for _ in range(2):  # mapped, then resident
        before = cache.fetch(*row)["teacher"].clone()
        cache.fetch(*row)["teacher"].zero_()
        assert torch.equal(cache.fetch(*row)["teacher"], before) and before.any()
        cache.to("cpu")


def test_empty_and_small_integer_requests(tmp_path):
    cache = write(tmp_path / "c", Slow(teacher=noise(5)))
    for _ in range(2):
        empty = torch.zeros(0, dtype=torch.int64)
        assert cache.fetch(empty, empty)["teacher"].shape == (0, 5)
        small = cache.fetch(
            torch.tensor([3], dtype=torch.uint8), torch.tensor([2], dtype=torch.int32)
        )["teacher"]
        assert torch.equal(small, cache.fetch(torch.tensor([3]), torch.tensor([2]))["teacher"])
        cache.to("cpu")


@pytest.mark.parametrize(
    "index, view, message",
    [
        ([7], [0], "index 7 is not in this cache: it holds the integers 0 to 6"),
        ([-1], [1], "index -1"),  # as a flat row it would exist
        ([0, 1], [0, 3], "view 3 is not in this cache: it holds the integers 0 to 2"),
        ([0, 1], [0], r"\(2,\) on cpu and \(1,\) on cpu"),
        ([[0]], [[0]], r"\(1, 1\)"),
        ([1.0], [0], "must be integers, got float32"),
        ([1.5], [0], "index 1.5"),
    ],
)
def test_fetch_refuses(tmp_path, index, view, message):
    cache = write(tmp_path / "c", Slow(teacher=noise(2)))
    with pytest.raises(ValueError, match=message):
        cache.fetch(torch.tensor(index), torch.tensor(view))


# ------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    "value, dtype",
    [
        (65504.0, torch.float16),
        (-65504.0, torch.float16),
        (65505.0, torch.float32),
        (-65505.0, torch.float32),
        (3e38, torch.float32),
    ],
)
def test_half_only_if_every_value_fits(tmp_path, value, dtype):
    for at in ((0, 0), (2, 1), (6, 2), (3, 0)):  # whichever batch it is in
        slow = Slow(teacher=constant(value, at=at).make["teacher"], other=noise(2))
        cache = write(tmp_path / f"{at}", slow)
        assert cache.dtypes == {"teacher": dtype, "other": torch.float16}  # each name for itself
        got = cache.fetch(torch.tensor([at[0]]), torch.tensor([at[1]]))["teacher"]
        assert got.tolist() == [[1, torch.tensor(value).item(), 1]]


def test_half_rounding_is_as_documented(tmp_path):
    x = torch.cat([torch.logspace(-9, 4.8, 2000), torch.tensor([2.0**-14, 2.0**-25])])
    cache = write(tmp_path / "c", Slow(teacher=lambda i, v: x))
    error = (
        cache.fetch(torch.tensor([0]), torch.tensor([0]))["teacher"][0].double() - x.double()
    ).abs()
    normal = x >= 2.0**-14
    assert (error[normal] / x[normal]).max() <= 2**-11 and error[~normal].max() <= 2**-25
    kept = write(tmp_path / "d", Slow(teacher=lambda i, v: x), half=False)
    assert torch.equal(kept.fetch(torch.tensor([0]), torch.tensor([0]))["teacher"][0], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats(tmp_path, dtype):
    x = torch.randn(100, dtype=dtype)
    cache = write(
        tmp_path / "c",
        Slow(teacher=lambda i, v: x, big=lambda i, v: x * 2.0**15 if dtype != torch.float16 else x),
    )
    got = cache.fetch(torch.tensor([0]), torch.tensor([0]))
    assert torch.equal(got["teacher"][0], x.float().half())
    # bfloat16 survives bit for bit in float32
    if dtype != torch.float16:
        assert got["big"].dtype == torch.float32 and torch.equal(
            got["big"][0], (x * 2.0**15).float()
        )


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
)
def test_integers_stay_as_they_are(tmp_path, dtype):
    top = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    cache = write(tmp_path / "c", constant(top, dtype))
    for _ in range(2):
        got = cache.fetch(torch.tensor([2, 0]), torch.tensor([1, 0]))["teacher"]
        assert got.dtype == dtype and got.tolist() == [[1, top, 1], [1, 1, 1]]
        cache.to("cpu")


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_not_finite_names_the_sample(tmp_path, value, shape):
    slow = Slow(
        **{
            "fine": noise(2),
            "teacher.fc": lambda i, v: torch.full(shape, value if (i, v) == (4, 2) else 1.0),
        }
    )
    with pytest.raises(
        ValueError, match=f"'teacher.fc' of index 4, view 2 is not finite: .* the first is {value}"
    ):
        write(tmp_path / "c", slow)
    assert not (tmp_path / "c").exists() and leftovers(tmp_path / "c") == []


def test_float64_beyond_float32_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="index 2, view 1 is not finite"):
        write(tmp_path / "c", constant(1e300, torch.float64))


# ------------------------------------------------------------------------------ batches and outputs


def test_missing_pairs(tmp_path):
    given = batches(skip=[(3, 1), (5, 2)])
    with pytest.raises(ValueError, match=r"2 of 7 x 3 .* missing, the first is index 3, view 1"):
        TeacherCache.write(tmp_path / "c", KEY, SAMPLES, VIEWS, given, Slow(teacher=noise(2)))
    with pytest.raises(ValueError, match=r"21 of 7 x 3"):
        TeacherCache.write(tmp_path / "c", KEY, SAMPLES, VIEWS, [], Slow(teacher=noise(2)))
    assert leftovers(tmp_path / "c") == []


def test_a_pair_twice_in_one_batch_or_in_two(tmp_path):
    one = {"index": torch.tensor([3, 4, 3]), "view": torch.tensor([1, 1, 1])}
    two = [{"index": torch.tensor([k, 3]), "view": torch.tensor([0, 1])} for k in (1, 2)]
    for given in ([one], two):
        with pytest.raises(ValueError, match="index 3, view 1 is given twice"):
            TeacherCache.write(tmp_path / "c", KEY, SAMPLES, VIEWS, given, Slow(teacher=noise(2)))


def test_bad_batches_and_sizes(tmp_path):
    given = [{"index": torch.tensor([9]), "view": torch.tensor([0])}]
    with pytest.raises(ValueError, match=r"index 9 .* 0 to 6"):
        TeacherCache.write(tmp_path / "c", KEY, SAMPLES, VIEWS, given, Slow(teacher=noise(2)))
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        TeacherCache.write(tmp_path / "c", KEY, 0, VIEWS, [], Slow(teacher=noise(2)))


@pytest.mark.parametrize(
    "outputs, error, message",
    [
        (lambda b: {}, ValueError, "empty dict"),
        (
            lambda b: {"teacher": torch.ones(9, 2)},
            ValueError,
            r"'teacher' must be \(4, ...\), .* got "
            r"\(9, 2\)",
        ),
        (
            lambda b: {"teacher": torch.ones(len(b["index"]), 0)},
            ValueError,
            r"none of them empty, got "
            r"\(4, 0\)",
        ),
        (lambda b: {"teacher": torch.ones(())}, ValueError, r"got \(\)"),
        (lambda b: {"teacher": [torch.ones(4)]}, TypeError, "must be a tensor, got list"),
        (
            lambda b: {"teacher": torch.ones(4, dtype=torch.complex64)},
            TypeError,
            "complex64, which cannot be stored",
        ),
        # the last batch has one row, the others four
        (
            lambda b: {"teacher": torch.ones(len(b["index"]), len(b["index"]))},
            ValueError,
            r"changed .* "
            r"\[4\].* "
            r"\[1\]",
        ),
        (
            lambda b: {f"n{len(b['index'])}": torch.ones(len(b["index"]))},
            ValueError,
            "changed .*'n4'.*'n1'",
        ),
        (
            lambda b: {
                "t": torch.ones(len(b["index"])).to(
                    torch.int8 if len(b["index"]) == 4 else torch.int32
                )
            },
            ValueError,
            "int32",
        ),
    ],
)
def test_bad_outputs(tmp_path, outputs, error, message):
    with pytest.raises(error, match=message):
        write(tmp_path / "c", outputs)
    assert leftovers(tmp_path / "c") == [] and TeacherCache.open(tmp_path / "c", KEY) is None


# ---------------------------------------------------------------------------------- what is refused


def test_foreign_key_with_an_explanation(tmp_path):
    folder = tmp_path / "c"
    assert (
        "no folder" in TeacherCache.difference(folder, KEY)
        and TeacherCache.open(folder, KEY) is None
    )
    write(folder, Slow(teacher=noise(2)))
    assert TeacherCache.difference(folder, KEY) == "" and TeacherCache.open(folder, KEY).key == KEY
    # as JSON the same
    assert TeacherCache.open(
        folder, dict(reversed(KEY.items())) | {"data": ("digits", {"k": 8, "n": 7})}
    )
    other = {**KEY, "teacher": "abd", "extra": None}
    del other["seed"]
    assert TeacherCache.open(folder, other) is None
    why = TeacherCache.difference(folder, other)
    assert 'teacher is "abc", expected "abd"' in why
    assert "extra is absent, expected null" in why and "seed is 0, expected absent" in why
    assert "views" not in why and "data" not in why
    for bad, error in (
        ({"x": torch.ones(1)}, TypeError),
        ({"x": float("nan")}, ValueError),
        ({1: 2}, TypeError),
        ("abc", TypeError),
    ):
        with pytest.raises(error):
            TeacherCache.open(folder, bad)


def test_a_changed_key_does_not_change_the_cache(tmp_path):
    key = copy.deepcopy(KEY)
    cache = write(tmp_path / "c", Slow(teacher=noise(2)), key)
    key["seed"] = 1
    assert cache.key == KEY and TeacherCache.open(tmp_path / "c", KEY)


def break_folder(folder, how):
    meta = json.loads((folder / "meta.json").read_text())
    if how == "truncated":
        os.truncate(folder / "1.bin", (folder / "1.bin").stat().st_size - 1)
    elif how == "longer":
        with (folder / "0.bin").open("ab") as file:
            file.write(b"x")
    elif how == "no array":
        (folder / "0.bin").unlink()
    elif how == "no meta":
        (folder / "meta.json").unlink()
    elif how == "half a meta":
        os.truncate(folder / "meta.json", 50)
    elif how == "meta is a list":
        (folder / "meta.json").write_text("[]")
    elif how == "other format":
        (folder / "meta.json").write_text(json.dumps({**meta, "format": 0}))
    elif how == "other dtype":
        meta["arrays"][0]["dtype"] = "object"
        (folder / "meta.json").write_text(json.dumps(meta))
    elif how == "other samples":
        (folder / "meta.json").write_text(json.dumps({**meta, "samples": 8}))


@pytest.mark.parametrize(
    "how, why",
    [
        ("truncated", "1.bin .* has 83 bytes, expected 84"),
        ("longer", "0.bin .* has 85 bytes"),
        ("no array", "has no 0.bin"),
        ("no meta", "has no meta.json"),
        ("half a meta", "damaged"),
        ("meta is a list", "damaged"),
        ("other format", "format 0, expected 2"),
        ("other dtype", "damaged.*'object'"),
        ("other samples", "has 84 bytes, expected 96"),
    ],
)
def test_broken_is_refused_and_replaced(tmp_path, how, why):
    folder, slow = tmp_path / "c", Slow(teacher=noise(2), other=noise(2))
    write(folder, slow)
    break_folder(folder, how)
    assert TeacherCache.open(folder, KEY) is None
    assert re.search(why, TeacherCache.difference(folder, KEY))
    calls = slow.calls
    cache = write(folder, slow)
    assert slow.calls > calls and TeacherCache.open(folder, KEY) and leftovers(folder) == []
    index, view = torch.arange(7), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    assert torch.equal(cache.fetch(index, view)["other"], slow.of(index, view)["other"].half())


def test_one_damaged_bit_is_an_error_that_names_the_file_and_costs_nothing_again(
    tmp_path, monkeypatch
):
    folder = tmp_path / "c"
    write(folder, Slow(teacher=noise(5), other=noise(70)))
    read = []
    real = cache_files.crc32_of
    monkeypatch.setattr(cache_files, "crc32_of", lambda file: read.append(file.name) or real(file))
    cache = TeacherCache.open(folder, KEY)
    # this process has just written it
    assert cache is not None and not read
    monkeypatch.setattr(cache_files, "_checked", set())
    assert TeacherCache.open(folder, KEY) is not None and TeacherCache.open(folder, KEY) is not None
    cache.fetch(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert read == [str(folder / "0.bin"), str(folder / "1.bin")]
    content = bytearray((folder / "1.bin").read_bytes())
    content[77] ^= 4
    (folder / "1.bin").write_bytes(content)
    for again in (
        lambda: TeacherCache.open(folder, KEY),
        lambda: write(folder, Slow(teacher=noise(5))),
    ):
        with pytest.raises(
            RuntimeError,
            match=r"1\.bin is damaged.*checksum.*delete .*/c, and it "
            r"is made again",
        ):
            again()


def test_a_link_or_somebody_elses_cache_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "c"
    write(folder, Slow(teacher=noise(5)))
    (folder / "0.bin").rename(tmp_path / "away.bin")
    (folder / "0.bin").symlink_to(tmp_path / "away.bin")
    with pytest.raises(PermissionError, match=r"0\.bin is a link"):
        TeacherCache.open(folder, KEY)
    (folder / "0.bin").unlink()
    (tmp_path / "away.bin").rename(folder / "0.bin")
    # the user's own way to a folder
    (tmp_path / "linked").symlink_to(tmp_path)
    assert TeacherCache.open(tmp_path / "linked" / "c", KEY) is not None
    real = os.lstat

    def lstat(path):
        found = real(path)
        return (
            os.stat_result((*found[:4], found.st_uid + 1, *found[5:])) if path == folder else found
        )

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(PermissionError, match="belongs to user"):
        TeacherCache.open(folder, KEY)


def test_a_folder_with_other_files_is_never_deleted(tmp_path):
    folder, slow = tmp_path / "c", Slow(teacher=noise(2))
    folder.mkdir()
    (folder / "thesis.tex").write_text("ten years")
    with pytest.raises(FileExistsError, match=r"thesis.tex.*no part of a cache"):
        write(folder, slow)
    assert slow.calls == 0 and (folder / "thesis.tex").read_text() == "ten years"


# -------------------------------------------------------------------------------- crashes and races


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_nothing_new(tmp_path, error):
    folder, old = tmp_path / "deep" / "c", Slow(teacher=noise(2))

    def fails(batch):
        if fails.left == 0:
            raise error
        fails.left -= 1
        return {"teacher": torch.zeros(len(batch["index"]), 2)}

    fails.left = 3
    with pytest.raises(error):
        write(folder, fails)
    assert not folder.exists() and leftovers(folder) == []
    # and an older cache stays until the new one stands
    write(folder, old)
    fails.left = 3
    with pytest.raises(error):
        write(folder, fails, {**KEY, "seed": 1})
    assert TeacherCache.open(folder, KEY) and leftovers(folder) == []


def _killed(folder):
    def outputs(batch):
        if (batch["index"] == 6).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"teacher": torch.zeros(len(batch["index"]), 2)}

    write(folder, outputs)


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_killed_process_leaves_nothing_usable(tmp_path):
    folder = tmp_path / "c"
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(folder,))
    child.start()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL
    [left] = leftovers(folder)
    # documented; under a name that nobody opens
    assert left.startswith(".c.") and left.endswith(".tmp")
    assert (
        TeacherCache.open(folder, KEY) is None and TeacherCache.open(tmp_path / left, KEY) is None
    )
    assert write(folder, Slow(teacher=noise(2))).names == ("teacher",)


def test_a_complete_cache_is_used_as_it_is(tmp_path):
    slow = Slow(teacher=noise(2))
    write(tmp_path / "c", slow)
    calls = slow.calls
    again = write(tmp_path / "c", slow)
    assert slow.calls == calls and again.fetch(torch.tensor([1]), torch.tensor([1]))
    with pytest.raises(
        ValueError, match="7 samples and 3 views, not 8 and 3: these numbers belong in the key"
    ):
        write(tmp_path / "c", slow, samples=8)


def test_the_loser_of_a_race_uses_the_winners(tmp_path):
    folder = tmp_path / "c"

    def loser(batch):
        # the other process finishes while this one still runs
        if not folder.exists():
            write(folder, Slow(teacher=lambda i, v: torch.tensor([1.0])))
        return {"teacher": torch.full((len(batch["index"]), 1), 2.0)}

    assert write(folder, loser).fetch(torch.tensor([0]), torch.tensor([0]))["teacher"].item() == 1.0
    assert leftovers(folder) == []


def test_many_writers_over_a_broken_cache(tmp_path):
    folder, slow, results = tmp_path / "c", Slow(teacher=noise(2)), []
    write(folder, slow)
    break_folder(folder, "longer")
    barrier = threading.Barrier(6)

    def outputs(batch):
        # the last batch: all finish at once
        if len(batch["index"]) == 1:
            # a busy machine may start a thread late
            barrier.wait(60)
        return slow.of(batch["index"], batch["view"])

    def run():
        results.append(
            write(folder, outputs).fetch(torch.arange(7), torch.ones(7, dtype=torch.int64))[
                "teacher"
            ]
        )

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = slow.of(torch.arange(7), torch.ones(7, dtype=torch.int64))["teacher"].half()
    assert len(results) == 6 and all(torch.equal(result, want) for result in results)
    assert leftovers(folder) == [] and TeacherCache.open(folder, KEY)


# --------------------------------------------------------------------------------------------- CUDA


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("limit", [0, 700, 2**30], ids=["mapped", "mixed", "resident"])
def test_cuda_gives_the_same_without_waiting(tmp_path, limit):
    slow = Slow(
        **{
            "teacher": noise(5),
            "teacher.layer3": noise(2, 3, 4),
            "assistant": lambda i, v: torch.tensor(i),
        }
    )
    cache = write(tmp_path / "c", slow).to("cuda", limit)
    index, view = torch.tensor([6, 0, 3]), torch.tensor([0, 2, 1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = cache.fetch(index, view)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    plain = cache.fetch(index, view, "cpu")
    for name, value in TeacherCache.open(tmp_path / "c", KEY).fetch(index, view).items():
        assert (
            got[name].is_cuda
            and torch.equal(got[name].cpu(), value)
            and torch.equal(plain[name], value)
        )
