"""A run: the stages of an experiment, one after the other in a folder, and their results."""

import copy
import gc
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from kdtasks.core import Distiller, Stage
from kdtasks.core.names import did_you_mean
from kdtasks.engine import builder, checkpoint
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.check import check
from kdtasks.engine.config import iterations
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.preparation import preparation
from kdtasks.engine.processes import device_name, led
from kdtasks.engine.show import Bar
from kdtasks.engine.work_dir import WorkDir


class Run:
    """The stages of an experiment, trained in a folder.

    Args:
        config: from :func:`kdtasks.engine.config.load` or :func:`~kdtasks.engine.config.complete`.
        work_dir: where the files go.
        seed: of the weights, the order and the views.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        name: what the results call the config.
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
        self._said: set[str] = set()  # what the screen has said once

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
    def results(self) -> dict:
        """What results.json holds."""
        experiment = self.experiment
        return {
            "config": experiment.name,
            "seed": experiment.seed,
            "device": device_name(experiment.device),
            "primary": experiment.task.PRIMARY,
            "higher_is_better": experiment.task.HIGHER_IS_BETTER,
            "stages": self.done,
        }

    def folder(self, stage: Stage) -> Path:
        """Where a stage keeps its checkpoints."""
        return self.files.folder(stage.name)

    def trained(self, stage_name: str) -> nn.Module:
        """The model that a finished stage trained, in eval."""
        return self.experiment.trained(self.experiment.stage(stage_name), self.files)

    def open(self, resume: bool = False) -> None:
        """Make the work_dir ready, for this run alone; see :meth:`WorkDir.open`.

        Other ranks wait for the first.
        """
        led(lambda beat: self._open(resume))

    def _open(self, resume: bool) -> None:
        aside = self.files.open(self.experiment.config, self.experiment.seed, resume)
        if aside and not self.quiet:
            print(f"the former run is now in {aside}")

    def close(self) -> None:
        """Let others work in the work_dir; :meth:`train` does so when it ends."""
        if self.experiment.rank == 0:
            self.files.close()

    def train(self, resume: bool = False, only: list[str] | None = None) -> dict:
        """Run the stages that are not done yet.

        Writes results.json, student.pth with student.json, and report.html.

        Args:
            resume: go on in a work_dir of the same config; in an empty one, start.
            only: names of the stages to run; others are left.

        Returns:
            The content of results.json.
        """
        for name in only or []:
            if name not in self.files.stages:
                raise ConfigError(
                    f"no stage is called {name!r}; " + did_you_mean(name, self.files.stages)
                )
        check(self.experiment)
        # what is there now need not be gone through after each stage
        gc.freeze()
        try:
            self.open(resume)
            for stage in self.experiment.stages:
                if stage.name not in self.done and (only is None or stage.name in only):
                    self._train_stage(stage, resume)
                    gc.collect()  # runners, hooks and loops hold each other and the stage
            led(lambda beat: self._finish())
            return self.results
        finally:
            gc.unfreeze()
            self.close()

    def _train_stage(self, stage: Stage, resume: bool) -> None:
        from kdtasks.engine.runner import (  # mmengine's Runner is slow to import
            StageRunner,
            leaves_parameters_out,
        )

        experiment, files, config = self.experiment, self.files, self.experiment.config
        loader = experiment.train_loader(stage, files)
        distiller = experiment.distiller(stage, files)
        first = experiment.first_batch(stage, files)
        with experiment.seeded(f"{stage.name}:build"):
            distiller.build(first)
        unused = experiment.world > 1 and leaves_parameters_out(distiller, first)
        differs = self._ranks_differ(distiller)
        prepare = preparation(experiment, stage, distiller, files, first)

        def count(value: object, where: str) -> int:
            return iterations(value, len(loader), where)

        length = count(experiment.setting(stage, "length"), f"{stage.name}.length")
        tensorboard = config["tensorboard"] and experiment.rank == 0
        with Bar(stage.name, length, self.quiet) as bar:
            runner = StageRunner(
                name=stage.name,
                folder=self.folder(stage),
                log_file=self.work_dir / "train.log",
                seed=experiment.seed,
                distiller=distiller,
                loader=loader,
                test_loader=experiment.test_loader(stage),
                task=experiment.task,
                prepare=prepare,
                optimizer=lambda parameters: builder.build(
                    experiment.setting(stage, "optimizer"), "optimizer", params=parameters
                ),
                schedule=experiment.schedule(stage),
                train=stage.train,
                length=length,
                find_unused_parameters=unused,
                log_interval=config["log_interval"],
                keep=stage.keep,
                val_interval=count(config["val_interval"], "val_interval"),
                checkpoint_interval=count(config["checkpoint_interval"], "checkpoint_interval"),
                first_epoch=experiment.first_epoch(stage, files),
                meta=experiment.meta(stage),
                show=bar,
                options=config,
                custom_hooks=copy.deepcopy(config["custom_hooks"]),
                tensorboard=self.work_dir / "tensorboard" / stage.name if tensorboard else None,
            )
            if differs:
                runner.logger.warning(differs)
            last = files.weights(stage.name)
            if resume and last.exists():
                runner.resume_from(last)
            elif stage.optimizer_state == "keep":
                runner.take_optimizer_state(files.weights(experiment.source(stage)))
            runner.train()
        unreadable = {part: paths for part, paths in runner.unreadable.items() if paths}
        steps = runner.train_loop.iter
        ended = {"ended_early": {"iterations": steps, "of": length}} if steps < length else {}
        metrics = {**runner.metrics, "seconds": round(runner.seconds, 3)}
        led(lambda beat: self._note(stage, metrics, unreadable, ended))

    def _ranks_differ(self, distiller: Distiller) -> str:
        """Why several processes do not give what one would; said once on the screen."""
        world, synchronised = self.experiment.world, self.experiment.config["sync_bn"]
        normed = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            for role in distiller.learners
            for module in distiller.model(role).modules()
        )
        if world == 1 or synchronised or not normed:
            return ""
        why = (
            f"BatchNorm sees the rows of its own process only: {world} processes do not train "
            "as one would, and what is saved has the statistics of the first; sync_bn=True "
            "shares them (on CUDA)"
        )
        if not self.quiet and why not in self._said:
            print(f"note: {why}")
            self._said.add(why)
        return why

    def _note(self, stage: Stage, metrics: dict, unreadable: dict, ended: dict) -> None:
        task = self.experiment.task
        further = task.summary(self, stage, metrics) if hasattr(task, "summary") else {}
        self._say_unreadable(unreadable)
        left_out = {"unreadable": unreadable} if unreadable else {}
        self.files.finish(stage.name, {**metrics, **further, **ended, **left_out})
        checkpoint.save_json(self.results, self.work_dir / "results.json")

    @property
    def ended_early(self) -> dict[str, str]:
        """``{stage: 'after 8 of 36 iterations'}``, where "alone" and its rival differ in budget.

        A hook has ended one of them, or a stage that leads to it.
        """
        experiment = self.experiment
        names, final = [stage.name for stage in experiment.stages], experiment.final
        if "alone" not in names or final is None:
            return {}
        rivals = (experiment.stage("alone"), final)
        paths = {stage.name for rival in rivals for stage in experiment.chain(rival)}
        ended = {
            name: values["ended_early"]
            for name, values in self.done.items()
            if name in paths and "ended_early" in values
        }
        if ended.keys() == {"alone", final.name} and ended["alone"] == ended[final.name]:
            return {}
        return {
            name: f"after {end['iterations']} of {end['of']} iterations"
            for name, end in ended.items()
        }

    def _say_ended_early(self) -> None:
        ended = ", ".join(f"{name} {where}" for name, where in self.ended_early.items())
        if ended and not self.quiet:
            print(
                f"warning: a hook has ended {ended}: alone and {self.experiment.final.name} "
                "have not had the same budget, so their difference is not the teacher's alone",
                file=sys.stderr,
            )

    def _say_unreadable(self, unreadable: Mapping[str, Mapping[str, str]]) -> None:
        """Once a run, on the screen: how many samples could not be read."""
        for part, paths in unreadable.items():
            new = [path for path in paths if path not in self._said]
            self._said.update(new)
            if new and not self.quiet:
                more = f" and {len(new) - 1} more (results.json names them)" if len(new) > 1 else ""
                print(
                    f"warning: left out of the {part} data: {new[0]}: {paths[new[0]]}{more}",
                    file=sys.stderr,
                )

    def _finish(self) -> None:
        from kdtasks.engine.report import write_report

        final = self.experiment.final
        if final and final.name in self.done:
            state = checkpoint.load(self.files.weights(final.name))
            student = self.work_dir / "student.pth"
            checkpoint.save_weights(state["state_dict"], state["meta"], student)
            self._say_ended_early()
        checkpoint.save_json(self.results, self.work_dir / "results.json")
        write_report(self)
