"""A run: the stages of an experiment, one after the other in a folder, and their results."""

import gc
from collections.abc import Mapping
from pathlib import Path

from kdtasks.core import Stage
from kdtasks.core.names import did_you_mean
from kdtasks.engine import notices, signals
from kdtasks.engine.check import check
from kdtasks.engine.class_checks import odd_classes
from kdtasks.engine.clock import stops_noted
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.finished import FinishedStages
from kdtasks.engine.finishing import finish_run, note_stage
from kdtasks.engine.pretrained import mismatch, odd_normalization, sentence
from kdtasks.engine.processes import ReaderError, keep_memory, led, lost_reader
from kdtasks.engine.teacher_card import Cards, teacher_cards
from kdtasks.engine.work_dir import WorkDir


class Run(FinishedStages):
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
        notices: what is said on screen and in the report.
        cards: ``{stage: {teacher: its metrics}}`` of teachers from outside that have been scored.

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
        experiment = Experiment(config, seed, device, name)
        experiment.set_threads()
        super().__init__(experiment, WorkDir(work_dir, [s.name for s in experiment.stages]))
        self.quiet = quiet or experiment.rank > 0
        self.notices = notices.Notices(self.quiet)
        self.cards: dict[str, Cards] = {}

    def open(self, resume: bool = False) -> None:
        """Make the work_dir ready, for this run alone; see :meth:`WorkDir.open`.

        Other ranks wait for the first.
        """
        led(lambda beat: self._open(resume))

    def _open(self, resume: bool) -> None:
        aside = self.files.open(self.experiment.config, self.experiment.seed, resume)
        if aside:
            self.notices.say(f"the former run is now in {aside}")

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
        with signals.handled(), stops_noted():
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
        odd = [*odd_classes(self.experiment), *odd_normalization(self.experiment)]
        for text in [*([slow] if slow else []), *odd]:
            self.notices.warn(text)
        for role, facts in self.experiment.pretrained.items():
            self.notices.say(sentence(role, facts))
            if warning := mismatch(role, facts):
                self.notices.warn(warning)
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
            led(lambda beat: finish_run(self))
            return self.results
        finally:
            gc.unfreeze()
            self.close()

    def _score_teachers(self, only: list[str] | None) -> None:
        """The cards of the teachers from outside, before the first step."""
        skipped = [n for n in self.files.stages if only is not None and n not in only]
        done = {**self.done, **{name: {} for name in skipped}}
        self.cards = teacher_cards(self.experiment, self.files, done, self.notices)

    def teacher_metrics(self, stage: Stage) -> Cards:
        """``{teacher: its metrics}`` on the student's test data, of those from outside the run that
        have been scored before the stage's first step.
        """
        return self.cards.get(stage.name) or self.done.get(stage.name, {}).get("teachers", {})

    def _train_stage(self, stage: Stage, resume: bool) -> None:
        from kdtasks.engine.stage_training import train_stage  # mmengine's Runner is slow to import

        outcome = train_stage(self.experiment, stage, self.files, resume, self.notices)
        led(lambda beat: note_stage(self, stage, outcome))
