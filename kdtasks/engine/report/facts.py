"""What the numbers of a run say, as text and lists: no picture, no HTML."""

import itertools
import json
import math
import pprint
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kdtasks.core.stages import has_peers, stage_reference
from kdtasks.engine.config import plain
from kdtasks.engine.show import decimals

LISTED = 20  # unfinished stages that are named


def distilled_stage(run) -> str | None:
    """The name of the stage whose student counts."""
    final = run.experiment.final
    return final and final.name


def stages_on_the_way(run) -> set[str]:
    """Stages that others go on with or learn from, and whose student is not yet the network of
    "alone": by its ``arguments`` it knows fewer classes, say, so that the two cannot be compared.
    """
    experiment = run.experiment
    students = {
        s.name: plain({**experiment.specs["student"], **s.arguments})
        for s in experiment.stages
        if s.model == "student"
    }
    used = {experiment.source(stage) for stage in experiment.stages}
    for origin in (origin for stage in experiment.stages for origin in stage.teachers.values()):
        route = [origin] if isinstance(origin, str) else origin or []
        used |= {
            reference[0] for source in route if (reference := stage_reference(source, students))
        }
    return {
        name
        for name, network in students.items()
        if name in used and network != students.get("alone", network)
    }


def comparable(run, found: Mapping[str, object]) -> dict:
    """Of what there is by stage, that of stages which are not on the way; all, if there is nothing
    else.
    """
    way = stages_on_the_way(run)
    return {name: value for name, value in found.items() if name not in way} or dict(found)


def histories(run) -> dict[str, list[dict]]:
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


def is_number(value) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metric_names(results: Mapping) -> list[str]:
    """Names of the numbers that stages have, the primary one first; times apart, and those on a
    part (``<metric>_on_<k>``).
    """
    found = dict.fromkeys(
        k
        for values in results["stages"].values()
        for k, v in values.items()
        if isinstance(v, int | float)
    )
    return [
        results["primary"],
        *(
            n
            for n in found
            if n not in (results["primary"], "seconds", "cost")
            and not re.fullmatch(r".+_on_\d+", n)
        ),
    ]


def unit(metric: str) -> str:
    """By the naming rule of the metrics: psnr is in dB, shares are in percent; others have none."""
    if metric.startswith("psnr"):
        return " dB"
    shares = (
        "accuracy",
        "map",
        "mar_",
        "recall",
        "precision",
        "average_accuracy",
        "average_incremental",
        "forgetting",
    )
    return " %" if metric.startswith(shares) else ""


def number(value, signed: bool = False, least: int = 2) -> str:
    """With two decimals or ``least``, four of what is small; a dash for what is no number."""
    if not is_number(value):
        return "–"
    digits = least if abs(value) >= 0.1 or value == 0 else 4
    return (
        f"{value:+,.{digits}f}".replace("-", "−")
        if signed
        else f"{value:,.{digits}f}".replace("-", "−")
    )


def duration(seconds) -> str:
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


def parameter_counts(run) -> dict[str, int]:
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
        given = ", ".join(f"{k}={v}" for k, v in weight.items() if k != "type")
        return f"{str(weight.get('type')).rsplit('.', 1)[-1]}({given})"
    return f"{weight:g}" if isinstance(weight, int | float) else str(weight)


def teachers_of(run, stage) -> str:
    """Teachers, and where each comes from; of a file its name only."""
    experiment = run.experiment
    known = []
    for name, origin in stage.teachers.items():
        origin = origin or (experiment.config["teachers"] | experiment.config["models"]).get(
            name, {}
        ).get("checkpoint")
        origins = [
            Path(str(o)).name
            for o in (origin if isinstance(origin, list | tuple) else [origin])
            if o
        ]
        known.append(f"{name} ({', '.join(origins)})" if origins and origins != [name] else name)
    if has_peers(stage.losses):
        known.append(f"{len(experiment.config['peers'])} peer(s)")
    return ", ".join(known)


