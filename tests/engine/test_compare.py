"""A comparison pairs each run with its own control, trains what is shared once, and says no more
than its numbers do.
"""

import importlib
import io
import itertools
import json
import math
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from rich.console import Console
from scipy import stats

from kdtasks.core import Distiller
from kdtasks.engine import config as configurations
from kdtasks.engine import config_keys
from kdtasks.engine.cli import compare as main
from kdtasks.engine.cli.comparing import _named
from kdtasks.engine.compare.comparison import compare
from kdtasks.engine.compare.notes import _fixed_views, pair_notes
from kdtasks.engine.compare.plan import ConfigArm, plan_jobs
from kdtasks.engine.compare.show import plot, show
from kdtasks.engine.compare.statistics import interval, verdict
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run
from kdtasks.engine.task import load_task
from kdtasks.engine.work_dir import WorkDir

SMALL = Path(__file__).parent / "small" / "small.py"
TASK = load_task("kdtasks.classification.trainer")
KD = dict(type="kdtasks.general.KDLoss", temperature=4.0)
CE = dict(type="torch.nn.CrossEntropyLoss", of=("student", "target"), weight=0.1)


class Stop(Hook):
    """Raise once, in one stage of one seed, as Ctrl-C would."""

    at = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if Stop.at == (runner.meta["stage"], runner.meta["seed"], batch_idx):
            Stop.at = None
            raise KeyboardInterrupt


class FailingLoss(torch.nn.CrossEntropyLoss):
    """An error in a step, after a run has been found in order."""

    def forward(self, input, target):
        if torch.is_grad_enabled():
            raise ArithmeticError("a loss that fails when trained")
        return super().forward(input, target)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("kdtasks.engine.report.write_report", lambda run: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small(**options) -> dict:
    return configurations.load(
        SMALL, {"length": 1, "custom_hooks": [dict(type=f"{__name__}.Stop")], **options}
    )


def pair() -> dict[str, dict]:
    return {"cold": small(), "hot": small(**{"losses.loss_kd.temperature": 8.0})}


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def shown(result) -> str:
    text = io.StringIO()
    show(result, TASK, Console(file=text, width=400))
    return text.getvalue()


def spent(timing: dict) -> float:
    return timing["training_seconds"] + timing["preparation_seconds"]


def written(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.pth")}


# The numbers --------------------------------------------------------------------------------------
def test_interval_by_hand():
    mean, low, high = interval([1.0, 2.0, 3.0])  # s = 1, t(0.975; 2) = 4.302653
    assert (mean, low, high) == pytest.approx(
        (2.0, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6
    )
    assert interval([1.5]) == (1.5, None, None)


def test_interval_agrees_with_scipy():
    values = [0.31, -0.12, 0.55, 0.48, 0.07]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values)[1:] == pytest.approx((expected.low, expected.high))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.8)
    assert interval(values, 0.8)[1:] == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("differences", "higher", "lower"),
    [
        ([1.0, 1.1, 0.9], "better", "worse"),
        ([-1.0, -1.1, -0.9], "worse", "better"),
        ([1.0, -0.5, 0.4], "no difference shown", "no difference shown"),
        ([0.0, 0.0, 0.0], "no difference shown", "no difference shown"),
        ([1.0, 1.1], None, None),
        ([1.0, 1.1, math.nan], None, None),
    ],
)
def test_verdict(differences, higher, lower):
    assert verdict(differences, True)[0] == higher
    assert verdict(differences, False)[0] == lower


# What is shared -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "control", "teacher"),
    [
        ({"losses.loss_kd.temperature": 8.0}, True, True),
        ({"losses.loss_kd.weight": 0.5, "losses.loss_cls.weight": 0.5}, True, True),
        ({"cache": {"views": 2}}, True, True),
        ({"teacher.precision": "bfloat16"}, True, True),
        ({"teacher.width": 6}, True, False),
        ({"teacher_training.length": 2}, True, False),
        ({"student.width": 6}, False, True),
        ({"losses.loss_cls.label_smoothing": 0.1}, False, False),
        ({"losses.loss_cls.alone": 0.5}, False, False),
        ({"length": 2}, False, False),
        ({"schedule": []}, False, False),
        ({"optimizer.lr": 0.05}, False, False),
        ({"data.train.count": 150}, False, False),
        ({"data.batch_size": 16}, False, False),
        ({"amp": "bfloat16"}, False, False),
        ({"ema": 0.9}, False, False),
        ({"accumulate": 2}, False, False),
        ({"clip_grad": 1.0}, False, False),
        ({"distiller": {"type": f"{__name__}.OtherDistiller"}}, False, False),
    ],
)
def test_what_is_shared_with(options, control, teacher, tmp_path):
    (a, b), jobs = plan_jobs({"a": small(), "b": small(**options)}, [0, 1], tmp_path, "cpu")
    for seed in (0, 1):
        assert (a.controls[seed] is b.controls[seed]) == control
        assert (a.jobs[seed].given["teacher"] is b.jobs[seed].given["teacher"]) == teacher
        assert a.controls[seed].used_by == (["a", "b"] if control else ["a"])
        assert a.jobs[seed].folder != b.jobs[seed].folder
    assert a.controls[0] is not a.controls[1]
    assert a.jobs[0].given["teacher"] is a.jobs[1].given["teacher"]
    assert (
        len(jobs)
        == len({job.folder for job in jobs})
        == 4 + (2 if control else 4) + (1 if teacher else 2)
    )
    order = {job: k for k, job in enumerate(jobs)}
    assert all(order[other] < order[job] for job in jobs for other in job.given.values())


