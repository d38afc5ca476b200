"""compare.json: every config's row, what was shared, and what the numbers do not say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdtasks.engine import checkpoint
from kdtasks.engine.compare.notes import common_notes, ended_early, notes_of_several, pair_notes
from kdtasks.engine.compare.plan import ConfigArm, TrainingJob
from kdtasks.engine.compare.sources import source_notes, sources_of_arm
from kdtasks.engine.compare.statistics import CONFIDENCE, paired, summary, verdict

TIMES = ("seconds", "cost")  # of a stage's results


def collect(
    arms: Sequence[ConfigArm],
    jobs: Sequence[TrainingJob],
    seeds: list[int],
    work_dir: Path,
    teacher_per_seed: bool,
    reference: str | None = None,
) -> dict:
    """The content of ``compare.json``: a row for each config and each control.

    Of a row's ``cost``, ``stages`` are those that its student takes (:class:`ConfigArm`), and
    ``seconds``, one for each seed, are ``step``, of one step of the last of them, and ``training``,
    of all steps and caches of all of them; None where a run did not record them.
    """
    task, shared = arms[0].experiment.task, _shared(jobs, work_dir)
    by_name = {arm.name: arm for arm in arms}
    compared_with = by_name[reference] if reference else arms[0]
    return {
        "task": arms[0].experiment.config["task"],
        "primary": task.primary,
        "higher_is_better": task.higher_is_better,
        "confidence": CONFIDENCE,
        "seeds": seeds,
        "devices": sorted({_results(job)["device"] for job in jobs}),
        "reference": compared_with.name if len(arms) > 1 else None,
        "seconds": {"side_by_side": max(job.side_by_side for job in jobs)},
        "controls": _controls(arms, seeds),
        "configs": {
            arm.name: _row(arm, seeds, work_dir, teacher_per_seed)
            | {"against_reference": _against(arm, compared_with, seeds)}
            for arm in arms
        },
        "shared": shared,
        "notes": [
            *common_notes(arms, shared, seeds, teacher_per_seed),
            *notes_of_several(
                arms,
                compared_with,
                [a.name for a in arms if not _has_control_of(a, compared_with, seeds)],
            ),
            *ended_early(arms, seeds),
            *pair_notes(arms, seeds),
            *source_notes(arms),
        ],
    }


def _results(job: TrainingJob) -> dict:
    """Of a job that has finished."""
    results = job.results
    if results is None:
        raise RuntimeError(f"{job.title} has not finished: {job.folder}")
    return results


def _shared(jobs: Sequence[TrainingJob], work_dir: Path) -> list[dict]:
    """The jobs that configs or seeds share, one entry for all seeds."""
    shared: dict[str, dict] = {}
    for job in jobs:
        if not job.shared:
            continue
        folder = str(job.folder.parent.relative_to(work_dir))
        new = {
            "folder": folder,
            "stage": job.name,
            "configs": job.used_by,
            "seeds": [],
            "seconds": [],
        }
        entry = shared.setdefault(folder, new)
        stages = _results(job)["stages"]
        entry["seeds"].append(job.seed)
        entry["seconds"].append(sum(stages[stage]["seconds"] for stage in job.stages))
    return list(shared.values())


def _values(arm: ConfigArm, seeds: list[int]) -> list[float]:
    """The primary metric of the student that counts."""
    primary = arm.experiment.task.primary
    return [_results(arm.jobs[seed])["stages"][arm.final][primary] for seed in seeds]


def _against(arm: ConfigArm, reference: ConfigArm, seeds: list[int]) -> dict | None:
    """The differences to the reference's student of the same seed; None: it is the reference."""
    if arm is reference:
        return None
    return paired(
        _values(arm, seeds), _values(reference, seeds), arm.experiment.task.higher_is_better
    )


def _has_control_of(arm: ConfigArm, other: ConfigArm, seeds: list[int]) -> bool:
    """Whether two controls are one, or have the same weights: what differs in their configs, a
    distiller say, has made no difference.
    """
    return all(
        arm.controls[seed] is other.controls[seed]
        or _is_same(_control_weights(arm, seed), _control_weights(other, seed))
        for seed in seeds
    )


def _control_weights(arm: ConfigArm, seed: int) -> dict:
    path = arm.controls[seed].weights(arm.control)
    return checkpoint.load(path)["state_dict"] if path.exists() else {}


