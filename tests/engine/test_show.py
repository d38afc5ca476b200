"""What the screen shows keeps its names whole, however narrow it is."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdtasks.core import Stage
from kdtasks.core.arms import arms
from kdtasks.engine.compare import show as comparison
from kdtasks.engine.show import table
from kdtasks.engine.task import Task

METRICS = [
    "average_incremental_accuracy",
    "average_accuracy_task_il",
    "accuracy_expected_calibration_error",
    "forgetting",
]
RESULTS = {
    "config": "small",
    "seed": 0,
    "device": "cpu",
    "primary": METRICS[0],
    "stages": {
        stage: {**{name: 10.0 * k + j for j, name in enumerate(METRICS)}, "seconds": 3.0}
        for k, stage in enumerate(["alone", "a_stage_of_a_rather_long_name", "distilled"])
    },
}
ARMS = arms(
    [
        Stage("alone", role="control"),
        Stage("a_stage_of_a_rather_long_name", role="joint"),
        Stage("distilled", role="taught"),
    ]
)
TASK = Task(
    SimpleNamespace(
        __name__="a_task",
        PRIMARY=METRICS[0],
        HIGHER_IS_BETTER=True,
        evaluate=None,
        example=None,
        pictures=None,
    )
)
LONG = "kd_resnet8x2_resnet8_cifar100_short_with_a_long_name"
ROW = {
    "alone": [1.0, 2.0, 3.0],
    "distilled": [2.0, 3.0, 4.5],
    "differences": [1.0, 1.0, 1.5],
    "mean": 1.2,
    "low": 0.5,
    "high": 1.8,
    "teachers": {"teacher": [5.0]},
    "verdict": None,
    "why": "no verdict: 1 of at least 3 seeds",
    "seconds": [1.0],
    "metrics": {
        name: {"alone": [1.0], "distilled": [2.0], "mean": 1.0, "low": None, "high": None}
        for name in METRICS
    },
}
COMPARED = {
    "primary": METRICS[0],
    "higher_is_better": True,
    "devices": ["cpu"],
    "confidence": 0.95,
    "seeds": [0, 1, 2],
    "configs": {LONG: ROW},
    "shared": [],
    "notes": [],
}


def shown(show, *what, width):
    """On a screen of a width; None: in a pipe."""
    text = io.StringIO()
    show(*what, console=Console(file=text, width=width) if width else None)
    return text.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120, 300, None])
def test_names_and_numbers_are_whole_on_every_screen(width, capsys):
    text = shown(table, RESULTS, ARMS, TASK, width=width) or capsys.readouterr().out
    for name in (*METRICS, *RESULTS["stages"], "against alone"):
        assert name in text, name
    line = next(line for line in text.splitlines() if "distilled" in line and "20.00" in line)
    assert ("│" in line) == (width in (300, None)) and "23.00" in text and "+20.00" in text
    text = shown(comparison.show, COMPARED, TASK, width=width) or capsys.readouterr().out
    for name in (
        *METRICS[1:],
        LONG,
        "no verdict: 1 of at least 3 seeds",
        "4.500",
        "+1.20 [+0.50, +1.80]",
    ):
        assert name in text, name


def test_a_line_a_number_can_be_searched():
    lines = shown(table, RESULTS, ARMS, TASK, width=80).splitlines()
    assert (
        "distilled average_incremental_accuracy: 20.00" in lines
        and "distilled against alone: +20.00" in lines
    )
    assert "alone against alone: " not in lines and lines[0] == "small, seed 0, cpu"
    lines = shown(comparison.show, COMPARED, TASK, width=60).splitlines()
    assert f"{LONG} 2 distilled: 4.500" in lines and f"{LONG} forgetting alone: 1.00" in lines
