"""Hundreds of steps, evaluations and checkpoints: memory, files and threads stay what they are."""

import os
import threading
from typing import ClassVar

import pytest
from mmengine.hooks import Hook
from small_runs import small

from kdtasks.engine.run import Run

MiB = 2**20


class Gauge(Hook):
    """Notes what the process holds, every 20 steps."""

    read: ClassVar[list] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx % 20 == 19:
            with open("/proc/self/statm") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files = len(os.listdir("/proc/self/fd"))
            self.read.append((resident, files, threading.active_count()))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_what_a_process_holds_is_flat(tmp_path, drawn_report):
    """Three stages of 240 steps, with a teacher, a worker, a moving average and TensorBoard."""
    data = {"type": "small_parts.Fragile", "first": 0, "count": 200}
    often = {"iterations": 10}
    options = {"data.train": data, "data.workers": 1, "length": {"iterations": 240}, "ema": 0.9}
    options |= {"val_interval": often, "checkpoint_interval": often, "schedule": []}
    options |= {"vis_backends": [{"type": "TensorboardVisBackend"}]}
    options |= {"custom_hooks": [{"type": f"{__name__}.Gauge"}]}
    Gauge.read.clear()
    Run(small(**options), tmp_path, quiet=True).train()
    assert len(Gauge.read) == 36
    # from the eightieth step of each stage to its end
    for first in (0, 12, 24):
        begin, *later = Gauge.read[first + 3 : first + 12]
        assert {held[1:] for held in later} == {begin[1:]}
        assert later[-1][0] - begin[0] < 8 * MiB, [held[0] / MiB for held in Gauge.read]
    assert Gauge.read[-1][0] - Gauge.read[11][0] < 32 * MiB
    assert Gauge.read[-1][1] == Gauge.read[23][1]
