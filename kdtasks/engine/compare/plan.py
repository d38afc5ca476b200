"""What a comparison has to run.

A comparison is a list of jobs, each one run in a folder of its own. What several configs or seeds
have in common (a teacher, the control with the stages that lead to it) is one job in
``shared/<stage>_<hash>/seed<N>``: the hash is of all that matters to these stages, so equal ones
meet in one folder. A config's own job, ``<config>_<hash>/seed<N>``, takes them over and trains the
rest; it is an ordinary run. Jobs that have finished are not repeated, and one that was stopped goes
on.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdtasks.core.stages import Stage
from kdtasks.engine import checkpoint
from kdtasks.engine.config import jsonable
from kdtasks.engine.config_keys import DATA_KEYS, KEYS, TEACHER_KEYS, TRAINING_KEYS
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.run import Run
from kdtasks.engine.work_dir import WorkDir

TEACHER_SEED = 0  # of the one teacher that all seeds share
# of a stage that stands alone in its config
OWN_KEYS = ("name", "role", "model", "arguments", "student", "losses", "train", "keep")


@dataclass(eq=False)
class TrainingJob:
    """One run in a folder of its own.

    Args:
        name: what the screen and the results call it: a config, or a stage that configs share.
        config, folder, seed: of the run.
        stages: the names of all its stages.
        given: stages that are taken over from other jobs.
        used_by: the configs that it counts for.
        shared: whether it is one stage on its own, with those that lead to it, which several
            configs or seeds may use.
    """

    name: str
    config: dict
    folder: Path
    seed: int
    stages: list[str]
    given: dict[str, "TrainingJob"] = field(default_factory=dict)
    used_by: list[str] = field(default_factory=list)
    shared: bool = False

    @property
    def title(self) -> str:
        """What the screen calls it."""
        users = f" for {', '.join(self.used_by)}" if self.shared else ""
        return f"{self.name}{users}, seed {self.seed}"

    @property
    def results(self) -> dict | None:
        """The content of results.json; None while the run has not finished."""
        path = self.folder / "results.json"
        if not path.exists() or not (self.shared or (self.folder / "student.pth").exists()):
            return None
        results = json.loads(path.read_text(encoding="utf-8"))
        return results if all(stage in results["stages"] for stage in self.stages) else None

    def weights(self, stage: str) -> Path:
        """The file of the last weights of a stage."""
        return WorkDir(self.folder, self.stages).weights(stage)

    def evaluations(self, stage: str, metric: str) -> list[float]:
        """What a stage's evaluations found, in their order; empty: they are not there."""
        history = WorkDir(self.folder, self.stages).folder(stage) / "history.json"
        if not history.exists():
            return []
        entries = json.loads(history.read_text(encoding="utf-8"))
        return [entry[metric] for entry in entries if metric in entry]

    @property
    def timings(self) -> dict[str, dict[str, float]]:
        """See :attr:`kdtasks.engine.work_dir.WorkDir.timings`."""
        return WorkDir(self.folder, self.stages).timings

    @property
    def side_by_side(self) -> int:
        """How many jobs ran at a time when this one did, as far as that was noted."""
        path = self.folder / "job.json"
        return json.loads(path.read_text())["side_by_side"] if path.exists() else 1

    def finish(self, device: str | None, quiet: bool, side_by_side: int = 1) -> None:
        """Train what is not trained yet, beside so many other jobs and itself."""
        run = Run(self.config, self.folder, self.seed, device, self.name, quiet)
        run.open(resume=True)
        try:
            noted = max(side_by_side, self.side_by_side)
            checkpoint.save_json({"side_by_side": noted}, self.folder / "job.json")
            for stage, other in self.given.items():
                if stage not in run.done:
                    run.files.link_stage(
                        stage, other.folder / "stages" / f"{other.stages.index(stage)}_{stage}"
                    )
            run.train(resume=True)
        finally:
            run.close()


