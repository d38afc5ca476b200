"""robustness: the student alone and the taught one on corrupted test images, once, at the end."""

import json

import pytest
from small_runs import small

from kdtasks.engine import robustness
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run
from kdtasks.engine.task import load_task

pytest.importorskip("kornia.augmentation", reason="needs kdtasks[augment]")
CHOSEN = {
    "noise": dict(type="kornia.augmentation.RandomGaussianNoise", std=0.3),
    "none at all": dict(type="kornia.augmentation.RandomBrightness", brightness=(1.0, 1.0)),
}


def config(**options):
    digits = dict(type="kdtasks.classification.data.digits")
    data = {**small()["data"], "train": digits, "test": digits}
    return {**small(length=1), "data": data, "robustness": CHOSEN, **options}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(config(), tmp_path_factory.mktemp("runs") / "run", quiet=True)
    run.train()
    return run


def test_both_students_stand_in_the_results_and_the_report(run):
    results = json.loads((run.work_dir / "results.json").read_text())
    found = results["robustness"]
    assert found["metric"] == "accuracy" and list(found["stages"]) == ["alone", "distilled"]
    assert list(found["corruptions"]) == ["none", "noise", "none at all"]
    # told nothing, kornia would change half of the images
    assert "std=0.3, p=1.0" in found["corruptions"]["noise"]
    for stage, values in found["stages"].items():
        assert values["none"] == results["stages"][stage]["accuracy"] == values["none at all"]
    assert found["stages"]["alone"]["noise"] != found["stages"]["alone"]["none"]
    assert robustness.measure(run) == found
    page = (run.work_dir / "report.html").read_text(encoding="utf-8")
    assert "<h2>Robustness</h2>" in page
    table = robustness.table(found, " %", 2)
    assert [title for title, _ in table["heads"]][2:] == ["alone, %", "distilled, %", "difference"]
    noise = [found["stages"][stage]["noise"] for stage in ("alone", "distilled")]
    assert table["rows"][1][2:4] == [f"{value:.2f}" for value in noise]
    assert table["rows"][1][4] == f"{noise[1] - noise[0]:+.2f}".replace("-", "−")


def test_a_resumed_run_does_not_measure_again(run, monkeypatch):
    monkeypatch.setattr(robustness, "measure", None)
    again = Run(config(), run.work_dir, quiet=True)
    assert again.train(resume=True)["robustness"] == run.files.robustness


@pytest.mark.parametrize(
    "value, message",
    [
        (dict(flip=dict(type="kornia.augmentation.RandomHorizontalFlip")), "moves pixels"),
        (dict(noise=dict(type="kornia.augmentation.RandomNoise")), "RandomNoise"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_step(value, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Run(config(robustness=value), tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run" / "results.json").exists()


def test_images_whose_range_is_unknown_are_not_corrupted(tmp_path):
    with pytest.raises(ConfigError, match="robustness: the test images lie between -0.3 and 0.7"):
        Run({**small(length=1), "robustness": True}, tmp_path / "run", quiet=True).train()


def test_a_task_without_corruptions_says_so():
    task = load_task("kdtasks.super_resolution.trainer")
    with pytest.raises(ConfigError, match="the task super_resolution says nothing of corrupted"):
        task.corrupted(None, None, None)


@pytest.mark.parametrize("value", [[dict(type="kornia.augmentation.RandomBoxBlur")], {}, 1])
def test_a_value_that_means_nothing_is_refused(value):
    with pytest.raises(ConfigError, match="robustness must be True, False or {name"):
        small(robustness=value)
