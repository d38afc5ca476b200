"""compare.json: every config's row, what was shared, and what the numbers do not say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtasks.engine.compare.plan import TEACHER_SEED, ConfigArm, TrainingJob
from kdtasks.engine.compare.statistics import CONFIDENCE, summary, verdict


def collect(
    arms: Sequence[ConfigArm],
    jobs: Sequence[TrainingJob],
    seeds: list[int],
    work_dir: Path,
    teacher_per_seed: bool,
) -> dict:
    """The content of ``compare.json``."""
    task, shared = arms[0].experiment.task, {}
    for job in jobs:
        if job.shared:
            folder = str(job.folder.parent.relative_to(work_dir))
            new = {
                "folder": folder,
                "stage": job.name,
                "configs": job.used_by,
                "seeds": [],
                "seconds": [],
            }
            entry = shared.setdefault(folder, new)
            entry["seeds"].append(job.seed)
            entry["seconds"].append(
                sum(job.results["stages"][stage]["seconds"] for stage in job.stages)
            )
    return {
        "primary": task.PRIMARY,
        "higher_is_better": task.HIGHER_IS_BETTER,
        "confidence": CONFIDENCE,
        "seeds": seeds,
        "devices": sorted({job.results["device"] for job in jobs}),
        "configs": {arm.name: _row(arm, seeds, task, work_dir, teacher_per_seed) for arm in arms},
        "shared": list(shared.values()),
        "notes": _notes(arms, list(shared.values()), seeds, teacher_per_seed)
        + _ended_early(arms, seeds),
    }


def _row(arm: ConfigArm, seeds: list[int], task, work_dir: Path, teacher_per_seed: bool) -> dict:
    own = [arm.jobs[seed].results["stages"] for seed in seeds]
    alone_results, taught = (
        [arm.controls[s].results["stages"]["alone"] for s in seeds],
        [stages[arm.final] for stages in own],
    )
    alone, distilled = (
        [values[task.PRIMARY] for values in alone_results],
        [values[task.PRIMARY] for values in taught],
    )
    paired = summary(alone, distilled)
    differences = [b - a for a, b in zip(alone, distilled)]
    word, why = verdict(differences, task.HIGHER_IS_BETTER)
    teachers = {
        name: [stages[name][task.PRIMARY] for stages in own[: None if teacher_per_seed else 1]]
        for name in arm.teachers
    }
    given = {
        name: spec["checkpoint"]
        for name, spec in arm.experiment.config["teachers"].items()
        if spec.get("checkpoint")
    }
    seconds = [
        sum(
            values["seconds"]
            for stage, values in stages.items()
            if stage not in arm.jobs[seed].given
        )
        for seed, stages in zip(seeds, own)
    ]
    return {
        "stage": arm.final,
        "teachers": {**given, **teachers},
        **paired,
        "differences": differences,
        "verdict": word,
        "why": why,
        "metrics": _metrics(alone_results, taught),
        "seconds": seconds,
        "folders": [str(arm.jobs[seed].folder.relative_to(work_dir)) for seed in seeds],
        "controls": [str(arm.controls[seed].folder.relative_to(work_dir)) for seed in seeds],
    }


def _metrics(alone: Sequence[Mapping], distilled: Sequence[Mapping]) -> dict[str, dict]:
    """``{metric: alone, distilled, mean difference and its interval}`` of every number that all of
    these results have.
    """
    found = {}
    for name in alone[0]:
        a, b = ([values.get(name) for values in results] for results in (alone, distilled))
        if name not in ("seconds", "cost") and all(
            isinstance(value, int | float) for value in [*a, *b]
        ):
            found[name] = summary(a, b)
    return found


def _ended_early(arms: Sequence[ConfigArm], seeds: list[int]) -> list[str]:
    """What a hook has ended before its length: then a pair may not have had the same budget."""
    notes = []
    for arm in arms:
        for seed in seeds:
            stages = {
                "alone": arm.controls[seed].results["stages"]["alone"],
                arm.final: arm.jobs[seed].results["stages"][arm.final],
            }
            ends = {
                name: values["ended_early"]
                for name, values in stages.items()
                if "ended_early" in values
            }
            if ends and not (len(ends) == 2 and ends["alone"] == ends[arm.final]):
                where = ", ".join(
                    f"{name} after {end['iterations']} of {end['of']} iterations"
                    for name, end in ends.items()
                )
                notes.append(
                    f"{arm.name}, seed {seed}: a hook has ended {where}, so the two have "
                    "not had the same budget"
                )
    return notes


def _notes(
    arms: Sequence[ConfigArm], shared: list[dict], seeds: list[int], teacher_per_seed: bool
) -> list[str]:
    notes = [
        f"difference = distilled - alone of the same seed; its {CONFIDENCE:.0%} interval is "
        "Student's t on the "
        f"{len(seeds)} paired differences"
        + (", not corrected for the number of configs" if len(arms) > 1 else "")
    ]
    if any(entry["stage"] == "alone" and len(entry["configs"]) > 1 for entry in shared):
        notes.append(
            "configs that share their control are not independent: a control that was "
            "unlucky in one seed raises "
            "all of them, so two such configs are not ranked by their intervals here"
        )
    if any(arm.teachers for arm in arms) and not teacher_per_seed and len(seeds) > 1:
        notes.append(
            f"one teacher (seed {TEACHER_SEED}) serves all seeds: the intervals hold for "
            "this teacher, and say "
            "nothing of another (--teacher-per-seed does)"
        )
    return notes