class OtherDistiller(Distiller):
    """One that could do anything, also in the control."""


def test_a_key_that_is_new_since_a_run_does_not_move_its_folder(tmp_path, monkeypatch):
    def folders(config):
        (arm,), _ = plan_jobs({"a": config}, [0], tmp_path, "cpu")
        return arm.jobs[0].folder, arm.controls[0].folder

    before = folders(small())
    monkeypatch.setitem(config_keys.KEYS, "new_key", ("what a later version knows", "usual"))
    assert folders({**small(), "new_key": "usual"}) == before
    assert not {*folders({**small(), "new_key": "other"})} & {*before}


def test_unlabelled_samples_do_not_matter_to_the_control(tmp_path):
    data = {"data.train.labelled": 150, "data.batch_size": 16}
    (a, b), _ = plan_jobs(
        {"a": small(**data), "b": small(**data, **{"data.unlabelled_per_batch": 8})},
        [0],
        tmp_path,
        "cpu",
    )
    assert a.controls[0] is b.controls[0]


def test_a_given_checkpoint_is_trained_by_nobody(tmp_path):
    (arm,), jobs = plan_jobs(
        {"a": small(**{"teacher.checkpoint": "some/teacher.pth"})}, [0, 1], tmp_path, "cpu"
    )
    assert arm.teachers == [] and [job.name for job in jobs] == ["alone", "a", "alone", "a"]


def test_a_teacher_for_each_seed(tmp_path):
    (arm,), _ = plan_jobs({"a": small()}, [3, 4], tmp_path, "cpu", teacher_per_seed=True)
    assert [arm.jobs[seed].given["teacher"].seed for seed in (3, 4)] == [3, 4]
    (one,), _ = plan_jobs({"a": small()}, [3, 4], tmp_path, "cpu")
    assert {one.jobs[seed].given["teacher"].seed for seed in (3, 4)} == {0}
    assert not {job.folder for job in one.jobs.values()} & {job.folder for job in arm.jobs.values()}
    assert one.controls[3].folder == arm.controls[3].folder


# Whole comparisons --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Two configs that share teacher and control, three seeds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtasks.engine.report.write_report", lambda run: None)
        return folder, compare(pair(), [0, 1, 2], folder, "cpu", quiet=True)


def test_every_number_is_that_of_an_ordinary_run(undisturbed, tmp_path):
    """Seed 0 is what tools/train.py gives; seed 1, what it gives with the teacher of seed 0."""
    folder, result = undisturbed
    row = result["configs"]["hot"]
    stages = Run(pair()["hot"], tmp_path / "0", 0, "cpu", quiet=True).train()["stages"]
    assert row["teachers"]["teacher"] == [stages["teacher"]["accuracy"]]
    assert (row["alone"][0], row["distilled"][0]) == (
        stages["alone"]["accuracy"],
        stages["distilled"]["accuracy"],
    )
    teacher = str(tmp_path / "0" / "stages" / "0_teacher" / "last.pth")
    run = Run(
        small(**{"losses.loss_kd.temperature": 8.0, "teacher.checkpoint": teacher}),
        tmp_path / "1",
        1,
        "cpu",
        quiet=True,
    )
    stages = run.train()["stages"]
    assert (row["alone"][1], row["distilled"][1]) == (
        stages["alone"]["accuracy"],
        stages["distilled"]["accuracy"],
    )
    ours = torch.load(folder / row["folders"][1] / "student.pth", weights_only=True)
    its = torch.load(run.work_dir / "student.pth", weights_only=True)
    assert all(torch.equal(ours[name], its[name]) for name in its)


