"""What is done with a student at the end of an experience, ``finish='<path>'`` of
:func:`kdtasks.incremental.stages.class_incremental_stages`; what it changes is what is tested, and
what goes on as student and as teacher.
"""

from typing import TYPE_CHECKING

from torch import nn

from kdtasks.core.stages import Stage
from kdtasks.incremental.exemplars import head_inputs
from kdtasks.incremental.models import head_of
from kdtasks.incremental.weight_alignment import align_head

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.work_dir import WorkDir


def correct_bias(
    student: nn.Module, experiment: "Experiment", stage: Stage, files: "WorkDir"
) -> None:
    """BiC: fit α and β of the new classes to the samples that are held out; see
    :mod:`kdtasks.incremental.bias_correction`.
    """
    dataset, head = experiment.training_set(stage, files), head_of(student)[1]
    features, _, target = head_inputs(experiment, student, dataset.only(dataset.held_out))
    head.correction.fit(head.uncorrected(features), target)


def align_weights(
    student: nn.Module, experiment: "Experiment", stage: Stage, files: "WorkDir"
) -> None:
    """WA: scale the weights of the new classes; see :mod:`kdtasks.incremental.weight_alignment`."""
    align_head(student)
