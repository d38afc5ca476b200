"""The memory of dark experience replay in a run: it goes from one experience to the next, and reads
the run's images.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.core import Stage
from kdtasks.core.attributes import set_attributes
from kdtasks.engine import checkpoint
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.reader import read_rows
from kdtasks.incremental.der import ReservoirBuffer
from kdtasks.incremental.der_distiller import DERDistiller

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.work_dir import WorkDir


def give_memory(
    experiment: "Experiment", stage: Stage, distiller: DERDistiller, files: "WorkDir"
) -> None:
    """Before a stage's first step: its memory is as the experience before has left it, and reads
    the run's images.

    Raises:
        ConfigError: several processes, whose memories would differ.
    """
    if experiment.world > 1:
        raise ConfigError(
            f"DERDistiller keeps its memory in one process, and there are {experiment.world}: the "
            "ranks' memories would differ. Expected one process"
        )
    distiller.kept = ReservoirBuffer(distiller.kept.size, experiment.seed)
    distiller.source = _source(experiment, stage)
    for earlier in reversed(experiment.chain(stage)[:-1]):
        saved = checkpoint.load(files.weights(earlier.name))["resume"]["attributes"][0]
        # a stage of no steps has changed nothing
        if "kept" in saved:
            set_attributes(distiller.kept, saved["kept"])
            return


def _source(experiment: "Experiment", stage: Stage) -> tuple:
    """``index -> places`` among the samples of all experiences, and ``(places, views) ->
    images``.
    """
    data = experiment.setting(stage, "data")
    everything = {**data, "train": {**data["train"], "experience": None, "pool": None}}
    stream = experiment.data.train_set(everything)
    newest = data["train"].get("experience") or 0
    start = sum(len(part.index) for part in stream.parts[:newest])
    collate = experiment.loader_options(data)["collate"]

    def places(index: Tensor) -> Tensor:
        return index + start

    def images(place: Tensor, view: Tensor) -> Tensor:
        return torch.as_tensor(read_rows(stream, place, view, experiment.seed, collate)["input"])

    return places, images
