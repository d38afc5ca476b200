"""The model card: hubs can read its head, its figures are the run's, and who follows its words
gets the student.
"""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from small_runs import small

from kdtasks.engine import card as cards
from kdtasks.engine.cli import export as main
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.export import export
from kdtasks.engine.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch, in a folder as compare.py has it."""
    folder = tmp_path_factory.mktemp("work") / "small" / "seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtasks.engine.report.write_report", lambda run: None)
        run = Run(small(length=1, deployment=True), folder, name="small", quiet=True)
        run.train()
    return run


def student_of(run):
    from small_parts import Net

    student = Net(4).eval()
    student.load_state_dict(torch.load(run.work_dir / "student.pth", weights_only=True))
    return student


def head_of(path):
    return yaml.safe_load(path.read_text().split("---\n")[1])


def follow(path, monkeypatch):
    """What each block of code of a card leaves, run in the card's folder."""
    monkeypatch.chdir(path.parent)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        names: dict = {}
        exec(block, names)
        yield names


def test_the_head_is_what_hubs_read(run, tmp_path):
    done = export(run.work_dir, "safetensors", tmp_path / "s.safetensors", card=True)
    head, final = head_of(tmp_path / "README.md"), run.done["distilled"]
    assert done["card"] == str(tmp_path / "README.md")
    assert head["license"] == "unknown" and head["library_name"] == "kdtasks"
    assert head["tags"] == ["knowledge-distillation", "classification", "safetensors", "pytorch"]
    assert head["pipeline_tag"] == "image-classification" and "datasets" not in head
    assert head["metrics"] == ["accuracy", "accuracy_top5"]
    (entry,) = head["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "small" and result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "small_parts.Digits", "type": "Digits"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {name: final[name] for name in head["metrics"]}


def test_licence_and_data_are_those_of_the_config(run, tmp_path, capsys):
    options = ["--cfg-options", "card.licence=mit", "card.datasets=['digits']"]
    output = ["--output", str(tmp_path / "s.pth")]
    main([str(run.work_dir), "--format", "pth", "--card", *output, *options])
    assert str(tmp_path / "README.md") in capsys.readouterr().out
    head = head_of(tmp_path / "README.md")
    assert head["license"] == "mit" and head["datasets"] == ["digits"]
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "digits"
    with pytest.raises(ConfigError, match="card has no key 'license'; did you mean 'licence'"):
        small(card={"license": "mit"})
    with pytest.raises(ConfigError, match="card must be dict"):
        small(card={"licence": 3})


def test_the_text_has_the_figures_of_the_run(run, tmp_path):
    export(run.work_dir, "pth", tmp_path / "s.pth", card=True)
    text = (tmp_path / "README.md").read_text()
    alone, taught = (run.done[stage]["accuracy"] for stage in ("alone", "distilled"))
    gain = f"{taught - alone:+.2f}".replace("-", "−")
    assert f"({alone:.2f} %): {gain} % accuracy, of seed 0 alone" in text
    teacher = run.done["teacher"]["accuracy"]
    assert (
        f"`small_parts.Net`, trained by stage `teacher` of the same run ({teacher:.2f} %)" in text
    )
    assert "| `loss_kd` | `kdtasks.general.KDLoss` | `student, teacher` | 0.9 |" in text
    assert "loss_cls × 1" in text and "small_parts.Digits(count=200, first=0, noise=0.1)" in text
    assert "| student | 246 |" in text and "| teacher | 770 |" in text
    assert "10 classes: 0, 1, 2" in text and str(run.work_dir) not in text


@pytest.mark.parametrize(
    "format", ["pth", "safetensors", pytest.param("onnx", marks=pytest.mark.slow)]
)
def test_who_follows_its_words_has_the_student(run, tmp_path, monkeypatch, format):
    export(run.work_dir, format, tmp_path / f"s.{format}", card=True)
    zeros = torch.zeros(1, 1, 8, 8)
    expected = student_of(run)(zeros)
    found = list(follow(tmp_path / "README.md", monkeypatch))
    assert len(found) == 2
    for names in found:
        said = names["outputs"]
        said = torch.from_numpy(said[0]) if isinstance(said, list) else said
        assert torch.allclose(said, expected, atol=1e-5)


def test_a_packed_student_is_loaded_as_its_card_says(tmp_path, monkeypatch):
    student = {"type": "kdtasks.quantization.quantized", "bits": 4}
    student["model"] = {"type": "small_parts.Net", "width": 4}
    folder = tmp_path / "run"
    config = {**small(length={"iterations": 1}), "student": student}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtasks.engine.report.write_report", lambda run: None)
        run = Run(config, folder, name="small", quiet=True)
        run.train()
    export(folder, "packed", card=True)
    (names,) = follow(folder / "README.md", monkeypatch)
    model = run.trained("distilled")
    assert torch.equal(names["outputs"], model(torch.zeros(1, 1, 8, 8)))
    assert "Not measured in this run." in (folder / "README.md").read_text()


def comparison(folders, **more):
    row = {"mean": 2.5, "low": 1.25, "high": 3.75, "verdict": "better", "why": "", **more}
    return {
        "task": "kdtasks.classification.trainer",
        "primary": "accuracy",
        "seeds": [0, 1, 2],
        "confidence": 0.95,
        "controls": [],
        "configs": {"small": {**row, "folders": folders}},
    }


def test_the_gain_of_a_comparison_is_taken_where_the_run_is_part_of_it(run, tmp_path):
    above, file = run.work_dir.parents[1] / "compare.json", tmp_path / "c.json"
    text = "+2.50 % accuracy [+1.25, +3.75], the 95% interval of the paired differences, over the"
    above.write_text(json.dumps(comparison(["small/seed0", "small/seed1"])))
    try:
        export(run.work_dir, "pth", tmp_path / "s.pth", card=True)
        assert f"{text} seeds 0, 1, 2; better." in (tmp_path / "README.md").read_text()
        above.write_text(json.dumps(comparison(["other/seed0"])))
        export(run.work_dir, "pth", tmp_path / "s.pth", card=True)
        assert "one seed has no interval" in (tmp_path / "README.md").read_text()
        above.write_text("{}")
        export(run.work_dir, "pth", tmp_path / "s.pth", card=True)
        assert "one seed has no interval" in (tmp_path / "README.md").read_text()
    finally:
        above.unlink()
    file.write_text(json.dumps(comparison([], low=None, high=None, verdict=None, why="2 seeds")))
    export(run.work_dir, "pth", tmp_path / "s.pth", card=True, comparison=file)
    text = (tmp_path / "README.md").read_text()
    assert "+2.50 % accuracy, over the seeds 0, 1, 2; 2 seeds." in text
    wrong = comparison([])
    wrong["configs"] = {"smaller": wrong["configs"]["small"]}
    file.write_text(json.dumps(wrong))
    with pytest.raises(ConfigError, match="does not have this run, 'small' of seed 0.*'smaller'"):
        export(run.work_dir, "pth", tmp_path / "s.pth", card=True, comparison=file)


def test_only_a_card_as_it_was_written_is_replaced(run, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"README.md' is no model card of ours, or was changed"):
        export(run.work_dir, "pth", tmp_path / "s.pth", card=True)
    assert path.read_text() == "mine" and not (tmp_path / "s.pth").exists()
    path.unlink()
    export(run.work_dir, "pth", tmp_path / "s.pth", card=True)
    first = path.read_text()
    export(run.work_dir, "pth", tmp_path / "s.pth", card=True)
    assert path.read_text() == first
    path.write_text(first.replace("unknown", "mit"))
    with pytest.raises(ConfigError, match="was changed"):
        export(run.work_dir, "pth", tmp_path / "s.pth", card=True)


def test_other_weights_than_those_that_count_and_a_teacher_of_others(run, tmp_path):
    export(run.work_dir, "pth", tmp_path / "a.pth", "stages/1_alone/last.pth", card=True)
    text = (tmp_path / "README.md").read_text()
    assert "not the weights of the student that counts" in text and "No teacher taught" in text
    teacher = {"type": "small_parts.Net", "width": 8, "checkpoint": "/far/away/teacher.pth"}
    experiment = Experiment({**small(), "teachers": {"teacher": teacher}}, device="cpu")
    results = {"config": "small", "seed": 0, "stages": {}}
    known = {"name": "timm:x", "weights": "a1", "licence": "apache-2.0"}
    for pretrained, want in (
        ({}, "with the weights teacher.pth; licence: not stated"),
        ({"teacher": known}, "with the weights a1; licence: apache-2.0"),
        ({"teacher": {**known, "licence": None}}, "with the weights a1; licence: not stated"),
        ({"student": known}, "the student started from timm:x a1; licence: apache-2.0"),
    ):
        given = {**results, "pretrained": pretrained}
        card = cards.Card(experiment, given, {}, "student", SimpleNamespace(name="s.pth"), "pth")
        assert want in cards.text_of(card) and "/far" not in cards.text_of(card)
    with pytest.raises(ConfigError, match="no stage has finished"):
        cards.read_results(tmp_path)
