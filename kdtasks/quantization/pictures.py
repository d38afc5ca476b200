"""Accuracy against bits of the arms of quantized students, drawn and written as a table from the
results of runs::

    python -m kdtasks.quantization.pictures WORK_DIR [WORK_DIR …] --output bits.svg
"""

import argparse
import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kdtasks.core import Stage
from kdtasks.core.arms import with_roles
from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.engine import config as configurations
from kdtasks.engine.config_checks import stages_of
from kdtasks.engine.report.style import CONTROL, OTHERS, STYLE, TAUGHT, TEACHER
from kdtasks.quantization.students import FULL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# kinds of students, and what their figures are called
TITLES = {
    "quantized": "weights in few bits",
    "fake_quantized": "weights and activations\nin 8 bits",
}
# in the order of the table: the student in full precision, those for reference, and the two arms
ORDER = ("full", "joint", "control", "taught")
STYLES = {"control": (CONTROL, "o"), "taught": (TAUGHT, "D")}
OTHER_STYLES = ((OTHERS[3], "s"), (OTHERS[0], "^"), (OTHERS[1], "v"))


class Arm(NamedTuple):
    """A stage of a quantized student, at its bits.

    Attributes:
        role: of the stage; ``'full'``, where the student is in full precision.
        name: of the stage.
        bits: of the weights.
    """

    role: str
    name: str
    bits: int


# {kind of student: {arm: {metric: of each run}}}
Found = dict[str, dict[Arm, dict[str, list[float]]]]


def arms_of(config: Mapping) -> list[Arm]:
    """The arms that a run of a config has, by the roles of its stages; steps are none."""
    bits = config["student"].get("bits", 8)
    # as the engine calls what a config does not list
    roles = {ALONE: "control", DISTILLED: "taught"}
    arms = []
    for stage in with_roles([Stage(**stage) for stage in stages_of(config)]):
        roles.pop(stage.name, None)
        if stage.model != "student" or stage.role == "step":
            continue
        if stage.arguments == FULL:
            arms.append(Arm("full", stage.name, 32))
        else:
            arms.append(Arm(str(stage.role), stage.name, bits))
    return arms + [Arm(role, name, bits) for name, role in roles.items()]


