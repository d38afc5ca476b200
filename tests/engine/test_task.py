"""What the engine asks of a task: names that a trainer module must have, defaults for what it may
leave out, and errors that say which name was meant.
"""

import argparse
import sys
from types import ModuleType

import pytest
import torch

from kdtasks.engine.errors import ConfigError
from kdtasks.engine.task import OPTIONAL, REQUIRED, Metric, Task, load_task


def module(without=(), **more):
    made = ModuleType("a_task")
    whole = {
        "PRIMARY": "error",
        "HIGHER_IS_BETTER": False,
        "evaluate": lambda model, loader: {"error": 1.0},
        "example": lambda config, size: {},
        "pictures": lambda run: [],
    }
    vars(made).update({name: value for name, value in whole.items() if name not in without}, **more)
    for value in vars(made).values():
        if callable(value):
            value.__module__ = "a_task"
    return made


def test_what_a_module_leaves_out_has_its_default():
    task = Task(module())
    assert (task.name, task.primary, task.higher_is_better) == ("a_task", "error", False)
    assert task.own_names == () and not task.unseen_classes
    assert task.training_set(None, None, "data", None) == "data"
    assert task.summary(None, None, {"error": 1.0}) == {} and task.deciding("model") == ["model"]
    assert task.onnx_form(None, None) is None and task.doubts({}, None, None) == []
    assert task.is_comparable(torch.zeros(2, 3), torch.ones(2, 3), {}) and task.is_comparable(
        [], [1], {}
    )
    assert not task.is_comparable(torch.zeros(2, 3), torch.zeros(2, 4), {})
    assert not task.is_comparable([], torch.zeros(2, 4), {})
    assert task.predict_arguments(argparse.ArgumentParser()) == []


def test_what_a_module_says_is_asked():
    own = {
        "OWN_NAMES": ("counts",),
        "UNSEEN_CLASSES": True,
        "BACKBONE": True,
        "doubts": lambda metrics, model, loader: [f"{model}: {metrics['error']}"],
        "is_comparable": lambda ours, theirs, config: (ours, theirs) == (1, 2),
        "HUB_TASK": "image-classification",
        "equip": lambda experiment, stage, distiller, files: distiller.append(stage),
        "training_set": lambda experiment, stage, made, files: made[:2],
        "summary": lambda run, stage, metrics: {"twice": 2 * metrics["error"]},
        "deciding": lambda model: [model, "head"],
        "onnx_form": lambda student, images: (student, images),
        "corrupted": lambda loader, chosen, normalization: [loader, chosen, normalization],
        "predict_arguments": lambda parser: parser.add_argument("--side-by-side", type=int),
        "predict": lambda model, config, classes, side_by_side: [model, classes, side_by_side],
    }
    assert set(own) | {"METRICS"} == set(OPTIONAL)
    task, parser = Task(module(**own)), argparse.ArgumentParser()
    assert task.own_names == ("counts",) and task.unseen_classes and task.backbone
    assert task.doubts({"error": 1.0}, "m", None) == ["m: 1.0"]
    assert task.is_comparable(1, 2, {}) and not task.is_comparable(1, 1, {})
    assert task.hub_task == "image-classification"
    assert task.corrupted(1, None, (0, 1)) == [1, None, (0, 1)]
    equipped = []
    task.equip(None, "a stage", equipped, None)
    assert equipped == ["a stage"]
    assert task.training_set(None, None, "data", None) == "da"
    assert task.summary(None, None, {"error": 1.5}) == {"twice": 3.0}
    assert task.deciding("model") == ["model", "head"] and task.onnx_form(1, 2) == (1, 2)
    assert task.predict_arguments(parser) == ["side_by_side"]
    flags = vars(parser.parse_args(["--side-by-side", "3"]))
    assert task.predict("model", {}, ["a"], **flags) == ["model", ["a"], 3]


def test_metrics_are_shown_as_the_first_pattern_says():
    metrics = {
        "error_on_*": Metric("%", listed=False),
        "error*": Metric("%", label="mean error"),
        "sharpness": Metric("dB", decimals=4),
    }
    task = Task(module(METRICS=metrics))
    assert (task.unit("error"), task.unit("error_5"), task.unit("other")) == (" %", " %", "")
    assert (task.axis("sharpness"), task.axis("other")) == ("sharpness, dB", "other")
    assert (task.label("error"), task.label("some_other")) == ("mean error", "some other")
    assert (task.decimals("error"), task.decimals("error", 3)) == (2, 3)
    assert (task.decimals("sharpness"), task.decimals("sharpness", 3)) == (4, 4)
    # of an ONNX file: as the student's; a count is whole
    assert task.metric("onnx_error") == task.metric("error") and task.decimals("onnx_bytes", 3) == 0
    assert [task.metric(name).listed for name in ("error", "error_on_1")] == [True, False]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_name_that_is_missing(name):
    with pytest.raises(ConfigError, match=f"'a_task' is no trainer module: it lacks {name}$"):
        Task(module(without=[name]))


@pytest.mark.parametrize(
    "wrong, right",
    [("evalute", "evaluate"), ("PRIMRY", "PRIMARY"), ("HIGHER_IS_BETER", "HIGHER_IS_BETTER")],
)
def test_a_name_that_must_be_there_and_is_written_otherwise(wrong, right):
    made = module(without=[right], **{wrong: lambda: None})
    with pytest.raises(ConfigError, match=f"it lacks {right}; did you mean '{wrong}'"):
        Task(made)


@pytest.mark.parametrize(
    "wrong, right",
    [("sumary", "summary"), ("trainingset", "training_set"), ("predicts", "predict")],
)
def test_a_name_that_may_be_there_and_is_written_otherwise(wrong, right):
    with pytest.raises(
        ConfigError, match=f"has '{wrong}', which nothing asks for; did you mean '{right}'"
    ):
        Task(module(**{wrong: lambda: None}))


def test_what_a_module_imports_or_names_otherwise_is_its_own():
    Task(module(summarize_all=lambda: None, NAMES=(), os=sys))
    with pytest.raises(ConfigError, match="has predict_arguments, so it needs predict"):
        Task(module(predict_arguments=lambda parser: None))


@pytest.mark.parametrize(
    "path, said",
    [
        ("kdtasks.clasification.trainer", "did you mean 'kdtasks.classification.trainer'"),
        ("kdtasks.classification.traner", "did you mean 'kdtasks.classification.trainer'"),
        (
            "kdtasks.classification",
            "lacks PRIMARY.*; did you mean 'kdtasks.classification.trainer'",
        ),
        ("nowhere_at_all", "cannot be imported: No module named 'nowhere_at_all'$"),
        ("nowhere.at.all", "cannot be imported: No module named 'nowhere'$"),
    ],
)
def test_a_task_that_is_not_there(path, said):
    with pytest.raises(ConfigError, match=said):
        load_task(path)
