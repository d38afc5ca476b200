"""Global Distillation in an avalanche strategy."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from kdtasks.core import Teacher
from kdtasks.core.classes import UNLABELLED
from kdtasks.core.names import did_you_mean
from kdtasks.core.recorder import module_paths
from kdtasks.incremental.gd import CurrentTeacherLoss, GlobalDistillationLoss
from kdtasks.incremental.plugin.base import OldModelPlugin, check_one_head, class_places
from kdtasks.incremental.sampling import coreset_indices, coreset_quota, sample_external, scores_of


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
        self.teacher_loss, terms = CurrentTeacherLoss(confidence), "PC" if pool is None else "PCQ"
        self.main_loss = GlobalDistillationLoss(temperature, terms=terms)
        self.head_loss = GlobalDistillationLoss(temperature, balanced=True, terms=terms)
        self.current: Teacher | None = None
        # classes, in the order in which they came
        self.arrived: list[int] = []
        # of each experience: its images, and which are kept
        self.kept: list[tuple[Dataset, list[int]]] = []

    def before_training_exp(self, strategy, num_workers: int = 0, **kwargs):
        """Sample the pool, mix the batches, train the current teacher."""
        super().before_training_exp(strategy, **kwargs)
        check_one_head(self, strategy.model)
        if self.head not in (paths := module_paths(strategy.model)):
            raise ValueError(
                f"head={self.head!r}: {type(strategy.model).__name__} has no such submodule; "
                f"{did_you_mean(self.head, paths)}"
            )
        self.old = torch.tensor(self.arrived, dtype=torch.long, device=strategy.device)
        self.new = self.new[~torch.isin(self.new, self.old)]
        if len(self.new) == 0:
            raise ValueError(
                f"experience {self.experience + 1} has no new class: all of "
                f"{self.arrived} were seen before"
            )
        if len(self.new) == 1:
            raise ValueError(
                f"experience {self.experience + 1} has one new class, "
                f"{self.new.tolist()}: the current teacher's softmax over it is 1 whatever the "
                "logit, and learns nothing. Expected two or more; LwFMCPlugin, with a sigmoid for "
                "each class, learns one class at a time"
            )
        self.all = torch.cat([self.old, self.new])
        self.place, self.new_place = (
            class_places(self.all, self.all),
            class_places(self.all, self.new),
        )
        parts = [*self.kept, (strategy.adapted_dataset, list(range(len(strategy.adapted_dataset))))]
        targets = self._targets(parts)
        self.counts = torch.bincount(targets, minlength=len(self.all)).to(strategy.device)
        rows = _Rows(
            [Subset(*part) for part in parts], self.pool, self._sample(len(targets), strategy)
        )
        strategy.dataloader = DataLoader(
            rows, strategy.train_mb_size, shuffle=True, num_workers=num_workers
        )
        if self.teacher is not None:
            model = copy.deepcopy(strategy.model)
            self._train(
                model, [*model.parameters()], self.teacher_epochs, strategy, self._teacher_losses
            )
            self.current = Teacher(model)

    def before_backward(self, strategy, **kwargs):
        if self.teacher is None:
            losses = self._teacher_losses(strategy.mb_output, strategy.mb_x, strategy.mb_y)
        else:
            losses = self._main_losses(
                self.main_loss, strategy.mb_output, strategy.mb_x, strategy.mb_y
            )
        strategy.loss = sum(losses.values()).reshape(1)

    def after_training_exp(self, strategy, **kwargs):
        """Fine-tune the head, choose the coreset, keep a frozen copy of the model."""
        if self.teacher is not None:
            head = [*strategy.model.get_submodule(self.head).parameters()]
            frozen = [
                p
                for p in strategy.model.parameters()
                if p.requires_grad and not any(p is own for own in head)
            ]
            for parameter in frozen:
                parameter.requires_grad_(False)
            self._train(
                strategy.model,
                head,
                self.fine_tune_epochs,
                strategy,
                partial(self._main_losses, self.head_loss),
            )
            for parameter in frozen:
                parameter.requires_grad_(True)
        self.kept = self._choose(
            [*self.kept, (strategy.adapted_dataset, list(range(len(strategy.adapted_dataset))))]
        )
        self.arrived, self.current = self.all.tolist(), None
        super().after_training_exp(strategy, **kwargs)

    def _train(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        epochs: int,
        strategy,
        losses: Callable,
    ) -> None:
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
        return loss(
            logits[:, self.all], previous, current, _placed(self.place, target), self.counts
        )

    def _sample(self, count: int, strategy) -> list[int]:
        """Which images of the pool go with so many labelled ones."""
        if self.pool is None:
            return []
        scores: int | Iterable[Tensor] = len(self.pool)
        if self.teacher is not None:
            loader = DataLoader(self.pool, strategy.eval_mb_size)
            scores = (
                logits[:, self.old]
                for logits in scores_of(self.teacher.model, loader, strategy.device)
            )
        chosen = sample_external(
            scores, count, self.out_of_distribution, self.seed, draw=self.experience
        )
        return torch.cat([*chosen]).tolist()

    def _targets(self, parts: list[tuple[Dataset, list[int]]]) -> Tensor:
        """The column, among all classes, of each image of the parts."""
        return self.place.cpu()[
            torch.tensor([int(images.targets[i]) for images, some in parts for i in some])
        ]

    def _choose(self, parts: list[tuple[Dataset, list[int]]]) -> list[tuple[Dataset, list[int]]]:
        firsts = [0, *accumulate(len(images) for images, _ in parts)]
        numbers = [first + i for first, (_, some) in zip(firsts, parts) for i in some]
        quota = coreset_quota(self.coreset, len(self.all))
        chosen = {
            numbers[i]
            for i in coreset_indices(
                self._targets(parts), quota, self.seed, torch.tensor(numbers)
            ).tolist()
        }
        return [
            (images, [i for i in some if first + i in chosen])
            for first, (images, some) in zip(firsts, parts)
        ]

    def state_dict(self) -> dict:
        return {
            **super().state_dict(),
            "arrived": [*self.arrived],
            "kept": [[*some] for _, some in self.kept],
        }

    def load_state_dict(self, state: dict, model: nn.Module, experiences: Sequence = ()) -> None:
        """``experiences``: those that are over, out of which the coreset is taken."""
        if len(experiences) != len(state["kept"]):
            raise ValueError(
                f"expected the {len(state['kept'])} experiences that are over, which have the "
                f"coreset, got {len(experiences)}"
            )
        super().load_state_dict(state, model)
        self.arrived = [*state["arrived"]]
        self.kept = [
            (experience.dataset.train(), [*some])
            for experience, some in zip(experiences, state["kept"])
        ]


class _Rows(Dataset):
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
        return item[0] if isinstance(item, tuple | list) else item, UNLABELLED, 0


def _placed(places: Tensor, target: Tensor) -> Tensor:
    return torch.where(target >= 0, places[target.clamp(min=0)], UNLABELLED)