def read_results(folders: Iterable[str | Path], metric: str | None = None) -> Found:
    """What the runs below folders have reached, seed by seed; a stage that several runs share (full
    precision, the control of tools/compare.py) counts once.

    Args:
        folders: with ``results.json`` and ``config.py`` of runs, at any depth.
        metric: None: the primary one of each run.

    Raises:
        ValueError: there is no run of a quantized student.
    """
    results_by_kind: Found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    folders, trainings = list(map(Path, folders)), set()
    for path in sorted(file for folder in folders for file in folder.rglob("results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        config = configurations.load(path.parent / "config.py")
        kind = str(config["student"]["type"]).rpartition(".")[2]
        name = metric or results["primary"]
        for arm in arms_of(config) if kind in TITLES else ():
            reached = results["stages"].get(arm.name)
            if reached is None:
                continue
            numbers = {k: v for k, v in reached.items() if k not in ("seconds", "onnx_ms")}
            training = (kind, arm, results["seed"], json.dumps(numbers, sort_keys=True))
            if training in trainings:
                continue
            trainings.add(training)
            of_arm = results_by_kind[kind][arm]
            of_arm["metric"].append(reached[name])
            for key in (f"onnx_{name}", "onnx_bytes", "onnx_ms", "packed_bytes"):
                if key in reached:
                    of_arm[key.replace(name, "metric")].append(reached[key])
    if not results_by_kind:
        raise ValueError(
            f"no results of a student in few bits below {', '.join(map(str, folders))}: expected "
            "folders of runs, or of tools/compare.py"
        )
    return results_by_kind


def in_order(arms: Iterable[Arm]) -> list[Arm]:
    """By role; those of one role as their runs list them, by bits."""
    arms = list(arms)
    names = list(dict.fromkeys(arm.name for arm in arms))
    return sorted(arms, key=lambda arm: (ORDER.index(arm.role), names.index(arm.name), arm.bits))


def spread(values: Sequence[float]) -> str:
    """``mean ± standard deviation``, and of how many."""
    if len(values) == 1:
        return f"{values[0]:.2f} (1)"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"


def as_table(results: Found) -> str:
    """All of it in Markdown: mean, standard deviation and number of runs; bytes and ms: medians."""
    lines = [
        "| student | arm | bits | metric | file under onnxruntime | bytes | ms |",
        "|---" * 7 + "|",
    ]
    for kind, arms in results.items():
        for arm in in_order(arms):
            of_arm = arms[arm]
            size = of_arm.get("packed_bytes") or of_arm.get("onnx_bytes")
            cells = (
                kind,
                arm.name,
                str(arm.bits),
                spread(of_arm["metric"]),
                spread(of_arm["onnx_metric"]) if "onnx_metric" in of_arm else "",
                f"{statistics.median(size):,.0f}" if size else "",
                f"{statistics.median(of_arm['onnx_ms']):.3f}" if "onnx_ms" in of_arm else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: Found, path: str | Path, label: str = "accuracy, %") -> None:
    """Mean and extremes of each arm against bits; a point a run, hollow its ONNX file."""
    import matplotlib.style
    from matplotlib.figure import Figure

    kinds = [kind for kind in TITLES if kind in results]
    widths = [len({arm.bits for arm in results[kind]}) + 1 for kind in kinds]
    with matplotlib.style.context({**STYLE, "svg.hashsalt": "kdtasks"}, after_reset=True):
        figure = Figure(figsize=(1.2 + 1.5 * sum(widths), 4.2))
        panels = figure.subplots(1, len(kinds), squeeze=False, width_ratios=widths)[0]
        for axes, kind in zip(panels, kinds):
            _draw_panel(axes, kind, results[kind])
        panels[0].set_ylabel(label)
        figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)


def _draw_panel(axes: "Axes", kind: str, arms: Mapping[Arm, Mapping]) -> None:
    full = {arm: of_arm["metric"] for arm, of_arm in arms.items() if arm.role == "full"}
    for arm, values in full.items():
        mean = statistics.fmean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0
        axes.axhline(mean, color=TEACHER, linestyle="--", label=arm.name)
        axes.axhspan(mean - deviation, mean + deviation, color=TEACHER, alpha=0.12, linewidth=0)
    bits = sorted({arm.bits for arm in arms if arm not in full})
    lines: dict[tuple[str, str], list[Arm]] = {}
    for arm in in_order(arms):
        if arm not in full:
            lines.setdefault((arm.role, arm.name), []).append(arm)
    others = itertools.cycle(OTHER_STYLES)
    for k, ((role, name), points) in enumerate(lines.items()):
        color, marker = STYLES.get(role) or next(others)
        offset = 0.1 * (k - (len(lines) - 1) / 2)
        places = [bits.index(arm.bits) + offset for arm in points]
        means = [statistics.fmean(arms[arm]["metric"]) for arm in points]
        axes.plot(places, means, color=color, marker=marker, markersize=6, label=name)
        for place, arm in zip(places, points):
            values = arms[arm]["metric"]
            axes.vlines(place, min(values), max(values), color=color, alpha=0.5)
            axes.plot([place] * len(values), values, ".", color=color, markersize=4, alpha=0.6)
            shipped = arms[arm].get("onnx_metric", [])
            axes.plot([place + 0.04] * len(shipped), shipped, "o", color=color, mfc="none", ms=5)
    if any("onnx_metric" in of_arm for of_arm in arms.values()):
        axes.plot([], [], "o", color=TEACHER, mfc="none", ms=5, label="its int8 ONNX file")
    axes.set_xticks(range(len(bits)), [f"{b} bits" for b in bits])
    axes.set_xlim(-0.5, len(bits) - 0.5)
    axes.set_title(TITLES[kind])
    columns = 3 if len(bits) > 1 else 2
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=columns)


def main(arguments: Sequence[str] | None = None) -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dirs", nargs="+")
    parser.add_argument("--metric", help="default: the primary one of the runs")
    parser.add_argument("--output", help="an .svg or .png; default: the table alone")
    args = parser.parse_args(arguments)
    results = read_results(args.work_dirs, args.metric)
    print(as_table(results))
    if args.output:
        draw(results, args.output)


if __name__ == "__main__":
    main()
