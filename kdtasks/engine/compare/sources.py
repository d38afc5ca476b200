"""Whether all that a comparison puts together has been trained from the same files and data."""

from collections.abc import Iterable

from kdtasks.engine.compare.plan import ConfigArm, TrainingJob
from kdtasks.engine.compare.source_texts import note
from kdtasks.engine.data_facts import Facts, noted_facts, stage_facts, weighty_differences
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.sources import noted_sources, sources_of
from kdtasks.engine.work_dir import WorkDir


def check_unchanged(arm: ConfigArm, device: str | None) -> None:
    """What an arm's former jobs were trained from is what the new ones will be.

    Raises:
        ConfigError: another file of weights, or data of other samples, classes, labels or files.
    """
    experiments: dict[object, tuple[Experiment, Facts]] = {}
    for job in _jobs_of(arm):
        files = WorkDir(job.folder, job.stages)
        noted, data = noted_sources(files).get("files", {}), noted_facts(files)
        now = sources_of(job.config)["files"]
        changed = [repr(name) for name in noted if name in now and noted[name] != now[name]]
        if data and job.folder.parent not in experiments:
            experiment = arm.experiment if not job.shared else Experiment(job.config, 0, device)
            experiment.data.share(arm.experiment.data)
            facts = [stage_facts(experiment, stage) for stage in experiment.stages]
            together = {place: entries for each in facts for place, entries in each.items()}
            experiments[job.folder.parent] = (experiment, together)
        if data:
            experiment, facts_now = experiments[job.folder.parent]
            if job.seed == experiment.seed or not experiment.data.is_drawn:
                changed += weighty_differences(data, facts_now)
        if changed:
            raise ConfigError(
                f"{job.title} was trained in {str(job.folder)!r} from what is another now, so new "
                "seeds or configs would not belong to it:\n  "
                + "\n  ".join(changed)
                + "\nPut it back, use another --work-dir, or remove that folder"
            )


def sources_of_arm(arm: ConfigArm) -> dict[str, list[str]]:
    """``{what: its different sums or versions}`` of all that a row's numbers come from; more than
    one where jobs differ. Data that draws random numbers differs by the seed, and is left out.
    """
    values: dict[str, set[str]] = {}
    for job in _jobs_of(arm):
        files = WorkDir(job.folder, job.stages)
        noted = noted_sources(files)
        for kind, name in (("file", "files"), ("code", "code"), ("version", "versions")):
            for what, value in noted.get(name, {}).items():
                values.setdefault(f"{kind} {what}", set()).add(value)
        for place, parts in noted_facts(files).items():
            for part, facts in parts.items():
                for what, value in facts.items() if not facts.get("drawn") else ():
                    values.setdefault(f"data {place} {part}.{what}", set()).add(str(value))
    return {what: sorted(found) for what, found in sorted(values.items())}


def source_notes(arms: Iterable[ConfigArm]) -> list[str]:
    """What differs within a row; and what is another now than what its numbers come from."""
    notes = []
    for arm in arms:
        sources = sources_of_arm(arm)
        several = [what for what, found in sources.items() if len(set(found) - {""}) > 1]
        notes += note(arm.name, several, "not the same for all of its numbers")
        now = sources_of(arm.experiment.config)
        flat = {
            **{f"file {name}": value for name, value in now["files"].items()},
            **{f"code {name}": value for name, value in now["code"].items()},
        }
        former = [w for w, value in flat.items() if w in sources and value not in sources[w]]
        notes += note(arm.name, former, "another now than when its numbers were computed")
    return notes


def _jobs_of(arm: ConfigArm) -> list[TrainingJob]:
    """The runs that an arm's numbers come from, each once."""
    jobs: dict[int, TrainingJob] = {}
    for job in [*arm.jobs.values(), *arm.controls.values()]:
        for each in (*job.given.values(), job):
            jobs[id(each)] = each
    return list(jobs.values())
