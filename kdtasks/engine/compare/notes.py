"""What the numbers of a comparison do not say by themselves."""

from collections.abc import Mapping, Sequence

from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.engine.compare.plan import TEACHER_SEED, ConfigArm, TrainingJob
from kdtasks.engine.compare.reference import reference_notes
from kdtasks.engine.compare.statistics import CONFIDENCE
from kdtasks.engine.config_checks import iterations

# of a stage's data: what a step learns from; further unlabelled samples only teachers speak of
_OF_A_STEP = ("train", "batch_size", "collate", "per_class")


def common_notes(
    arms: Sequence[ConfigArm],
    shared: Sequence[Mapping],
    seeds: Sequence[int],
    teacher_per_seed: bool,
) -> list[str]:
    """What a difference is, and what its interval does not say."""
    notes = [
        f"difference = {DISTILLED} - {ALONE} of the same seed; its {CONFIDENCE:.0%} interval is "
        "Student's t on the paired differences"
        + (", not corrected for the number of configs" if len(arms) > 1 else "")
    ]
    controls = {arm.control for arm in arms}
    if any(entry["stage"] in controls and len(entry["configs"]) > 1 for entry in shared):
        notes.append(
            "configs that share their control are not independent: a control that was unlucky in "
            "one seed raises all of them, so two such configs are not ranked by their intervals "
            f"against {ALONE}"
        )
    if any(arm.teachers for arm in arms) and not teacher_per_seed and len(seeds) > 1:
        notes.append(
            f"one teacher (seed {TEACHER_SEED}) serves all seeds: the intervals hold for this "
            "teacher, and say nothing of another (--teacher-per-seed does)"
        )
    return notes + _fixed_views(arms)


def _fixed_views(arms: Sequence[ConfigArm]) -> list[str]:
    """Where the taught student sees fewer views of an image than its control."""
    notes = []
    for arm in arms:
        experiment = arm.experiment
        control, final = experiment.stage(arm.control), experiment.stage(arm.final)
        if not experiment.is_cached(final) or experiment.is_cached(control):
            continue
        views, length = experiment.config["cache"]["views"], experiment.setting(final, "length")
        if _is_trained(arm) and not (isinstance(length, int) and length <= views):
            notes.append(
                f"{arm.name}: by its cache {arm.final} sees {views} fixed views of each image, and "
                f"{arm.control} new ones in each epoch: where images are augmented, the difference "
                "is not the teacher's alone (cache=None)"
            )
    return notes


def notes_of_several(
    arms: Sequence[ConfigArm], reference: ConfigArm, others: Sequence[str]
) -> list[str]:
    """How to read several configs side by side."""
    if len(arms) == 1:
        return []
    notes = reference_notes(reference.name, others)
    chains = {arm.name: arm.paid[arm.final] for arm in arms if len(arm.paid[arm.final]) > 1}
    listed = "".join(f"; {name} takes {' + '.join(stages)}" for name, stages in chains.items())
    notes.append(
        "s a step: of the student's last stage; training s: all steps and caches of the stages "
        "that lead to the student. Without evaluations, the training of teachers, and the time in "
        "which other processes had the processor or it was stopped; medians over the seeds"
        f"{listed}"
    )
    return notes


def ended_early(arms: Sequence[ConfigArm], seeds: Sequence[int]) -> list[str]:
    """What a hook has ended before its length: then a pair may not have had the same budget."""
    notes = []
    for arm in arms:
        for seed in seeds:
            ends = {}
            for name, job in _chain_jobs(arm, seed).items():
                values = (job.results or {"stages": {}})["stages"].get(name, {})
                if "ended_early" in values:
                    ends[name] = values["ended_early"]
            pair = {arm.control, arm.final}
            if not ends or (ends.keys() == pair and ends[arm.control] == ends[arm.final]):
                continue
            where = ", ".join(
                f"{name} after {end['iterations']} of {end['of']} iterations"
                for name, end in ends.items()
            )
            notes.append(
                f"{arm.name}, seed {seed}: a hook has ended {where}, so the two have not had the "
                "same budget"
            )
    return notes


def _chain_jobs(arm: ConfigArm, seed: int) -> dict[str, TrainingJob]:
    """``{stage: the job that has it}`` of the stages that trained the two students of a pair."""
    experiment = arm.experiment
    ends = {arm.final: arm.jobs[seed], arm.control: arm.controls[seed]}
    return {
        stage.name: job
        for name, job in ends.items()
        for stage in experiment.chain(experiment.stage(name))
    }


def pair_notes(arms: Sequence[ConfigArm], seeds: Sequence[int]) -> list[str]:
    """In what the two students of a pair differ beside the teacher: how many images they have
    learned from, and the settings of a stage.
    """
    return [note for arm in arms for note in (*_other_settings(arm), *_other_budget(arm, seeds))]


def _other_settings(arm: ConfigArm) -> list[str]:
    experiment = arm.experiment
    control, final = experiment.stage(arm.control), experiment.stage(arm.final)
    if len(experiment.chain(control)) > 1 or len(experiment.chain(final)) > 1:
        return []
    other = [
        key
        for key in ("optimizer", "schedule")
        if experiment.setting(control, key) != experiment.setting(final, key)
    ]
    ours, theirs = (experiment.setting(stage, "data") for stage in (final, control))
    other += [f"data.{key}" for key in _OF_A_STEP if ours[key] != theirs[key]]
    if not other or not _is_trained(arm):
        return []
    return [
        f"{arm.name}: {arm.final} and {arm.control} differ in {', '.join(other)}, so their "
        "difference is not the teacher's alone"
    ]


def _is_trained(arm: ConfigArm) -> bool:
    """Whether the control is: one may be there to be tested as it is made."""
    experiment = arm.experiment
    chain = experiment.chain(experiment.stage(arm.control))
    lengths = (experiment.setting(stage, "length") for stage in chain)
    return any(iterations(length, 1, "length", least=0) > 0 for length in lengths)


def _other_budget(arm: ConfigArm, seeds: Sequence[int]) -> list[str]:
    seen = {
        name: [_images_seen(arm, name, jobs[seed]) for seed in seeds]
        for name, jobs in ((arm.control, arm.controls), (arm.final, arm.jobs))
    }
    ours, theirs = seen[arm.final], seen[arm.control]
    differ = [(a, b) for a, b in zip(ours, theirs) if a and b and a != b]
    if not differ or ended_early([arm], seeds):
        return []
    a, b = differ[0]
    return [
        f"{arm.name}: {arm.final} has been trained on {a} labelled images, counted each time, and "
        f"{arm.control} on {b}, so their difference is not the teacher's alone"
    ]


def _images_seen(arm: ConfigArm, name: str, job: TrainingJob) -> int | None:
    """On the way to a stage's student, itself included; None where it was not recorded."""
    experiment, timings = arm.experiment, job.timings
    chain = experiment.chain(experiment.stage(name))
    if not all(stage.name in timings for stage in chain):
        return None
    return sum(
        int(timings[stage.name]["iterations"]) * experiment.setting(stage, "data")["batch_size"]
        for stage in chain
    )
