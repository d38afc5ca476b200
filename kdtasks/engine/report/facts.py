"""What the numbers of a run say, as text and lists: no picture, no HTML."""

import itertools
import json
import math
import pprint
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch

from kdtasks.core import Stage
from kdtasks.core.arms import Arms
from kdtasks.core.control import has_peers
from kdtasks.core.stages import DISTILLED, as_route
from kdtasks.engine import robustness
from kdtasks.engine.notices import weak_teachers

if TYPE_CHECKING:
    from kdtasks.engine.run import Run

LISTED = 20  # unfinished stages that are named
TIMES = ("seconds", "cost")  # of a stage's results


def comparable(run: "Run", entries: Mapping[str, object]) -> dict:
    """Of what there is by stage, that of stages which are not on the way; all, if there is nothing
    else.
    """
    way = run.experiment.on_the_way
    return {name: value for name, value in entries.items() if name not in way} or dict(entries)


def histories(run: "Run") -> dict[str, list[dict]]:
    """``{stage: history}`` of the stages that have begun, finished or not."""
    paths = {stage.name: run.folder(stage) / "history.json" for stage in run.experiment.stages}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }


def curve(history: Sequence[Mapping], name: str) -> tuple[list[int], list[float]]:
    """Iterations and finite values of one quantity."""
    points = [(entry["iteration"], entry[name]) for entry in history if is_number(entry.get(name))]
    return [x for x, _ in points], [y for _, y in points]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of ``window`` values before and after each, and itself; fewer at the ends."""
    sums = [0.0, *itertools.accumulate(values)]
    spans = [(max(i - window, 0), min(i + window + 1, len(values))) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in spans]


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metric_names(run: "Run") -> list[str]:
    """Names of the numbers that stages have, the primary one first; without times, and without
    those that the task does not list.
    """
    task, names = run.experiment.task, dict.fromkeys([run.experiment.task.primary])
    for values in run.done.values():
        numbers = (name for name, value in values.items() if isinstance(value, int | float))
        names |= dict.fromkeys(name for name in numbers if name not in TIMES)
    return [name for name in names if name == task.primary or task.metric(name).listed]


def number(value: object, signed: bool = False, least: int = 2) -> str:
    """With two decimals or ``least``, four of what is small; a dash for what is no number."""
    if not is_number(value):
        return "–"
    digits = least if abs(value) >= 0.1 or value == 0 else 4
    return (
        f"{value:+,.{digits}f}".replace("-", "−")
        if signed
        else f"{value:,.{digits}f}".replace("-", "−")
    )


def duration(seconds: object) -> str:
    """Seconds, minutes or hours."""
    if not is_number(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def parameter_counts(run: "Run") -> dict[str, int]:
    """``{model: number of parameters}`` of the models that stages train."""
    experiment = run.experiment
    names = dict.fromkeys(stage.model for stage in experiment.stages)
    return {name: parameter_count(experiment.model(name)) for name in names}


def parameter_count(model: torch.nn.Module) -> int:
    """How many numbers a model has to learn or to keep fixed."""
    return sum(p.numel() for p in model.parameters())


def weight_text(entry: Mapping) -> str:
    """The weight of a loss, a schedule as ``Linear(end=1)``."""
    weight = entry.get("weight", 1.0)
    if isinstance(weight, Mapping):  # a schedule
        given = ", ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in weight.items()
            if k != "type"
        )
        return f"{str(weight.get('type')).rsplit('.', 1)[-1]}({given})"
    return f"{weight:g}" if isinstance(weight, int | float) else str(weight)


def teachers_of(run: "Run", stage: Stage) -> str:
    """Teachers, and where each comes from; of a file its name only."""
    experiment, taken = run.experiment, run.done.get(stage.name, {}).get("routes", {})
    texts = []
    for name, origin in stage.teachers.items():
        spec = (experiment.config["teachers"] | experiment.config["models"]).get(name, {})
        origin = taken.get(name) or origin or spec.get("checkpoint")
        origins = [Path(source).name for source in as_route(origin) if source]
        texts.append(f"{name} ({', '.join(origins)})" if origins and origins != [name] else name)
    if has_peers(stage.losses):
        texts.append(f"{len(experiment.config['peers'])} peer(s)")
    return ", ".join(texts)


def sentence(run: "Run") -> str:
    """The result in one sentence, good or bad."""
    experiment, parts = run.experiment, run.experiment.arms
    primary, task = experiment.task.primary, experiment.task
    unit, label = task.unit(primary), task.label(primary)
    values = {
        stage: metrics[primary]
        for stage, metrics in run.done.items()
        if is_number(metrics.get(primary))
    }
    if parts.final is None or parts.final.name not in values:
        return _so_far(run, values)
    name = parts.final.name
    text = f"{name}: {number(values[name])}{unit} {label}"
    text += "" if task.higher_is_better else " (lower is better)"
    text += _gain(run, values, parts, unit)
    teachers = [stage.name for stage in parts.teachers if stage.name in values]
    for stage in teachers:
        who = "the teacher" if len(teachers) == 1 else stage
        text += f"; {who} has {number(values[stage])}{unit}"
    for score in run.teacher_metrics(parts.final).items():
        text += f"; {score[0]} has {number(score[1].get(primary))}{unit}"
    weak = weak_teachers(experiment, run.done)
    return f"{text}. Note: {weak}." if weak else f"{text}."


def _so_far(run: "Run", values: Mapping[str, float]) -> str:
    """What there is before the student that counts has finished."""
    task = run.experiment.task
    if run.experiment.on_the_way.issuperset(values):
        values = dict([*values.items()][-1:])
    have = ", ".join(
        f"{stage} {number(value)}{task.unit(task.primary)}"
        for stage, value in comparable(run, values).items()
    )
    return f"No {DISTILLED} student yet" + (
        f"; {task.label(task.primary)} so far: {have}." if have else "."
    )


def _gain(run: "Run", values: Mapping[str, float], parts: Arms, unit: str) -> str:
    """The difference between the student that counts and the control, or why there is none."""
    control, final = parts.control, parts.final
    if control is None or final is None:
        return "; the run has no control, so what the teacher brought is not known"
    if control.name not in values:
        return "; the control is not finished, so what the teacher brought is not known"
    gain = values[final.name] - values[control.name]
    alone = f"{number(values[control.name])}{unit}"
    text = f", {number(gain, signed=True)} against the same student {control.name} ({alone})"
    if gain == 0:
        text += "; no difference"
    elif (gain < 0) == run.experiment.task.higher_is_better:
        text += "; here the teacher did not help"
    if run.ended_early:
        ended = ", ".join(f"{stage} {where}" for stage, where in run.ended_early.items())
        text += f"; the two have not had the same budget, since a hook has ended {ended}"
    return text


def about_control(run: "Run") -> dict | None:
    """What the control is in this run, and in what else than the teacher it differs; None without
    it.

    ``alone``, its name; ``losses`` ``[(name, weight)]``; ``changed``, what ``control`` changes of
    its network. Of the student that counts: its ``name``, the settings in which it is
    ``differing``, the ``rounds`` that it ends, what it ``starts_from``, and how many samples
    ``unlabelled`` it sees a step besides. ``ended``, which stages a hook has ended, and where.
    ``untrained``: it takes no step. What there is none of is empty.
    """
    alone, final = run.experiment.arms.control, run.experiment.arms.final
    if alone is None:
        return None
    changed = run.experiment.config["control"]
    facts = {
        "alone": alone.name,
        "losses": loss_weights(alone),
        "changed": ", ".join(f"{key}={value!r}" for key, value in changed.items()),
        "name": "",
        "differing": [],
        "rounds": None,
        "starts_from": "",
        "unlabelled": 0,
        "ended": run.ended_early,
        "untrained": not _steps(run, [alone]).total(),
    }
    return facts | (_differences(run, alone, final) if final else {})


def _differences(run: "Run", alone: Stage, taught: Stage) -> dict:
    experiment = run.experiment
    before, after = experiment.chain(alone), experiment.chain(taught)
    of_alone = [stage for stage in before if stage not in after] or [alone]
    of_taught = [stage for stage in after if stage not in before]
    in_rounds = len(of_taught) > 1 and _steps(run, of_taught) == _steps(run, of_alone)
    keys = ("optimizer",) if in_rounds else ("optimizer", "schedule", "length")
    facts = {
        "name": taught.name,
        "differing": [
            key for key in keys if experiment.setting(alone, key) != experiment.setting(taught, key)
        ],
    }
    if in_rounds:
        facts["rounds"] = {
            "count": len(of_taught),
            "first": of_taught[0].name,
            "alone_from": of_alone[0].name if len(of_alone) > 1 else "",
        }
    elif taught.student != "fresh":
        facts["starts_from"] = (
            taught.student if taught.student == "keep" else Path(taught.student).name
        )
    if taught.taught:
        facts["unlabelled"] = experiment.setting(taught, "data")["unlabelled_per_batch"]
    return facts


def _steps(run: "Run", stages: Sequence[Stage]) -> Counter:
    """Their lengths together, by unit."""
    total = Counter()
    for stage in stages:
        length = run.experiment.setting(stage, "length")
        total.update(length if isinstance(length, Mapping) else {"epochs": length})
    return total


def cards(run: "Run", parameters: Mapping[str, int]) -> list[dict]:
    """The numbers that count: control, final student, teacher; ``name``, ``value`` and ``lines``
    below it of each.
    """
    primary, parts = run.experiment.task.primary, run.experiment.arms
    done = run.done
    values = {name: metrics.get(primary) for name, metrics in done.items()}
    teachers = [stage for stage in parts.teachers if stage.name in done]
    shown = []
    for stage in (*parts.pair, *teachers[:1]):
        value = values.get(stage.name)
        if not is_number(value):
            continue
        lines = [f"{parameters[stage.model]:,} parameters"]
        control = parts.control.name if parts.control else ""
        alone = values.get(control)
        if stage is parts.final and is_number(alone):
            lines.insert(0, f"{number(value - alone, signed=True)} against {control}")
        if stage in teachers:
            times = parameters[stage.model] / max(parameters.get("student", 0), 1)
            lines[0] += f" ({times:.3g}× the student's)"
        shown.append({"name": stage.name, "value": number(value), "lines": lines})
    return shown


def unfinished(run: "Run") -> list[str]:
    """The stages that are missing, each with how far it has come; of many the first ones."""
    missing = [stage.name for stage in run.experiment.stages if stage.name not in run.done]
    reached = {
        name: max((e["iteration"] for e in h), default=0) for name, h in histories(run).items()
    }
    lines = [
        f"{name} (iteration {reached[name]})" if reached.get(name) else f"{name} (not begun)"
        for name in missing
    ]
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"and {len(lines) - LISTED} more"]


def unreadable(run: "Run") -> dict[str, dict[str, str]]:
    """``{part of the data: {file: why}}`` of what could not be read, sorted by file; the figures
    are of the others.
    """
    errors: dict[str, dict[str, str]] = {}
    for values in run.results["stages"].values():
        for part, paths in values.get("unreadable", {}).items():
            errors.setdefault(part, {}).update(paths)
    return {part: dict(sorted(paths.items())) for part, paths in errors.items()}


def loss_weights(stage: Stage) -> list[tuple[str, str]]:
    """``[(loss, weight)]``."""
    return [(name, weight_text(entry)) for name, entry in stage.losses.items()]


def stage_table(run: "Run", parameters: Mapping[str, int]) -> dict:
    """A row a stage; those that are not finished have no numbers.

    ``metrics`` names them; ``control`` is the name of the stage that others are compared with,
    empty if none are; ``costs`` says whether there is such a column; ``rows``, and ``way``, the
    rows of stages that are on the way.
    """
    experiment, parts, done = run.experiment, run.experiment.arms, run.done
    stages = {stage.name: stage for stage in experiment.stages}
    way, metrics, primary = experiment.on_the_way, metric_names(run), experiment.task.primary
    control = parts.control.name if parts.control else ""
    alone = done.get(control, {}).get(primary)
    compared = {stage.name for stage in parts.compared} if is_number(alone) else set()
    rows = {
        name: {
            "name": name,
            "metrics": _cells(run, metrics, done.get(name, {})),
            "gain": _difference(done.get(name, {}), primary, alone) if name in compared else "",
            "seconds": duration(done.get(name, {}).get("seconds")),
            "cost": duration(done.get(name, {}).get("cost")),
            "parameters": _parameters(run, stages.get(name), name in way, parameters),
            "teachers": teachers_of(run, stages[name]) if name in stages else "",
            "losses": loss_weights(stages[name]) if name in stages else [],
        }
        for name in dict.fromkeys([*stages, *done])
    }
    return {
        "metrics": metrics,
        "primary": primary,
        "control": control if is_number(alone) else "",
        "costs": any("cost" in values for values in done.values()),
        "rows": [row for name, row in rows.items() if name not in way],
        "way": [row for name, row in rows.items() if name in way],
    }


def _cells(run: "Run", metrics: Sequence[str], values: Mapping) -> list[tuple[str, str]]:
    task = run.experiment.task
    return [(name, number(values.get(name), least=task.decimals(name))) for name in metrics]


def _difference(values: Mapping, primary: str, alone: object) -> str:
    value = values.get(primary)
    if not is_number(value) or not is_number(alone):
        return ""
    return number(value - alone, signed=True)


def _parameters(
    run: "Run", stage: Stage | None, on_the_way: bool, parameters: Mapping[str, int]
) -> str:
    if stage is None:
        return "–"
    if on_the_way:
        return f"{parameter_count(run.experiment.learner(stage)):,}"
    return f"{parameters[stage.model]:,}"


def robustness_table(run: "Run") -> dict | None:
    """See :func:`kdtasks.engine.robustness.table`; None where it was not measured."""
    measured, task = run.files.robustness, run.experiment.task
    if not measured:
        return None
    return robustness.table(measured, task.unit(task.primary), task.decimals(task.primary))


def config_text(run: "Run") -> str:
    """The whole config, defaults included: the run's config.py, where it has been written."""
    path = run.work_dir / "config.py"
    if path.exists():
        text = path.read_text(encoding="utf-8")
    else:
        text = pprint.pformat(run.experiment.config, width=110, sort_dicts=False)
    return textwrap.dedent(text).strip()
