"""What cannot work is said before the first step, with the nearest right thing."""

import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, SMALL, small, weights

from kdtasks.engine import builder, checkpoint
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run
from kdtasks.engine.runner import NotFiniteError


def test_config_key_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"no key 'optimzer'; did you mean 'optimizer'"):
        small(optimzer={})
    with pytest.raises(
        ConfigError,
        match=r"KDLoss has no argument 'temprature'; did you mean "
        r"'temperature'",
    ):
        small(losses__loss_kd__temprature=3.0)
    with pytest.raises(
        ConfigError,
        match=r"data has no key 'batchsize'; did you mean "
        r"'batch_size'",
    ):
        small(data__batchsize=3)
    with pytest.raises(ConfigError, match=r"kdtasks.general has no 'KDLos'; did you mean 'KDLoss'"):
        small(losses__loss_kd__type="kdtasks.general.KDLos")
    with pytest.raises(
        ConfigError,
        match=r"SGD has no argument 'momentun'; did you mean "
        r"'momentum'",
    ):
        small(optimizer__momentun=0.9)
    with pytest.raises(ConfigError, match=r"loss_kd must be a dict with 'of'"):
        small(losses__loss_kd={"type": "kdtasks.general.KDLoss"})


def test_an_entry_with_a_weight_that_would_only_inform():
    kd = {"type": "kdtasks.general.KDLoss", "of": ("student", "teacher")}
    schedule = {"type": "kdtasks.core.Linear", "start": 0, "end": 1}
    for weight in (0.9, schedule):
        with pytest.raises(ConfigError, match=r"losses.kd has a weight.*call it loss_kd"):
            small(losses__kd={**kd, "weight": weight})
    for further in ({}, {"weight": 0}):
        assert "kd" in small(losses__kd={**kd, **further})["losses"]


def test_wrong_names_and_sizes_are_said_before_the_first_step(tmp_path):
    (tmp_path / "teacher.pth").touch()
    for options, message in (
        (
            {"losses__loss_kd__of": ("student", "teacher.fcc")},
            r"loss_kd: 'teacher.fcc' is no "
            r"submodule",
        ),
        (
            {"losses__loss_kd__of": ("student", "techer")},
            r"neither a model nor the batch supplies "
            r"'techer'; did you mean 'teacher'",
        ),
        (
            {"teacher__num_classes": 7},
            r"loss_kd cannot be computed from student \(32, 10\), "
            r"teacher \(32, 7\)",
        ),
        (
            {"losses__loss_x": {"type": "torch.nn.MSELoss", "of": ("student.0", "teacher.0")}},
            r"loss_x cannot be computed from student.0",
        ),
        ({"schedule": [{"type": "MultiStepLRR"}]}, r"MultiStepLRR.*did you mean 'MultiStepLR'"),
        (
            {"teacher__checkpoint": "nowhere.pth"},
            r"^teacher.checkpoint: no checkpoint 'nowhere.pth'",
        ),
        (
            {"student__checkpoint": str(tmp_path / "teachr.pth")},
            r"^student.checkpoint: no checkpoint '.*teachr.pth'; did you mean 'teacher.pth'",
        ),
        (
            {"teacher__checkpoint": "no/where.pth"},
            r"^teacher.checkpoint: no checkpoint 'no/where.pth'; there is no folder 'no'",
        ),
    ):
        with pytest.raises((ConfigError, ValueError, FileNotFoundError), match=message):
            Run(small(**options), tmp_path / "run", quiet=True).train()
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "model, message",
    [
        (
            {"type": "timm.create_model", "model_name": "resnet18x"},
            "timm has no 'resnet18x'; did you mean 'resnet18'",
        ),
        (
            {"type": "timm.create_model", "model_name": "timm/resnet18"},
            "timm has no 'timm/resnet18'; did you mean 'resnet18'",
        ),
        (
            {"type": "timm.create_model", "model_name": "resnet18.a1_in1kk"},
            "resnet18 has no weights 'a1_in1kk'; did you mean 'a1_in1k'",
        ),
        (
            {"type": "torchvision.models.get_model", "name": "resnet18x"},
            "torchvision has no model 'resnet18x'; did you mean 'resnet18'",
        ),
        (
            {"type": "torchvision.models.get_model", "name": "resnet18", "weights": "DEFAULTT"},
            "no weights='DEFAULTT'; did you mean 'DEFAULT'",
        ),
        (
            {"type": "torchvision.models.resnet18", "weights": "IMAGENET1K_V9"},
            "no weights='IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'",
        ),
        (
            {
                "type": "torchvision.models.detection.fcos_resnet50_fpn",
                "weights_backbone": "IMAGENET1K_V9",
            },
            "no weights_backbone='IMAGENET1K_V9'; did",
        ),
    ],
)
def test_a_listed_model_or_weights_that_do_not_exist(model, message):
    with pytest.raises(ConfigError, match=f"^(student|teacher): .*{message}"):
        small(student=model)
    with pytest.raises(ConfigError, match=f"^teacher: .*{message}"):
        small(teacher=model)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "timm.create_model", "model_name": "resnet18"},
        {"type": "timm.create_model", "model_name": "resnet18.a1_in1k"},
        {"type": "timm.create_model", "model_name": "hf-hub:some/one"},
        {"type": "timm.create_model", "model_name": "test_resnet.r160_in1k"},
        {
            "type": "torchvision.models.get_model",
            "name": "ResNet18",
            "weights": "ResNet18_Weights.DEFAULT",
        },
        {"type": "torchvision.models.resnet18", "weights": "IMAGENET1K_V1"},
        {"type": "torchvision.models.resnet18", "weights": None},
    ],
)
def test_listed_models_and_weights_that_do_exist(model):
    assert small(student=model)["student"] == model


