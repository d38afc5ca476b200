"""Exemplars that a run's own networks choose, and the classification by their means.

With ``experiences(memory=…, exemplars='herding')``, the network that ends an experience chooses
exemplars of that experience's classes (:func:`kdtasks.incremental.herding`, in eval and without
augmentation); they stand in ``<work_dir>/exemplars/<stage>.pth``: ``places``, for each class int64
places in its data set, in the order in which they were taken; ``means``, float32 (classes, D), of
the exemplars of all classes so far, by this network. A later experience keeps the first of each
class, as many as fit the memory then; nothing is chosen anew. The file is a function of the stage's
weights, so that a run which was stopped finds or makes the same one.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.stages import Stage
from kdtasks.engine import checkpoint
from kdtasks.engine.loader import Loader
from kdtasks.engine.processes import beating, led
from kdtasks.incremental.data import IncrementalSet
from kdtasks.incremental.herding import class_means, herding
from kdtasks.incremental.models import head_of

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.work_dir import WorkDir


def is_herded(dataset: object) -> bool:
    """Whether networks choose the exemplars of a training set."""
    memory = dataset.memory if isinstance(dataset, IncrementalSet) else None
    return memory is not None and memory.selection == "herding"


def with_herded(
    experiment: "Experiment",
    earlier: Sequence[str],
    dataset: IncrementalSet,
    files: "WorkDir | None",
) -> IncrementalSet:
    """The training set with the exemplars that the networks of earlier experiences chose.

    Args:
        experiment: of the run.
        earlier: the stages that ended the experiences before, in their order.
        dataset: with random exemplars; it stays as it is until all of ``earlier`` are finished.
        files: of the run; None: nothing is finished.
    """
    if files is None or not earlier or not {*earlier} <= files.done.keys():
        return dataset

    def orders() -> list[Tensor]:
        led(lambda beat: _make(experiment, earlier, files, beat))
        return _read(earlier, files)

    return dataset.with_exemplars(experiment.data.keep(("exemplars", *earlier), orders))


def _make(
    experiment: "Experiment", earlier: Sequence[str], files: "WorkDir", beat: Callable[[], None]
) -> None:
    """Let finished stages choose that have not yet, or whose files are lost."""
    for k, name in enumerate(earlier):
        if not _path(files, name).exists():
            draw(experiment, earlier[:k], experiment.stage(name), files, beat)


def _read(earlier: Sequence[str], files: "WorkDir") -> list[Tensor]:
    """The places of all classes of these stages' experiences."""
    saved = [checkpoint.read(_path(files, name)) for name in earlier]
    return [order for content in saved for order in content["places"]]


def _path(files: "WorkDir", name: str) -> Path:
    return files.path / "exemplars" / f"{name}.pth"


def draw(
    experiment: "Experiment",
    earlier: Sequence[str],
    stage: Stage,
    files: "WorkDir",
    beat: Callable[[], None] = lambda: None,
) -> Tensor:
    """Let a trained stage choose exemplars of its experience's classes, and write its file.

    Args:
        experiment, earlier, files: as in :func:`with_herded`.
        stage: its last checkpoint is there.
        beat: called now and then.

    Returns:
        The means of all classes so far, ``(classes, D)``.
    """
    _make(experiment, earlier, files, beat)
    dataset = experiment.data.train_set(experiment.setting(stage, "data"))
    memory, model = dataset.memory, experiment.trained(stage, files)
    classes = sum(map(len, memory.columns))
    count = max(memory.quota(classes))
    places = []
    for part in memory.newest():
        features, index, _ = head_inputs(experiment, model, dataset.only([part]), beat)
        places.append(part.index[index][herding(features, count).cpu()])
    exemplars = dataset.only(memory.chosen([*_read(earlier, files), *places]))
    features, _, target = head_inputs(experiment, model, exemplars, beat)
    means = class_means(features, target, classes).cpu()
    checkpoint.save({"places": places, "means": means}, _path(files, stage.name))
    return means


def head_inputs(
    experiment: "Experiment",
    model: nn.Module,
    dataset: IncrementalSet,
    beat: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What goes into the head of a model in eval, ``(n, D)``; the samples of the data set that it
    is of, ``(n,)`` on the CPU, which are all that can be read; and their classes, ``(n,)``.
    """
    data = experiment.config["data"]
    loader = Loader(
        dataset, data["test_batch_size"], shuffle=False, **experiment.loader_options(data)
    )
    read = [
        (features, batch["index"], batch["target"])
        for batch, features in features_of(model, beating(beat, loader))
    ]
    features, index, target = (torch.cat(values) for values in zip(*read))
    return features, index, target


@torch.no_grad()
def features_of(model: nn.Module, loader: Iterator[dict]) -> Iterator[tuple[dict, Tensor]]:
    """Each batch and what goes into the model's head, ``(b, D)``; the model is in eval already."""
    layer_inputs: list[Tensor] = []
    head = model.get_submodule(head_of(model)[0])
    hook = head.register_forward_pre_hook(lambda module, inputs: layer_inputs.append(inputs[0]))
    try:
        for batch in loader:
            layer_inputs.clear()
            model(batch["input"])
            yield batch, layer_inputs[0].float()
    finally:
        hook.remove()
