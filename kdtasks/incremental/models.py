"""A classifier whose head grows: one linear layer an experience, side by side."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdtasks.incremental.bias_correction import BiasCorrection


class GrowingHead(nn.Module):
    r"""``(B, features)`` to logits ``(B, classes)``: a linear layer for each experience, in the
    order in which they came.

    .. math:: z = [\, W_1 x + b_1 \mid W_2 x + b_2 \mid \dots \mid W_t x + b_t \,]

    One softmax over all columns makes it a single head, as class-incremental learning has it; one
    over each block makes it the many heads of task-incremental learning. Weights of an earlier
    time, with fewer blocks, can be loaded: the further blocks keep what they have.

    Args:
        features: of the input.
        sizes: classes of each experience, as many as have come.
        bias: whether the layers have one.
        correction: whether the logits of each experience are corrected by two numbers of its own
            (:class:`~kdtasks.incremental.bias_correction.BiasCorrection`), 1 and 0 at first.
        ahead: classes of experiences that have not come yet, whose columns are there behind the
            others **in training only**, as where all classes are known to be from the start.

    Raises:
        ValueError: no experience, or one without classes; a correction of columns ahead.
    """

    def __init__(
        self,
        features: int,
        sizes: Sequence[int],
        bias: bool = True,
        correction: bool = False,
        ahead: Sequence[int] = (),
    ):
        super().__init__()
        if not sizes or min((*sizes, *ahead)) < 1:
            raise ValueError(
                f"sizes are the classes of each experience, at least one, got {tuple(sizes)}"
                + (f" and ahead={tuple(ahead)}" if ahead else "")
            )
        if correction and ahead:
            raise ValueError("a correction is of columns that have come: expected ahead=()")
        self.features, self.bias, self.ahead = features, bias, len(ahead)
        self.blocks = nn.ModuleList(nn.Linear(features, size, bias) for size in (*sizes, *ahead))
        self.correction = BiasCorrection(sizes) if correction else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Classes of each experience."""
        return tuple(block.out_features for block in self._come)

    @property
    def _come(self) -> nn.ModuleList:
        """The layers of the experiences that have come."""
        return self.blocks[: len(self.blocks) - self.ahead]

    @property
    def old(self) -> int:
        """Classes of all experiences but the last: columns ``[:old]`` are old, ``[old:]`` new."""
        return sum(self.sizes[:-1])

    def grow(self, classes: int) -> None:
        """Add the block of an experience with so many classes. Its parameters are new to the
        optimizer.

        Raises:
            ValueError: there are columns ahead.
        """
        if self.ahead:
            raise ValueError("the head has the columns of what comes already, by ahead")
        like = self.blocks[0].weight
        self.blocks.append(nn.Linear(self.features, classes, self.bias).to(like.device, like.dtype))
        if self.correction is not None:
            self.correction.grow(classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, features)`` -> ``(B, classes)``."""
        logits = self.uncorrected(x)
        return logits if self.correction is None else self.correction(logits)

    def uncorrected(self, x: Tensor) -> Tensor:
        """What the linear layers give, ``(B, features)`` -> ``(B, classes)``."""
        blocks = self.blocks if self.training else self._come
        return torch.cat([block(x) for block in blocks], dim=1)

    def split(self, logits: Tensor) -> list[Tensor]:
        """The columns of each experience: ``(B, classes)`` as views ``(B, size)``."""
        return list(logits.split(list(self.sizes), dim=1))

    def complete_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Add to a state_dict of fewer blocks the present values of the further ones."""
        start = f"{prefix}blocks."
        saved = {name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)}
        if not saved:
            return
        for number, block in enumerate(self.blocks):
            if str(number) not in saved and number >= len(saved):
                for name, value in block.state_dict().items():
                    state[f"{start}{number}.{name}"] = value


def growing(
    network: nn.Module,
    sizes: Sequence[int],
    fixed_norm: bool = False,
    train_old_heads: bool = True,
    bias_correction: bool = False,
    ahead: Sequence[int] = (),
) -> nn.Module:
    """The network with its last linear layer replaced by a :class:`GrowingHead`.

    Args:
        network: a classifier, such as those of ``kdtasks.classification.models``, torchvision or
            timm; it is changed.
        sizes: see :class:`GrowingHead`.
        fixed_norm: BatchNorm stays in eval: its statistics are those of the experiences before.
            They otherwise follow the newest experience, whatever the old outputs are held to.
        train_old_heads: False freezes the layers of all experiences but the last, as FACIL does;
            the LwF paper trains them.
        bias_correction: as BiC has it, see :class:`GrowingHead`.
        ahead: as dark experience replay has it, see :class:`GrowingHead`.

    Raises:
        ValueError: the network has no linear layer.
    """
    linear_layers = [
        (path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)
    ]
    if not linear_layers:
        raise ValueError(
            f"{type(network).__name__} has no linear layer that a growing head could replace"
        )
    path, last = linear_layers[-1]
    head = GrowingHead(last.in_features, sizes, last.bias is not None, bias_correction, ahead)
    network.set_submodule(path, head.to(last.weight.device, last.weight.dtype))
    head.blocks[: len(sizes) - 1].requires_grad_(train_old_heads)
    if fixed_norm:
        for module in network.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, FrozenBatchNorm):
                module.__class__ = _fixed(type(module))
                module.eval()
    return network


def head_of(model: nn.Module) -> tuple[str, GrowingHead]:
    """``(path, head)`` of the model's :class:`GrowingHead`.

    Raises:
        ValueError: it has none, or several.
    """
    heads = [
        (path, module) for path, module in model.named_modules() if isinstance(module, GrowingHead)
    ]
    if len(heads) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(heads)} growing heads, expected one: "
            "dict(type='kdtasks.incremental.models.growing', network=dict(type=…), sizes=…)"
        )
    return heads[0]


class FrozenBatchNorm:
    """A BatchNorm, of whatever kind, whose ``train()`` changes nothing."""

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in eval."""
        return super().train(False)


@cache
def _fixed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(
        f"Fixed{kind.__name__}",
        (FrozenBatchNorm, kind),
        {"__doc__": f"{kind.__name__} that stays in eval."},
    )
