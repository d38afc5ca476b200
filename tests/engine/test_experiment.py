"""What a config describes is there without a folder, and is made once."""

import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from small_runs import SMALL, same, small, weights

from kdtasks.engine.check import check
from kdtasks.engine.cli import test as evaluate_main
from kdtasks.engine.data_sets import normalization
from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.evaluation import evaluate
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.pretrained import odd_normalization
from kdtasks.engine.run import Run


def test_an_experiment_writes_nothing_and_leaves_the_random_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    experiment = Experiment(small(), device="cpu")
    for stage in experiment.stages:
        assert experiment.distiller(stage).learners == ["student"]
        assert len(experiment.first_batch(stage)["input"]) == 32
        experiment.test_loader(stage)
    assert torch.equal(before, torch.get_rng_state())
    check(experiment)
    dry_run(experiment)
    assert not list(tmp_path.iterdir())


def test_weights_come_from_the_files_that_are_given(undisturbed):
    experiment = Experiment(small(), device="cpu")
    stage, fresh = experiment.stage("distilled"), experiment.model("teacher").state_dict()
    trained = weights(undisturbed, "teacher")["state_dict"]
    assert not same(fresh, trained)
    loaded = experiment.distiller(stage, undisturbed.files).model("teacher")
    assert same(loaded.state_dict(), trained)
    assert same(experiment.distiller(stage).model("teacher").state_dict(), fresh)
    assert same(
        experiment.trained(experiment.stage("teacher"), undisturbed.files).state_dict(), trained
    )
    assert undisturbed.files.weights("teacher", "best").exists()


@pytest.mark.parametrize("load", [True, False])
def test_files_that_the_config_names_are_loaded_unless_nothing_is(undisturbed, load):
    file = undisturbed.files.weights("teacher")
    experiment = Experiment(small(teacher__checkpoint=str(file)), device="cpu")
    teacher = experiment.distiller(experiment.stage("distilled"), load=load).model("teacher")
    trained = weights(undisturbed, "teacher")["state_dict"]
    assert same(teacher.state_dict(), trained) == load


def normalised(mean, std, **options):
    data = {"type": "small_parts.Normalised", "mean": mean, "std": std, "first": 0, "count": 64}
    return small(data__train=data, data__test=data, length=1, **options)


def test_a_teacher_sees_images_as_the_run_saw_them_that_trained_it(tmp_path, capsys):
    run = Run(normalised(0.5, 0.25), tmp_path / "run", device="cpu", quiet=True)
    run.train(only=["teacher", "alone"])
    file = run.files.weights("teacher")
    meta = torch.load(file, weights_only=True)["meta"]
    assert meta["normalization"] == {"mean": [0.5], "std": [0.25]}
    seen = run.experiment.first_batch(run.experiment.stage("distilled"))["input"]
    expected = run.experiment.trained(run.experiment.stage("teacher"), run.files)(seen)
    images = 0.25 * seen + 0.5
    for mean, std in ((0.5, 0.25), (0.0, 1.0), (0.1, 2.0)):
        config = normalised(mean, std, teacher__checkpoint=str(file))
        experiment = Experiment(config, device="cpu")
        teacher = experiment.teacher(experiment.stage("distilled"), "teacher", None)
        torch.testing.assert_close(teacher((images - mean) / std), expected)
        assert (teacher.scale is None) == (mean == 0.5)
    # what the config says goes first; data that says nothing is taken as it is, with a warning
    said = normalised(
        0.0, 1.0, teacher__checkpoint=str(file), teacher__mean=[0.0], teacher__std=[1.0]
    )
    silent = small(teacher__checkpoint=str(file))
    for config in (said, silent):
        experiment = Experiment(config, device="cpu")
        stage, warned = experiment.stage("distilled"), config is silent
        with pytest.warns(UserWarning, match="does not say what") if warned else nullcontext():
            assert experiment.teacher(stage, "teacher", None).scale is None
    # a student that goes on from such weights
    file = run.files.weights("alone")
    with pytest.warns(UserWarning, match=r"mean 0.5, std 0.25, and go on with mean 0.1, std 2:"):
        other = Experiment(normalised(0.1, 2.0, student__checkpoint=str(file)), device="cpu")
        other.distiller(other.stage("alone"))
    # by itself it is tested as it teaches; other weights as the data is, with a warning
    config = normalised(0.1, 2.0, teacher__checkpoint=str(run.files.weights("teacher")))
    other = Experiment(config, device="cpu")
    stage = other.stage("distilled")
    teacher = other.teacher(stage, "teacher", None)
    accuracy = evaluate(other.task, teacher, other.test_loader(stage))["accuracy"]
    test = {"type": "small_parts.Normalised", "mean": 0.1, "std": 2.0, "first": 0, "count": 64}
    options = ["--cfg-options", *(f"data.test.{key}={value}" for key, value in test.items())]
    for model, trained in (("teacher", "teacher"), ("student", "alone")):
        capsys.readouterr()
        weights = str(run.files.weights(trained))
        evaluate_main([str(SMALL), weights, "--model", model, "--device", "cpu", *options])
        said = capsys.readouterr()
        warned = "the test images are normalised with mean 0.1, std 2, and those" in said.err
        assert warned == (model == "student")
        assert warned or f"accuracy {accuracy:.3f}\n" in said.out


def test_test_images_that_are_normalised_otherwise_are_warned_of():
    config = normalised(0.5, 0.25)
    assert odd_normalization(Experiment(config, device="cpu")) == []
    config["data"]["test"] = {**config["data"]["test"], "mean": 0.0}
    (text,) = odd_normalization(Experiment(config, device="cpu"))
    assert text.startswith("the test images are normalised with mean 0, std 0.25, and those that")


@pytest.mark.parametrize(
    "mean, std, expected",
    [
        (np.array([0.5, 0.1]), torch.tensor([0.25, 1]), ((0.5, 0.1), (0.25, 1.0))),
        (torch.full((1, 1, 1), 0.5), 0.25, ((0.5,), (0.25,))),
        (lambda: 0.5, [0.25], None),
        (None, [0.25], None),
        ("0.5", [0.25], None),
    ],
)
def test_a_data_set_says_its_normalisation_in_any_type(mean, std, expected):
    inner = types.SimpleNamespace(mean=mean, std=std)
    assert normalization(types.SimpleNamespace(dataset=inner)) == expected


def test_data_is_read_once_until_it_is_forgotten():
    experiment = Experiment(small(), device="cpu")
    data = experiment.config["data"]
    first = experiment.data_set(data, "train")
    assert experiment.data_set(data, "train") is first
    assert experiment.train_loader(experiment.stages[0]).dataset is first
    assert experiment.data_set(data, "test") is not first
    made = []
    assert experiment.data.keep("mine", lambda: made.append(1) or "x") == "x"
    assert experiment.data.keep("mine", lambda: made.append(2) or "y") == "x" and made == [1]
    experiment.data.clear()
    assert experiment.data_set(data, "train") is not first


def test_a_run_has_the_experiment_of_its_config(undisturbed, tmp_path):
    run = Run(small(), tmp_path / "run", seed=3, device="cpu", name="mine", quiet=True)
    assert (run.experiment.seed, run.experiment.name, run.work_dir) == (3, "mine", tmp_path / "run")
    assert run.finished == [] and not run.work_dir.exists()
    assert [stage.name for stage in undisturbed.finished] == ["teacher", "alone", "distilled"]
