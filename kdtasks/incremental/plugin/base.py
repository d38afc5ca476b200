"""What the plugins share: the old model, the classes that it has seen, and checks of a model."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core import Teacher
from kdtasks.core.classes import UNLABELLED
from kdtasks.core.names import did_you_mean
from kdtasks.core.recorder import module_paths
from kdtasks.incremental.avalanche_benchmarks import classes_of
from kdtasks.incremental.plugin.models import load_model, model_state

if TYPE_CHECKING:
    from avalanche.benchmarks import CLExperience
    from avalanche.training.templates import SupervisedTemplate


class OldModelPlugin:
    """A plugin that keeps the model as it was after the last experience, and the classes that it
    has seen.

    The teacher is an attribute of the plugin and no part of the strategy's model, all of whose
    parameters avalanche optimises.
    """

    supports_distributed = False

    def __init__(self):
        self.teacher: Teacher | None = None
        self.experience = 0  # how many are over
        # task label -> the classes of experiences that are over, and their columns
        self.seen: dict[int, list[int]] = {}
        self.columns: dict[int, Tensor] = {}
        # all columns of old classes, and those of this experience's
        self.old = self.new = torch.zeros(0, dtype=torch.long)
        self._listening: AbstractContextManager = nullcontext([])
        self.heard: list = []  # what listen() has recorded in the strategy's forward

    def before_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Find the columns of old classes and of this experience's."""

        def columns(classes: Iterable[int]) -> Tensor:
            return torch.tensor(sorted({*classes}), dtype=torch.long, device=strategy.device)

        self.columns = {task: columns(classes) for task, classes in self.seen.items()}
        self.old = columns(number for classes in self.seen.values() for number in classes)
        self.new = columns(classes_of(strategy.experience))

    def listen(self, model: nn.Module) -> AbstractContextManager:
        """A context whose list records what the plugin needs from inside a forward."""
        return nullcontext([])

    def before_forward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Record, from the second experience on."""
        if self.teacher is not None:
            self._listening = self.listen(strategy.model)
            self.heard = self._listening.__enter__()

    def after_forward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Stop recording: copies of the model carry no hook."""
        self._listening.__exit__(None, None, None)
        self._listening = nullcontext([])

    def after_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Keep a frozen copy of the model, and note its classes."""
        self.teacher = Teacher(copy.deepcopy(strategy.model))
        self.experience += 1
        for task, classes in _classes_by_task(strategy.experience).items():
            self.seen[task] = sorted({*self.seen.get(task, []), *classes})

    @torch.no_grad()
    def teacher_logits(self, input: Tensor) -> Tensor:
        """The old model's logits."""
        return self.teacher(input)

    def state_dict(self) -> dict:
        """The old model's tensors, and numbers in lists: ``torch.load(weights_only=True)`` reads
        it.
        """
        return {
            "experience": self.experience,
            "seen": copy.deepcopy(self.seen),
            "teacher": None if self.teacher is None else model_state(self.teacher.model),
        }

    def load_state_dict(self, state: dict, model: nn.Module, experiences: Sequence = ()) -> None:
        """Put the plugin where :meth:`state_dict` left another.

        Args:
            state: of :meth:`state_dict`.
            model: of the same kind as the strategy's; it is copied, and its heads may be more,
                fewer or smaller.
            experiences: not used here.
        """
        self.experience, self.seen = state["experience"], copy.deepcopy(state["seen"])
        self.teacher = None
        if state["teacher"] is not None:
            self.teacher = Teacher(load_model(copy.deepcopy(model), state["teacher"]))


def _classes_by_task(experience: "CLExperience") -> dict[int, list[int]]:
    tasks = [int(task) for task in getattr(experience, "task_labels", [0])]
    if len(tasks) == 1:
        return {tasks[0]: classes_of(experience)}
    classes: dict[int, set[int]] = {}
    for task, number in zip(experience.dataset.targets_task_labels, experience.dataset.targets):
        classes.setdefault(int(task), set()).add(int(number))
    return {task: sorted(numbers) for task, numbers in classes.items()}


def class_places(classes: Tensor, columns: Tensor) -> Tensor:
    """For each class number its place among ``columns``; -100, which losses ignore, for the other
    of the ``classes``.
    """
    places = torch.full((int(classes.max()) + 1,), UNLABELLED, device=classes.device)
    places[columns] = torch.arange(len(columns), device=classes.device)
    return places


def has_tasks(model: nn.Module) -> bool:
    """Whether it has a head for each task."""
    from avalanche.models import MultiTaskModule

    return isinstance(model, MultiTaskModule)


def check_one_head(plugin: OldModelPlugin, model: nn.Module) -> None:
    """ValueError: the model has a head for each task."""
    if has_tasks(model):
        raise ValueError(
            f"{type(plugin).__name__} needs one head for all classes; "
            f"{type(model).__name__} has one a task"
        )


def check_submodule(model: nn.Module, argument: str, path: str) -> None:
    """ValueError: the model has no submodule at the path that a plugin's ``argument`` gives."""
    paths = module_paths(model)
    if path not in paths:
        raise ValueError(
            f"{argument}={path!r}: {type(model).__name__} has no such submodule; "
            f"{did_you_mean(path, paths)}"
        )
