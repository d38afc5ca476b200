"""What cannot be read is left out of the score, and named: in results.json, train.log, the report,
and once on the screen.
"""

import contextlib
import io
import json
import warnings

import pytest
from small_runs import ROOT, small

from kdtasks.engine import cli
from kdtasks.engine.run import Run
from tests.ranks import finish_tool, start_tool

# batches of 32: the third would be empty
BAD = [3, *range(64, 96), 199]
TRAIN = [7, 50]


def run_of(folder, bad, left_out=(), **changes):
    data = {
        "data.test": {
            "type": "small_parts.Unreadable",
            "first": 1000,
            "count": 200,
            "bad": bad,
            "left_out": left_out,
        },
        "data.train": {"type": "small_parts.Unreadable", "first": 0, "count": 200, "bad": TRAIN},
        "data.test_batch_size": 32,
        "data.skip_bad": True,
        "length": 1,
    }
    return Run(small(**{**data, **changes}), folder, quiet=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("unreadable") / "run", BAD)
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        run.train()
    run.said = said.getvalue()
    return run


def test_the_score_is_of_what_can_be_read(finished, tmp_path):
    with warnings.catch_warnings(action="ignore"):
        clean = run_of(tmp_path / "clean", [], left_out=BAD).train()
    for stage, found in finished.results["stages"].items():
        assert {k: v for k, v in found.items() if k not in ("unreadable", "seconds")} == {
            k: v for k, v in clean["stages"][stage].items() if k not in ("unreadable", "seconds")
        }
        assert "test" not in clean["stages"][stage]["unreadable"]


def test_it_is_named_everywhere(finished):
    results = json.loads((finished.work_dir / "results.json").read_text())
    reason = {f"digits/{i}.png": f"OSError: image file {i} is truncated" for i in (*BAD, *TRAIN)}
    for found in results["stages"].values():
        assert found["unreadable"] == {
            "test": {f"digits/{i}.png": reason[f"digits/{i}.png"] for i in BAD},
            "train": {f"digits/{i}.png": reason[f"digits/{i}.png"] for i in TRAIN},
        }
    log, report = ((finished.work_dir / name).read_text() for name in ("train.log", "report.html"))
    for path, why in reason.items():
        assert (
            log.count(f"{path}: {why}") == 3 and f"<code>{path}</code></td><td>{why}</td>" in report
        )
    assert f"{len(BAD)} of the test data" in report
    assert finished.said.count("left out of the test data: ") == 1
    assert f"and {len(BAD) - 1} more" in finished.said


def test_a_resumed_stage_still_names_it(finished, tmp_path):
    """A run that was killed after its last checkpoint, before the results of the stage were
    written.
    """
    run = run_of(tmp_path / "run", BAD)
    with warnings.catch_warnings(action="ignore"):
        run.train(only=["alone"])
        before = run.done["alone"]["unreadable"]
        (run.work_dir / "stages" / "done.json").unlink()
        again = run_of(tmp_path / "run", BAD).train(resume=True, only=["alone"])
    assert (
        again["stages"]["alone"]["unreadable"]
        == before
        == finished.results["stages"]["alone"]["unreadable"]
    )


def test_two_processes_name_what_either_has_met_and_give_the_same_score(tmp_path):
    """Each process reads its own rows of a training batch, and all of the test data."""
    train = [5, 30, 77, 120, 161, 190]
    plain = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}
    options = {
        "data.test": {"type": "small_parts.Unreadable", "first": 1000, "count": 200, "bad": BAD},
        "data.skip_bad": True,
        "data.train": {"type": "small_parts.Unreadable", "first": 0, "count": 200, "bad": train},
        "length": 2,
        "student.norm": False,
        "stages": [{"name": "plain", "losses": plain}],
    }
    command = ["train.py", str(ROOT / "tests/engine/small/small.py"), "--device", "cpu"]
    command += ["--work-dir", str(tmp_path / "two"), "--launcher", "pytorch", "--cfg-options"]
    command += [f"{key}={value!r}" for key, value in options.items()]
    finish_tool(tmp_path / "said", start_tool(tmp_path / "said", command, number=2))
    two = json.loads((tmp_path / "two" / "results.json").read_text())["stages"]["plain"]
    run = Run(small(**options), tmp_path / "one", quiet=True)
    with warnings.catch_warnings(action="ignore"):
        one = run.train()["stages"]["plain"]
        met = []
        for run.experiment.rank in range(2):
            run.experiment.world = 2
            loader = run.experiment.train_loader(run.experiment.stages[0])
            list(loader.epoch(0))
            met.append(set(loader.unreadable))
    # neither process has met all of them
    assert all(met) and met[0] != met[1]
    assert {k: v for k, v in two.items() if k != "seconds"} == {
        k: v for k, v in one.items() if k != "seconds"
    }
    assert len(two["unreadable"]["train"]) == len(train) and len(two["unreadable"]["test"]) == len(
        BAD
    )


def test_test_py_names_it(finished, capsys):
    options = [
        f"data.{key}={value!r}"
        for key, value in finished.experiment.config["data"].items()
        if key in ("test", "train", "test_batch_size", "skip_bad")
    ]
    with warnings.catch_warnings(action="ignore"):
        cli.test(
            [
                str(ROOT / "tests/engine/small/small.py"),
                str(finished.work_dir / "student.pth"),
                "--device",
                "cpu",
                "--cfg-options",
                *options,
            ]
        )
    said = capsys.readouterr()
    assert said.out.startswith(
        f"accuracy {finished.results['stages']['distilled']['accuracy']:.3f}"
    )
    assert (
        said.err.count("warning: left out: digits/") == len(BAD)
        and "digits/3.png: OSError" in said.err
    )


def test_without_skip_bad_it_stops_before_the_first_step(tmp_path):
    with pytest.raises(RuntimeError, match=r"cannot read sample 3, digits/3.png: OSError"):
        run_of(tmp_path / "run", BAD, **{"data.skip_bad": False, "data.train.bad": []}).train()
    assert not (tmp_path / "run").exists()