def test_a_teacher_that_knows_other_classes(undisturbed, tmp_path):
    file = str(undisturbed.folder(undisturbed.experiment.stages[0]) / "last.pth")
    names = [str(k) for k in range(9)] + ["ten"]
    with pytest.raises(ConfigError, match=r"lacks \['9'\] and adds \['ten'\]"):
        Run(
            small(teacher__checkpoint=file, data__train__classes=names),
            tmp_path / "run",
            quiet=True,
        ).train()


def test_infinite_loss_names_term_and_step_and_saves(tmp_path):
    hooks = [{"type": "small_parts.BreakWeights", "stage": "distilled", "iteration": 9}]
    run = Run({**small(), "custom_hooks": hooks}, tmp_path / "run", quiet=True)
    with pytest.raises(
        NotFiniteError,
        match=r"loss_\w+ is (nan|inf) at iteration 9 of stage "
        r"'distilled'.*failed.pth.*last.pth",
    ):
        run.train()
    state = weights(run, "distilled")
    # written after 9 good steps, before the bad one
    assert state["resume"]["iteration"] == 9
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert "state_dict" in torch.load(
        run.folder(run.experiment.stages[2]) / "failed.pth", weights_only=True
    )


def test_a_wrong_input_ends_in_one_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "train.py"),
            str(SMALL),
            "--cfg-options",
            "losses.loss_kd.temperatur=3",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert (
        done.stderr.strip()
        == "error: losses.loss_kd: KDLoss has no argument 'temperatur'; did you mean 'temperature'?"
    )


def test_a_file_from_elsewhere_is_never_unpickled(tmp_path):
    bad = tmp_path / "teacher.pth"
    torch.save(torch.nn.Linear(2, 2), bad)
    with pytest.raises(ValueError, match="is not unpickled, since that can run code"):
        Run(small(teacher__checkpoint=str(bad)), tmp_path / "run", quiet=True).train()


def test_a_truncated_teacher_is_refused_before_the_first_step(undisturbed, tmp_path):
    whole = (undisturbed.folder(undisturbed.experiment.stages[0]) / "last.pth").read_bytes()
    (tmp_path / "teacher.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"teacher.pth' is truncated, damaged or no checkpoint"):
        Run(
            small(teacher__checkpoint=str(tmp_path / "teacher.pth")), tmp_path / "run", quiet=True
        ).train()
    assert not (tmp_path / "run").exists()


def test_builder_says_what_is_near():
    with pytest.raises(ConfigError, match="full dotted path"):
        builder.resolve("KDLoss", "losses.x")
    with pytest.raises(ConfigError, match="no module 'nowhere'"):
        builder.resolve("nowhere.Thing", "losses.x")


def test_what_a_later_stage_cannot_do_is_said_before_the_first_step(tmp_path):
    """The distilled stage is checked before the teacher trains: its optimizer, schedule, patterns,
    anchors, weights, test data.
    """
    plain = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}
    teacher = {"name": "teacher", "model": "teacher", "losses": plain, "length": 1}
    last = {"name": "distilled", "teachers": {"teacher": "teacher"}, "losses": small()["losses"]}
    for change, message in (
        ({"optimizer": {"lr": -1.0}}, "'distilled': optimizer.lr=-1.0 .*expected a number >= 0"),
        ({"student": "no.pth"}, "distilled.student: no checkpoint 'no.pth'"),
        ({"teachers": {"teacher": "no.pth"}}, "distilled.teachers.teacher: no checkpoint 'no.pth'"),
        ({"schedule": {"type": "LinearLR", "start_factor": 7}}, "schedule .*start_factor"),
        ({"schedule": {"type": "ReduceOnPlateauLR"}}, "ReduceOnPlateauLR"),
        ({"train": ["student.100"]}, "nothing that can train is called 'student.100'"),
        ({"teachers": {"teacher": "teacher.10"}}, "keeps the epochs"),
        ({"teachers": {"teacher": None}}, "the teacher 'teacher' has no weights"),
        ({"keep": [9]}, "keeps epoch 9, but ends after 3"),
    ):
        with pytest.raises((ConfigError, FileNotFoundError), match=message):
            Run(
                {**small(), "stages": [teacher, {**last, **change}]}, tmp_path / "run", quiet=True
            ).train()
        assert not (tmp_path / "run").exists()


