"""Schedulers of torch and of one's own, beside mmengine's: by epoch, by iteration, by metric;
resumed exactly.
"""

import json
from typing import ClassVar

import pytest
import torch
from mmengine.hooks import Hook
from small_runs import same, small, weights

from kdtasks.engine.errors import ConfigError
from kdtasks.engine.optim import build_schedulers
from kdtasks.engine.run import Run
from kdtasks.engine.task import load_task
from tests.ranks import two_ranks

TORCH = "torch.optim.lr_scheduler."


def rates(schedule, length=9, per_epoch=3, metrics=()):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    task = load_task("kdtasks.classification.trainer")
    schedulers, found = build_schedulers(schedule, optimizer, length, per_epoch, task), []
    for iteration in range(length):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        if (iteration + 1) % per_epoch == 0 and metrics:
            for scheduler in schedulers:
                scheduler.evaluated({"accuracy": metrics[iteration // per_epoch]})
    return [round(rate, 6) for rate in found]


# as in StageRunner.train
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
def test_by_epoch_by_iteration_beside_mmengines_and_on_a_metric():
    # which puts small_parts where it is found
    small()
    step = {"type": TORCH + "StepLR", "step_size": 1, "gamma": 0.5}
    assert rates([step]) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert rates([{**step, "by_epoch": False}])[:4] == [1, 0.5, 0.25, 0.125]
    warm = {"type": "LinearLR", "start_factor": 0.5, "by_epoch": False, "end": 2}
    assert rates([warm, step]) == [0.5, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert rates([{"type": "small_parts.Halve", "every": 2}]) == [1] * 6 + [0.5] * 3
    assert rates([{"type": TORCH + "LambdaLR", "lr_lambda": "small_parts.rate_of"}])[::3] == [
        1,
        0.9,
        0.81,
    ]
    plateau = {"type": TORCH + "ReduceLROnPlateau", "patience": 0, "factor": 0.1}
    # 40 is no gain: higher is better
    assert rates([plateau], metrics=[50, 40, 60]) == [1] * 6 + [0.1] * 3
    cycle = {"type": TORCH + "OneCycleLR", "max_lr": 2.0, "by_epoch": False}
    assert (
        rates([cycle])[0] == 0.08
        and max(rates([cycle])) == pytest.approx(2.0, abs=0.2)
        and rates([cycle])[-1] < 0.1
    )


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"type": TORCH + "StepLr", "step_size": 1}, "did you mean 'StepLR'"),
        ({"type": TORCH + "StepLR"}, "needs 'step_size'"),
        ({"type": "StepLRR"}, "dotted paths"),
        ({"type": TORCH + "SequentialLR"}, "one by one"),
        ({"type": TORCH + "StepLR", "step_size": 1, "gama": 1}, "did you mean 'gamma'"),
        (
            {"type": "ReduceOnPlateauLR"},
            "expected dict.*torch.optim.lr_scheduler.ReduceLROnPlateau",
        ),
        ({"type": TORCH + "ReduceLROnPlateau", "metric": "other"}, "expected mode="),
        ({"type": TORCH + "ReduceLROnPlateau", "by_epoch": False}, "steps at each evaluation"),
    ],
)
def test_a_wrong_scheduler_is_an_error_with_the_nearest(entry, message):
    with pytest.raises(ConfigError, match=message):
        rates([entry])


SCHEDULES = {
    "torch": [{"type": TORCH + "LambdaLR", "lr_lambda": "small_parts.rate_of", "by_epoch": False}],
    "cycle": [{"type": TORCH + "OneCycleLR", "max_lr": 0.2, "by_epoch": False}],
    "plateau": [{"type": TORCH + "ReduceLROnPlateau", "patience": 0, "threshold": 50.0}],
    "own": [
        {"type": "small_parts.Halve", "every": 3, "by_epoch": False},
        {"type": "MultiStepLR", "milestones": [1]},
    ],
}
MEMORY = {"loss_memory": {"type": "small_parts.Memory", "of": ("student", "target")}}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_and_losses_with_a_state_in_attributes_resume_to_the_same_bits(name, tmp_path):
    options = {
        "schedule": SCHEDULES[name],
        "losses.loss_memory": MEMORY["loss_memory"],
        "length": {"iterations": 10},
        "val_interval": {"iterations": 2},
        "checkpoint_interval": {"iterations": 3},
    }
    whole = Run(small(**options), tmp_path / "whole", quiet=True)
    whole.train(only=["alone"])
    with pytest.raises(KeyboardInterrupt):
        Run(
            {
                **small(**options),
                "custom_hooks": [{"type": "small_parts.StopAt", "stage": "alone", "iteration": 7}],
            },
            tmp_path / "cut",
            quiet=True,
        ).train(only=["alone"])
    stamp = tmp_path / "cut" / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))
    cut = Run(small(**options), tmp_path / "cut", quiet=True)
    cut.train(resume=True, only=["alone"])
    a, b = weights(whole, "alone"), weights(cut, "alone")
    assert (
        same(a["state_dict"], b["state_dict"]) and a["resume"]["history"] == b["resume"]["history"]
    )
    assert a["resume"]["attributes"][0].keys() == b["resume"]["attributes"][0].keys()
    assert "losses.loss_memory." in a["resume"]["attributes"][0]


class Rates(Hook):
    """Notes the metric that was read and the learning rate that came of it."""

    found: ClassVar[list] = []

    def after_val_epoch(self, runner, metrics=None):
        rate = runner.optim_wrapper.optimizer.param_groups[0]["lr"]
        Rates.found.append((metrics["accuracy"], rate))


def plateau(rank, folder):
    options = {
        "length": 2,
        "val_interval": {"iterations": 1},
        "schedule": [{"type": TORCH + "ReduceLROnPlateau", "patience": 0, "factor": 0.5}],
        "custom_hooks": [{"type": f"{__name__}.Rates"}],
    }
    Run(small(**options), folder, quiet=True).train(only=["teacher"])
    return Rates.found


@pytest.mark.slow
def test_two_processes_step_on_the_same_metric(tmp_path):
    """Each has BatchNorm statistics of its own, and would have another accuracy. Slow, as it loads
    torch twice.
    """
    first, second = two_ranks(plateau, tmp_path / "run")
    assert first == second and len({rate for _, rate in first}) > 1
