"""Accuracy against bits, read from the results of runs, as a table and as a picture."""

import json
from pathlib import Path

import pytest

from kdtasks.quantization import pictures

CONFIGS = Path(__file__).parents[2] / "configs" / "quantization"


def run(folder: Path, config: str, stages: dict, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    (folder / "config.py").write_text(f"_base_ = [{str(CONFIGS / config)!r}]\n")
    (folder / "results.json").write_text(
        json.dumps({"primary": "accuracy", "seed": seed, "stages": stages})
    )


def test_a_table_and_a_picture_of_what_runs_have_reached(tmp_path, capsys):
    for seed, taught in enumerate((97.0, 98.0, 99.0)):
        stages = {"teacher": {"accuracy": 99.0}, "full": {"accuracy": 96.0 + seed}}
        stages |= {"distilled": {"accuracy": taught, "packed_bytes": 1000 + seed}}
        run(tmp_path / "four" / f"seed{seed}", "qd_digits_4_bits.py", stages, seed)
        # as tools/compare.py leaves a stage that configs share
        shared = {"full": {"accuracy": 96.0 + seed}}
        run(tmp_path / "shared" / f"seed{seed}", "qd_digits_8_bits.py", shared, seed)
    shipped = {"accuracy": 95.0, "onnx_accuracy": 94.5, "onnx_bytes": 2000, "onnx_ms": 0.5}
    run(tmp_path / "int8" / "seed0", "qad_digits.py", {"qad": shipped})
    pictures.main([str(tmp_path), "--output", str(tmp_path / "bits.svg")])
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows == [
        ["quantized", "full", "32", "97.00 ± 1.00 (3)", "", "", ""],
        ["quantized", "distilled", "4", "98.00 ± 1.00 (3)", "", "1,001", ""],
        ["fake_quantized", "qad", "8", "95.00 (1)", "94.50 (1)", "2,000", "0.500"],
    ]
    assert (tmp_path / "bits.svg").read_text().startswith("<?xml")


def test_without_runs_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no results of a student in few bits below"):
        pictures.main([str(tmp_path)])