ADAM, TORCHS = "torch.optim.Adam", "torch.optim.lr_scheduler"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": {"type": "SGD", "lr": 1}}, r"optimizer.type .*did you mean 'torch.optim.SG"),
        ({"optimizer.lr": -1}, r"optimizer.lr=-1 .*Invalid learning rate: -1; expected a number >"),
        ({"optimizer.lr": "0.1"}, r"optimizer.lr='0.1' \(SGD\).* is text, not the number 0.1"),
        ({"optimizer.momentum": "a"}, r"optimizer.momentum='a' .*expected a number >= 0"),
        ({"optimizer": {"type": ADAM, "betas": 0.9}}, r"optimizer.betas=0.9 .*expected two number"),
        ({"optimizer": {"type": ADAM, "fused": True, "foreach": True}}, r"fused=True.*, optimizer"),
        ({"optimizer": {"type": "torch.optim.LBFGS"}}, r"optimizer.type='torch.optim.LBFGS'.*step"),
        ({"schedule": {"type": "StepLR", "step_size": 0}}, r"schedule .*after iteration 1: ZeroDi"),
        (
            {"schedule": {"type": f"{TORCHS}.StepLR", "step_size": "a"}},
            r"schedule .*iteration 6: T",
        ),
        ({"schedule": {"type": f"{TORCHS}.OneCycleLR", "max_lr": -1}}, r"rate is -0.* one >= 0"),
    ],
)
def test_what_an_optimizer_or_a_schedule_cannot_do(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Run(small(**options), tmp_path / "run", quiet=True).train(only=["alone"])
    assert not (tmp_path / "run").exists()


def test_values_of_the_wrong_kind():
    for options, message in (
        ({"channels_last": "false"}, "channels_last must be True or False, got 'false'"),
        ({"losses__loss_kd__weight": "abc"}, "loss_kd.weight must be a number"),
        ({"clip_grad": 0}, "clip_grad must be None or a number > 0"),
        ({"data__batch_size": 64.0}, "data.batch_size must be a whole number"),
        ({"data__skip_bad": True, "cache": {"views": 1}}, "do not go together"),
        ({"models": {"teacher": {"type": "small_parts.Net"}}}, "a model of that name already"),
    ):
        with pytest.raises(ConfigError, match=message):
            small(**options)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="what is in it is no run"):
        Run(small(), tmp_path / "thesis", quiet=True).train()
    assert (tmp_path / "thesis" / "a.txt").read_text() == "years of work"


def test_a_cache_of_what_depends_on_the_batch_is_refused(tmp_path):
    """A collate that mixes the samples of a batch: what the teacher says of a mix cannot be kept by
    sample.
    """
    config = small(
        cache={"views": 1},
        data__train={"type": "small_parts.Samples"},
        data__collate="small_parts.mixed",
        amp=None,
    )
    with pytest.raises(ConfigError, match="cache: 'teacher' of a training batch differs"):
        Run(config, tmp_path / "run", quiet=True).train()


def test_a_checkpoint_that_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a float64"):
        checkpoint.save({"a": [1, __import__("numpy").float64(2)]}, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("optimizer.lr", float("nan")),
        ("optimizer.momentum", float("inf")),
        ("student.width", float("nan")),
        ("schedule", [{"type": "LinearLR", "end": float("inf")}]),
        ("losses.loss_kd.temperature", -float("inf")),
    ],
)
def test_numbers_that_are_not_finite(option, value):
    with pytest.raises(ConfigError, match=rf"{option}.* must be a finite number, got (nan|-?inf)"):
        small(**{option: value})


def test_a_teachers_file_with_nan_is_refused_before_the_first_step(undisturbed, tmp_path):
    state = weights(undisturbed, "teacher")["state_dict"]
    state["1.running_var"][2] = float("nan")
    torch.save(state, tmp_path / "teacher.pth")
    run = Run(
        small(teacher__checkpoint=str(tmp_path / "teacher.pth")), tmp_path / "run", quiet=True
    )
    with pytest.raises(
        ValueError,
        match=r"teacher.pth' holds nan in '1.running_var' \(1 of its 8 "
        r"values\)",
    ):
        run.train()
    assert not (tmp_path / "run").exists()


def test_statistics_that_are_not_finite_are_not_saved(tmp_path):
    run = Run(small(custom_hooks=[{"type": "small_parts.BreakStatistics"}]), tmp_path, quiet=True)
    with pytest.raises(
        RuntimeError,
        match=r"the statistics 'student.1.running_mean' are not "
        r"finite after iteration",
    ):
        run.train()
    assert all(
        t.isfinite().all()
        for file in ("last.pth", "best.pth")
        for t in weights(run, "distilled", file)["state_dict"].values()
    )
    assert not (tmp_path / "student.pth").exists()
