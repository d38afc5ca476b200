"""A run: the stages of an experiment, one after the other in a folder, and their results."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from kdtasks.core import Distiller, Stage
from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import Arms, arms
from kdtasks.core.weights import load_weights
from kdtasks.engine import checkpoint, deployment, notices, signals
from kdtasks.engine.assemblies import write_assemblies
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.check import check
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.pretrained import sentence
from kdtasks.engine.processes import ReaderError, device_name, keep_memory, led, lost_reader
from kdtasks.engine.teacher_card import Cards, doubts, teacher_cards
from kdtasks.engine.work_dir import WorkDir

if TYPE_CHECKING:
    from kdtasks.engine.stage_training import Outcome


class Run:
    """The stages of an experiment, trained in a folder.

    Args:
        config: from :func:`kdtasks.engine.config.load` or :func:`~kdtasks.engine.config.complete`.
        work_dir: where the files go.
        seed: of the weights, the order and the views.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        name: of the config, as it is written to results.json.
        quiet: no progress bar.

    Attributes:
        experiment: the :class:`~kdtasks.engine.experiment.Experiment`: stages, models and data.
        files: the :class:`~kdtasks.engine.work_dir.WorkDir`.

    Raises:
        ConfigError: something in the config that can be known before any data or weights are read.
    """

    def __init__(
        self,
        config: Mapping,
        work_dir: str | Path,
        seed: int = 0,
        device: str | None = None,
        name: str = "config",
        quiet: bool = False,
    ):
        self.experiment = Experiment(config, seed, device, name)
        self.experiment.set_threads()
        self.quiet = quiet or self.experiment.rank > 0
        self.files = WorkDir(work_dir, [stage.name for stage in self.experiment.stages])
        self._notices = notices.Notices(self.quiet)
        self._cards: dict[str, Cards] = {}

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

    def open(self, resume: bool = False) -> None:
        """Make the work_dir ready, for this run alone; see :meth:`WorkDir.open`.

        Other ranks wait for the first.
        """
        led(lambda beat: self._open(resume))

    def _open(self, resume: bool) -> None:
        aside = self.files.open(self.experiment.config, self.experiment.seed, resume)
        if aside:
            self._notices.say(f"the former run is now in {aside}")

    def close(self) -> None:
        """Let others work in the work_dir; :meth:`train` does so when it ends."""
        if self.experiment.rank == 0:
            self.files.close()

    def train(self, resume: bool = False, only: list[str] | None = None) -> dict:
        """Run the stages that are not done yet.

        Writes results.json, student.pth with student.json, the same of each peer (peer1.pth) and of
        each model that is made of the stages' (``models.<name>.parts``), and report.html.

        Args:
            resume: go on in a work_dir of the same config; in an empty one, start.
            only: names of the stages to run; others are left.

        Returns:
            The content of results.json.

        Raises:
            Terminated: a SystemExit of 143; SIGTERM has come, and the stage is saved.
            KeyboardInterrupt: likewise, of Ctrl-C; at its second time nothing more is saved.
        """
        for name in only or []:
            if name not in self.files.stages:
                raise ConfigError(
                    f"no stage is called {name!r}; " + did_you_mean(name, self.files.stages)
                )
        with signals.handled():
            try:
                return self._train(resume, only)
            except RuntimeError as error:
                why = lost_reader(error)
                if not why:
                    raise
            raise ReaderError(why)

    def _train(self, resume: bool, only: list[str] | None) -> dict:
        check(self.experiment)
        slow = notices.slow_precision(self.experiment)
        if slow:
            self._notices.warn(slow)
        for role, known in self.experiment.pretrained.items():
            self._notices.say(sentence(role, known))
        if self.experiment.device.type == "cpu":
            keep_memory()
        # what is there now need not be gone through after each stage
        gc.freeze()
        try:
            self.open(resume)
            led(lambda beat: self._score_teachers(only))
            for stage in self.experiment.stages:
                if stage.name not in self.done and (only is None or stage.name in only):
                    self._train_stage(stage, resume)
                    gc.collect()  # runners, hooks and loops hold each other and the stage
            led(lambda beat: self._finish())
            return self.results
        finally:
            gc.unfreeze()
            self.close()

    def _score_teachers(self, only: list[str] | None) -> None:
        """The cards of the teachers from outside, before the first step."""
        skipped = [n for n in self.files.stages if only is not None and n not in only]
        done = {**self.done, **{name: {} for name in skipped}}
        self._cards = teacher_cards(self.experiment, self.files, done, self._notices)

    def teacher_metrics(self, stage: Stage) -> Cards:
        """``{teacher: its metrics}`` on the student's test data, of those from outside the run that
        have been scored before the stage's first step.
        """
        return self._cards.get(stage.name) or self.done.get(stage.name, {}).get("teachers", {})

    def _train_stage(self, stage: Stage, resume: bool) -> None:
        from kdtasks.engine.stage_training import train_stage  # mmengine's Runner is slow to import

        outcome = train_stage(self.experiment, stage, self.files, resume, self._notices)
        led(lambda beat: self._note(stage, outcome))

    def _note(self, stage: Stage, outcome: "Outcome") -> None:
        """Write down the results of a finished stage."""
        further = self.experiment.task.summary(self, stage, outcome.metrics)
        if self.experiment.config["onnx"] and stage.model == "student":
            from kdtasks.engine.export import shipped

            further = {**further, **shipped(self.experiment, stage, self.files)}
        if self.experiment.config["packed"] and stage.model == "student":
            from kdtasks.engine.export import packed

            further = {**further, **packed(self.experiment, stage, self.files)}
        self._notices.unreadable(outcome.facts.get("unreadable", {}))
        for name, taken in outcome.facts.get("routes", {}).items():
            self._notices.say(f"{stage.name}: the route of {name} was {', '.join(taken)}")
        results = {**outcome.metrics, **further, **outcome.facts}
        if stage.name in self._cards:
            results["teachers"] = self._cards[stage.name]
        if stage.role == "teacher" and self.experiment.config["teacher_card"]:
            model = self.trained(stage.name)
            for text in doubts(self.experiment, stage, stage.model, model, outcome.metrics):
                self._notices.warn(text)
        self.files.finish(stage.name, results, outcome.timing)
        weak = notices.weak_teachers(self.experiment, self.done)
        if weak:
            self._notices.warn(weak)
        checkpoint.save_json(self.results, self.work_dir / "results.json")

    def _finish(self) -> None:
        from kdtasks.engine.report import write_report

        final = self.experiment.final
        if final and final.name in self.done:
            state = checkpoint.load(self.files.weights(final.name))
            student = self.work_dir / "student.pth"
            checkpoint.save_weights(state["state_dict"], state["meta"], student)
            for k, weights in enumerate(state["resume"]["learners"][1:]):
                about = {**state["meta"], **self.experiment.peer_meta(k)}
                checkpoint.save_weights(weights, about, self.work_dir / f"peer{k + 1}.pth")
            further = write_assemblies(self.experiment, self.files)
            if further:
                self.files.finish(final.name, {**self.done[final.name], **further})
            if self.experiment.config["deployment"] and not self.files.deployment:
                self.files.deployment = deployment.measure(self)
            unequal = notices.unequal_budgets(self.experiment, self.done)
            if unequal:
                self._notices.warn(unequal)
        checkpoint.save_json(self.results, self.work_dir / "results.json")
        pictures = write_report(self)
        if self.experiment.config["vis_backends"]:
            from kdtasks.engine.trackers import send_report

            send_report(self.experiment, self.files, pictures)