class ConfigArm:
    """One config of a comparison.

    Attributes:
        experiment: what the config describes.
        control: the name of the stage that is compared with.
        final: that of the stage whose student is compared.
        teachers: the stages that train a teacher; none where checkpoints are given.
        shared: ``{stage: (its config on its own, the stages that lead to it and itself)}`` of those
            that no teacher led to: teachers, the control, and what else trains a student from fresh
            weights and is gone on with by none (``joint``).
        jobs: ``{seed: the config's own run}``.
        controls: ``{seed: the run that has the control}``.
        paid: ``{control or final: the stages that its student costs}``: all that lead to it, but
            for the training of teachers. A teacher that is described as the student itself, an
            earlier generation of it, counts.
    """

    def __init__(self, name: str, config: Mapping, device: str | None):
        self.name = name
        self.experiment = experiment = Experiment(config, 0, device, name)
        parts = experiment.arms
        if parts.final is None or parts.control is None:
            raise ConfigError(
                f"{name}: there must be a stage of role='control' and another that trains the "
                f"student, to compare them; there are {[stage.name for stage in experiment.stages]}"
            )
        self.control, self.final = parts.control.name, parts.final.name
        chains = _untaught_chains(experiment)
        fresh = [name for name, chain in chains.items() if len(chain) == 1]
        teachers = {stage.name for stage in parts.teachers}
        self.teachers = [name for name in fresh if name in teachers]
        gone_on_with = {experiment.source(stage) for stage in experiment.stages}
        shared = {self.control, *self.teachers, *(set(fresh) - gone_on_with)}
        self.shared = {
            name: (on_its_own(experiment, chain), [stage.name for stage in chain])
            for name, chain in chains.items()
            if name in shared
        }
        self.paid = {stage.name: _paid(experiment, stage) for stage in parts.pair}
        self.jobs: dict[int, TrainingJob] = {}
        self.controls: dict[int, TrainingJob] = {}

    def plan(
        self, seed: int, work_dir: Path, teacher_per_seed: bool, jobs: dict[Path, TrainingJob]
    ) -> None:
        """Add the jobs of one seed that are not planned yet."""
        needs = {}
        for stage, (config, chain) in self.shared.items():
            its_seed = TEACHER_SEED if stage in self.teachers and not teacher_per_seed else seed
            folder = work_dir / "shared" / f"{stage}_{_hash(config)}" / f"seed{its_seed}"
            needs[stage] = jobs.setdefault(
                folder, TrainingJob(stage, config, folder, its_seed, chain, shared=True)
            )
            if self.name not in needs[stage].used_by:
                needs[stage].used_by.append(self.name)
        names, config = [stage.name for stage in self.experiment.stages], self.experiment.config
        folder = (
            work_dir
            / f"{self.name}_{_hash(config, bool(self.teachers) and teacher_per_seed)}"
            / f"seed{seed}"
        )
        given = {stage: job for job in needs.values() for stage in job.stages if stage in names}
        self.jobs[seed] = jobs[folder] = TrainingJob(
            self.name, config, folder, seed, names, given, [self.name]
        )
        self.controls[seed] = needs.get(self.control, self.jobs[seed])


def _paid(experiment: Experiment, stage: Stage) -> list[str]:
    return [
        earlier.name
        for earlier in experiment.leading_to(stage)
        if earlier.role != "teacher" or experiment.same_network(earlier, stage)
    ]


def _untaught_chains(experiment: Experiment) -> dict[str, list[Stage]]:
    """``{stage: the stages that lead to it, itself last}`` where no teacher has a part in any."""
    chains = {stage.name: experiment.chain(stage) for stage in experiment.stages}
    return {
        name: chain
        for name, chain in chains.items()
        if not any(stage.taught or experiment.unlabelled(stage) for stage in chain)
    }


def on_its_own(experiment: Experiment, chain: Sequence[Stage]) -> dict:
    """A config of the last of these stages and of those that lead to it, without all that cannot
    matter to them.

    Equal ones train equal weights. Without teachers, neither these matter, nor other models, nor
    unlabelled samples.
    """
    stage = chain[-1]
    config = {
        **experiment.config,
        **_settings(experiment, stage),
        "teachers": {},
        "models": {},
        "peers": [],
        "teacher_training": {},
        "cache": None,
        "losses": stage.losses,
    }
    if len(chain) > 1:
        return {**config, "stages": [_listed(experiment, stage) for stage in chain]}
    spec = experiment.specs[stage.model]
    if stage.role == "control":
        spec = {**spec, **config["control"]}
    # how it teaches later does not matter here
    if stage.model != "student":
        spec = {k: v for k, v in spec.items() if k not in TEACHER_KEYS}
        config["teachers"] = {stage.model: spec}
    entries = {key: getattr(stage, key) for key in OWN_KEYS}
    return {**config, "student": spec, "control": {}, "stages": [entries]}


def _listed(experiment: Experiment, stage: Stage) -> dict:
    """A stage of several, as a config lists it."""
    return {
        **{key: getattr(stage, key) for key in OWN_KEYS},
        "student": experiment.source(stage) or stage.student,
        "optimizer_state": stage.optimizer_state,
        **_settings(experiment, stage),
    }


def _settings(experiment: Experiment, stage: Stage) -> dict:
    settings = {key: experiment.setting(stage, key) for key in TRAINING_KEYS}
    return {**settings, "data": {**settings["data"], "unlabelled_per_batch": 0}}


def plan_jobs(
    configs: Mapping[str, Mapping],
    seeds: Sequence[int],
    work_dir: Path,
    device: str | None = None,
    teacher_per_seed: bool = False,
) -> tuple[list[ConfigArm], list[TrainingJob]]:
    """The arms, and all jobs in the order in which they run: seed by seed, what is shared before
    those that share it.

    Raises:
        ConfigError: seeds or configs that cannot be compared.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"expected different seeds, got {list(seeds)}")
    arms = [ConfigArm(name, config, device) for name, config in configs.items()]
    metrics = {arm.experiment.task.primary: arm.name for arm in arms}
    if len(metrics) > 1:
        raise ConfigError(
            "the configs measure different things: "
            + ", ".join(f"{n} {m}" for m, n in metrics.items())
        )
    jobs: dict[Path, TrainingJob] = {}
    for seed in seeds:
        for arm in arms:
            arm.plan(seed, work_dir, teacher_per_seed, jobs)
    return arms, list(jobs.values())


def _hash(config: Mapping, teacher_per_seed: bool = False) -> str:
    """Of what differs from the defaults, so that a key that is new since a run does not matter."""
    said = _without_defaults(config, KEYS)
    said["data"] = _without_defaults(config["data"], DATA_KEYS)
    text = json.dumps(jsonable([said, teacher_per_seed]), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _without_defaults(values: Mapping, keys: Mapping[str, tuple]) -> dict:
    return {key: value for key, value in values.items() if key not in keys or value != keys[key][1]}
