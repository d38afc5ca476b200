"""What the finished stages of a run have left: results and models."""

from pathlib import Path

from torch import nn

from kdtasks.core import Distiller, Stage
from kdtasks.core.arms import Arms, arms
from kdtasks.core.weights import load_weights
from kdtasks.engine import checkpoint, notices
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.processes import device_name
from kdtasks.engine.work_dir import WorkDir


class FinishedStages:
    """The finished stages of an experiment in a folder, read.

    Args:
        experiment: stages, models and data.
        files: of the folder.
    """

    def __init__(self, experiment: Experiment, files: WorkDir):
        self.experiment, self.files = experiment, files

    @property
    def work_dir(self) -> Path:
        """Where the files go."""
        return self.files.path

    @property
    def done(self) -> dict[str, dict]:
        """``{stage: results}`` of the finished stages."""
        return self.files.done

    @property
    def finished(self) -> list[Stage]:
        """The finished stages, in order."""
        done = self.done
        return [stage for stage in self.experiment.stages if stage.name in done]

    @property
    def arms(self) -> Arms:
        """What the finished stages are compared by."""
        return arms(self.finished)

    @property
    def results(self) -> dict:
        """What results.json holds."""
        experiment, measured = self.experiment, self.files.deployment
        return {
            "config": experiment.name,
            "seed": experiment.seed,
            "device": device_name(experiment.device),
            "primary": experiment.task.primary,
            "higher_is_better": experiment.task.higher_is_better,
            **({"pretrained": experiment.pretrained} if experiment.pretrained else {}),
            **({"deployment": measured} if measured else {}),
            **({"robustness": self.files.robustness} if self.files.robustness else {}),
            "stages": self.done,
        }

    @property
    def ended_early(self) -> dict[str, str]:
        """See :func:`kdtasks.engine.notices.ended_early`."""
        return notices.ended_early(self.experiment, self.done)

    def folder(self, stage: Stage) -> Path:
        """Where a stage keeps its checkpoints."""
        return self.files.folder(stage.name)

    def trained(self, stage_name: str, which: str = "last") -> nn.Module:
        """The model that a finished stage trained, in eval.

        Args:
            stage_name: of the stage.
            which: of its weights: ``'last'``, ``'best'`` or ``'epoch_<e>'``.
        """
        return self.experiment.trained(self.experiment.stage(stage_name), self.files, which)

    def distiller(self, stage: Stage, ended: bool = True) -> Distiller:
        """The distiller of a finished stage, built and in eval.

        Args:
            stage: which.
            ended: as the stage ended: the student (its moving average where there is one), peers,
                what losses have learned, and of a route of anchors the last. False: as it began.
        """
        experiment, files = self.experiment, self.files
        batch = experiment.first_batch(stage, files)
        distiller = experiment.built_distiller(stage, files, batch, anchor=-1 if ended else 0)
        if ended:
            last = files.weights(stage.name)
            load_weights(distiller.student, last)
            kept = checkpoint.load(last)["resume"]
            for peer, weights in zip(distiller.peers, kept["learners"][1:], strict=True):
                peer.load_state_dict(weights)
            distiller.losses.load_state_dict(kept["losses"])
        distiller.eval()
        return distiller

    def arm_models(self) -> dict[str, nn.Module]:
        """What the pictures of a run compare: ``{name: model in eval}``.

        First the teachers: those that finished stages have trained; if there are none, as when
        their weights come from files, those of the last taught stage. Then control and final
        student, as far as they are finished.
        """
        models = {stage.name: self.trained(stage.name) for stage in self.arms.teachers}
        models = models or self._teachers_of_last()
        return models | {stage.name: self.trained(stage.name) for stage in self.arms.pair}

    def _teachers_of_last(self) -> dict[str, nn.Module]:
        students = [stage for stage in self.finished if stage.model == "student" and stage.teachers]
        if not students:
            return {}
        taught = students[-1]
        names = self.experiment.other_teachers(taught)
        teachers = self.experiment.distiller(taught, self.files).teachers if names else {}
        return {name: teachers[name] for name in names}
