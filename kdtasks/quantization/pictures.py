"""Accuracy against bits of the arms of quantized students, drawn and written as a table from the
results of runs::

    python -m kdtasks.quantization.pictures WORK_DIR [WORK_DIR …] --output bits.svg
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdtasks.engine import config as configurations
from kdtasks.engine.report.figures import CONTROL, OTHERS, STYLE, TAUGHT, TEACHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# of each student, the arm that is in full precision, and the others in the order of the table
FULL = "full"
ARMS = {
    "quantized": {
        "rounded": (OTHERS[3], "s"),
        "levels": (OTHERS[0], "^"),
        "alone": (CONTROL, "o"),
        "distilled": (TAUGHT, "D"),
    },
    "fake_quantized": {"ptq": (OTHERS[3], "s"), "alone": (CONTROL, "o"), "qad": (TAUGHT, "D")},
}
TITLES = {
    "quantized": "weights in few bits",
    "fake_quantized": "weights and activations\nin 8 bits",
}

# {kind of student: {(arm, bits): {metric: of each run}}}
Found = dict[str, dict[tuple[str, int], dict[str, list[float]]]]


def read_results(folders: Iterable[str | Path], metric: str | None = None) -> Found:
    """What the runs below folders have reached, seed by seed; a stage that several runs share (full
    precision, the control of tools/compare.py) counts once.

    Args:
        folders: with ``results.json`` and ``config.py`` of runs, at any depth.
        metric: None: the primary one of each run.

    Raises:
        ValueError: there is no run of a quantized student.
    """
    found: Found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    folders, met = list(map(Path, folders)), set()
    for path in sorted(file for folder in folders for file in folder.rglob("results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        student = configurations.load(path.parent / "config.py")["student"]
        kind = str(student["type"]).rpartition(".")[2]
        name = metric or results["primary"]
        for arm, reached in results["stages"].items() if kind in ARMS else ():
            if arm == FULL or arm in ARMS[kind]:
                bits = 32 if arm == FULL else student.get("bits", 8)
                numbers = {k: v for k, v in reached.items() if k not in ("seconds", "onnx_ms")}
                training = (kind, arm, bits, results["seed"], json.dumps(numbers, sort_keys=True))
                if training in met:
                    continue
                met.add(training)
                own = found[kind][arm, bits]
                own["metric"].append(reached[name])
                for key in (f"onnx_{name}", "onnx_bytes", "onnx_ms", "packed_bytes"):
                    if key in reached:
                        own[key.replace(name, "metric")].append(reached[key])
    if not found:
        raise ValueError(
            f"no results of a student in few bits below {', '.join(map(str, folders))}: expected "
            "folders of runs, or of tools/compare.py"
        )
    return found


def spread(values: Sequence[float]) -> str:
    """``mean ± standard deviation``, and of how many."""
    if len(values) == 1:
        return f"{values[0]:.2f} (1)"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"


def as_table(found: Found) -> str:
    """All of it in Markdown: mean, standard deviation and number of runs; bytes and ms: medians."""
    lines = [
        "| student | arm | bits | metric | file under onnxruntime | bytes | ms |",
        "|---" * 7 + "|",
    ]
    for kind, arms in found.items():
        for arm, bits in sorted(
            arms, key=lambda key: (list((FULL, *ARMS[kind])).index(key[0]), key)
        ):
            own = arms[arm, bits]
            size = own.get("packed_bytes") or own.get("onnx_bytes")
            cells = (
                kind,
                arm,
                str(bits),
                spread(own["metric"]),
                spread(own["onnx_metric"]) if "onnx_metric" in own else "",
                f"{statistics.median(size):,.0f}" if size else "",
                f"{statistics.median(own['onnx_ms']):.3f}" if "onnx_ms" in own else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Found, path: str | Path, label: str = "accuracy, %") -> None:
    """Mean and extremes of each arm against bits; a point a run, hollow its ONNX file."""
    import matplotlib.style
    from matplotlib.figure import Figure

    kinds = [kind for kind in ARMS if kind in found]
    widths = [len({bits for _, bits in found[kind]}) + 1 for kind in kinds]
    with matplotlib.style.context({**STYLE, "svg.hashsalt": "kdtasks"}, after_reset=True):
        figure = Figure(figsize=(1.2 + 1.5 * sum(widths), 4.2))
        panels = figure.subplots(1, len(kinds), squeeze=False, width_ratios=widths)[0]
        for axes, kind in zip(panels, kinds):
            _draw_panel(axes, kind, found[kind])
        panels[0].set_ylabel(label)
        figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)


def _draw_panel(axes: "Axes", kind: str, arms: Mapping[tuple[str, int], Mapping]) -> None:
    bits = sorted({bits for arm, bits in arms if arm != FULL})
    full = [value for (arm, _), own in arms.items() if arm == FULL for value in own["metric"]]
    if full:
        mean, apart = statistics.fmean(full), statistics.stdev(full) if len(full) > 1 else 0
        axes.axhline(mean, color=TEACHER, linestyle="--", label=FULL)
        axes.axhspan(mean - apart, mean + apart, color=TEACHER, alpha=0.12, linewidth=0)
    for k, (arm, (color, marker)) in enumerate(ARMS[kind].items()):
        known = [(place, arms[arm, b]) for place, b in enumerate(bits) if (arm, b) in arms]
        if not known:
            continue
        aside = 0.1 * (k - (len(ARMS[kind]) - 1) / 2)
        places = [place + aside for place, _ in known]
        means = [statistics.fmean(own["metric"]) for _, own in known]
        axes.plot(places, means, color=color, marker=marker, markersize=6, label=arm)
        for place, own in zip(places, (own for _, own in known)):
            values = own["metric"]
            axes.vlines(place, min(values), max(values), color=color, alpha=0.5)
            axes.plot([place] * len(values), values, ".", color=color, markersize=4, alpha=0.6)
            shipped = own.get("onnx_metric", [])
            axes.plot([place + 0.04] * len(shipped), shipped, "o", color=color, mfc="none", ms=5)
    if any("onnx_metric" in own for own in arms.values()):
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
    found = read_results(args.work_dirs, args.metric)
    print(as_table(found))
    if args.output:
        draw(found, args.output)


if __name__ == "__main__":
    main()