def test_pairs_by_seed(undisturbed):
    folder, result = undisturbed
    assert json.loads((folder / "compare.json").read_text()) == result
    for row in result["configs"].values():
        assert row["differences"] == [b - a for a, b in zip(row["alone"], row["distilled"])]
        assert (row["mean"], row["low"], row["high"]) == interval(row["differences"])
        for seed, own, control in zip(result["seeds"], row["folders"], row["controls"]):
            results = [
                json.loads((folder / f / "results.json").read_text()) for f in (own, control)
            ]
            assert [r["seed"] for r in results] == [seed, seed]
            assert results[0]["stages"]["alone"] == results[1]["stages"]["alone"]
        assert row["verdict"] in ("better", "worse", "no difference shown")
    assert len({tuple(row["alone"]) for row in result["configs"].values()}) == 1
    assert len(set(result["configs"]["cold"]["alone"])) > 1  # seeds do differ


def test_shared_runs_ran_once(undisturbed):
    folder, result = undisturbed
    shared = sorted(p.relative_to(folder / "shared") for p in (folder / "shared").glob("*/seed*"))
    assert [(p.parts[0].split("_")[0], p.parts[1]) for p in shared] == [
        ("alone", "seed0"),
        ("alone", "seed1"),
        ("alone", "seed2"),
        ("teacher", "seed0"),
    ]
    assert [(e["stage"], e["seeds"], e["configs"]) for e in result["shared"]] == [
        ("teacher", [0], ["cold", "hot"]),
        ("alone", [0, 1, 2], ["cold", "hot"]),
    ]
    # the own run trained one stage only
    for log in folder.glob("*_*/seed*/train.log"):
        assert "distilled" in str(list((log.parent / "stages").glob("2_*")))
        assert log.read_text().count("6/6  accuracy") == 1
    assert any("share their control" in note for note in result["notes"])
    assert any("one teacher (seed 0)" in note for note in result["notes"])


# Several methods in one table ---------------------------------------------------------------------
def cells(text: str, name: str) -> list[str]:
    """Of the row of the first table that begins with a name."""
    line = next(line for line in text.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_one_row_an_arm(undisturbed):
    """Alone, the reference and the other: metric, paired differences, and what each costs."""
    _, result = undisturbed
    cold, hot = (result["configs"][name] for name in ("cold", "hot"))
    against = hot["against_reference"]
    assert result["reference"] == "cold" and cold["against_reference"] is None
    assert against["differences"] == [b - a for a, b in zip(cold["distilled"], hot["distilled"])]
    assert (against["mean"], against["low"], against["high"]) == interval(against["differences"])
    assert (against["verdict"], against["why"]) == verdict(against["differences"], True)
    (control,) = result["controls"]
    assert control["configs"] == ["cold", "hot"] and control["values"] == cold["alone"]
    text = shown(result)
    alone, first, second = (cells(text, name) for name in ("alone", "cold", "hot"))
    mean = sum(cold["alone"]) / 3
    assert alone[2].startswith(f"{mean:.2f} ± ") and alone[3] == alone[5] == ""
    assert first[3] == f"{cold['mean']:+.2f} [{cold['low']:+.2f}, {cold['high']:+.2f}]"
    assert first[5] == "" and "(x" not in first[6] + first[7]
    assert second[5] == f"{against['mean']:+.2f} [{against['low']:+.2f}, {against['high']:+.2f}]"
    assert all("(x" in cell for cell in (*alone[6:], *second[6:]))
    assert "against cold: the difference to its student" in text


def test_what_an_arm_costs_is_what_its_stages_took(undisturbed):
    """Seconds of the steps, which are not those of the evaluations and checkpoints."""
    folder, result = undisturbed
    row, (control,) = result["configs"]["hot"], result["controls"]
    for seed, own in enumerate(row["folders"]):
        run = WorkDir(folder / own, ["teacher", "alone", "distilled"])
        assert set(run.timings) == set(run.done)
        for stage, timing in run.timings.items():
            assert timing["iterations"] == 6
            assert 0 < timing["training_seconds"] < run.done[stage]["seconds"]
        for cost, stage in ((control["cost"], "alone"), (row["cost"], "distilled")):
            timing = run.timings[stage]
            assert cost["stages"] == [stage]
            assert cost["seconds"]["step"][seed] == timing["training_seconds"] / 6
            assert cost["seconds"]["training"][seed] == pytest.approx(spent(timing))


def test_runs_that_did_not_record_their_seconds_have_a_dash(undisturbed, tmp_path):
    folder, expected = undisturbed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("hot_*/seed1/stages/timings.json"):
        path.unlink()
    for path in tmp_path.rglob("job.json"):
        path.unlink()
    result = compare(pair(), [0, 1, 2], tmp_path, "cpu", quiet=True)
    assert without_seconds(result) == without_seconds(expected)
    assert result["configs"]["hot"]["cost"]["seconds"]["training"][1] is None
    text = shown(result)
    assert cells(text, "hot")[6:] == ["-", "-"] and cells(text, "cold")[6] != "-"
    by_hot = compare(pair(), [0, 1, 2], tmp_path, "cpu", quiet=True, reference="hot")
    assert by_hot["reference"] == "hot" and by_hot["configs"]["hot"]["against_reference"] is None
    against = (result, "hot"), (by_hot, "cold")
    one, other = (r["configs"][name]["against_reference"]["mean"] for r, name in against)
    assert one == pytest.approx(-other) and "against hot" in shown(by_hot)


def test_the_best_evaluations_stand_beside_the_last(undisturbed, tmp_path):
    folder, result = undisturbed
    # evaluated once
    assert result["configs"]["hot"]["best"] is None and "best accuracy" not in shown(result)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    row = result["configs"]["hot"]
    for stage, folders in (("alone", row["controls"]), ("distilled", row["folders"])):
        for seed, name in enumerate(folders):
            (path,) = (tmp_path / name).glob(f"stages/*_{stage}/history.json")
            found = [{"iteration": 1, "accuracy": 20.0 + seed}, {"iteration": 2, "loss": 99.0}]
            path.write_text(json.dumps([*found, {"iteration": 3, "accuracy": 5.0}]))
    best = compare(pair(), [0, 1, 2], tmp_path, "cpu", quiet=True)["configs"]
    assert best["hot"]["best"]["alone"] == best["hot"]["best"]["distilled"] == [20.0, 21.0, 22.0]
    assert best["cold"]["best"] is None and best["hot"]["alone"] == row["alone"]


def test_a_reference_that_is_not_there_is_an_error_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="no config is called 'clod'.*'cold'"):
        compare(pair(), [0], tmp_path, "cpu", quiet=True, reference="clod")
    assert not list(tmp_path.iterdir())


