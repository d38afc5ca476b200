"""The door to avalanche: our methods in its strategies, guards for its benchmarks, and checkpoints that load.

- :class:`LwFPlugin`, :class:`LwFMCPlugin`, :class:`LwMPlugin` and :class:`GlobalDistillationPlugin` go into ``plugins=[…]`` of
  any of its supervised strategies: ``SupervisedTemplate(model=…, optimizer=…, plugins=[LwFPlugin()])``.
- :func:`checked_benchmark` finds the classes that a benchmark lost, and sorts its lists of classes.
- :func:`checkpoint` and :func:`resume` stop and continue a strategy, to the same weights, by tensors and lists alone.

The plugins have avalanche's events as methods and need no base class of it: it looks only for the names. It is imported where
one of its classes has to be known, and not before.

Columns of logits are class numbers, as everywhere in avalanche, in whatever order the classes come.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from kdtasks.core import Teacher
from kdtasks.core.features import check_gradient, module_paths
from kdtasks.core.layouts import check_channels_first, to_nchw
from kdtasks.core.names import did_you_mean
from kdtasks.incremental.gd import CurrentTeacherLoss, GlobalDistillationLoss
from kdtasks.incremental.lwf import LwFLoss, lwf_mc_loss
from kdtasks.incremental.lwm import grad_cam, lwm_attention_loss, lwm_distill_bce
from kdtasks.incremental.plugin_benchmarks import checked_benchmark, classes_of
from kdtasks.incremental.plugin_models import load_model, model_state
from kdtasks.incremental.sampling import coreset_indices, coreset_quota, sample_external, scores_of

__all__ = ["GlobalDistillationPlugin", "LwFMCPlugin", "LwFPlugin", "LwMPlugin", "checked_benchmark", "checkpoint", "classes_of",
           "resume"]


class _Plugin:
    """What the plugins share: the model as it was after the last experience, and the classes that it had seen.

    The teacher is an attribute of the plugin and no part of the strategy's model, all of whose parameters avalanche optimises.
    """

    supports_distributed = False

    def __init__(self):
        self.teacher: Teacher | None = None
        self.experience = 0                                             # how many are over
        self.seen: dict[int, list[int]] = {}                            # task label -> the classes of experiences that are over
        self.columns: dict[int, Tensor] = {}                            # of these classes
        self.old = self.new = torch.zeros(0, dtype=torch.long)          # columns: all of these, and those of this experience
        self._listening: AbstractContextManager = nullcontext([])
        self.heard: list = []                                           # in the strategy's forward

    def before_training_exp(self, strategy, **kwargs):
        """Find the columns of old classes and of this experience's."""
        def columns(classes) -> Tensor:
            return torch.tensor(sorted({*classes}), dtype=torch.long, device=strategy.device)

        self.columns = {task: columns(classes) for task, classes in self.seen.items()}
        self.old = columns(number for classes in self.seen.values() for number in classes)
        self.new = columns(classes_of(strategy.experience))

    def listen(self, model: nn.Module) -> AbstractContextManager:
        """A context with a list, which gets what the plugin needs of the inside of a forward."""
        return nullcontext([])

    def before_forward(self, strategy, **kwargs):
        """Listen, from the second experience on."""
        if self.teacher is not None:
            self._listening = self.listen(strategy.model)
            self.heard = self._listening.__enter__()

    def after_forward(self, strategy, **kwargs):
        """Listen no longer: copies of the model carry no hook."""
        self._listening.__exit__(None, None, None)
        self._listening = nullcontext([])

    def after_training_exp(self, strategy, **kwargs):
        """Keep a frozen copy of the model, and note its classes."""
        self.teacher = Teacher(copy.deepcopy(strategy.model))
        self.experience += 1
        for task, classes in _classes_by_task(strategy.experience).items():
            self.seen[task] = sorted({*self.seen.get(task, []), *classes})

    @torch.no_grad()
    def teach(self, input: Tensor) -> Tensor:
        """The old model's logits."""
        return self.teacher(input)

    def state_dict(self) -> dict:
        """The old model's tensors, and numbers in lists: ``torch.load(weights_only=True)`` reads it."""
        return {"experience": self.experience, "seen": copy.deepcopy(self.seen),
                "teacher": None if self.teacher is None else model_state(self.teacher.model)}

    def load_state_dict(self, state: dict, model: nn.Module, experiences: Sequence = ()) -> None:
        """
        Args:
            state: of :meth:`state_dict`.
            model: of the same kind as the strategy's; it is copied, and its heads may be more, fewer or smaller.
            experiences: not used here.
        """
        self.experience, self.seen = state["experience"], copy.deepcopy(state["seen"])
        self.teacher = None if state["teacher"] is None else Teacher(load_model(copy.deepcopy(model), state["teacher"]))


