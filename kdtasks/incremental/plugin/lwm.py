"""Learning without Memorizing in an avalanche strategy."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.layouts import check_channels_first, to_nchw
from kdtasks.core.recorder import check_gradient
from kdtasks.incremental.lwm import grad_cam, lwm_attention_loss, lwm_distill_bce
from kdtasks.incremental.plugin.base import OldModelPlugin, check_one_head, check_submodule

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


class LwMPlugin(OldModelPlugin):
    r"""Learning without Memorizing (arXiv 1811.08051) in an avalanche strategy: the old model's
    attention kept.

    .. math:: L = L_C + \beta L_D + \gamma L_{AD}

    L_C is the strategy's criterion, L_D :func:`~kdtasks.incremental.lwm.lwm_distill_bce` of the old
    classes' columns, L_AD :func:`~kdtasks.incremental.lwm.lwm_attention_loss` of the Grad-CAM maps
    of one old class, the student's likeliest. The student's map is of the strategy's own forward:
    no model runs twice. The first experience is the strategy's own.

    Args:
        attention: dotted path of the submodule whose output (B, K, h, w) is looked at: the last
            before the pooling, after its ReLU (a value that a later ReLU changes in place is taken
            as it was before). Nothing after it may mix samples.
        gamma, beta: weights; the paper gives none, 1 and 1 are the public codes'.
        second_order: the student's gradient goes through the map's weights alpha too; False: alpha
            is a constant.
        layout, prefix_tokens: of the output, as in :class:`~kdtasks.incremental.lwm.LwMDistiller`.

    Raises:
        ValueError: (at the experience) the model has no such submodule, or a head for each task;
            (at a batch) the submodule ran not once, or gave no (B, K, h, w).
    """

    def __init__(
        self,
        attention: str = "layer3",
        gamma: float = 1.0,
        beta: float = 1.0,
        second_order: bool = True,
        layout: str | None = None,
        prefix_tokens: int = 0,
    ):
        super().__init__()
        self.attention, self.layout, self.prefix_tokens = attention, layout, prefix_tokens
        self.gamma, self.beta, self.second_order = gamma, beta, second_order

    def before_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Also check the model's head and the submodule."""
        super().before_training_exp(strategy, **kwargs)
        check_one_head(self, strategy.model)
        check_submodule(strategy.model, "attention", self.attention)

    def listen(self, model: nn.Module) -> AbstractContextManager:
        """Record the submodule's outputs, if attention is compared."""
        return _activations_of(model, self.attention) if self.gamma != 0 else nullcontext([])

    def before_backward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Add both terms, from the second experience on."""
        if self.teacher is None:
            return
        student, input = strategy.mb_output, strategy.mb_x
        if self.gamma == 0:
            teacher = self.teacher_logits(input)
        else:
            with torch.enable_grad(), self.listen(self.teacher.model) as teacher_activations:
                teacher = self.teacher(input)
            activations, self.heard = self.heard, []
            attended = self.old[student[:, self.old].argmax(1)]
            student_map = self._map(student, activations, attended, self.second_order)
            teacher_map = self._map(teacher, teacher_activations, attended, False)
            attention_loss = lwm_attention_loss(student_map, teacher_map)
            strategy.loss = strategy.loss + self.gamma * attention_loss
        if self.beta != 0:
            teacher = teacher.detach()[:, self.old]
            strategy.loss = strategy.loss + self.beta * lwm_distill_bce(
                student[:, self.old], teacher
            )

    def _map(
        self, logits: Tensor, activations: list[Tensor], attended: Tensor, second_order: bool
    ) -> Tensor:
        """(B, h, w) Grad-CAM of one class a row. Rows do not mix after the activation, so their sum
        has each row's gradient.
        """
        if len(activations) != 1:
            raise ValueError(
                f"attention={self.attention!r} ran {len(activations)} times in one forward, "
                "expected once"
            )
        score = logits.gather(1, attended[:, None]).sum()
        (gradient,) = torch.autograd.grad(
            score, activations, retain_graph=True, create_graph=second_order
        )
        if self.layout is None:
            check_channels_first(activations[0])
        return grad_cam(
            to_nchw(activations[0], self.layout, self.prefix_tokens),
            to_nchw(gradient, self.layout, self.prefix_tokens),
        )


@contextmanager
def _activations_of(model: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """A list that gets a submodule's outputs, ready to be differentiated by, as they were before
    any change in place.
    """
    activations: list[Tensor] = []

    def record(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            check_gradient(path, module)
        activations.append(output if output.requires_grad else output.detach().requires_grad_())
        return activations[-1].clone()

    hook = model.get_submodule(path).register_forward_hook(record)
    try:
        yield activations
    finally:
        hook.remove()
