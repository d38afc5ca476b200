"""Learning without Memorizing in an avalanche strategy."""

from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from kdtasks.core.layouts import check_channels_first, to_nchw
from kdtasks.core.names import did_you_mean
from kdtasks.core.recorder import check_gradient, module_paths
from kdtasks.incremental.lwm import grad_cam, lwm_attention_loss, lwm_distill_bce
from kdtasks.incremental.plugin.base import OldModelPlugin, check_one_head


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
        self.layout, self.prefix_tokens = layout, prefix_tokens
        self.attention, self.gamma, self.beta, self.second_order = (
            attention,
            gamma,
            beta,
            second_order,
        )

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        check_one_head(self, strategy.model)
        if self.attention not in (paths := module_paths(strategy.model)):
            raise ValueError(
                f"attention={self.attention!r}: {type(strategy.model).__name__} has no such "
                f"submodule; {did_you_mean(self.attention, paths)}"
            )

    def listen(self, model: nn.Module) -> AbstractContextManager:
        return _activations_of(model, self.attention) if self.gamma != 0 else nullcontext([])

    def before_backward(self, strategy, **kwargs):
        if self.teacher is None:
            return
        student, input = strategy.mb_output, strategy.mb_x
        if self.gamma == 0:
            teacher = self.teacher_logits(input)
        else:
            with torch.enable_grad(), self.listen(self.teacher.model) as taught:
                teacher = self.teacher(input)
            taken, self.heard = self.heard, []
            attended = self.old[student[:, self.old].argmax(1)]
            maps = [
                self._map(student, taken, attended, self.second_order),
                self._map(teacher, taught, attended, False),
            ]
            strategy.loss = strategy.loss + self.gamma * lwm_attention_loss(*maps)
        if self.beta != 0:
            strategy.loss = strategy.loss + self.beta * lwm_distill_bce(
                student[:, self.old], teacher.detach()[:, self.old]
            )

    def _map(
        self, logits: Tensor, taken: list[Tensor], attended: Tensor, second_order: bool
    ) -> Tensor:
        """(B, h, w) Grad-CAM of one class a row. Rows do not mix after the activation, so their sum
        has each row's gradient.
        """
        if len(taken) != 1:
            raise ValueError(
                f"attention={self.attention!r} ran {len(taken)} times in one forward, expected once"
            )
        score = logits.gather(1, attended[:, None]).sum()
        (gradient,) = torch.autograd.grad(
            score, taken, retain_graph=True, create_graph=second_order
        )
        if self.layout is None:
            check_channels_first(taken[0])
        return grad_cam(
            *(to_nchw(one, self.layout, self.prefix_tokens) for one in (taken[0], gradient))
        )


@contextmanager
def _activations_of(model: nn.Module, path: str):
    """A list that gets a submodule's outputs, ready to be differentiated by, as they were before
    any change in place.
    """
    taken: list[Tensor] = []

    def record(module, args, output):
        if not torch.is_grad_enabled():
            check_gradient(path, module)
        taken.append(output if output.requires_grad else output.detach().requires_grad_())
        return taken[-1].clone()

    hook = model.get_submodule(path).register_forward_hook(record)
    try:
        yield taken
    finally:
        hook.remove()
