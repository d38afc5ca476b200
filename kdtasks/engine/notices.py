"""What a run tells once on the screen, beside its bar: what was left out, and what is not as it
seems.
"""

import sys
from collections.abc import Mapping

import torch
from torch import nn

from kdtasks.core import Distiller
from kdtasks.engine.experiment import Experiment


class Notices:
    """Each thing is said once.

    Args:
        quiet: nothing is said.
    """

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """On standard output."""
        if not self.quiet and text not in self._said:
            print(text)
        self._said.add(text)

    def warn(self, text: str) -> None:
        """On standard error."""
        if not self.quiet and text not in self._said:
            print(f"warning: {text}", file=sys.stderr)
        self._said.add(text)

    def unreadable(self, errors: Mapping[str, Mapping[str, str]]) -> None:
        """How many samples could not be read: ``{part of the data: {file: why}}``."""
        for part, paths in errors.items():
            new = [path for path in paths if path not in self._said]
            self._said.update(new)
            if new:
                more = f" and {len(new) - 1} more (results.json names them)" if len(new) > 1 else ""
                self.warn(f"left out of the {part} data: {new[0]}: {paths[new[0]]}{more}")


def slow_precision(experiment: Experiment) -> str | None:
    """What asks for bfloat16 on a processor that computes it in software; None: nothing does."""
    if experiment.device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return None
    keys = ["amp"] if experiment.config["amp"] == "bfloat16" else []
    keys += [
        f"{name}.precision"
        for name, spec in experiment.specs.items()
        if spec.get("precision") == "bfloat16"
    ]
    if not keys:
        return None
    return (
        f"{', '.join(keys)} = 'bfloat16' on a processor without instructions for it (AVX2): a "
        "step may take ten times as long as in float32 (None)"
    )


def ended_early(experiment: Experiment, done: Mapping[str, Mapping]) -> dict[str, str]:
    """``{stage: 'after 8 of 36 iterations'}``, where the control and its rival differ in budget.

    A hook has ended one of them, or a stage that leads to it.

    Args:
        experiment: whose stages they are.
        done: results of the finished ones.
    """
    control, final = experiment.arms.control, experiment.final
    if control is None or final is None:
        return {}
    paths = {stage.name for end in (control, final) for stage in experiment.chain(end)}
    ended = {
        name: values["ended_early"]
        for name, values in done.items()
        if name in paths and "ended_early" in values
    }
    if ended.keys() == {control.name, final.name} and ended[control.name] == ended[final.name]:
        return {}
    return {
        name: f"after {end['iterations']} of {end['of']} iterations" for name, end in ended.items()
    }


def unequal_budgets(experiment: Experiment, done: Mapping[str, Mapping]) -> str:
    """What to warn of where a hook has ended a stage that counts; empty: nothing."""
    ended = ", ".join(f"{name} {where}" for name, where in ended_early(experiment, done).items())
    names = " and ".join(stage.name for stage in experiment.arms.pair)
    return ended and (
        f"a hook has ended {ended}: {names} have not had the same budget, so their difference is "
        "not the teacher's alone"
    )


def weak_teachers(experiment: Experiment, done: Mapping[str, Mapping]) -> str:
    """What to say of teachers that are worse than the control, the student alone; empty: nothing.

    Args:
        experiment: whose teachers they are.
        done: results of the finished stages; those of teachers from outside stand in ``teachers``.
    """
    task, control = experiment.task, experiment.arms.control
    alone = done.get(control.name, {}).get(task.primary) if control else None
    if alone is None or control is None:
        return ""
    scores = {
        stage.model: done[stage.name].get(task.primary)
        for stage in experiment.arms.teachers
        if stage.name in done
    }
    for values in done.values():
        for name, metrics in values.get("teachers", {}).items():
            scores[name] = metrics.get(task.primary)
    unit, decimals = task.unit(task.primary), task.decimals(task.primary)
    weak = [
        f"{name} ({value:.{decimals}f}{unit})"
        for name, value in scores.items()
        if value is not None and task.is_better(alone, value)
    ]
    if not weak:
        return ""
    verb = "is" if len(weak) == 1 else "are"
    return (
        f"{' and '.join(weak)} {verb} worse than the student {control.name} "
        f"({alone:.{decimals}f}{unit}) in {task.label(task.primary)}"
    )


def differing_ranks(experiment: Experiment, distiller: Distiller) -> str:
    """Why several processes do not give what one would; empty: they do."""
    world = experiment.world
    if world == 1 or experiment.config["sync_bn"] or not _has_batch_norm(distiller):
        return ""
    return (
        f"BatchNorm sees the rows of its own process only: {world} processes do not train as one "
        "would, and what is saved has the statistics of the first; sync_bn=True shares them (on "
        "CUDA)"
    )


def _has_batch_norm(distiller: Distiller) -> bool:
    modules = (part for role in distiller.learners for part in distiller.model(role).modules())
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in modules)
