"""A disk that is full, has no inodes, or is read-only says so, and what was needed; what was there
stays.
"""

import errno
import gc
import os
import subprocess
from contextlib import contextmanager, suppress

import pytest
import torch
from mmengine.hooks import Hook
from small_runs import same, small, weights

from kdtasks.core.cache import TeacherCache
from kdtasks.core.files import DiskError, write_atomically
from kdtasks.engine import checkpoint
from kdtasks.engine.run import Run


@contextmanager
def disk(folder, options):
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_says_what_was_needed(tmp_path):
    with disk(tmp_path / "disk", "size=256k") as small_disk:
        writers = {
            "last.pth": lambda path: checkpoint.save({"resume": {"x": torch.ones(10**6)}}, path),
            "student.pth": lambda path: checkpoint.save_weights({"x": torch.ones(10**6)}, {}, path),
        }
        for name, write in writers.items():
            with pytest.raises(
                OSError,
                match=r"No space left on device: .*: 4,000,000 bytes were "
                r"needed, [\d,]+ are free.*no file was",
            ) as raised:
                write(small_disk / name)
            assert raised.value.errno == errno.ENOSPC
            # its frames hold the open file
            del raised
        with pytest.raises(
            DiskError,
            match=r"No space left on device: '.*x.json' cannot be "
            r"written",
        ):
            checkpoint.save_json(["x" * 10**6], small_disk / "x.json")
        assert list(small_disk.iterdir()) == []


def test_a_cache_that_does_not_fit_is_said_after_the_first_batch(tmp_path):
    with disk(tmp_path / "disk", "size=256k") as small_disk:
        calls = []

        def outputs(batch):
            calls.append(len(batch["index"]))
            return {"teacher": torch.ones(len(batch["index"]), 100)}

        batches = (
            {"index": torch.arange(k, k + 10), "view": torch.zeros(10, dtype=torch.int64)}
            for k in range(0, 1000, 10)
        )
        with pytest.raises(
            DiskError, match="No space left on device: a cache in .* 400,000 bytes were needed"
        ) as raised:
            TeacherCache.write(small_disk / "cache", {"a": 1}, 1000, 1, batches, outputs)
        assert (
            raised.value.errno == errno.ENOSPC
            and calls == [10]
            and list(small_disk.iterdir()) == []
        )


def test_no_inode_is_left(tmp_path):
    with disk(tmp_path / "disk", "size=1m,nr_inodes=2") as small_disk:
        (small_disk / "one").touch()
        with pytest.raises(
            DiskError, match="No space left on device: .* no inode is left for another file"
        ):
            checkpoint.save_json([], small_disk / "x.json")


def test_a_read_only_disk(tmp_path):
    with disk(tmp_path / "disk", "size=1m") as there:
        (there / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(there)], check=True)
        for path in (there / "run", there / "new" / "run"):
            with pytest.raises(DiskError, match="Read-only file system: '.*run' cannot be written"):
                Run(small(), path, quiet=True).open()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_is_no_fault_of_the_disk_stays_what_it_is(tmp_path):
    def full(path):
        with open("/dev/full", "wb") as device:
            device.write(b"x" * 10**6)

    with pytest.raises(
        DiskError,
        match="No space left on device: .*x' cannot be written: 1,000,000 bytes were needed",
    ):
        write_atomically(tmp_path / "x", full, 10**6)

    def other(path):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="^something else$"):
        write_atomically(tmp_path / "x", other)
    assert list(tmp_path.iterdir()) == []


class Fill(Hook):
    """Leave no room on a disk after some steps."""

    disk = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.disk and runner.meta["stage"] == "distilled" and batch_idx == 7:
            with suppress(OSError), (self.disk / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(2**12)):
                    pass


def test_a_run_whose_disk_fills_up_goes_on_when_there_is_room(undisturbed, tmp_path, capfd):
    with disk(tmp_path / "disk", "size=4m") as small_disk:
        run = Run(
            small(custom_hooks=[{"type": f"{__name__}.Fill"}]), small_disk / "run", quiet=True
        )
        Fill.disk = small_disk
        with pytest.raises(
            OSError, match=r"could not save .*2_distilled/last.pth' \(No space left.*still loads"
        ):
            run.train()
        Fill.disk = None
        (small_disk / "filler").unlink()
        assert "Traceback" not in capfd.readouterr().err
        assert not list(small_disk.rglob("*.tmp"))
        run.train(resume=True)
        last = [weights(one, "distilled") for one in (run, undisturbed)]
        assert same(*(one["state_dict"] for one in last))
        # frames of the error
        del run
        gc.collect()
