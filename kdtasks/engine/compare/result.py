"""compare.json: every config's row, what was shared, and what the numbers do not say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.engine.compare.plan import TEACHER_SEED, ConfigArm, TrainingJob
from kdtasks.engine.compare.statistics import CONFIDENCE, summary, verdict

TIMES = ("seconds", "cost")  # of a stage's results


def collect(
    arms: Sequence[ConfigArm],
    jobs: Sequence[TrainingJob],
    seeds: list[int],
    work_dir: Path,
    teacher_per_seed: bool,
) -> dict:
    """The content of ``compare.json``."""
    task, shared = arms[0].experiment.task, _shared(jobs, work_dir)
    return {
        "primary": task.primary,
        "higher_is_better": task.higher_is_better,
        "confidence": CONFIDENCE,
        "seeds": seeds,
        "devices": sorted({_results(job)["device"] for job in jobs}),
        "configs": {arm.name: _row(arm, seeds, work_dir, teacher_per_seed) for arm in arms},
        "shared": shared,
        "notes": _notes(arms, shared, seeds, teacher_per_seed) + _ended_early(arms, seeds),
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


def _row(arm: ConfigArm, seeds: list[int], work_dir: Path, teacher_per_seed: bool) -> dict:
    task = arm.experiment.task
    own = [_results(arm.jobs[seed])["stages"] for seed in seeds]
    controls = [_results(arm.controls[seed])["stages"][arm.control] for seed in seeds]
    finals = [stages[arm.final] for stages in own]
    alone = [values[task.primary] for values in controls]
    taught = [values[task.primary] for values in finals]
    differences = [b - a for a, b in zip(alone, taught)]
    word, why = verdict(differences, task.higher_is_better)
    trained = own if teacher_per_seed else own[:1]
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
        "seconds": [_seconds(arm.jobs[seed]) for seed in seeds],
        "folders": [str(arm.jobs[seed].folder.relative_to(work_dir)) for seed in seeds],
        "controls": [str(arm.controls[seed].folder.relative_to(work_dir)) for seed in seeds],
    }


def _given(arm: ConfigArm) -> dict[str, str]:
    """``{teacher: the file of its weights}``."""
    teachers = arm.experiment.config["teachers"]
    return {name: t["checkpoint"] for name, t in teachers.items() if t.get("checkpoint")}


def _seconds(job: TrainingJob) -> float:
    """Of the stages that a job has trained itself."""
    stages = _results(job)["stages"]
    return sum(values["seconds"] for stage, values in stages.items() if stage not in job.given)


def _metrics(alone: Sequence[Mapping], taught: Sequence[Mapping]) -> dict[str, dict]:
    """``{metric: its summary}`` of every number that all of these results have."""
    found = {}
    for name in (name for name in alone[0] if name not in TIMES):
        a, b = _numbers(alone, name), _numbers(taught, name)
        if len(a) == len(alone) and len(b) == len(taught):
            found[name] = summary(a, b)
    return found


def _numbers(results: Sequence[Mapping], name: str) -> list[float]:
    values = [result.get(name) for result in results]
    return [value for value in values if isinstance(value, int | float)]


def _ended_early(arms: Sequence[ConfigArm], seeds: list[int]) -> list[str]:
    """What a hook has ended before its length: then a pair may not have had the same budget."""
    notes = []
    for arm in arms:
        for seed in seeds:
            ends = {}
            jobs = {arm.control: arm.controls[seed], arm.final: arm.jobs[seed]}
            for stage, job in jobs.items():
                values = _results(job)["stages"][stage]
                if "ended_early" in values:
                    ends[stage] = values["ended_early"]
            if not ends or (len(ends) == 2 and ends[arm.control] == ends[arm.final]):
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


def _notes(
    arms: Sequence[ConfigArm], shared: list[dict], seeds: list[int], teacher_per_seed: bool
) -> list[str]:
    notes = [
        f"difference = {DISTILLED} - {ALONE} of the same seed; its {CONFIDENCE:.0%} interval is "
        f"Student's t on the {len(seeds)} paired differences"
        + (", not corrected for the number of configs" if len(arms) > 1 else "")
    ]
    controls = {arm.control for arm in arms}
    if any(entry["stage"] in controls and len(entry["configs"]) > 1 for entry in shared):
        notes.append(
            "configs that share their control are not independent: a control that was unlucky in "
            "one seed raises all of them, so two such configs are not ranked by their intervals "
            "here"
        )
    if any(arm.teachers for arm in arms) and not teacher_per_seed and len(seeds) > 1:
        notes.append(
            f"one teacher (seed {TEACHER_SEED}) serves all seeds: the intervals hold for this "
            "teacher, and say nothing of another (--teacher-per-seed does)"
        )
    return notes
