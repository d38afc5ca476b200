"""Curves and the report's pictures in mmengine's back ends, under the run's and the stage's name."""

import json

import numpy as np
import pytest
from mmengine.visualization.vis_backend import BaseVisBackend
from small_runs import small

from kdtasks.engine import config as configs
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.run import Run
from kdtasks.engine.trackers import open_tracker

CALLS = []


class Noting(BaseVisBackend):
    """A back end of one's own, which notes what it gets."""

    def __init__(self, save_dir, flavour="plain"):
        super().__init__(save_dir)
        self.folder, self.flavour = save_dir, flavour

    _init_env = experiment = add_config = add_graph = add_scalar = None

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):
        CALLS.append((self.folder, "scalars", sorted(scalar_dict), step))

    def add_image(self, name, image, step=0, **kwargs):
        CALLS.append((self.folder, "image", name, image.shape))

    def close(self):
        CALLS.append((self.folder, "close", self.flavour))


def both():
    return [{"type": "TensorboardVisBackend"}, {"type": f"{__name__}.Noting", "flavour": "own"}]


@pytest.fixture(scope="module")
def run(drawn_reports, tmp_path_factory):
    """A finished run with TensorBoard and a back end of one's own."""
    CALLS.clear()
    config = {**small(length=1), "vis_backends": both()}
    run = Run(config, tmp_path_factory.mktemp("run") / "run", name="small", quiet=True)
    run.train()
    return run


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_has_the_curves_of_each_stage_and_the_pictures_of_the_report(run):
    folder = run.work_dir / "tensorboard"
    assert {f.name for f in folder.iterdir()} == {"teacher", "alone", "distilled", "report"}
    found = events(folder / "distilled")
    assert {"accuracy", "loss_cls", "loss_kd", "lr"} <= set(found.Tags()["scalars"])
    value = run.done["distilled"]["accuracy"]
    assert found.Scalars("accuracy")[-1].value == pytest.approx(value)
    assert found.Scalars("accuracy")[-1].step == 6
    report = events(folder / "report")
    assert report.Scalars("distilled/accuracy")[0].value == pytest.approx(value)
    assert "accuracy of each stage" in report.Tags()["images"]
    assert len(report.Tags()["images"]) == 6


def test_a_back_end_of_ones_own_gets_the_same_and_is_closed_after_each_part(run):
    closed = [folder for folder, call, *_ in CALLS if call == "close"]
    parts = ("teacher", "alone", "distilled", "report")
    assert closed == [str(run.work_dir / "noting" / part) for part in parts]
    assert {entry[2] for entry in CALLS if entry[1] == "close"} == {"own"}
    pictures = [(folder, shape) for folder, call, *_, shape in CALLS if call == "image"]
    assert {folder for folder, _ in pictures} == {closed[-1]}
    assert all(shape[2] == 3 and min(shape) == 3 for _, shape in pictures)


def test_services_are_told_the_names_of_run_and_stage(tmp_path):
    given = {"project": "mine", "mode": "offline"}
    entries = [{"type": "WandbVisBackend", "init_kwargs": given}, {"type": "MLflowVisBackend"}]
    experiment = Experiment(small(), seed=3, device="cpu", name="small")
    experiment.config["vis_backends"] = entries
    files = Run(small(), tmp_path).files
    tracker = open_tracker(experiment, files, "alone")
    wandb, mlflow = (vars(backend) for backend in tracker.backends)
    assert wandb["_init_kwargs"] == {
        "project": "mine",
        "group": "small seed 3",
        "name": "small seed 3 alone",
        "job_type": "alone",
        "mode": "offline",
    }
    assert wandb["_save_dir"] == str(tmp_path)
    assert (mlflow["_exp_name"], mlflow["_run_name"]) == ("small", "small seed 3 alone")
    assert mlflow["_save_dir"] == str(tmp_path / "mlflow")
    assert entries[0]["init_kwargs"] == {"project": "mine", "mode": "offline"}
    tracker.close()


def offline(tmp_path, entry):
    """The names, curve and picture of a stage, sent with nothing to send them to."""
    experiment = Experiment(small(), seed=3, device="cpu", name="general/small")
    experiment.config["vis_backends"] = [entry]
    tracker = open_tracker(experiment, Run(small(), tmp_path).files, "alone")
    tracker.add_scalars({"accuracy": 12.5}, step=7)
    tracker.add_image("picture.png", np.zeros((4, 4, 3), np.uint8))
    tracker.close()


@pytest.mark.slow  # its service takes seconds to start
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline(tmp_path, {"type": "WandbVisBackend", "init_kwargs": {"mode": "offline"}})
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    for text in ("general_small", "general/small seed 3", "general/small seed 3 alone", "accuracy"):
        assert text.encode() in written
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/picture*.png"))) == 1


def test_mlflow_offline(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    offline(tmp_path, {"type": "MLflowVisBackend"})
    (run,) = (tmp_path / "mlflow").glob("*/*/meta.yaml")
    assert "run_name: general/small seed 3 alone" in run.read_text()
    assert "name: general/small" in (run.parents[1] / "meta.yaml").read_text()
    assert (run.parent / "metrics" / "accuracy").read_text().split()[1:] == ["12.5", "7"]
    assert (run.parent / "artifacts" / "picture.png").exists()


@pytest.mark.parametrize(
    "entries, message",
    [
        ([{"type": "TensorbordVisBackend"}], "did you mean 'TensorboardVisBackend'"),
        ([{"type": "torch.nn.Linear"}], "is no back end"),
        (["TensorboardVisBackend"], r"vis_backends\[0\] must be a dict"),
        ([{"type": "TensorboardVisBackend", "folder": "x"}], "no argument 'folder'"),
        ([{"type": "NeptuneVisBackend"}], "needs a package: pip install neptune"),
        ("TensorboardVisBackend", "must be a list"),
    ],
)
def test_a_wrong_back_end_is_an_error_at_the_start(entries, message):
    with pytest.raises(ConfigError, match=message):
        Experiment(configs.complete({**small(), "vis_backends": entries, "teachers": None}))


def test_a_config_of_before_says_tensorboard(tmp_path):
    config = {key: value for key, value in small().items() if key != "vis_backends"}
    former = configs.complete({**config, "tensorboard": True})
    assert former["vis_backends"] == [{"type": "TensorboardVisBackend"}]
    assert configs.complete({**config, "tensorboard": False})["vis_backends"] == []
    run = Run(small(), tmp_path / "run", quiet=True)
    run.open()
    run.close()
    stamp = run.work_dir / "stages" / "config.json"
    content = json.loads(stamp.read_text())
    del content["vis_backends"]
    stamp.write_text(json.dumps({**content, "tensorboard": False}))
    run.open(resume=True)
    run.close()