def test_a_reference_is_named_in_any_way():
    paths = [Path("a/classification/kd.py"), Path("a/classification/rkd.py")]
    names = ["classification_kd", "classification_rkd"]
    for given in ("classification_rkd", "rkd", "a/classification/rkd.py"):
        assert _named(given, names, paths) == "classification_rkd"
    assert _named("dk", names, paths) == "dk" and _named(None, names, paths) is None


def test_different_controls_are_rows_of_their_own(undisturbed, tmp_path):
    folder, _ = undisturbed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    other = small(**{"optimizer.lr": 0.05, "teacher.checkpoint": "own"})
    result = compare({"cold": small(), "slow": other}, [0], tmp_path, "cpu", quiet=True)
    assert [control["configs"] for control in result["controls"]] == [["cold"], ["slow"]]
    text = shown(result)
    rows = {"cold": "alone", "slow": "alone of slow"}
    for name, row in rows.items():
        assert cells(text, row)[2] == f"{result['configs'][name]['alone'][0]:.2f}"
    assert "slow: another control than cold has" in text


def test_a_control_that_came_to_the_same_is_the_same(undisturbed, tmp_path):
    folder, _ = undisturbed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    # a run of its own, as its distiller could do anything
    other = small(**{"distiller.type": f"{__name__}.OtherDistiller", "teacher.checkpoint": "own"})
    result = compare({"cold": small(), "other": other}, [0], tmp_path, "cpu", quiet=True)
    folders = {row["controls"][0] for row in result["configs"].values()}
    assert len(folders) == 2 and [c["configs"] for c in result["controls"]] == [["cold", "other"]]
    assert "another control" not in shown(result)


@pytest.mark.parametrize(
    ("method", "alone", "distilled"),
    [
        ("kd", ["alone"], ["distilled"]),
        ("dml", ["alone"], ["distilled"]),
        ("takd", ["alone"], ["assistant1", "distilled"]),
        ("rco", ["alone"], ["distilled"]),
        ("ab", ["alone_first", "alone"], ["boundaries", "distilled"]),
        # generation 0 is the student's own network, and no large one that is there already
        ("ban", ["alone"], ["teacher", "generation1", "generation2", "distilled"]),
    ],
)
def test_a_student_costs_what_leads_to_it(method, alone, distilled):
    path = Path(__file__).parents[2] / f"configs/classification/{method}_digits.py"
    arm = ConfigArm(method, configurations.load(path), "cpu")
    assert arm.paid == {"alone": alone, "distilled": distilled}


