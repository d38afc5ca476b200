"""Learning without Forgetting and LwF.MC in an avalanche strategy."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.incremental.lwf import LwFLoss, lwf_mc_loss
from kdtasks.incremental.plugin.base import OldModelPlugin, check_one_head, class_places, has_tasks

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


class LwFPlugin(OldModelPlugin):
    r"""Learning without Forgetting (arXiv 1606.09282) in an avalanche strategy.

    .. math:: L = L_{new}
        + w \sum_k \mathrm{KL}\big(\mathrm{softmax}(z^{old}_k / T)
        \,\|\, \mathrm{softmax}(z_k / T)\big)

    One head (a linear layer over all classes, avalanche's ``IncrementalClassifier``, our
    ``GrowingHead``): k is one, and z are the columns of classes of earlier experiences, and no
    others. Several heads (avalanche's ``MultiTaskModule``): k are the task labels of earlier
    experiences, each head cut to its classes. Old heads read the features of the strategy's own
    forward where the model has one ``MultiHeadClassifier``; else the student runs once more, and
    moves its BatchNorm once more.

    The first experience is the strategy's own. The paper's warm-up of the new head is not made.

    Against avalanche's ``LwFPlugin``: the same loss at ``ce_over='seen'``, for a model without
    BatchNorm and dropout. Its teacher stays in training mode: it drops out, and its BatchNorm
    moves. One head on a benchmark with task labels: it distils the classes of task 0 alone. Several
    heads: the student runs twice. Its datasets must have ``targets_task_labels``.

    Args:
        weight: w; a list has one for each experience of the stream (the first is never used). The
            paper's is 1.
        temperature: T, 2 in the paper.
        scale_t2: multiply by T², as Hinton's distillation does; the paper does not.
        ce_over: ``'new'``: with one head, from the second experience on, the cross-entropy of the
            columns of this experience's classes takes the place of the loss so far: the paper's new
            head. Rows of other classes, from a replay, are not in its mean. The plugin has to stand
            before any that adds a loss. ``'seen'``: the strategy's criterion, over all columns,
            stays.

    Raises:
        ValueError: another ``ce_over``, a temperature that is not positive; (at the experience) a
            list of weights that has no entry for it; a softmax over one class, of an old head, the
            only old class, or the new one (``ce_over='new'``).
    """

    def __init__(
        self,
        weight: float | Sequence[float] = 1.0,
        temperature: float = 2.0,
        scale_t2: bool = False,
        ce_over: str = "new",
    ):
        super().__init__()
        if ce_over not in ("new", "seen"):
            raise ValueError(f"ce_over must be 'new' or 'seen', got {ce_over!r}")
        self.weight, self.ce_over = weight, ce_over
        self.loss = LwFLoss(temperature, scale_t2)

    def before_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Also find the classes' places, and check that each softmax has several classes."""
        super().before_training_exp(strategy, **kwargs)
        self.place = class_places(torch.cat([self.old, self.new]), self.new)
        self._check_classes(strategy.model)
        if isinstance(self.weight, Sequence) and self.experience >= len(self.weight):
            raise ValueError(
                f"weight has {len(self.weight)} entries, and this is experience "
                f"{self.experience + 1}"
            )

    def _check_classes(self, model: nn.Module) -> None:
        """No softmax over one class: it is 1 whatever the logit."""
        if self.teacher is None:
            return
        learns = "LwFMCPlugin, with a sigmoid for each class, learns and keeps one class at a time"
        parts = list(self.columns.values()) if has_tasks(model) else [self.old]
        if any(len(columns) == 1 for columns in parts):
            raise ValueError(
                f"experience {self.experience + 1}: LwF's softmax of an old head would be over one "
                f"class, seen so far: {self.seen}, and keep nothing of it. {learns}"
            )
        if self.ce_over == "new" and len(self.new) == 1 and not has_tasks(model):
            raise ValueError(
                f"experience {self.experience + 1} has one class, "
                f"{self.new.tolist()}: with ce_over='new' its cross-entropy is 0 whatever the "
                f"logit. Expected ce_over='seen', over all columns; or {learns}"
            )

    def listen(self, model: nn.Module) -> AbstractContextManager:
        """Record the features that the heads of all tasks read."""
        heads = _heads(model)
        return _calls_of(heads[0]) if len(heads) == 1 else nullcontext([])

    def before_backward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Add the distillation loss, from the second experience on."""
        if self.teacher is None:
            return
        if has_tasks(strategy.model):
            student, teacher = self._old_heads(strategy)
        else:
            student = [strategy.mb_output[:, self.old]]
            teacher = [self.teacher_logits(strategy.mb_x)[:, self.old]]
            if self.ce_over == "new":
                strategy.loss = self._new_loss(strategy.mb_output, strategy.mb_y).reshape(1)
        weight = self.weight[self.experience] if isinstance(self.weight, Sequence) else self.weight
        strategy.loss = strategy.loss + weight * self.loss(student, teacher)

    def _new_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy of the columns of this experience's classes."""
        (logits,), target = raised(logits[:, self.new]), self.place[target]
        return F.cross_entropy(logits, target, reduction="sum") / (target >= 0).sum().clamp(min=1)

    def _old_heads(self, strategy: "SupervisedTemplate") -> tuple[list[Tensor], list[Tensor]]:
        """Student's and teacher's logits of each old task, the columns of its classes."""
        student_calls, self.heard = self.heard, []
        with torch.no_grad(), self.teacher.ready(), self.listen(self.teacher.model) as calls:
            teacher = self.teacher.model(strategy.mb_x, None)
        # one trunk: the heads of all tasks in one call
        shared = len(calls) == 1 and calls[0][1] is None
        if shared and len(student_calls) == 1 and len(student_calls[0][0]) == len(strategy.mb_x):
            head, features = _heads(strategy.model)[0], student_calls[0][0]
            student = {task: head.forward_single_task(features, task) for task in self.seen}
        else:
            student = strategy.model(strategy.mb_x, None)
        return (
            [student[task][:, classes] for task, classes in self.columns.items()],
            [teacher[task][:, classes] for task, classes in self.columns.items()],
        )


class LwFMCPlugin(OldModelPlugin):
    r"""LwF.MC (arXiv 1611.07725): one binary cross-entropy a class takes the place of the
    strategy's loss, from the start.

    The target of an old class is the old model's sigmoid, of a class of this experience 1 or 0; the
    mean is over batch and classes: :func:`~kdtasks.incremental.lwf_mc_loss`. Columns of classes
    that have not come yet are left alone. It replaces the loss so far, so it stands before plugins
    that add to it.

    Raises:
        ValueError: (at the experience) the model has a head for each task.
    """

    def before_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Also find the classes' places, and check that there is one head."""
        super().before_training_exp(strategy, **kwargs)
        check_one_head(self, strategy.model)
        self.all = torch.cat([self.old, self.new[~torch.isin(self.new, self.old)]])
        self.place = class_places(self.all, self.all)

    def before_backward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Replace the loss so far."""
        teacher = None
        if self.teacher is not None:
            teacher = self.teacher_logits(strategy.mb_x)[:, self.old]
        target = self.place[strategy.mb_y]
        strategy.loss = lwf_mc_loss(strategy.mb_output[:, self.all], teacher, target).reshape(1)


def _heads(model: nn.Module) -> list[nn.Module]:
    from avalanche.models import MultiHeadClassifier

    return [module for module in model.modules() if isinstance(module, MultiHeadClassifier)]


@contextmanager
def _calls_of(head: nn.Module) -> Iterator[list[tuple]]:
    """A list that gets (features, task labels) of each call of a MultiHeadClassifier."""
    calls: list[tuple] = []

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        positional = args[1] if len(args) > 1 else None
        calls.append((args[0], kwargs.get("task_labels", positional)))

    hook = head.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()
