"""report.html: what a run found, in one file with its pictures inside."""

import base64
import io
import itertools
import json
import math
import pprint
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import torch

import kdtasks
from kdtasks.core.files import write_atomically, write_text
from kdtasks.core.stages import final_stage, stage_reference
from kdtasks.engine.config import plain
from kdtasks.engine.show import decimals

# Okabe and Ito's palette, which colour-blind eyes can tell apart too; yellow is left out, it is too pale for lines.
TEACHER, ALONE, DISTILLED = "#5A6472", "#E69F00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F", "#7B4FA3")
STYLE = {                                                        # the task's pictures are drawn under it too
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.fontsize": 9.5,
    "text.color": "#1B2330", "axes.labelcolor": "#3C4758", "axes.titlecolor": "#1B2330", "xtick.color": "#3C4758",
    "ytick.color": "#3C4758", "axes.edgecolor": "#AEB7C4", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E7EBF0", "legend.frameon": False, "lines.linewidth": 1.8,
    "figure.facecolor": "white", "figure.constrained_layout.use": True, "savefig.facecolor": "white",
}
SMOOTHED = 60                                                    # points of a loss, from which on its mean is drawn too
PIXELS_PER_INCH = 100                                            # of a figure on the page; stored finer
LISTED = 20                                                      # unfinished stages that are named
LARGEST = 1_300_000                                              # bytes of all pictures, before base64 adds a third


def write_report(run) -> None:
    """Write ``<work_dir>/report.html`` from what the run has so far.

    The task's pictures are an extra: if they cannot be made, the report says why, and a warning does.

    Args:
        run: a :class:`kdtasks.engine.run.Run`; stages may be missing or unfinished.
    """
    import matplotlib.style  # slow to import; pyplot and its global state are not touched

    with matplotlib.style.context(STYLE, after_reset=True):
        (charts, curves), pictures, note = _drawn(run), [], ""
        try:
            pictures = [(str(title), figure) for title, figure in run.task.pictures(run)]
        except Exception as error:
            note = f"The task's pictures could not be made: {type(error).__name__}: {error}"
            warnings.warn(note, stacklevel=2)
        images = _embedded([*charts, *curves, *pictures])
    cut, end = len(charts), len(charts) + len(curves)
    page = _page(run, images[:cut], images[cut:end], images[end:], note)
    write_atomically(run.work_dir / "report.html", lambda path: write_text(path, page))


def stage_colors(run) -> dict[str, str]:
    """One colour for each stage and each teacher of the config, the same in every picture of a report; six others are different
    ones, and those on the way come last."""
    teachers = [name for name in run.config["teachers"] if name != "alone"]
    fixed = {"teacher": TEACHER, "alone": ALONE, _distilled(run) or "distilled": DISTILLED}
    fixed |= {teachers[0]: TEACHER} if teachers and "teacher" not in teachers else {}
    known = [*teachers, *(s.name for s in run.stages), *(name for s in run.stages for name in s.teachers), *run.done]
    others = sorted((name for name in dict.fromkeys(known) if name not in fixed), key=_on_the_way(run).__contains__)
    return fixed | {name: OTHERS[k % len(OTHERS)] for k, name in enumerate(others)}


# Facts ------------------------------------------------------------------------------------------------------------------
def _distilled(run) -> str | None:
    """The name of the stage whose student counts."""
    final = final_stage(run.stages)
    return final and final.name


def _on_the_way(run) -> set[str]:
    """Stages that others go on with or learn from, and whose student is not yet the network of "alone": by its ``arguments`` it
    knows fewer classes, say, so that the two cannot be compared."""
    students = {s.name: plain({**run.specs["student"], **s.arguments}) for s in run.stages if s.model == "student"}
    used = {run.source(stage) for stage in run.stages}
    for origin in (origin for stage in run.stages for origin in stage.teachers.values()):
        route = [origin] if isinstance(origin, str) else origin or []
        used |= {reference[0] for source in route if (reference := stage_reference(source, students))}
    return {name for name, network in students.items() if name in used and network != students.get("alone", network)}


def _shown(run, found: Mapping[str, object]) -> dict:
    """Of what there is by stage, that of stages which are not on the way; all, if there is nothing else."""
    way = _on_the_way(run)
    return {name: value for name, value in found.items() if name not in way} or dict(found)