def sentence(run) -> str:
    """The result in one sentence, good or bad."""
    experiment = run.experiment
    results, name, primary = run.results["stages"], distilled_stage(run), experiment.task.PRIMARY
    suffix, title = unit(primary), primary.replace("_", " ")
    values = {
        stage: found[primary] for stage, found in results.items() if is_number(found.get(primary))
    }
    if name not in values:
        if stages_on_the_way(run).issuperset(values):
            values = dict([*values.items()][-1:])
        have = ", ".join(
            f"{stage} {number(value)}{suffix}" for stage, value in comparable(run, values).items()
        )
        return "No distilled student yet" + (f"; {title} so far: {have}." if have else ".")
    text = f"{name}: {number(values[name])}{suffix} {title}"
    text += "" if experiment.task.HIGHER_IS_BETTER else " (lower is better)"
    if "alone" in values:
        gain = values[name] - values["alone"]
        text += f", {number(gain, signed=True)} against the same student alone ({number(values['alone'])}{suffix})"
        if (gain < 0) == experiment.task.HIGHER_IS_BETTER or gain == 0:
            text += "; here the teacher did not help" if gain else "; no difference"
        if run.ended_early:
            text += "; the two have not had the same budget, since a hook has ended " + ", ".join(
                f"{stage} {where}" for stage, where in run.ended_early.items()
            )
    else:
        controlled = any(stage.name == "alone" for stage in experiment.stages)
        state = "the control is not finished" if controlled else "the run has no control"
        text += f"; {state}, so what the teacher brought is not known"
    teachers = {stage: values[stage] for stage in experiment.config["teachers"] if stage in values}
    for stage, value in teachers.items():
        text += f"; {'the teacher' if len(teachers) == 1 else stage} has {number(value)}{suffix}"
    return text + "."


def control(run) -> dict | None:
    """What "alone" is in this run, and in what else than the teacher it differs; None without it.

    ``losses`` ``[(name, weight)]``; ``changed``, what ``control`` changes of its network. Of the
    distilled stage: its ``name``, the settings in which it is ``differing``, the ``rounds`` that it
    ends, what it ``starts_from``, and how many samples ``unlabelled`` it sees a step besides.
    ``ended``, which stages a hook has ended, and where. What there is none of is empty.
    """
    experiment = run.experiment
    alone = next((stage for stage in experiment.stages if stage.name == "alone"), None)
    if alone is None:
        return None
    changed = ", ".join(f"{key}={value!r}" for key, value in experiment.config["control"].items())
    taught = next(
        (stage for stage in experiment.stages if stage.name == distilled_stage(run)), None
    )
    found = {
        "losses": loss_weights(alone),
        "changed": changed,
        "name": "",
        "differing": [],
        "rounds": None,
        "starts_from": "",
        "unlabelled": 0,
        "ended": run.ended_early,
    }
    return found | (_differences(run, alone, taught) if taught else {})


def _differences(run, alone, taught) -> dict:
    experiment = run.experiment
    before, after = experiment.chain(alone), experiment.chain(taught)
    of_alone = [stage for stage in before if stage not in after] or [alone]
    of_taught = [stage for stage in after if stage not in before]
    in_rounds = len(of_taught) > 1 and _steps(run, of_taught) == _steps(run, of_alone)
    keys = ("optimizer",) if in_rounds else ("optimizer", "schedule", "length")
    found = {
        "name": taught.name,
        "differing": [
            key for key in keys if experiment.setting(alone, key) != experiment.setting(taught, key)
        ],
    }
    if in_rounds:
        found["rounds"] = {
            "count": len(of_taught),
            "first": of_taught[0].name,
            "alone_from": of_alone[0].name if len(of_alone) > 1 else "",
        }
    elif taught.student != "fresh":
        found["starts_from"] = (
            taught.student if taught.student == "keep" else Path(taught.student).name
        )
    if taught.taught:
        found["unlabelled"] = experiment.setting(taught, "data")["unlabelled_per_batch"]
    return found


def _steps(run, stages) -> Counter:
    """Their lengths together, by unit."""
    total = Counter()
    for stage in stages:
        length = run.experiment.setting(stage, "length")
        total.update(length if isinstance(length, Mapping) else {"epochs": length})
    return total


