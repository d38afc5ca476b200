"""Students that are no plain networks: a whole run, then tools/test.py and tools/export.py on what
it left.
"""

import pytest
import torch
from small_runs import SMALL, small

from kdtasks.engine import cli
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.export import export
from kdtasks.engine.optim import MovingAverage
from kdtasks.engine.run import Run

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:Please use quant_min"
)


@pytest.mark.parametrize("student, ema", [("quantized", 0.9), ("quantized", None), ("Silent", 0.9)])
def test_what_a_run_leaves_loads_in_test_and_export(tmp_path, monkeypatch, capsys, student, ema):
    monkeypatch.setattr("kdtasks.engine.report.write_report", lambda run: None)
    options = {"student": {"type": f"small_parts.{student}", "width": 4}, "length": 1, "ema": ema}
    run = Run(small(**options), tmp_path / "run", 0, "cpu", quiet=True)
    results = run.train()
    given = [
        f"{key}={value!r}"
        for key, value in (("student.type", f"small_parts.{student}"), ("ema", ema))
    ]
    cli.test([str(SMALL), str(run.work_dir / "student.pth"), "--cfg-options", *given])
    assert f"accuracy {results['stages']['distilled']['accuracy']:.3f}" in capsys.readouterr().out
    for format in ("pth", "safetensors"):
        assert export(run.work_dir, format)["difference"] == 0
    if student == "quantized":
        state = torch.load(run.work_dir / "student.pth", weights_only=True)
        assert any(
            "min_val" in name and value.shape == (4,)
            for name, value in getattr(state, "state_dict", state).items()
        )


def test_an_average_follows_buffers_that_grow_and_those_that_are_replaced():
    class Observer(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("grown", torch.zeros(0))
            self.register_buffer("replaced", torch.zeros(2))

        def forward(self, x):
            self.grown.resize_(3).fill_(float(x.sum()))
            self.replaced = self.replaced + x.sum()
            return super().forward(x)

    model = Observer()
    average = MovingAverage(model, 0.5)
    for x in (torch.ones(1, 2), torch.full((1, 2), 3.0)):
        model(x)
        average.update()
        assert torch.equal(average.model.grown, model.grown) and torch.equal(
            average.model.replaced, model.replaced
        )
    assert average.model.grown.data_ptr() != model.grown.data_ptr()


@pytest.mark.parametrize(
    "name, entries", [("googlenet", ("logits", "aux_logits2")), ("deit", ("0", "1"))]
)
def test_a_student_with_more_outputs_in_training_names_one(
    name, entries, tmp_path, undisturbed, monkeypatch, capsys
):
    """Refused before the teacher is trained, with the entries there are; a config that names them
    trains.
    """
    monkeypatch.setattr("kdtasks.engine.report.write_report", lambda run: None)
    options = {
        "student": {"type": f"small_parts.{name}"},
        "length": {"iterations": 2},
        "data__train__count": 32,
        "data__test__count": 16,
        "data__batch_size": 8,
    }
    message = rf"student in training is a \w+ of 'student.{entries[0]}' \(8, 10\), "
    with pytest.raises(
        ConfigError,
        match=rf"stage 'distilled': loss_\w+ cannot be computed "
        rf".*{message}",
    ):
        Run(small(**options), tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run").exists()
    given = [f"{key.replace('__', '.')}={value!r}" for key, value in options.items()]
    with pytest.raises(SystemExit):
        cli.train([str(SMALL), "--dry-run", "--device", "cpu", "--cfg-options", *given])
    assert f"'student.{entries[0]}' (" in capsys.readouterr().err
    teacher = str(undisturbed.folder(undisturbed.experiment.stages[0]) / "last.pth")
    of = {
        "losses__loss_cls__of": (f"student.{entries[0]}", "target"),
        "losses__loss_kd__of": (f"student.{entries[1]}", "teacher"),
    }
    run = Run(small(**options, **of, teacher__checkpoint=teacher), tmp_path / "run", quiet=True)
    assert set(run.train()["stages"]) == {"alone", "distilled"}