class LwFPlugin(_Plugin):
    r"""Learning without Forgetting (arXiv 1606.09282) in an avalanche strategy.

    .. math:: L = L_{new} + w \sum_k \mathrm{KL}\big(\mathrm{softmax}(z^{old}_k / T) \,\|\, \mathrm{softmax}(z_k / T)\big)

    One head (a linear layer over all classes, avalanche's ``IncrementalClassifier``, our ``GrowingHead``): k is one, and z are
    the columns of classes of earlier experiences, and no others. Several heads (avalanche's ``MultiTaskModule``): k are the
    task labels of earlier experiences, each head cut to its classes. Old heads read the features of the strategy's own forward
    where the model has one ``MultiHeadClassifier``; else the student runs once more, and moves its BatchNorm once more.

    The first experience is the strategy's own. The paper's warm-up of the new head is not made.

    Against avalanche's ``LwFPlugin``: the same loss at ``ce_over='seen'``, for a model without BatchNorm and dropout. Its
    teacher stays in training mode: it drops out, and its BatchNorm moves. One head on a benchmark with task labels: it distils
    the classes of task 0 alone. Several heads: the student runs twice. Its datasets must have ``targets_task_labels``.

    Args:
        weight: w; a list has one for each experience of the stream (the first is never used). The paper's is 1.
        temperature: T, 2 in the paper.
        scale_t2: multiply by T², as Hinton's distillation does; the paper does not.
        ce_over: ``'new'``: with one head, from the second experience on, the cross-entropy of the columns of this experience's
            classes takes the place of the loss so far: the paper's new head. Rows of other classes, from a replay, are not in
            its mean. The plugin has to stand before any that adds a loss. ``'seen'``: the strategy's criterion, over all
            columns, stays.

    Raises:
        ValueError: another ``ce_over``, a temperature that is not positive; (at the experience) a list of weights that has no
            entry for it; a softmax over one class, of an old head, the only old class, or the new one (``ce_over='new'``).
    """

    def __init__(self, weight: float | Sequence[float] = 1.0, temperature: float = 2.0, scale_t2: bool = False,
                 ce_over: str = "new"):
        super().__init__()
        if ce_over not in ("new", "seen"):
            raise ValueError(f"ce_over must be 'new' or 'seen', got {ce_over!r}")
        self.weight, self.ce_over = weight, ce_over
        self.loss = LwFLoss(temperature, scale_t2)

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        self.place = _places(torch.cat([self.old, self.new]), self.new)
        self._check_classes(strategy.model)
        if isinstance(self.weight, Sequence) and self.experience >= len(self.weight):
            raise ValueError(f"weight has {len(self.weight)} entries, and this is experience {self.experience + 1}")

    def _check_classes(self, model: nn.Module) -> None:
        """No softmax over one class: it is 1 whatever the logit."""
        if self.teacher is None:
            return
        learns = "LwFMCPlugin, with a sigmoid for each class, learns and keeps one class at a time"
        parts = list(self.columns.values()) if _has_tasks(model) else [self.old]
        if any(len(columns) == 1 for columns in parts):
            raise ValueError(f"experience {self.experience + 1}: LwF's softmax of an old head would be over one class, seen so "
                             f"far: {self.seen}, and keep nothing of it. {learns}")
        if self.ce_over == "new" and len(self.new) == 1 and not _has_tasks(model):
            raise ValueError(f"experience {self.experience + 1} has one class, {self.new.tolist()}: with ce_over='new' its "
                             f"cross-entropy is 0 whatever the logit. Expected ce_over='seen', over all columns; or {learns}")

    def listen(self, model: nn.Module) -> AbstractContextManager:
        heads = _heads(model)
        return _calls_of(heads[0]) if len(heads) == 1 else nullcontext([])

    def before_backward(self, strategy, **kwargs):
        if self.teacher is None:
            return
        weight = self.weight[self.experience] if isinstance(self.weight, Sequence) else self.weight
        if _has_tasks(strategy.model):
            pairs = self._old_heads(strategy)
        else:
            pairs = [(strategy.mb_output[:, self.old], self.teach(strategy.mb_x)[:, self.old])]
            if self.ce_over == "new":
                strategy.loss = self._new_loss(strategy.mb_output, strategy.mb_y).reshape(1)
        strategy.loss = strategy.loss + weight * self.loss(*zip(*pairs))

    def _new_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = logits[:, self.new], self.place[target]
        logits = logits if logits.element_size() == 8 else logits.float()
        return F.cross_entropy(logits, target, reduction="sum") / (target >= 0).sum().clamp(min=1)

    def _old_heads(self, strategy) -> list[tuple[Tensor, Tensor]]:
        """(student, teacher) of each old task, the columns of its classes."""
        calls, self.heard = self.heard, []
        with torch.no_grad(), self.teacher.ready(), self.listen(self.teacher.model) as taught:
            teacher = self.teacher.model(strategy.mb_x, None)
        shared = [tasks is None for _, tasks in taught] == [True]       # one trunk: the heads of all tasks in one call
        if shared and len(calls) == 1 and len(calls[0][0]) == len(strategy.mb_x):
            head = _heads(strategy.model)[0]
            student = {task: head.forward_single_task(calls[0][0], task) for task in self.seen}
        else:
            student = strategy.model(strategy.mb_x, None)
        return [(student[task][:, classes], teacher[task][:, classes]) for task, classes in self.columns.items()]