def cards(run, parameters: Mapping[str, int]) -> list[dict]:
    """The numbers that count: alone, distilled, teacher; ``name``, ``value`` and ``lines`` below it
    of each.
    """
    experiment = run.experiment
    results, primary, distilled = (
        run.results["stages"],
        experiment.task.PRIMARY,
        distilled_stage(run),
    )
    models = {stage.name: stage.model for stage in experiment.stages}
    teachers = [name for name in experiment.config["teachers"] if name in results]
    found = []
    for name in dict.fromkeys(["alone", distilled, *teachers[:1]]):
        if not is_number(results.get(name, {}).get(primary)):
            continue
        lines = [f"{parameters[models[name]]:,} parameters"] if name in models else []
        if name == distilled and is_number(results.get("alone", {}).get(primary)):
            gain = results[name][primary] - results["alone"][primary]
            lines.insert(0, f"{number(gain, signed=True)} against alone")
        if name in teachers and name in models:
            lines[0] += (
                f" ({parameters[models[name]] / max(parameters.get('student', 0), 1):.3g}× the "
                "student's)"
            )
        found.append({"name": name, "value": number(results[name][primary]), "lines": lines})
    return found


def unfinished(run) -> list[str]:
    """The stages that are missing, each with how far it has come; of many the first ones."""
    missing = [stage.name for stage in run.experiment.stages if stage.name not in run.done]
    reached = {
        name: max((e["iteration"] for e in h), default=0) for name, h in histories(run).items()
    }
    found = [
        f"{name} (iteration {reached[name]})" if reached.get(name) else f"{name} (not begun)"
        for name in missing
    ]
    return found if len(found) <= LISTED else [*found[:LISTED], f"and {len(found) - LISTED} more"]


def unreadable(run) -> dict[str, dict[str, str]]:
    """``{part of the data: {file: why}}`` of what could not be read, sorted by file; the figures
    are of the others.
    """
    found: dict[str, dict[str, str]] = {}
    for values in run.results["stages"].values():
        for part, paths in values.get("unreadable", {}).items():
            found.setdefault(part, {}).update(paths)
    return {part: dict(sorted(paths.items())) for part, paths in found.items()}


def loss_weights(stage) -> list[tuple[str, str]]:
    """``[(loss, weight)]``."""
    return [(name, weight_text(entry)) for name, entry in stage.losses.items()]


def stage_table(run, parameters: Mapping[str, int]) -> dict:
    """A row a stage; those that are not finished have no numbers.

    ``metrics`` names them; ``compared`` and ``costs`` say whether there are such columns; ``rows``,
    and ``way``, the rows of stages that are on the way.
    """
    experiment = run.experiment
    stages = {stage.name: stage for stage in experiment.stages}
    results, way, metrics = run.results["stages"], stages_on_the_way(run), metric_names(run.results)
    alone = results.get("alone", {}).get(run.results["primary"])
    not_compared = {"alone", *experiment.config["teachers"], *way}
    rows = {False: [], True: []}
    for name in dict.fromkeys([*stages, *results]):
        values, stage = results.get(name, {}), stages.get(name)
        value = values.get(run.results["primary"])
        gains = is_number(alone) and is_number(value) and name not in not_compared
        rows[name in way].append(
            {
                "name": name,
                "metrics": [
                    (metric, number(values.get(metric), least=decimals(metric)))
                    for metric in metrics
                ],
                "gain": number(value - alone, signed=True) if gains else "",
                "seconds": duration(values.get("seconds")),
                "cost": duration(values.get("cost")),
                "parameters": _parameters(run, stage, name in way, parameters),
                "teachers": teachers_of(run, stage) if stage else "",
                "losses": loss_weights(stage) if stage else [],
            }
        )
    return {
        "metrics": metrics,
        "primary": run.results["primary"],
        "compared": is_number(alone),
        "costs": any("cost" in values for values in results.values()),
        "rows": rows[False],
        "way": rows[True],
    }


def _parameters(run, stage, on_the_way: bool, parameters: Mapping[str, int]) -> str:
    if stage is None:
        return "–"
    return f"{parameter_count(run.experiment.learner(stage)) if on_the_way else parameters[stage.model]:,}"


def config_text(run) -> str:
    """The whole config, defaults included: the run's config.py, where it has been written."""
    path = run.work_dir / "config.py"
    if path.exists():
        text = path.read_text(encoding="utf-8")
    else:
        text = pprint.pformat(run.experiment.config, width=110, sort_dicts=False)
    return textwrap.dedent(text).strip()
