"""Exemplars that the networks of an avalanche strategy choose, and iCaRL with them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from kdtasks.core.trial import try_out
from kdtasks.incremental.herding import class_means, herding, mean_distances
from kdtasks.incremental.models import GrowingHead
from kdtasks.incremental.plugin.base import OldModelPlugin, check_one_head
from kdtasks.incremental.plugin.gd import Rows
from kdtasks.incremental.plugin.lwf import LwFMCPlugin
from kdtasks.incremental.sampling import coreset_quota

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate

# a score that no class with exemplars has; avalanche's own heads mask with it
_UNSEEN = -1000.0


class ExemplarPlugin(OldModelPlugin):
    """A plugin that keeps exemplars of each class and mixes them among the next experiences.

    At the end of an experience its network chooses, of each of its classes, by
    :func:`~kdtasks.incremental.herding`: in eval, on the images of avalanche's eval transforms, by
    what goes into the last linear layer. Older classes keep the first of theirs. The batches of the
    next experience mix its images and these, each once an epoch, in the training transforms.

    Args:
        memory: exemplars of all classes together: ``floor(memory / classes)`` of each, what remains
            one each to the latest. 2000 for iCaRL's CIFAR-100.
        memory_per_class: of each class, in the place of ``memory``.

    Raises:
        ValueError: both kinds of memory, or none; (at the experience) a head for each task, no
            linear layer, or a class that has come before.
    """

    def __init__(self, memory: int = 0, memory_per_class: int = 0):
        super().__init__()
        if bool(memory) == bool(memory_per_class) or min(memory, memory_per_class) < 0:
            raise ValueError(
                "expected memory, in all, or memory_per_class, got "
                f"{memory!r} and {memory_per_class!r}"
            )
        self.memory, self.memory_per_class = memory, memory_per_class
        # classes, in the order in which they came
        self.arrived: list[int] = []
        # of each experience its images; of each class its experience and the places there, the
        # first one chosen first
        self.images: list[Dataset] = []
        self.chosen: dict[int, tuple[int, list[int]]] = {}

    def before_training_exp(
        self, strategy: "SupervisedTemplate", num_workers: int = 0, **kwargs: object
    ) -> None:
        """Mix the exemplars among the batches."""
        super().before_training_exp(strategy, **kwargs)
        check_one_head(self, strategy.model)
        classifier_of(strategy.model, f"{type(self).__name__} could read the features of")
        again = [number for number in self.new.tolist() if number in self.arrived]
        if again:
            raise ValueError(
                f"experience {self.experience + 1} brings class {again[0]} again: exemplars are of "
                "classes that come once"
            )
        parts = self.training_parts(strategy)
        strategy.dataloader = DataLoader(
            Rows([Subset(*part) for part in parts], None, []),
            strategy.train_mb_size,
            shuffle=True,
            num_workers=num_workers,
        )

    def training_parts(self, strategy: "SupervisedTemplate") -> list[tuple[Dataset, list[int]]]:
        """The exemplars, and the experience's images, by their places."""
        images = strategy.adapted_dataset
        parts = [(self.images[e].train(), places) for e, places in self.kept().values()]
        return [*parts, (images, list(range(len(images))))]

    def quota(self, classes: int) -> list[int]:
        """How many there are of each of so many classes."""
        if self.memory_per_class:
            return [self.memory_per_class] * classes
        return coreset_quota(self.memory, classes)

    def kept(self) -> dict[int, tuple[int, list[int]]]:
        """``{class: (experience, places)}`` of the exemplars of all classes that have come."""
        quota = self.quota(len(self.arrived)) if self.arrived else []
        return {
            number: (self.chosen[number][0], self.chosen[number][1][:count])
            for number, count in zip(self.arrived, quota)
        }

    def after_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Let the network choose, then keep the model."""
        images = strategy.experience.dataset
        count = max(self.quota(len(self.arrived) + len(self.new)))
        targets = torch.tensor([int(number) for number in images.targets])
        for number in self.new.tolist():
            places = (targets == number).nonzero()[:, 0]
            features = head_inputs(strategy, images, places.tolist())
            order = places[herding(features, count).cpu()].tolist()
            self.chosen[number] = (self.experience, order)
        self.images.append(images)
        self.arrived += self.new.tolist()
        super().after_training_exp(strategy, **kwargs)

    def state_dict(self) -> dict:
        """Also the classes that have arrived, and the places of their exemplars."""
        chosen = {number: [e, list(places)] for number, (e, places) in self.chosen.items()}
        return {**super().state_dict(), "arrived": list(self.arrived), "chosen": chosen}

    def load_state_dict(self, state: dict, model: nn.Module, experiences: Sequence = ()) -> None:
        """``experiences``: those that are over, out of which the exemplars are taken."""
        if len(experiences) != state["experience"]:
            raise ValueError(
                f"expected the {state['experience']} experiences that are over, which have the "
                f"exemplars, got {len(experiences)}"
            )
        super().load_state_dict(state, model)
        self.arrived = list(state["arrived"])
        self.images = [experience.dataset for experience in experiences]
        self.chosen = {number: (e, list(places)) for number, (e, places) in state["chosen"].items()}


class ICaRLPlugin(ExemplarPlugin, LwFMCPlugin):
    r"""iCaRL (arXiv 1611.07725) in an avalanche strategy: the loss of :class:`LwFMCPlugin` on the
    experience's images and exemplars, and classification by the nearest mean of exemplars.

    In evaluation, from the end of the first experience on, the strategy's output is minus the
    distance of the features to each class's mean
    (:func:`~kdtasks.incremental.class_means`), -1000 for a class that has not come; so avalanche's
    metrics are those of the nearest mean, and its evaluation loss means nothing.

    Args:
        memory, memory_per_class: see :class:`ExemplarPlugin`.
        nearest_mean: False: evaluation by the head.

    Raises:
        ValueError: as :class:`ExemplarPlugin`.
    """

    def __init__(self, memory: int = 0, memory_per_class: int = 0, nearest_mean: bool = True):
        super().__init__(memory, memory_per_class)
        self.nearest_mean = nearest_mean
        # (classes so far, D), as they came
        self.means: Tensor | None = None
        self._features: list[Tensor] = []
        self._hook = None

    def after_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Choose exemplars, and find the means of all classes by this network."""
        super().after_training_exp(strategy, **kwargs)
        features, target = [], []
        for column, (experience, places) in enumerate(self.kept().values()):
            features.append(head_inputs(strategy, self.images[experience], places))
            target += [column] * len(places)
        features, target = torch.cat(features), torch.tensor(target, device=features[0].device)
        self.means = class_means(features, target, len(self.arrived))

    def before_eval_forward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Record what goes into the head."""
        if self.nearest_mean and self.means is not None:
            self._features.clear()
            head = classifier_of(strategy.model)
            self._hook = head.register_forward_pre_hook(
                lambda module, inputs: self._features.append(inputs[0])
            )

    def after_eval_forward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Scores by the means in the place of the head's."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        scores = -mean_distances(self._features[-1].float(), self.means.to(strategy.device))
        output = torch.full_like(strategy.mb_output, _UNSEEN, dtype=scores.dtype)
        output[:, self.arrived] = scores
        strategy.mb_output = output

    def state_dict(self) -> dict:
        """Also the means."""
        return {**super().state_dict(), "means": self.means}

    def load_state_dict(self, state: dict, model: nn.Module, experiences: Sequence = ()) -> None:
        """As :class:`ExemplarPlugin`."""
        super().load_state_dict(state, model, experiences)
        self.means = state["means"]


def classifier_of(model: nn.Module, what: str = "could be asked") -> nn.Module:
    """The growing head, or else the last linear layer, which is that of an
    ``IncrementalClassifier`` too.

    Raises:
        ValueError: there is none.
    """
    modules = list(model.modules())
    growing = [module for module in modules if isinstance(module, GrowingHead)]
    linear = growing or [module for module in modules if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer that {what}")
    return growing[0] if growing else linear[-1]


def head_inputs(strategy: "SupervisedTemplate", images: Dataset, places: list[int]) -> Tensor:
    """``(n, D)`` what goes into the model's head, in eval, for some images in eval transforms."""
    return torch.cat([features for features, _ in _evaluated(strategy, images, places)])


def logits_of(strategy: "SupervisedTemplate", images: Dataset, places: list[int]) -> Tensor:
    """``(n, C)`` what the model says in eval of some images in eval transforms."""
    return torch.cat([logits for _, logits in _evaluated(strategy, images, places)])


def _evaluated(
    strategy: "SupervisedTemplate", images: Dataset, places: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """Of each batch, what goes into the head and what comes out of the model."""
    head_inputs: list[Tensor] = []
    model, evaluated = strategy.model, []
    hook = classifier_of(model).register_forward_pre_hook(
        lambda module, inputs: head_inputs.append(inputs[0])
    )
    try:
        with try_out(model):
            loader = DataLoader(
                Subset(images.with_transforms("eval"), places), strategy.eval_mb_size
            )
            for input, *_ in loader:
                logits = model(input.to(strategy.device))
                evaluated.append((head_inputs[-1].float(), logits))
    finally:
        hook.remove()
    return evaluated