class LwFMCPlugin(_Plugin):
    r"""LwF.MC (arXiv 1611.07725): one binary cross-entropy a class takes the place of the strategy's loss, from the start.

    The target of an old class is the old model's sigmoid, of a class of this experience 1 or 0; the mean is over batch and
    classes: :func:`~kdtasks.incremental.lwf_mc_loss`. Columns of classes that have not come yet are left alone. It replaces the
    loss so far, so it stands before plugins that add to it.

    Raises:
        ValueError: (at the experience) the model has a head for each task.
    """

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        _needs_one_head(self, strategy.model)
        self.all = torch.cat([self.old, self.new[~torch.isin(self.new, self.old)]])
        self.place = _places(self.all, self.all)

    def before_backward(self, strategy, **kwargs):
        teacher = None if self.teacher is None else self.teach(strategy.mb_x)[:, self.old]
        strategy.loss = lwf_mc_loss(strategy.mb_output[:, self.all], teacher, self.place[strategy.mb_y]).reshape(1)


class LwMPlugin(_Plugin):
    r"""Learning without Memorizing (arXiv 1811.08051) in an avalanche strategy: the old model's attention kept.

    .. math:: L = L_C + \beta L_D + \gamma L_{AD}

    L_C is the strategy's criterion, L_D :func:`~kdtasks.incremental.lwm.lwm_distill_bce` of the old classes' columns, L_AD
    :func:`~kdtasks.incremental.lwm.lwm_attention_loss` of the Grad-CAM maps of one old class, the student's likeliest. The
    student's map is of the strategy's own forward: no model runs twice. The first experience is the strategy's own.

    Args:
        attention: dotted path of the submodule whose output (B, K, h, w) is looked at: the last before the pooling, after its
            ReLU (a value that a later ReLU changes in place is taken as it was before). Nothing after it may mix samples.
        gamma, beta: weights; the paper gives none, 1 and 1 are the public codes'.
        second_order: the student's gradient goes through the map's weights alpha too; False: alpha is a constant.
        layout, prefix_tokens: of the output, as in :class:`~kdtasks.incremental.lwm.LwMDistiller`.

    Raises:
        ValueError: (at the experience) the model has no such submodule, or a head for each task; (at a batch) the submodule ran
            not once, or gave no (B, K, h, w).
    """

    def __init__(self, attention: str = "layer3", gamma: float = 1.0, beta: float = 1.0, second_order: bool = True,
                 layout: str | None = None, prefix_tokens: int = 0):
        super().__init__()
        self.layout, self.prefix_tokens = layout, prefix_tokens
        self.attention, self.gamma, self.beta, self.second_order = attention, gamma, beta, second_order

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        _needs_one_head(self, strategy.model)
        if self.attention not in (paths := module_paths(strategy.model)):
            raise ValueError(f"attention={self.attention!r}: {type(strategy.model).__name__} has no such submodule; "
                             f"{did_you_mean(self.attention, paths)}")

    def listen(self, model: nn.Module) -> AbstractContextManager:
        return _activations_of(model, self.attention) if self.gamma != 0 else nullcontext([])

    def before_backward(self, strategy, **kwargs):
        if self.teacher is None:
            return
        student, input = strategy.mb_output, strategy.mb_x
        if self.gamma == 0:
            teacher = self.teach(input)
        else:
            with torch.enable_grad(), self.listen(self.teacher.model) as taught:
                teacher = self.teacher(input)
            taken, self.heard = self.heard, []
            attended = self.old[student[:, self.old].argmax(1)]
            maps = [self._map(student, taken, attended, self.second_order), self._map(teacher, taught, attended, False)]
            strategy.loss = strategy.loss + self.gamma * lwm_attention_loss(*maps)
        if self.beta != 0:
            strategy.loss = strategy.loss + self.beta * lwm_distill_bce(student[:, self.old], teacher.detach()[:, self.old])

    def _map(self, logits: Tensor, taken: list[Tensor], attended: Tensor, second_order: bool) -> Tensor:
        """(B, h, w) Grad-CAM of one class a row. Rows do not mix after the activation, so their sum has each row's gradient."""
        if len(taken) != 1:
            raise ValueError(f"attention={self.attention!r} ran {len(taken)} times in one forward, expected once")
        score = logits.gather(1, attended[:, None]).sum()
        gradient, = torch.autograd.grad(score, taken, retain_graph=True, create_graph=second_order)
        if self.layout is None:
            check_channels_first(taken[0])
        return grad_cam(*(to_nchw(one, self.layout, self.prefix_tokens) for one in (taken[0], gradient)))