def _is_same(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return weights.keys() == others.keys() != set() and all(
        torch.equal(weights[name], others[name]) for name in weights
    )


def _controls(arms: Sequence[ConfigArm], seeds: list[int]) -> list[dict]:
    """The different controls, each with the configs whose control it is."""
    pairs: list[tuple[ConfigArm, dict]] = []
    for arm in arms:
        same = next((row for first, row in pairs if _has_control_of(arm, first, seeds)), None)
        if same is not None:
            same["configs"].append(arm.name)
            continue
        results = [_results(arm.controls[seed])["stages"][arm.control] for seed in seeds]
        row = {
            "stage": arm.control,
            "configs": [arm.name],
            "values": [values[arm.experiment.task.primary] for values in results],
            "cost": _cost(arm.paid[arm.control], [arm.controls[seed] for seed in seeds]),
        }
        pairs.append((arm, row))
    return [row for _, row in pairs]


def _cost(stages: list[str], jobs: Sequence[TrainingJob]) -> dict:
    """What the last of some stages and those that lead to it took, one number for each job."""
    timings = [job.timings for job in jobs]
    return {
        "stages": stages,
        "seconds": {
            "step": [_step_seconds(timing.get(stages[-1])) for timing in timings],
            "training": [_training_seconds(timing, stages) for timing in timings],
        },
    }


def _step_seconds(timing: Mapping[str, float] | None) -> float | None:
    # a control that is not trained has no steps
    if not timing or not timing["iterations"]:
        return None
    return timing["training_seconds"] / timing["iterations"]


def _training_seconds(timings: Mapping[str, Mapping], stages: Sequence[str]) -> float | None:
    if not all(stage in timings for stage in stages):
        return None
    parts = ("training_seconds", "preparation_seconds")
    return sum(timings[stage][part] for stage in stages for part in parts)


def _row(arm: ConfigArm, seeds: list[int], work_dir: Path, teacher_per_seed: bool) -> dict:
    task = arm.experiment.task
    results = [_results(arm.jobs[seed])["stages"] for seed in seeds]
    controls = [_results(arm.controls[seed])["stages"][arm.control] for seed in seeds]
    finals = [stages[arm.final] for stages in results]
    alone = [values[task.primary] for values in controls]
    taught = [values[task.primary] for values in finals]
    differences = [b - a for a, b in zip(alone, taught)]
    word, why = verdict(differences, task.higher_is_better)
    trained = results if teacher_per_seed else results[:1]
    return {
        "stage": arm.final,
        "teachers": {
            **_given(arm),
            **{name: [stages[name][task.primary] for stages in trained] for name in arm.teachers},
        },
        **summary(alone, taught),
        "differences": differences,
        "verdict": word,
        "why": why,
        "metrics": _metrics(controls, finals),
        "best": _best(arm, seeds),
        "stages": _further_stages(arm, results),
        "seconds": [_seconds(arm.jobs[seed], arm.final) for seed in seeds],
        "cost": _cost(arm.paid[arm.final], [arm.jobs[seed] for seed in seeds]),
        "folders": [str(arm.jobs[seed].folder.relative_to(work_dir)) for seed in seeds],
        "controls": [str(arm.controls[seed].folder.relative_to(work_dir)) for seed in seeds],
        "sources": sources_of_arm(arm),
    }


def _further_stages(arm: ConfigArm, results: Sequence[Mapping]) -> dict[str, list[float]]:
    """``{stage: its primary metric, seed by seed}`` of the stages that are no teacher, nor what the
    row compares: an assistant, a generation, a student in full precision.
    """
    primary, compared = arm.experiment.task.primary, {arm.control, arm.final, *arm.teachers}
    names = [stage.name for stage in arm.experiment.stages if stage.name not in compared]
    values = {name: [stages.get(name, {}).get(primary) for stages in results] for name in names}
    return {name: numbers for name, numbers in values.items() if None not in numbers}


def _best(arm: ConfigArm, seeds: list[int]) -> dict | None:
    """The summary of the best evaluations, which the test data have chosen: what papers report that
    do not take the last; None where a run of these was evaluated once only.
    """
    task = arm.experiment.task
    best = max if task.higher_is_better else min
    sides = ((arm.controls, arm.control), (arm.jobs, arm.final))
    evaluations = [
        [jobs[seed].evaluations(name, task.primary) for seed in seeds] for jobs, name in sides
    ]
    if any(len(values) < 2 for side in evaluations for values in side):
        return None
    return summary(*([best(values) for values in side] for side in evaluations))


def _given(arm: ConfigArm) -> dict[str, str]:
    """``{teacher: the file of its weights}``."""
    teachers = arm.experiment.config["teachers"]
    return {name: t["checkpoint"] for name, t in teachers.items() if t.get("checkpoint")}


def _seconds(job: TrainingJob, final: str) -> float:
    """Of the stages that a job has trained itself, and of the student that counts, which others may
    share where no teacher has a part in it.
    """
    return sum(
        values["seconds"]
        for stage, values in _results(job)["stages"].items()
        if stage == final or stage not in job.given
    )


def _metrics(alone: Sequence[Mapping], taught: Sequence[Mapping]) -> dict[str, dict]:
    """``{metric: its summary}`` of every number that all of these results have."""
    summaries = {}
    for name in (name for name in alone[0] if name not in TIMES):
        a, b = _numbers(alone, name), _numbers(taught, name)
        if len(a) == len(alone) and len(b) == len(taught):
            summaries[name] = summary(a, b)
    return summaries


def _numbers(results: Sequence[Mapping], name: str) -> list[float]:
    values = [result.get(name) for result in results]
    return [value for value in values if isinstance(value, int | float)]