def _history(run) -> dict[str, list[dict]]:
    """``{stage: history}`` of the stages that have begun, finished or not."""
    paths = {stage.name: run.folder(stage) / "history.json" for stage in run.stages}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def _curve(history: Sequence[Mapping], name: str) -> tuple[list[int], list[float]]:
    """Iterations and finite values of one quantity."""
    points = [(entry["iteration"], entry[name]) for entry in history if _is_number(entry.get(name))]
    return [x for x, _ in points], [y for _, y in points]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of ``window`` values before and after each, and itself; fewer at the ends."""
    sums = [0.0, *itertools.accumulate(values)]
    spans = [(max(i - window, 0), min(i + window + 1, len(values))) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in spans]


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metrics(results: Mapping) -> list[str]:
    """Names of the numbers that stages have, the primary one first; times apart, and those on a part (``<metric>_on_<k>``)."""
    found = dict.fromkeys(k for values in results["stages"].values() for k, v in values.items() if isinstance(v, int | float))
    return [results["primary"], *(n for n in found if n not in (results["primary"], "seconds", "cost")
                                  and not re.fullmatch(r".+_on_\d+", n))]


def _unit(metric: str) -> str:
    """By the naming rule of the metrics: psnr is in dB, shares are in percent; others have none."""
    if metric.startswith("psnr"):
        return " dB"
    shares = ("accuracy", "map", "mar_", "recall", "precision", "average_accuracy", "average_incremental", "forgetting")
    return " %" if metric.startswith(shares) else ""


def _number(value, signed: bool = False, least: int = 2) -> str:
    if not _is_number(value):
        return "–"
    digits = least if abs(value) >= 0.1 or value == 0 else 4
    return f"{value:+,.{digits}f}".replace("-", "−") if signed else f"{value:,.{digits}f}".replace("-", "−")


def _duration(seconds) -> str:
    if not _is_number(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _parameters(run) -> dict[str, int]:
    """``{model: number of parameters}`` of the models that stages train."""
    names = dict.fromkeys(stage.model for stage in run.stages)
    return {name: _size(run.model(name)) for name in names}


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _weight(entry: Mapping) -> str:
    weight = entry.get("weight", 1.0)
    if isinstance(weight, Mapping):                              # a schedule
        given = ", ".join(f"{k}={v}" for k, v in weight.items() if k != "type")
        return f"{str(weight.get('type')).rsplit('.', 1)[-1]}({given})"
    return f"{weight:g}" if isinstance(weight, int | float) else str(weight)


def _taught_by(run, stage) -> str:
    """Teachers, and where each comes from; of a file its name only."""
    known = []
    for name, origin in stage.teachers.items():
        origin = origin or (run.config["teachers"] | run.config["models"]).get(name, {}).get("checkpoint")
        origins = [Path(str(o)).name for o in (origin if isinstance(origin, list | tuple) else [origin]) if o]
        known.append(f"{name} ({', '.join(origins)})" if origins and origins != [name] else name)
    of = [n for e in stage.losses.values() for n in ([e["of"]] if isinstance(e["of"], str) else e["of"])]
    if any(name.startswith("peer") for name in of):
        known.append(f"{len(run.config['peers'])} peer(s)")
    return ", ".join(known)


def _sentence(run) -> str:
    """The result in one sentence, good or bad."""
    results, name, primary = run.results["stages"], _distilled(run), run.task.PRIMARY
    unit, title = _unit(primary), primary.replace("_", " ")
    values = {stage: found[primary] for stage, found in results.items() if _is_number(found.get(primary))}
    if name not in values:
        if _on_the_way(run).issuperset(values):
            values = dict([*values.items()][-1:])
        have = ", ".join(f"{stage} {_number(value)}{unit}" for stage, value in _shown(run, values).items())
        return "No distilled student yet" + (f"; {title} so far: {have}." if have else ".")
    text = f"{name}: {_number(values[name])}{unit} {title}" + ("" if run.task.HIGHER_IS_BETTER else " (lower is better)")
    if "alone" in values:
        gain = values[name] - values["alone"]
        text += f", {_number(gain, signed=True)} against the same student alone ({_number(values['alone'])}{unit})"
        if (gain < 0) == run.task.HIGHER_IS_BETTER or gain == 0:
            text += "; here the teacher did not help" if gain else "; no difference"
    else:
        state = "the control is not finished" if any(s.name == "alone" for s in run.stages) else "the run has no control"
        text += f"; {state}, so what the teacher brought is not known"
    teachers = {stage: values[stage] for stage in run.config["teachers"] if stage in values}
    for stage, value in teachers.items():
        text += f"; {'the teacher' if len(teachers) == 1 else stage} has {_number(value)}{unit}"
    return text + "."


def _control(run) -> str:
    """What "alone" is in this run, and in what else than the teacher it differs."""
    alone = next((s for s in run.stages if s.name == "alone"), None)
    taught = next((s for s in run.stages if s.name == _distilled(run)), None)
    if alone is None:
        return ("<p>This run has no stage <code>alone</code>. Without the same student trained without its teacher, a number "
                "here says how good the student is, not what distillation brought.</p>")
    losses = ", ".join(f"{_code(name)}&nbsp;×&nbsp;{escape(_weight(entry))}" for name, entry in alone.losses.items())
    losses = losses or "the model's own losses, at weight 1"
    text = (f"<p><code>alone</code> is the control: the same student from the same first weights (seed {run.seed}), the same "
            "labelled samples in the same order and the same number of steps, without a teacher. A loss that names no teacher "
            "has weight 1 there, or the weight that its <code>alone=</code> says, so that the control is not weakened by "
            f"weights that make room for a teacher. Here it has {losses}.</p>")
    notes = []
    if run.config["control"]:
        changed = ", ".join(f"{key}={value!r}" for key, value in run.config["control"].items())
        notes.append(f"Its network has {_code(changed)}, as the config's <code>control</code> says.")
    if taught:
        before, after = run.chain(alone), run.chain(taught)
        own, rounds = [s for s in before if s not in after] or [alone], [s for s in after if s not in before]
        in_rounds = len(rounds) > 1 and _steps(run, rounds) == _steps(run, own)
        keys = ("optimizer",) if in_rounds else ("optimizer", "schedule", "length")
        differing = [key for key in keys if run.setting(alone, key) != run.setting(taught, key)]
        if differing:
            notes.append(f"In this config {_code(taught.name)} also differs from it in {', '.join(differing)}.")
        if in_rounds:
            notes.append(f"{_code(taught.name)} is the last of {len(rounds)} stages that go on with one student, from "
                         f"{_code(rounds[0].name)} on; together they have as many steps as "
                         + (f"those from {_code(own[0].name)} to " if len(own) > 1 else "") + "<code>alone</code>.")
        elif taught.student != "fresh":
            origin = "the stage before it" if taught.student == "keep" else _code(Path(taught.student).name)
            notes.append(f"{_code(taught.name)} starts from {origin}, so it has had more steps in all.")
        more = run.setting(taught, "data")["unlabelled_per_batch"]
        if more and taught.taught:
            notes.append(f"{_code(taught.name)} also sees {more} unlabelled samples a step, about which only a teacher can say "
                         "something.")
    return text + (f"<p>{' '.join(notes)}</p>" if notes else "")


def _steps(run, stages) -> Counter:
    """Their lengths together, by unit."""
    total = Counter()
    for stage in stages:
        length = run.setting(stage, "length")
        total.update(length if isinstance(length, Mapping) else {"epochs": length})
    return total


# Charts -----------------------------------------------------------------------------------------------------------------
def _drawn(run) -> tuple[list, list]:
    """``[(title, figure)]`` of the results, and of the curves."""
    results, history, colors = run.results, _history(run), stage_colors(run)
    primary, charts, curves = run.task.PRIMARY, [], []
    values = {name: v[primary] for name, v in results["stages"].items() if _is_number(v.get(primary))}
    if values:
        shown, way = _shown(run, values), _on_the_way(run)
        title = f"{primary} of each stage" + " that has the whole network" * bool(way and way.isdisjoint(shown))
        charts.append((title, _bars(shown, primary, colors)))
    finished = _shown(run, {name: h for name, h in history.items() if h})
    if finished:
        curves.append((f"{primary} on the test data, and the learning rate", _progress(finished, primary, colors)))
        names = list(dict.fromkeys(k for h in finished.values() for entry in h if "lr" in entry for k in entry))
        names = sorted((n for n in names if n not in ("iteration", "lr")), key=lambda n: n == "loss")      # the total last
        if names:
            many = any(len(_curve(h, name)[0]) > SMOOTHED for h in finished.values() for name in names)
            title = "The losses, each times its weight" + ("; dark: running mean, pale: as read" if many else "")
            curves.append((title, _losses(finished, names, colors)))
    return charts, curves


def _bars(values: Mapping[str, float], primary: str, colors: Mapping[str, str]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 0.75 + 0.42 * len(values)))
    axes = figure.subplots()
    rows = range(len(values))
    axes.barh(rows, values.values(), color=[colors[name] for name in values], height=0.62)
    axes.set_yticks(rows, values, fontsize=11)
    axes.invert_yaxis()
    for row, value in zip(rows, values.values()):
        axes.annotate(_number(value), (value, row), (5 if value >= 0 else -5, 0), textcoords="offset points", va="center",
                      ha="left" if value >= 0 else "right", fontweight="bold")
    if "alone" in values:
        axes.axvline(values["alone"], color=colors["alone"], linestyle=(0, (4, 3)), linewidth=1.2)
    axes.margins(x=0.08)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(primary + _unit(primary).replace(" ", ", "))
    return figure


def _progress(history: Mapping[str, list[dict]], primary: str, colors: Mapping[str, str]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.6))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for stage, entries in history.items():
        x, y = _curve(entries, primary)
        top.plot(x, y, color=colors[stage], label=stage, marker="o" if len(x) <= 60 else "", markersize=4)
        bottom.plot(*_curve(entries, "lr"), color=colors[stage], linewidth=1.3)
    top.set_ylabel(primary + _unit(primary).replace(" ", ", "))
    figure.legend(*top.get_legend_handles_labels(), ncols=min(len(history), 6), loc="outside upper right")
    bottom.set_ylabel("lr")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("iteration of the stage")
    return figure


def _losses(history: Mapping[str, list[dict]], names: Sequence[str], colors: Mapping[str, str]):
    from matplotlib.figure import Figure

    columns = 2 if len(names) in (1, 2, 4) else 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(10.4, 0.5 + 2.7 * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, name in zip(panels, names):
        values = []
        for stage, entries in history.items():
            read = [entry for entry in entries if "lr" in entry]
            own = {key for entry in read for key in entry} - {"iteration", "lr"}
            x, y = _curve(read, next(iter(own)) if name == "loss" and len(own) == 1 else name)       # one loss is the sum
            if y:
                smooth = len(x) > SMOOTHED
                axes.plot(x, y, color=colors[stage], linewidth=1 if smooth else 1.5, alpha=0.25 if smooth else 1,
                          label=None if smooth else stage, marker="o" if len(x) == 1 else "")
                if smooth:
                    axes.plot(x, _running_mean(y, len(y) // 30), color=colors[stage], linewidth=1.6, label=stage)
                values += y
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set_title("sum of all losses" if name == "loss" else name)
        axes.set_xlabel("iteration of the stage")
    for axes in panels[len(names):]:
        axes.remove()
    shown = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=min(len(shown), 6))
    return figure


def _embedded(pictures: Sequence[tuple]) -> list[tuple[str, str, int]]:
    """``(title, data URI, width on the page)`` of figures; many or large ones are stored less finely."""
    for dpi in (160, 120, 85, 60):
        encoded = []
        for _, figure in pictures:
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
            encoded.append(file.getvalue())
        if sum(map(len, encoded)) <= LARGEST:
            break
    return [(title, "data:image/png;base64," + base64.b64encode(png).decode(), round(figure.get_figwidth() * PIXELS_PER_INCH))
            for (title, figure), png in zip(pictures, encoded)]


# The page ---------------------------------------------------------------------------------------------------------------
CSS = """
:root { color-scheme: light; --ink: #1b2330; --soft: #526071; --line: #dfe4ea; --pale: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 32px 64px; }
h1 { margin: 0 0 4px; font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 48px 0 12px; padding-bottom: 6px; font-size: 20px; border-bottom: 1px solid var(--line); }
h3, figcaption { margin: 24px 0 8px; font-size: 15px; font-weight: 600; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.88em; }
.facts, .note { color: var(--soft); }
.facts span + span::before { content: "·"; margin: 0 8px; }
.result { margin: 24px 0 4px; font-size: 19px; line-height: 1.45; font-weight: 600; }
.note { margin: 0 0 16px; font-size: 14px; }
.warn { padding: 10px 14px; background: #fff6e0; border-left: 4px solid #e69f00; }
.cards { display: flex; flex-wrap: wrap; gap: 16px; margin: 20px 0 8px; }
.card { flex: 1 1 200px; padding: 14px 18px; background: var(--pale); border-top: 4px solid; border-radius: 4px; }
.card b { display: block; font-size: 30px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card b small { font-size: 16px; font-weight: 600; }
.card span { color: var(--soft); font-size: 14px; }
.wide { overflow-x: auto; }
.many th, .many td { padding: 8px 6px; white-space: nowrap; }
.many th.n { white-space: normal; }
details .wide { padding: 0 12px 8px; }
table { width: 100%; border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 2px; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.first { font-weight: 700; }
td.losses span { display: block; white-space: nowrap; }
i.dot { display: inline-block; width: 11px; height: 11px; margin-right: 8px; border-radius: 50%; }
figure { margin: 0 0 28px; }
figcaption { margin: 20px 0 8px; }
img { display: block; max-width: 100%; height: auto; }
details { border: 1px solid var(--line); border-radius: 4px; }
summary { padding: 10px 14px; cursor: pointer; font-weight: 600; }
pre { margin: 0; padding: 14px; overflow-x: auto; line-height: 1.45; background: var(--pale);
  border-top: 1px solid var(--line); }
@media print { main { padding: 0; } figure, .card, tr { break-inside: avoid; } }
"""


def _page(run, charts: list, curves: list, pictures: list, note: str) -> str:
    name = escape(run.name)
    parameters = _parameters(run)
    parts = [
        f"<h1>{name}</h1>", _facts(run),
        f'<p class="result">{escape(_sentence(run))}</p>',
        '<p class="note">One seed: <code>tools/compare.py</code> gives the interval over seeds.</p>',
        _cards(run, parameters), _unfinished(run),
        "<h2>Result</h2>", _table(run, parameters), _unreadable(run), *map(_figure, charts),
        "<h2>The control</h2>", _control(run),
    ]
    if curves:
        parts += ["<h2>Training</h2>", *map(_figure, curves)]
    if pictures or note:
        parts += ["<h2>Pictures</h2>", f'<p class="warn">{escape(note)}</p>' if note else "", *map(_figure, pictures)]
    parts += ["<h2>Configuration</h2>",
              f"<details><summary>The whole config, defaults included</summary><pre>{escape(_config(run))}</pre></details>"]
    head = ('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{name}, seed {run.seed}</title>")
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}\n<style>{CSS}</style></head>\n<body><main>\n'
            + "\n".join(part for part in parts if part) + "\n</main></body>\n</html>\n")


def _facts(run) -> str:
    facts = (f"seed {run.seed}", run.results["device"], f"kdtasks {kdtasks.__version__}", f"torch {torch.__version__}")
    return '<p class="facts">' + "".join(f"<span>{escape(fact)}</span>" for fact in facts) + "</p>"


def _cards(run, parameters: Mapping[str, int]) -> str:
    """The numbers that count, large: alone, distilled, teacher."""
    results, primary, colors = run.results["stages"], run.task.PRIMARY, stage_colors(run)
    models = {stage.name: stage.model for stage in run.stages}
    teachers = [name for name in run.config["teachers"] if name in results]
    cards = []
    for name in dict.fromkeys(["alone", _distilled(run), *teachers[:1]]):
        if not _is_number(results.get(name, {}).get(primary)):
            continue
        lines = [f"{parameters[models[name]]:,} parameters"] if name in models else []
        if name == _distilled(run) and _is_number(results.get("alone", {}).get(primary)):
            lines.insert(0, f"{_number(results[name][primary] - results['alone'][primary], signed=True)} against alone")
        if name in teachers and name in models:
            lines[0] += f" ({parameters[models[name]] / max(parameters.get('student', 0), 1):.3g}× the student's)"
        value = f"<b>{_number(results[name][primary])}<small>{_unit(primary)}</small></b>"
        cards.append(f'<div class="card" style="border-color:{colors[name]}"><span>{escape(name)}</span>{value}'
                     f"<span>{', '.join(lines)}</span></div>")
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _unfinished(run) -> str:
    missing = [stage.name for stage in run.stages if stage.name not in run.done]
    if not missing:
        return ""
    reached = {name: max((e["iteration"] for e in h), default=0) for name, h in _history(run).items()}
    text = [f"{name} (iteration {reached[name]})" if reached.get(name) else f"{name} (not begun)" for name in missing]
    text = ", ".join(text if len(text) <= LISTED else [*text[:LISTED], f"and {len(text) - LISTED} more"])
    return f'<p class="warn">Not finished: {escape(text)}. <code>--resume</code> goes on.</p>'


def _unreadable(run) -> str:
    """The files that could not be read, and why; the figures are of the others."""
    found: dict[str, dict[str, str]] = {}
    for values in run.results["stages"].values():
        for part, paths in values.get("unreadable", {}).items():
            found.setdefault(part, {}).update(paths)
    if not found:
        return ""
    rows = "".join(f"<tr><td>{escape(part)}</td><td>{_code(path)}</td><td>{escape(why)}</td></tr>"
                   for part, paths in found.items() for path, why in sorted(paths.items()))
    counts = ", ".join(f"{len(paths)} of the {part} data" for part, paths in found.items())
    return (f'<p class="warn">Could not be read: {escape(counts)}. A figure of the test data is of the other samples.</p>'
            f"<details><summary>Which, and why</summary><table><tbody>{rows}</tbody></table></details>")


def _table(run, parameters: Mapping[str, int]) -> str:
    """A row a stage; those that are not finished have no numbers. Those on the way are in a table that opens by a click."""
    results, colors = run.results, stage_colors(run)
    primary, stages, way = results["primary"], {stage.name: stage for stage in run.stages}, _on_the_way(run)
    control = results["stages"].get("alone", {}).get(primary)
    compared, costs = _is_number(control), any("cost" in values for values in results["stages"].values())
    heads = [("stage", ""), *((n, "n") for n in _metrics(results)), *([("against alone", "n")] if compared else []),
             ("time", "n"), *([("whole cost", "n")] if costs else []), ("parameters", "n"), ("taught by", ""),
             ("losses × weight", "")]
    rows: dict[bool, list[str]] = {False: [], True: []}
    for name in dict.fromkeys([*stages, *results["stages"]]):
        values, stage = results["stages"].get(name, {}), stages.get(name)
        cells = [f'<td><i class="dot" style="background:{colors[name]}"></i>{escape(name)}</td>']
        cells += [f'<td class="n{" first" if n == primary else ""}">{_number(values.get(n), least=decimals(n))}</td>'
                  for n in _metrics(results)]
        if compared:
            own = _is_number(values.get(primary)) and name not in ("alone", *run.config["teachers"], *way)
            cells.append(f'<td class="n first">{_number(values[primary] - control, signed=True) if own else ""}</td>')
        cells += [f'<td class="n">{_duration(values.get(key))}</td>' for key in ("seconds", *(["cost"] if costs else []))]
        count = _size(run.learner(stage)) if name in way else parameters[stage.model] if stage else None
        cells.append(f'<td class="n">{"–" if count is None else f"{count:,}"}</td>')
        cells.append(f"<td>{escape(_taught_by(run, stage)) or '–' if stage else '–'}</td>")
        losses = stage.losses.items() if stage else ()
        cells.append('<td class="losses">' + "".join(
            f"<span>{_code(loss)} × {escape(_weight(entry))}</span>" for loss, entry in losses) + "</td>")
        rows[name in way].append(f"<tr>{''.join(cells)}</tr>")
    names = [(escape(text).replace("_", "_<wbr>") if way else escape(text), kind) for text, kind in heads]
    head = "".join(f'<th class="{kind}">{text}</th>' if kind else f"<th>{text}</th>" for text, kind in names)
    main, others = (f'<div class="wide{" many" if way else ""}"><table><thead><tr>{head}</tr></thead>'
                    f'<tbody>{"".join(rows[k])}</tbody></table></div>' for k in (False, True))
    return main + (f"<details><summary>The {len(way)} stages on the way there</summary>{others}</details>" if way else "")


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _figure(image: tuple[str, str, int]) -> str:
    title, uri, width = image
    return f'<figure><figcaption>{escape(title)}</figcaption><img src="{uri}" width="{width}" alt="{escape(title)}"></figure>'


def _config(run) -> str:
    path = run.work_dir / "config.py"
    text = path.read_text(encoding="utf-8") if path.exists() else pprint.pformat(run.config, width=110, sort_dicts=False)
    return textwrap.dedent(text).strip()
