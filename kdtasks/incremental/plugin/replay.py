"""Dark experience replay and weight aligning in an avalanche strategy."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.incremental.der import ReservoirBuffer, der_loss
from kdtasks.incremental.lwf import lwf_loss
from kdtasks.incremental.models import GrowingHead
from kdtasks.incremental.plugin.base import OldModelPlugin, check_one_head
from kdtasks.incremental.plugin.exemplars import classifier_of
from kdtasks.incremental.weight_alignment import weight_alignment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from avalanche.training.templates import SupervisedTemplate


class DERPlugin(OldModelPlugin):
    r"""DER, and DER++ with ``beta`` (arXiv 2004.07211), in an avalanche strategy.

    .. math:: L = L_\mathrm{strategy} + \alpha \operatorname{mean} (z(x') - h')^2
        [\, + \beta\, \mathrm{CE}(z(x''), y'') \,]

    Two independent draws from the reservoir, each as large as the strategy's batch. A batch goes in
    after its step, as the strategy's loader gave it (augmented, where that augments), with the
    logits of its step. Of these the columns of classes that had come by then are kept and compared,
    in the order in which they came.

    Args:
        size: how many samples are kept.
        alpha: weight of the logits; 0.3 as released for CIFAR-10 and 500 samples.
        beta: weight of the labels, 0.5 in DER++ there; 0: DER.
        seed: of the reservoir.

    Raises:
        ValueError: the size is no integer of at least 1; (at the experience) a head a task.
    """

    def __init__(self, size: int, alpha: float = 0.3, beta: float = 0.0, seed: int = 0):
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.buffer = ReservoirBuffer(size, seed)
        self.order: list[int] = []  # classes, as they came

    def before_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Note the new classes."""
        super().before_training_exp(strategy, **kwargs)
        check_one_head(self, strategy.model)
        self.order += [c for c in self.new.tolist() if c not in self.order]

    def before_backward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Add what the drawn samples cost."""
        if not len(self.buffer):
            return
        drawn = self._draw(strategy)
        logits = self._logits(strategy.model, drawn["input"])
        strategy.loss = strategy.loss + self.alpha * der_loss(
            logits, drawn["logits"], drawn["columns"]
        )
        if self.beta:
            drawn = self._draw(strategy)
            (logits,) = raised(strategy.model(drawn["input"]))
            strategy.loss = strategy.loss + self.beta * F.cross_entropy(logits, drawn["target"])

    def after_update(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Let the batch pass the reservoir, with the logits of before the step."""
        logits = strategy.mb_output.detach()[:, self.order]
        self.buffer.add(
            input=strategy.mb_x,
            target=strategy.mb_y,
            logits=logits.float(),
            columns=torch.full_like(strategy.mb_y, logits.shape[1]),
        )

    def after_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Note the classes; there is no teacher."""
        super().after_training_exp(strategy, **kwargs)
        self.teacher = None

    def _draw(self, strategy: "SupervisedTemplate") -> dict[str, Tensor]:
        return self.buffer.draw(len(strategy.mb_x))

    def _logits(self, model: nn.Module, input: Tensor) -> Tensor:
        return model(input)[:, self.order]

    def state_dict(self) -> dict:
        """The buffer, and the classes."""
        return {**super().state_dict(), "buffer": self.buffer.state_dict(), "order": [*self.order]}

    def load_state_dict(self, state: dict, model: nn.Module, experiences: "Sequence" = ()) -> None:
        """Put the plugin where :meth:`state_dict` left another of the same size."""
        super().load_state_dict(state, model, experiences)
        self.buffer.load_state_dict(state["buffer"])
        self.order = [*state["order"]]


class WAPlugin(OldModelPlugin):
    r"""WA (arXiv 1911.07053) in an avalanche strategy: from the second experience on, with λ = l /
    (l + m) for l old and m new classes,

    .. math:: L = (1 - \lambda)\, L_\mathrm{strategy} + \lambda\, \mathrm{KL}\big(
        \mathrm{softmax}(z^{old} / T) \,\|\, \mathrm{softmax}(z / T)\big)

    and at its end the weights of the new classes scaled
    (:func:`kdtasks.incremental.weight_alignment`), before the model is kept as the next teacher.
    The strategy's loss is over all columns; exemplars are for avalanche's ``ReplayPlugin`` to
    bring.

    Args:
        temperature: T.

    Raises:
        ValueError: (at the experience) a head a task, no linear layer over all classes, or one old
            class, whose softmax is 1 whatever its logit.
    """

    def __init__(self, temperature: float = 2.0):
        super().__init__()
        self.temperature = temperature

    def before_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Check the head."""
        super().before_training_exp(strategy, **kwargs)
        check_one_head(self, strategy.model)
        _head_weights(strategy.model)
        if self.teacher is not None and len(self.old) == 1:
            raise ValueError(
                f"experience {self.experience + 1}: one old class, {self.old.tolist()}, has a "
                "softmax of 1 whatever its logit, and keeps nothing; expected two or more"
            )

    def before_backward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Weigh the strategy's loss, and add the distillation."""
        if self.teacher is None:
            return
        share = len(self.old) / (len(self.old) + len(self.new))
        teacher = self.teacher_logits(strategy.mb_x)[:, self.old]
        soft = lwf_loss(strategy.mb_output[:, self.old], teacher, self.temperature)
        strategy.loss = (1 - share) * strategy.loss + share * soft

    def after_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Align, then keep the model."""
        if self.teacher is not None:
            self._align(strategy.model)
        super().after_training_exp(strategy, **kwargs)

    @torch.no_grad()
    def _align(self, model: nn.Module) -> None:
        weights = _head_weights(model)
        rows = torch.cat(weights)
        aligned = weight_alignment(rows[torch.cat([self.old, self.new])], len(self.old))
        rows[self.new] = aligned[len(self.old) :]
        for weight, new in zip(weights, rows.split([len(weight) for weight in weights])):
            weight.copy_(new)


def _head_weights(model: nn.Module) -> list[Tensor]:
    """The weights of the last linear layer, or of the blocks of a growing head, a row a class."""
    head = classifier_of(model, "has weights that WA could align")
    return (
        [block.weight for block in head.blocks] if isinstance(head, GrowingHead) else [head.weight]
    )
