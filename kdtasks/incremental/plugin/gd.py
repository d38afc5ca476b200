"""Global Distillation in an avalanche strategy."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from kdtasks.core import Teacher
from kdtasks.core.classes import UNLABELLED
from kdtasks.incremental.gd import step_losses
from kdtasks.incremental.plugin.base import (
    OldModelPlugin,
    check_one_head,
    check_submodule,
    class_places,
)
from kdtasks.incremental.sampling import coreset_indices, coreset_quota, sample_external, scores_of

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate

# the images of an experience, and which of them
Part = tuple[Dataset, list[int]]


class GlobalDistillationPlugin(OldModelPlugin):
    r"""Global Distillation (arXiv 1903.12648) in an avalanche strategy: the steps and losses of
    :mod:`kdtasks.incremental.gd`.

    The strategy's epochs are the main step. Before them the plugin samples the pool and trains the
    current teacher, after them it fine-tunes the head: plain loops over the same batches, which no
    metric sees. In the first experience there is the main step alone, with
    :class:`~kdtasks.incremental.gd.CurrentTeacherLoss`. The batches mix the images of the
    experience, of the coreset and of the sample, whose target is -100. The loss so far is replaced,
    so the plugin stands before others.

    Args:
        optimizer: ``parameters -> optimizer``, for the current teacher and for the head; learning
            rates stay as it sets them.
        head: dotted path of the classifier.
        teacher_epochs, fine_tune_epochs: 200 and 20 in the authors' code, beside 180 of the
            strategy.
        coreset: images that are kept, of all classes together; 2000 there.
        pool: unlabelled images, a dataset of them or of tuples that begin with one; None: no Q,
            which teaches such images only.
        out_of_distribution, seed: see :func:`~kdtasks.incremental.sampling.sample_external`.
        temperature, confidence: of the losses.

    Raises:
        ValueError: (at the experience) a head for each task, no submodule ``head``, no new class,
            or one only.
    """

    def __init__(
        self,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        head: str,
        teacher_epochs: int,
        fine_tune_epochs: int,
        coreset: int = 2000,
        pool: Dataset | None = None,
        out_of_distribution: float = 0.7,
        temperature: float = 2.0,
        confidence: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        self.optimizer, self.head, self.coreset, self.pool = optimizer, head, coreset, pool
        self.teacher_epochs, self.fine_tune_epochs = teacher_epochs, fine_tune_epochs
        self.out_of_distribution, self.seed = out_of_distribution, seed
        terms = "PC" if pool is None else "PCQ"
        losses = {
            step: loss(**arguments)
            for step, (loss, arguments) in step_losses(temperature, confidence, terms).items()
        }
        self.teacher_loss, self.main_loss = losses["current"], losses["main"]
        self.head_loss = losses["finetune"]
        self.current: Teacher | None = None
        # classes, in the order in which they came
        self.arrived: list[int] = []
        # the coreset: of each experience, its images and which of them are kept
        self.kept: list[Part] = []

    def before_training_exp(
        self, strategy: "SupervisedTemplate", num_workers: int = 0, **kwargs: object
    ) -> None:
        """Sample the pool, mix the batches, train the current teacher."""
        super().before_training_exp(strategy, **kwargs)
        check_one_head(self, strategy.model)
        check_submodule(strategy.model, "head", self.head)
        self.old = torch.tensor(self.arrived, dtype=torch.long, device=strategy.device)
        self.new = self.new[~torch.isin(self.new, self.old)]
        self._check_new_classes()
        self.all = torch.cat([self.old, self.new])
        self.place = class_places(self.all, self.all)
        self.new_place = class_places(self.all, self.new)
        parts = self._labelled_parts(strategy)
        targets = self._targets(parts)
        self.counts = torch.bincount(targets, minlength=len(self.all)).to(strategy.device)
        labelled = [Subset(*part) for part in parts]
        rows = Rows(labelled, self.pool, self._sample(len(targets), strategy))
        strategy.dataloader = DataLoader(
            rows, strategy.train_mb_size, shuffle=True, num_workers=num_workers
        )
        if self.teacher is not None:
            model = copy.deepcopy(strategy.model)
            parameters = list(model.parameters())
            self._train(model, parameters, self.teacher_epochs, strategy, self._teacher_losses)
            self.current = Teacher(model)

    def _check_new_classes(self) -> None:
        number = self.experience + 1
        if len(self.new) == 0:
            raise ValueError(
                f"experience {number} has no new class: all of {self.arrived} were seen before"
            )
        if len(self.new) == 1:
            raise ValueError(
                f"experience {number} has one new class, {self.new.tolist()}: the current "
                "teacher's softmax over it is 1 whatever the logit, and learns nothing. Expected "
                "two or more; LwFMCPlugin, with a sigmoid for each class, learns one class at a "
                "time"
            )

    def before_backward(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Replace the loss so far."""
        batch = strategy.mb_output, strategy.mb_x, strategy.mb_y
        if self.teacher is None:
            losses = self._teacher_losses(*batch)
        else:
            losses = self._main_losses(self.main_loss, *batch)
        strategy.loss = sum(losses.values()).reshape(1)

    def after_training_exp(self, strategy: "SupervisedTemplate", **kwargs: object) -> None:
        """Fine-tune the head, choose the coreset, keep a frozen copy of the model."""
        if self.teacher is not None:
            self._fine_tune(strategy)
        self.kept = self._choose(self._labelled_parts(strategy))
        self.arrived, self.current = self.all.tolist(), None
        super().after_training_exp(strategy, **kwargs)

    def _fine_tune(self, strategy: "SupervisedTemplate") -> None:
        """Train the head alone."""
        head = list(strategy.model.get_submodule(self.head).parameters())
        in_head = {id(parameter) for parameter in head}
        frozen = [
            parameter
            for parameter in strategy.model.parameters()
            if parameter.requires_grad and id(parameter) not in in_head
        ]
        losses = partial(self._main_losses, self.head_loss)
        for parameter in frozen:
            parameter.requires_grad_(False)
        self._train(strategy.model, head, self.fine_tune_epochs, strategy, losses)
        for parameter in frozen:
            parameter.requires_grad_(True)

    def _train(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        epochs: int,
        strategy: "SupervisedTemplate",
        losses: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]],
    ) -> None:
        """A plain loop over the strategy's batches."""
        optimizer = self.optimizer(parameters)
        for _ in range(epochs):
            for input, target, _ in strategy.dataloader:
                input, target = input.to(strategy.device), target.to(strategy.device)
                optimizer.zero_grad()
                sum(losses(model(input), input, target).values()).backward()
                optimizer.step()

    def _teacher_losses(self, logits: Tensor, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        return self.teacher_loss(logits[:, self.new], _placed(self.new_place, target))

    def _main_losses(
        self, loss: nn.Module, logits: Tensor, input: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            previous, current = self.teacher(input)[:, self.old], self.current(input)[:, self.new]
        target = _placed(self.place, target)
        return loss(logits[:, self.all], previous, current, target, self.counts)

    def _sample(self, count: int, strategy: "SupervisedTemplate") -> list[int]:
        """Which images of the pool go with so many labelled ones."""
        if self.pool is None:
            return []
        scores = len(self.pool) if self.teacher is None else self._pool_scores(strategy)
        sample = sample_external(
            scores, count, self.out_of_distribution, self.seed, draw=self.experience
        )
        return torch.cat([sample.confident, sample.random]).tolist()

    def _pool_scores(self, strategy: "SupervisedTemplate") -> Iterator[Tensor]:
        """The old model's logits of its classes, in batches of the pool."""
        loader = DataLoader(self.pool, strategy.eval_mb_size)
        for logits in scores_of(self.teacher.model, loader, strategy.device):
            yield logits[:, self.old]

    def _labelled_parts(self, strategy: "SupervisedTemplate") -> list[Part]:
        """The coreset, and all images of the experience."""
        images = strategy.adapted_dataset
        return [*self.kept, (images, list(range(len(images))))]

    def _targets(self, parts: list[Part]) -> Tensor:
        """The column, among all classes, of each image of the parts."""
        classes = [int(images.targets[i]) for images, indices in parts for i in indices]
        return self.place.cpu()[torch.tensor(classes)]

    def _choose(self, parts: list[Part]) -> list[Part]:
        """The coreset of the parts. An image's number counts those of the experiences before."""
        numbers, first = [], 0
        for images, indices in parts:
            numbers += [first + i for i in indices]
            first += len(images)
        quota = coreset_quota(self.coreset, len(self.all))
        places = coreset_indices(self._targets(parts), quota, self.seed, torch.tensor(numbers))
        chosen = {numbers[place] for place in places.tolist()}
        coreset, first = [], 0
        for images, indices in parts:
            coreset.append((images, [i for i in indices if first + i in chosen]))
            first += len(images)
        return coreset

    def state_dict(self) -> dict:
        """Also the classes that have arrived, and which images are kept."""
        return {
            **super().state_dict(),
            "arrived": list(self.arrived),
            "kept": [list(indices) for _, indices in self.kept],
        }

    def load_state_dict(self, state: dict, model: nn.Module, experiences: Sequence = ()) -> None:
        """``experiences``: those that are over, out of which the coreset is taken."""
        if len(experiences) != len(state["kept"]):
            raise ValueError(
                f"expected the {len(state['kept'])} experiences that are over, which have the "
                f"coreset, got {len(experiences)}"
            )
        super().load_state_dict(state, model)
        self.arrived = list(state["arrived"])
        self.kept = [
            (experience.dataset.train(), list(indices))
            for experience, indices in zip(experiences, state["kept"])
        ]


class Rows(Dataset):
    """(image, class, 0) of labelled images, and (image, -100, 0) of the sample; the 0 is where
    avalanche has the task.
    """

    def __init__(self, labelled: list[Dataset], pool: Dataset | None, sample: list[int]):
        self.labelled, self.pool, self.sample = ConcatDataset(labelled), pool, sample

    def __len__(self) -> int:
        return len(self.labelled) + len(self.sample)

    def __getitem__(self, index: int) -> tuple:
        if index < len(self.labelled):
            image, target, *_ = self.labelled[index]
            return image, int(target), 0
        item = self.pool[self.sample[index - len(self.labelled)]]
        image = item[0] if isinstance(item, tuple | list) else item
        return image, UNLABELLED, 0


def _placed(places: Tensor, target: Tensor) -> Tensor:
    """Class numbers -> columns; rows without a label stay so."""
    return torch.where(target >= 0, places[target.clamp(min=0)], UNLABELLED)