def test_seconds_of_training_go_on_after_a_stop(tmp_path):
    config = small(**{"teacher.checkpoint": "own", "length": 2})
    Stop.at = ("alone", 0, 8)
    with pytest.raises(KeyboardInterrupt):
        Run(config, tmp_path / "run", 0, "cpu", quiet=True).train()
    last = tmp_path / "run/stages/0_alone/last.pth"
    state = torch.load(last, weights_only=False)
    so_far = state["resume"].pop("training_seconds")
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    torch.save(state, tmp_path / "older/stages/0_alone/last.pth")  # of a version without them
    for folder in ("run", "older"):
        Run(config, tmp_path / folder, 0, "cpu", quiet=True).train(resume=True)
    run, older = (WorkDir(tmp_path / f, ["alone", "distilled"]).timings for f in ("run", "older"))
    assert run["alone"]["iterations"] == 12 and run["alone"]["training_seconds"] > so_far > 0
    assert list(run) == ["alone", "distilled"] and list(older) == ["distilled"]


def test_again_nothing_is_trained(undisturbed, monkeypatch):
    folder, result = undisturbed
    before = written(folder)
    monkeypatch.setattr(Run, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    assert compare(pair(), [0, 1, 2], folder, "cpu", quiet=True) == result
    assert written(folder) == before


def test_fewer_views_than_the_control_sees_are_told():
    def note(**options):
        return _fixed_views([ConfigArm("kd", small(**options), None)])

    assert note(length=3) == note(length=2, cache={"views": 2}) == []
    (text,) = note(length=3, cache={"views": 2})
    assert text.startswith("kd: by its cache distilled sees 2 fixed views of each image, and alone")


def test_what_differs_beside_the_teacher_is_told(tmp_path):
    """Stages in a list have settings of their own."""
    kd = dict(loss_kd=dict(KD, of=("student", "teacher")))
    teacher = dict(name="teacher", model="teacher", losses=dict(loss_cls=CE))
    alone = dict(name="alone", role="control", losses=dict(loss_cls=CE))
    taught = dict(name="taught", teachers={"teacher": "teacher.last"}, losses=kd)
    other = {"optimizer": dict(lr=0.2), "data": dict(batch_size=64)}

    def notes(name, steps, **settings):
        stages = [teacher, alone, {**taught, **settings}]
        (arm,), _ = plan_jobs({name: small(stages=stages)}, [0], tmp_path, "cpu")
        for stage, job in (("alone", arm.controls[0]), ("taught", arm.jobs[0])):
            timing = job.folder / "stages" / "timings.json"
            timing.parent.mkdir(parents=True, exist_ok=True)
            timing.write_text(json.dumps({stage: {"iterations": steps[stage == "taught"]}}))
        return pair_notes([arm], [0])

    assert notes("kd", (6, 6)) == []
    (longer,) = notes("kd", (6, 12))
    assert longer.startswith("kd: taught has been trained on 384 labelled images, counted each")
    said = notes("other", (6, 3), **other)
    assert [text.partition(", so")[0] for text in said] == [
        "other: taught and alone differ in optimizer, data.batch_size"
    ]


def test_what_changes_under_the_same_name_is_told(tmp_path, monkeypatch):
    """New seeds are not taught by another file, nor trained on other labels, than former ones."""
    path = tmp_path / "teacher.pth"
    # loading a config has put its folder where modules are found
    small_parts = importlib.import_module(small()["student"]["type"].split(".")[0])

    def teacher(seed):
        torch.manual_seed(seed)
        torch.save(small_parts.Net(8).state_dict(), path)

    def notes(*seeds):
        configs = {"kd": small(**{"teacher.checkpoint": str(path), "teacher_card": False})}
        return compare(configs, seeds, tmp_path / "runs", quiet=True)["notes"][1:]

    teacher(0)
    assert notes(0) == []
    teacher(1)
    assert notes(0) == [
        f"kd: the file {str(path)!r}: another now than when its numbers were computed"
    ]
    with pytest.raises(ConfigError, match=r"kd, seed 0 was trained in (?s:.*)teacher\.pth'"):
        notes(0, 1)
    teacher(0)
    made = small_parts.Digits.__init__

    def other_labels(self, *args, **settings):
        made(self, *args, **settings)
        self.target = 9 - self.target

    monkeypatch.setattr(small_parts.Digits, "__init__", other_labels)
    with pytest.raises(ConfigError, match=r"alone for kd, seed 0 (?s:.*)train\.labels: .* -> "):
        notes(0, 1)


@pytest.mark.parametrize("at", [("alone", 1, 4), ("distilled", 1, 4), ("teacher", 0, 0)])
def test_goes_on_after_a_stop(undisturbed, tmp_path, at):
    _, expected = undisturbed
    Stop.at = at
    with pytest.raises(KeyboardInterrupt):
        compare(pair(), [0, 1, 2], tmp_path, "cpu", quiet=True)
    assert not (tmp_path / "compare.json").exists()
    finished = {
        f: t
        for f, t in written(tmp_path).items()
        if (tmp_path / f).parents[2].joinpath("results.json").exists()
    }
    result = compare(pair(), [0, 1, 2], tmp_path, "cpu", quiet=True)
    assert without_seconds(result) == without_seconds(expected)
    assert finished.items() <= written(tmp_path).items()
    assert bool(finished) == (at[1] == 1)


def test_a_stop_while_stages_are_taken_over(undisturbed, tmp_path, monkeypatch):
    _, expected = undisturbed
    take, calls = WorkDir.link_stage, itertools.count()

    def link_stage(files, name, folder):
        # the teacher is there, the control not
        if next(calls) == 1:
            raise KeyboardInterrupt
        take(files, name, folder)

    monkeypatch.setattr(WorkDir, "link_stage", link_stage)
    with pytest.raises(KeyboardInterrupt):
        compare({"cold": small()}, [0], tmp_path, "cpu", quiet=True)
    result = compare({"cold": small()}, [0], tmp_path, "cpu", quiet=True)
    assert result["configs"]["cold"]["distilled"] == expected["configs"]["cold"]["distilled"][:1]


def test_jobs_side_by_side_give_the_same_numbers(tmp_path, capsys):
    configs = {"small": {**small(), "threads": 1}}
    one = compare(configs, [0], tmp_path / "one", "cpu", quiet=True)
    two = compare(configs, [0], tmp_path / "two", "cpu", workers=2)
    assert without_seconds(two) == without_seconds(one)
    assert (one["seconds"], two["seconds"]) == ({"side_by_side": 1}, {"side_by_side": 2})
    assert "up to 2 runs went side by side" in shown(two) and "side by side" not in shown(one)
    said = capsys.readouterr().err.splitlines()
    started = [
        line.split(":")[0].removeprefix("started").strip()
        for line in said
        if line.startswith("started")
    ]
    assert len(started) == len(set(started)) == 3
    # what others need comes before them
    assert started == ["teacher for small, seed 0", "alone for small, seed 0", "small, seed 0"]
    assert sum(line.startswith("finished") for line in said) == 3
    kept = written(tmp_path / "two")
    compare(configs, [0], tmp_path / "two", "cpu", quiet=True, workers=2)
    assert written(tmp_path / "two") == kept  # nothing is trained again


def test_a_job_that_fails_is_named(tmp_path):
    bad = small(**{"losses.loss_cls.type": f"{__name__}.FailingLoss", "teacher.checkpoint": "own"})
    with pytest.raises(
        RuntimeError,
        match=r"alone for bad, seed 0 \(.*seed0\): a loss that fails "
        r"when trained",
    ):
        compare({"bad": bad}, [0], tmp_path, "cpu", quiet=True, workers=2)
    assert not (tmp_path / "compare.json").exists()


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them():
    code = (
        "import os, time\n"
        "from kdtasks.engine.compare.jobs import start_workers\n"
        "if __name__ == '__main__':\n"
        "    with start_workers('cpu', 2) as pool:\n"
        "        print(*pool._processes, flush=True)\n"
        "        pool.submit(os.getpid).result()\n"
        "        time.sleep(600)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in first.stdout.readline().split()]
    assert len(workers) == 2 and all(Path(f"/proc/{pid}").exists() for pid in workers)
    first.kill()
    first.wait()
    for _ in range(600):  # up to a minute, on a busy machine
        running = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        if not running:
            return
        time.sleep(0.1)
    raise AssertionError(f"still running: {running}")


def test_no_verdict_for_two_seeds(undisturbed):
    # its runs are there already
    folder, full = undisturbed
    kept = {name: (folder / name).read_bytes() for name in ("compare.json", "compare.png")}
    result = compare(pair(), [0, 1], folder, "cpu", quiet=True)
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    row = result["configs"]["cold"]
    assert row["verdict"] is None and row["why"] == "no verdict: 2 of at least 3 seeds"
    assert row["differences"] == full["configs"]["cold"]["differences"][:2]
    shown = io.StringIO()
    show(result, TASK, Console(file=shown, width=160))
    assert "no verdict: 2 of at least 3 seeds" in shown.getvalue()
    assert not any(
        word in shown.getvalue().replace("is better", "")
        for word in ("better", "worse", "no difference shown")
    )


def test_a_student_that_no_teacher_has_a_part_in_has_its_seconds(tmp_path):
    stages = [
        dict(name="alone", role="control", losses=dict(loss_cls={**CE, "weight": 1})),
        dict(name="warm", role="taught", losses=dict(loss_cls={**CE, "weight": 0.5})),
    ]
    result = compare({"warm": small(stages=stages, teacher=None)}, [0], tmp_path, "cpu", quiet=True)
    row = result["configs"]["warm"]
    done = json.loads((tmp_path / row["folders"][0] / "results.json").read_text())["stages"]
    assert row["seconds"] == [done["warm"]["seconds"]] and row["seconds"][0] > 0


def test_a_control_that_is_not_trained_takes_no_seconds_a_step(tmp_path):
    losses = dict(loss_cls={**CE, "weight": 1})
    stages = [
        dict(name="random", role="control", losses=losses, length=0, schedule=[]),
        dict(name="trained", role="taught", losses=losses),
    ]
    arms = {
        "one": small(stages=stages, teacher=None),
        "two": small(stages=stages, teacher=None, length=1),
    }
    result = compare(arms, [0], tmp_path, "cpu", quiet=True)
    assert {str(c["cost"]["seconds"]["step"]) for c in result["controls"]} == {"[None]"}
    show(result, TASK, Console(file=io.StringIO(), width=160))


def test_a_chain_is_paired_with_a_control_of_its_own_budget(undisturbed, tmp_path):
    stages = [
        dict(name="teacher", model="teacher", losses=dict(loss_cls={**CE, "weight": 1})),
        dict(
            name="assistant1",
            model="assistant",
            teachers={"teacher": "teacher.last"},
            losses=dict(loss_cls=CE, loss_kd=dict(KD, of=("student", "teacher"))),
        ),
        dict(
            name="distilled",
            teachers={"assistant": "assistant1.last"},
            losses=dict(loss_cls=CE, loss_kd=dict(KD, of=("student", "assistant"))),
        ),
    ]
    chain = small(stages=stages, models=dict(assistant=dict(type="small_parts.Net", width=6)))
    (arm, cold), _ = plan_jobs({"chain": chain, "cold": small()}, [0], tmp_path, "cpu")
    assert arm.controls[0] is cold.controls[0] and list(arm.jobs[0].given) == ["teacher", "alone"]
    assert arm.jobs[0].given["teacher"] is cold.jobs[0].given["teacher"]
    result = compare({"chain": chain}, [0], tmp_path, "cpu", quiet=True)
    row, (_, expected) = result["configs"]["chain"], undisturbed
    assert row["alone"] == expected["configs"]["cold"]["alone"][:1] and row["stage"] == "distilled"
    done = json.loads((tmp_path / row["folders"][0] / "results.json").read_text())["stages"]
    assert list(done) == ["teacher", "assistant1", "alone", "distilled"]
    assert row["seconds"] == [
        pytest.approx(done["assistant1"]["seconds"] + done["distilled"]["seconds"])
    ]
    assert row["stages"] == {"assistant1": [done["assistant1"]["accuracy"]]}
    took = WorkDir(tmp_path / row["folders"][0], list(done)).timings
    assert row["cost"]["stages"] == ["assistant1", "distilled"] and row["cost"]["seconds"][
        "training"
    ] == [pytest.approx(took["assistant1"]["training_seconds"] + spent(took["distilled"]))]
    same = Run(chain, tmp_path / "run", 0, "cpu", quiet=True).train()["stages"]
    assert without_seconds(done) == without_seconds(same)


def test_a_control_that_goes_on_from_another_stage_is_shared_with_it(undisturbed, tmp_path):
    stages = [
        dict(name="warm", losses=dict(loss_cls=CE)),
        dict(
            name="alone",
            role="control",
            student="keep",
            losses=dict(loss_cls=CE),
            length=3,
            optimizer_state="keep",
        ),
        dict(name="other", losses=dict(loss_cls=CE)),
        dict(
            name="distilled",
            student="warm",
            teachers={"teacher": None},
            losses=dict(loss_cls=CE, loss_kd=dict(KD, of=("student", "teacher"))),
        ),
    ]
    teacher = (
        next(Path(undisturbed[0]).glob("shared/teacher_*/seed0"))
        / "stages"
        / "0_teacher"
        / "last.pth"
    )
    config = small(**{"stages": stages, "teacher.checkpoint": str(teacher)})
    warmer = small(
        **{"stages": stages, "teacher.checkpoint": str(teacher), "losses.loss_cls.weight": 0.5}
    )
    arms, jobs = plan_jobs({"a": config, "b": warmer}, [0], tmp_path, "cpu")
    assert arms[0].controls[0] is arms[1].controls[0] and arms[0].controls[0].stages == [
        "warm",
        "alone",
    ]
    assert sorted(arms[0].jobs[0].given) == ["alone", "other", "warm"] and len(jobs) == 4
    row = compare({"a": config}, [0], tmp_path, "cpu", quiet=True)["configs"]["a"]
    done = json.loads((tmp_path / row["folders"][0] / "results.json").read_text())["stages"]
    same = Run(config, tmp_path / "run", 0, "cpu", quiet=True).train()["stages"]
    assert without_seconds(done) == without_seconds(same) and row["seconds"] == [
        done["distilled"]["seconds"]
    ]
    assert row["metrics"]["accuracy"]["alone"] == [done["alone"]["accuracy"]]


# Showing, and what cannot be compared -------------------------------------------------------------
def test_shows_the_numbers(undisturbed, tmp_path):
    _, result = undisturbed
    shown = io.StringIO()
    show(result, TASK, Console(file=shown, width=160))
    text, row = shown.getvalue(), result["configs"]["hot"]
    assert (
        f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" in text
        and row["verdict"] in text
    )
    assert all(f"{value:.3f}" in text for value in (*row["alone"], *row["distilled"]))
    assert (
        "alone, seed 0 1 2: trained once, for cold, hot" in text
        and "note: configs that share" in text
    )
    plot(result, TASK, tmp_path / "a.png")
    one = {
        **row,
        "alone": row["alone"][:1],
        "distilled": row["distilled"][:1],
        "low": None,
        "high": None,
        "verdict": None,
    }
    plot({**result, "seeds": [0], "configs": {"one": one}}, TASK, tmp_path / "b.png")
    assert (
        (tmp_path / "a.png").read_bytes()[:4] == (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    )


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(
        [
            str(SMALL),
            "--seeds",
            "5",
            "--device",
            "cpu",
            "--work-dir",
            "out",
            "--cfg-options",
            "length=1",
        ]
    )
    said = capsys.readouterr()
    assert (
        "no verdict: 1 of at least 3 seeds" in said.out
        and "[1/3] teacher for small_small, seed 0" in said.err
    )
    assert (tmp_path / "out/compare.png").exists()
    result = json.loads((tmp_path / "out/compare.json").read_text())
    assert result["seeds"] == [5]
    # the page is of this comparison, in one file
    page = (tmp_path / "out/compare.html").read_text("utf-8")
    (row,) = result["configs"].values()
    assert "<title>small_small</title>" in page and "no verdict" in page
    assert all(f">{value:.3f}<" in page for value in (*row["alone"], *row["distilled"]))
    assert "compare.json compare.png compare.html" in said.out and "src=" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(SMALL), str(SMALL)], "a config is given twice"),
        ([str(SMALL), "--seeds", "1", "1"], "expected different seeds, got [1, 1]"),
        ([str(SMALL), "--cfg-options", "lenght=1"], "did you mean 'length'"),
    ],
)
def test_command_says_what_is_wrong(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--device", "cpu", "--work-dir", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


def test_all_configs_are_checked_before_the_first_step(tmp_path):
    wrong = small(**{"losses.loss_kd.of": ("student.9", "teacher.nowhere")})
    with pytest.raises(ConfigError, match="nowhere"):
        compare({"cold": small(), "wrong": wrong}, [0], tmp_path, "cpu", quiet=True)
    assert not list(tmp_path.rglob("*.pth"))


def test_different_metrics_are_not_compared(tmp_path, monkeypatch):
    from kdtasks.classification import trainer

    monkeypatch.setitem(
        sys.modules,
        "other_trainer",
        types.SimpleNamespace(**{**vars(trainer), "PRIMARY": "psnr_y"}),
    )
    with pytest.raises(ConfigError, match="measure different things: a accuracy, b psnr_y"):
        plan_jobs({"a": small(), "b": small(task="other_trainer")}, [0], tmp_path, "cpu")
