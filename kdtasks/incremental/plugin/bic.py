"""BiC in an avalanche strategy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kdtasks.incremental.bias_correction import BiasCorrection
from kdtasks.incremental.lwf import lwf_loss
from kdtasks.incremental.plugin.exemplars import ExemplarPlugin, logits_of
from kdtasks.incremental.sampling import coreset_indices

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


class BiCPlugin(ExemplarPlugin):
    r"""BiC (arXiv 1905.13260) in an avalanche strategy; see
    :mod:`kdtasks.incremental.bias_correction`.

    From the second experience on, with λ = l / (l + m) for l old and m new classes,

    .. math:: L = (1 - \lambda)\, L_\mathrm{strategy} + \lambda\, \mathrm{KL}\big(
        \mathrm{softmax}(z^{old} / T) \,\|\, \mathrm{softmax}(z / T)\big)

    and at its end two numbers fitted to samples that were held out, equally many of each class. The
    strategy's output, in training and in evaluation, is the corrected one, of old classes by the
    numbers of their time. The strategy's loss is over all columns.

    Args:
        memory, memory_per_class: see :class:`ExemplarPlugin`.
        held_out: share of a class's exemplars that is not trained on, one at least, and as many of
            each new class; 0.1 in the paper.
        temperature: T.
        epochs, lr, penalty: of :meth:`~kdtasks.incremental.BiasCorrection.fit`.
        seed: of what is held out.

    Raises:
        ValueError: as :class:`ExemplarPlugin`; a share out of (0, 1); (at the experience) one
            exemplar of a class, or one old class, whose softmax is 1 whatever its logit.
    """

    def __init__(
        self,
        memory: int = 0,
        memory_per_class: int = 0,
        held_out: float = 0.1,
        temperature: float = 2.0,
        epochs: int = 200,
        lr: float = 0.1,
        penalty: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(memory, memory_per_class)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must be a share in (0, 1), got {held_out}")
        self.held_out, self.temperature, self.seed = held_out, temperature, seed
        self.fitting = {"epochs": epochs, "lr": lr, "penalty": penalty}
        # of the experiences that are over, and in an experience its own
        self.correction: BiasCorrection | None = None
        # class, images and places of what is held out
        self.out: list[tuple[int, Dataset, list[int]]] = []

    def before_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Hold samples out, and give the new classes numbers that change nothing."""
        if self.teacher is not None and len(self.arrived) == 1:
            raise ValueError(
                f"experience {self.experience + 1}: one old class, {self.arrived}, has a softmax "
                "of 1 whatever its logit, and keeps nothing; expected two or more"
            )
        super().before_training_exp(strategy, **kwargs)
        if self.correction is None:
            self.correction = BiasCorrection([len(self.new)])
        else:
            self.correction.grow(len(self.new))
        self.correction.to(strategy.device)

    def training_parts(self, strategy: "SupervisedTemplate") -> list[tuple[Dataset, list[int]]]:
        """The exemplars and the experience's images, less what is held out."""
        images, self.out = strategy.adapted_dataset, []
        if not self.arrived:
            return super().training_parts(strategy)
        kept = self.kept()
        least = min(len(places) for _, places in kept.values())
        if least < 2:
            raise ValueError(
                f"held_out={self.held_out} of {least} exemplars of a class: expected a memory of "
                "two or more a class, one to train on and one to hold out"
            )
        count = max(1, int(self.held_out * least))
        targets = torch.tensor([int(number) for number in images.targets])
        samples = [
            *((number, self.images[e].train(), places) for number, (e, places) in kept.items()),
            *(
                (number, images, (targets == number).nonzero()[:, 0].tolist())
                for number in self.new.tolist()
            ),
        ]
        parts = []
        for number, dataset, places in samples:
            row = torch.zeros(len(places), dtype=torch.long)
            out = set(coreset_indices(row, [count], self.seed, torch.tensor(places)).tolist())
            self.out.append((number, dataset, [places[i] for i in sorted(out)]))
            parts.append((dataset, [place for i, place in enumerate(places) if i not in out]))
        return parts

    def after_forward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Correct what the model says."""
        super().after_forward(strategy, **kwargs)
        strategy.mb_output = self.corrected(strategy.mb_output, self._come())

    def after_eval_forward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Correct what the model says."""
        if self.correction is not None:
            strategy.mb_output = self.corrected(strategy.mb_output, self._come())

    def before_backward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Weigh the strategy's loss, and add the distillation."""
        if self.teacher is None:
            return
        share = len(self.old) / (len(self.old) + len(self.new))
        # the numbers of old classes are those of the teacher's time
        teacher = self.teacher_logits(strategy.mb_x)[:, self.arrived]
        teacher = teacher * self._spread(self.correction.alpha) + self._spread(self.correction.beta)
        student = strategy.mb_output[:, self.arrived]
        strategy.loss = (1 - share) * strategy.loss + share * lwf_loss(
            student, teacher, self.temperature
        )

    def _spread(self, numbers: Tensor) -> Tensor:
        """One a column of the classes that had come before."""
        sizes = torch.tensor(self.correction.sizes[:-1], device=numbers.device)
        return numbers[:-1].repeat_interleave(sizes)

    def _come(self) -> list[int]:
        """The classes that the correction has numbers for, as they came."""
        new = [number for number in self.new.tolist() if number not in self.arrived]
        return [*self.arrived, *new][: sum(self.correction.sizes)]

    def corrected(self, logits: Tensor, classes: list[int]) -> Tensor:
        """``(B, C)`` with the columns of these classes corrected, the others as they are."""
        return logits.index_copy(
            1, torch.tensor(classes, device=logits.device), self.correction(logits[:, classes])
        )

    def after_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Fit the newest numbers, then choose exemplars and keep the model."""
        if self.out:
            come = self._come()
            logits = [logits_of(strategy, images, places) for _, images, places in self.out]
            target = [come.index(number) for number, _, places in self.out for _ in places]
            target = torch.tensor(target, device=strategy.device)
            self.correction.fit(torch.cat(logits)[:, come], target, **self.fitting)
        super().after_training_exp(strategy, **kwargs)

    def state_dict(self) -> dict:
        """Also the numbers."""
        correction = self.correction and {
            "sizes": list(self.correction.sizes),
            **self.correction.state_dict(),
        }
        return {**super().state_dict(), "correction": correction}

    def load_state_dict(self, state: dict, model: nn.Module, experiences: Sequence = ()) -> None:
        """As :class:`ExemplarPlugin`."""
        super().load_state_dict(state, model, experiences)
        numbers = dict(state["correction"] or {})
        self.correction = BiasCorrection(numbers.pop("sizes")) if numbers else None
        if numbers:
            self.correction.load_state_dict(numbers)