class GlobalDistillationPlugin(_Plugin):
    r"""Global Distillation (arXiv 1903.12648) in an avalanche strategy: the steps and losses of :mod:`kdtasks.incremental.gd`.

    The strategy's epochs are the main step. Before them the plugin samples the pool and trains the current teacher, after them
    it fine-tunes the head: plain loops over the same batches, which no metric sees. In the first experience there is the main
    step alone, with :class:`~kdtasks.incremental.gd.CurrentTeacherLoss`. The batches mix the images of the experience, of the
    coreset and of the sample, whose target is -100. The loss so far is replaced, so the plugin stands before others.

    Args:
        optimizer: ``parameters -> optimizer``, for the current teacher and for the head; learning rates stay as it sets them.
        head: dotted path of the classifier.
        teacher_epochs, fine_tune_epochs: 200 and 20 in the authors' code, beside 180 of the strategy.
        coreset: images that are kept, of all classes together; 2000 there.
        pool: unlabelled images, a dataset of them or of tuples that begin with one; None: no Q, which teaches such images only.
        out_of_distribution, seed: see :func:`~kdtasks.incremental.sampling.sample_external`.
        temperature, confidence: of the losses.

    Raises:
        ValueError: (at the experience) a head for each task, no submodule ``head``, no new class, or one only.
    """

    def __init__(self, optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], head: str, teacher_epochs: int,
                 fine_tune_epochs: int, coreset: int = 2000, pool: Dataset | None = None, out_of_distribution: float = 0.7,
                 temperature: float = 2.0, confidence: float = 1.0, seed: int = 0):
        super().__init__()
        self.optimizer, self.head, self.coreset, self.pool = optimizer, head, coreset, pool
        self.teacher_epochs, self.fine_tune_epochs = teacher_epochs, fine_tune_epochs
        self.out_of_distribution, self.seed = out_of_distribution, seed
        self.teacher_loss, terms = CurrentTeacherLoss(confidence), "PC" if pool is None else "PCQ"
        self.main_loss = GlobalDistillationLoss(temperature, terms=terms)
        self.head_loss = GlobalDistillationLoss(temperature, balanced=True, terms=terms)
        self.current: Teacher | None = None
        self.arrived: list[int] = []                                    # classes, in the order in which they came
        self.kept: list[tuple[Dataset, list[int]]] = []                 # of each experience: its images, and which are kept

    def before_training_exp(self, strategy, num_workers: int = 0, **kwargs):
        """Sample the pool, mix the batches, train the current teacher."""
        super().before_training_exp(strategy, **kwargs)
        _needs_one_head(self, strategy.model)
        if self.head not in (paths := module_paths(strategy.model)):
            raise ValueError(f"head={self.head!r}: {type(strategy.model).__name__} has no such submodule; "
                             f"{did_you_mean(self.head, paths)}")
        self.old = torch.tensor(self.arrived, dtype=torch.long, device=strategy.device)
        self.new = self.new[~torch.isin(self.new, self.old)]
        if len(self.new) == 0:
            raise ValueError(f"experience {self.experience + 1} has no new class: all of {self.arrived} were seen before")
        if len(self.new) == 1:
            raise ValueError(f"experience {self.experience + 1} has one new class, {self.new.tolist()}: the current teacher's "
                             "softmax over it is 1 whatever the logit, and learns nothing. Expected two or more; LwFMCPlugin, "
                             "with a sigmoid for each class, learns one class at a time")
        self.all = torch.cat([self.old, self.new])
        self.place, self.new_place = _places(self.all, self.all), _places(self.all, self.new)
        parts = [*self.kept, (strategy.adapted_dataset, list(range(len(strategy.adapted_dataset))))]
        targets = self._targets(parts)
        self.counts = torch.bincount(targets, minlength=len(self.all)).to(strategy.device)
        rows = _Rows([Subset(*part) for part in parts], self.pool, self._sample(len(targets), strategy))
        strategy.dataloader = DataLoader(rows, strategy.train_mb_size, shuffle=True, num_workers=num_workers)
        if self.teacher is not None:
            model = copy.deepcopy(strategy.model)
            self._train(model, [*model.parameters()], self.teacher_epochs, strategy, self._teacher_losses)
            self.current = Teacher(model)

    def before_backward(self, strategy, **kwargs):
        if self.teacher is None:
            losses = self._teacher_losses(strategy.mb_output, strategy.mb_x, strategy.mb_y)
        else:
            losses = self._main_losses(self.main_loss, strategy.mb_output, strategy.mb_x, strategy.mb_y)
        strategy.loss = sum(losses.values()).reshape(1)

    def after_training_exp(self, strategy, **kwargs):
        """Fine-tune the head, choose the coreset, keep a frozen copy of the model."""
        if self.teacher is not None:
            head = [*strategy.model.get_submodule(self.head).parameters()]
            frozen = [p for p in strategy.model.parameters() if p.requires_grad and not any(p is own for own in head)]
            for parameter in frozen:
                parameter.requires_grad_(False)
            self._train(strategy.model, head, self.fine_tune_epochs, strategy, partial(self._main_losses, self.head_loss))
            for parameter in frozen:
                parameter.requires_grad_(True)
        self.kept = self._choose([*self.kept, (strategy.adapted_dataset, list(range(len(strategy.adapted_dataset))))])
        self.arrived, self.current = self.all.tolist(), None
        super().after_training_exp(strategy, **kwargs)

    def _train(self, model: nn.Module, parameters: list[nn.Parameter], epochs: int, strategy, losses: Callable) -> None:
        optimizer = self.optimizer(parameters)
        for _ in range(epochs):
            for input, target, _ in strategy.dataloader:
                input, target = input.to(strategy.device), target.to(strategy.device)
                optimizer.zero_grad()
                sum(losses(model(input), input, target).values()).backward()
                optimizer.step()

    def _teacher_losses(self, logits: Tensor, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        return self.teacher_loss(logits[:, self.new], _placed(self.new_place, target))

    def _main_losses(self, loss: nn.Module, logits: Tensor, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            previous, current = self.teacher(input)[:, self.old], self.current(input)[:, self.new]
        return loss(logits[:, self.all], previous, current, _placed(self.place, target), self.counts)

    def _sample(self, count: int, strategy) -> list[int]:
        """Which images of the pool go with so many labelled ones."""
        if self.pool is None:
            return []
        scores: int | Iterable[Tensor] = len(self.pool)
        if self.teacher is not None:
            loader = DataLoader(self.pool, strategy.eval_mb_size)
            scores = (logits[:, self.old] for logits in scores_of(self.teacher.model, loader, strategy.device))
        chosen = sample_external(scores, count, self.out_of_distribution, self.seed, draw=self.experience)
        return torch.cat([*chosen]).tolist()

    def _targets(self, parts: list[tuple[Dataset, list[int]]]) -> Tensor:
        """The column, among all classes, of each image of the parts."""
        return self.place.cpu()[torch.tensor([int(images.targets[i]) for images, some in parts for i in some])]

    def _choose(self, parts: list[tuple[Dataset, list[int]]]) -> list[tuple[Dataset, list[int]]]:
        firsts = [0, *accumulate(len(images) for images, _ in parts)]
        numbers = [first + i for first, (_, some) in zip(firsts, parts) for i in some]
        quota = coreset_quota(self.coreset, len(self.all))
        chosen = {numbers[i] for i in coreset_indices(self._targets(parts), quota, self.seed, torch.tensor(numbers)).tolist()}
        return [(images, [i for i in some if first + i in chosen]) for first, (images, some) in zip(firsts, parts)]

    def state_dict(self) -> dict:
        return {**super().state_dict(), "arrived": [*self.arrived], "kept": [[*some] for _, some in self.kept]}

    def load_state_dict(self, state: dict, model: nn.Module, experiences: Sequence = ()) -> None:
        """``experiences``: those that are over, out of which the coreset is taken."""
        if len(experiences) != len(state["kept"]):
            raise ValueError(f"expected the {len(state['kept'])} experiences that are over, which have the coreset, got "
                             f"{len(experiences)}")
        super().load_state_dict(state, model)
        self.arrived = [*state["arrived"]]
        self.kept = [(experience.dataset.train(), [*some]) for experience, some in zip(experiences, state["kept"])]


class _Rows(Dataset):
    """(image, class, 0) of labelled images, and (image, -100, 0) of the sample; the 0 is where avalanche has the task."""

    def __init__(self, labelled: list[Dataset], pool: Dataset | None, sample: list[int]):
        self.labelled, self.pool, self.sample = ConcatDataset(labelled), pool, sample

    def __len__(self) -> int:
        return len(self.labelled) + len(self.sample)

    def __getitem__(self, index: int) -> tuple:
        if index < len(self.labelled):
            image, target, *_ = self.labelled[index]
            return image, int(target), 0
        item = self.pool[self.sample[index - len(self.labelled)]]
        return item[0] if isinstance(item, tuple | list) else item, -100, 0


def _classes_by_task(experience) -> dict[int, list[int]]:
    tasks = [int(task) for task in getattr(experience, "task_labels", [0])]
    if len(tasks) == 1:
        return {tasks[0]: classes_of(experience)}
    found: dict[int, set[int]] = {}
    for task, number in zip(experience.dataset.targets_task_labels, experience.dataset.targets):
        found.setdefault(int(task), set()).add(int(number))
    return {task: sorted(numbers) for task, numbers in found.items()}


def _places(known: Tensor, columns: Tensor) -> Tensor:
    """By class number the place among ``columns``; -100, which is ignored, of the other known classes."""
    places = torch.full((int(known.max()) + 1,), -100, device=known.device)
    places[columns] = torch.arange(len(columns), device=known.device)
    return places


def _placed(places: Tensor, target: Tensor) -> Tensor:
    return torch.where(target >= 0, places[target.clamp(min=0)], -100)


def _has_tasks(model: nn.Module) -> bool:
    from avalanche.models import MultiTaskModule

    return isinstance(model, MultiTaskModule)


def _needs_one_head(plugin, model: nn.Module) -> None:
    if _has_tasks(model):
        raise ValueError(f"{type(plugin).__name__} needs one head for all classes; {type(model).__name__} has one a task")


def _heads(model: nn.Module) -> list[nn.Module]:
    from avalanche.models import MultiHeadClassifier

    return [module for module in model.modules() if isinstance(module, MultiHeadClassifier)]


@contextmanager
def _calls_of(head: nn.Module):
    """A list that gets (features, task labels) of each call of a MultiHeadClassifier."""
    calls: list[tuple] = []

    def record(module, args, kwargs):
        calls.append((args[0], kwargs.get("task_labels", args[1] if len(args) > 1 else None)))

    hook = head.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def _activations_of(model: nn.Module, path: str):
    """A list that gets a submodule's outputs, ready to be differentiated by, as they were before any change in place."""
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


# Stop and go on ----------------------------------------------------------------------------------------------------------

def checkpoint(strategy) -> dict:
    """All that :func:`resume` needs, between two experiences, in tensors, numbers and lists.

    Model, optimizer by parameter name, the plugins of this file, avalanche's counters, torch's random state (CPU). Not other
    plugins, nor the evaluator's history. ``torch.save`` it; ``torch.load(weights_only=True)`` reads it.
    """
    optimizer = strategy.optimizer
    names = {id(parameter): name for name, parameter in strategy.model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    return {
        "model": model_state(strategy.model),
        "optimizer": {"state": {names[id(parameter)]: state["state"][number] for number, parameter in enumerate(parameters)
                                if id(parameter) in names and state["state"].get(number)},
                      "groups": [{key: value for key, value in group.items() if key != "params"}
                                 for group in state["param_groups"]]},
        "plugins": [plugin.state_dict() for plugin in strategy.plugins if isinstance(plugin, _Plugin)],
        "clock": {name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)},
        "rng": torch.get_rng_state(),
    }


def resume(strategy, state: dict, experiences: Sequence = ()) -> None:
    """Put a new strategy where :func:`checkpoint` left another: its next experience gives the same weights (on one CPU thread).

    Args:
        strategy: made anew, with the same kind of model, optimizer and plugins, that has trained on nothing. Heads that
            avalanche or ``GrowingHead`` had grown are grown.
        state: of :func:`checkpoint`.
        experiences: those that are over; :class:`GlobalDistillationPlugin` takes its coreset out of them.

    Raises:
        ValueError: another number of plugins or parameter groups.
        RuntimeError: the model's weights do not fit.
    """
    plugins = [plugin for plugin in strategy.plugins if isinstance(plugin, _Plugin)]
    groups = state["optimizer"]["groups"]
    own_groups = strategy.optimizer.param_groups
    for what, own, saved in (("plugins", plugins, state["plugins"]), ("parameter groups", own_groups, groups)):
        if len(own) != len(saved):
            raise ValueError(f"the checkpoint has {len(saved)} {what}, the strategy {len(own)}")
    strategy.model.to(strategy.device)
    strategy.make_optimizer(reset_optimizer_state=True)         # avalanche's own first call; later, it would empty the state
    load_model(strategy.model, state["model"])
    strategy.make_optimizer(remove_params=True)
    own = strategy.optimizer.state_dict()
    parameters = [id(parameter) for group in strategy.optimizer.param_groups for parameter in group["params"]]
    numbers = {name: parameters.index(id(parameter)) for name, parameter in strategy.model.named_parameters()}
    own["state"] = {numbers[name]: value for name, value in state["optimizer"]["state"].items()}
    for group, saved in zip(own["param_groups"], groups):
        group.update(saved)
    strategy.optimizer.load_state_dict(own)
    for plugin, saved in zip(plugins, state["plugins"]):
        plugin.load_state_dict(saved, strategy.model, experiences)
    vars(strategy.clock).update(state["clock"])
    torch.set_rng_state(state["rng"])
