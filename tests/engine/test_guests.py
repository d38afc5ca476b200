"""Networks, data sets and writers of other libraries, by their dotted path."""

import pytest
import torch
from small_runs import same, small, weights

from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.notices import slow_precision
from kdtasks.engine.run import Run

FOLDER = {"type": "torchvision.datasets.ImageFolder", "transform": {"type": "small_parts.views"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as PNG files in a folder a class, as anybody's images are."""
    from PIL import Image
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("images")
    images, target = load_digits(return_X_y=True)
    for k in range(120):
        path = root / ("train" if k < 80 else "test") / str(target[k])
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images[k].reshape(8, 8) * 15).astype("uint8")).save(path / f"{k}.png")
    return root


def on_files(folder, workers=0, **options):
    return small(
        **{
            "data.train": {**FOLDER, "root": str(folder / "train")},
            "data.test": {**FOLDER, "root": str(folder / "test")},
            "data.workers": workers,
            "data.batch_size": 16,
            **options,
        }
    )


def test_a_torchvision_data_set_with_random_transforms_resumes_exactly(folder, tmp_path):
    """Random crops in worker processes: two workers give what none gives, and a stopped run what an
    unstopped one gives.
    """
    whole = Run(on_files(folder), tmp_path / "whole", quiet=True)
    whole.train(only=["alone"])
    with pytest.raises(KeyboardInterrupt):
        hooks = [{"type": "small_parts.StopAt", "stage": "alone", "iteration": 7}]
        Run(on_files(folder, 2, custom_hooks=hooks), tmp_path / "cut", quiet=True).train(
            only=["alone"]
        )
    state = torch.load(tmp_path / "cut" / "stages" / "1_alone" / "last.pth", weights_only=True)
    assert state["resume"]["iteration"] == 6
    stamp = tmp_path / "cut" / "stages" / "config.json"
    import json

    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))
    cut = Run(on_files(folder, 2), tmp_path / "cut", quiet=True)
    cut.train(resume=True, only=["alone"])
    assert same(weights(whole, "alone")["state_dict"], weights(cut, "alone")["state_dict"])


def test_an_unreadable_image_is_named_or_skipped(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "images")
    bad = next((tmp_path / "images" / "train" / "3").iterdir())
    bad.write_bytes(b"this is no picture")
    with pytest.raises(RuntimeError, match=bad.name):
        Run(on_files(tmp_path / "images"), tmp_path / "run", quiet=True).train(only=["alone"])
    with pytest.warns(UserWarning, match=bad.name):
        results = Run(
            on_files(tmp_path / "images", data__skip_bad=True), tmp_path / "run", quiet=True
        ).train(only=["alone"])
    assert "alone" in results["stages"]


def test_networks_of_torchvision_and_timm(tmp_path):
    config = small(
        student={"type": "torchvision.models.mobilenet_v3_small", "num_classes": 10},
        teacher={"type": "timm.create_model", "model_name": "resnet10t", "num_classes": 10},
        data__train={"type": "torchvision.datasets.ImageFolder", "root": "nowhere"},
        data__batch_size=4,
    )
    rows = dry_run(Run(config, tmp_path / "unused", quiet=True).experiment)
    assert [row["stage"] for row in rows] == ["teacher", "alone", "distilled"]
    assert (
        rows[2]["shapes"]["teacher"] == (4, 10)
        and rows[2]["teacher_parameters"] == rows[0]["parameters"] > 10**6
    )


def test_teacher_with_its_own_input_size_and_precision(tmp_path):
    """Its options are the Teacher's, not the network's; the network sees 16x16 images in bfloat16."""
    run = Run(
        small(teacher__input_size=16, teacher__precision="bfloat16"), tmp_path / "run", quiet=True
    )
    run.train(only=["teacher"])
    distiller = run.experiment.distiller(run.experiment.stages[2], run.files)
    seen = []
    distiller.model("teacher")[0].register_forward_hook(
        lambda module, args, out: seen.append((args[0].shape[-1], out.dtype))
    )
    distiller(next(iter(run.experiment.train_loader(run.experiment.stages[2]))))
    assert seen == [(16, torch.bfloat16)]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"amp": "bfloat16"}, "amp = 'bfloat16'"),
        ({"teacher__precision": "bfloat16"}, "teacher.precision = 'bfloat16'"),
        ({}, None),
    ],
)
def test_bfloat16_in_software_is_said(options, said, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    experiment = Experiment(small(**options), device="cpu")
    text = slow_precision(experiment)
    assert text is None if said is None else text.startswith(said)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    assert slow_precision(experiment) is None
