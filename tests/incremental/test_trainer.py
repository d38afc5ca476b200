"""Continual learning through the engine: both arms by hand, exemplars and pool, figures, resume,
and a newcomer's first run.
"""

import copy
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from small_incremental import SMALL, batches, run_of, small, stage
from small_runs import ROOT, same, walk, weights
from small_streams import CLASSES, ORDER, Net
from torch import nn

from kdtasks.core.weight_files import read_weights
from kdtasks.engine import cli
from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run
from kdtasks.engine.show import table
from kdtasks.incremental import (
    average_incremental_accuracy,
    class_balance_weights,
    forgetting,
    trainer,
)
from kdtasks.incremental.models import GrowingHead, growing

LWM = {
    "distiller": {"type": "kdtasks.incremental.LwMDistiller", "attention": "norm2"},
    "losses.loss_attention": {
        "type": "kdtasks.incremental.lwm_attention_loss",
        "of": ("student.attention", "teacher.attention"),
    },
}


def state(run, name):
    return weights(run, name)["state_dict"]


def cross_entropy(student, batch, start=0, weight=None):
    """Of the columns from ``start``, by the batch's labelled rows."""
    target = batch["target"] - start
    rows = target >= 0
    costs = F.cross_entropy(
        student(batch["input"])[rows][:, start:], target[rows], reduction="none"
    )
    return (costs if weight is None else costs * weight[target[rows]]).mean()


def trained_by_hand(run, name, loss, rate=0.1, parameters=lambda student: student.parameters()):
    """A stage as a loop: the student that it starts from, its batches in their order, SGD and the
    cosine written out.
    """
    student = run.experiment.distiller(stage(run, name), run.files).student.train()
    optimizer = torch.optim.SGD(parameters(student), lr=rate, momentum=0.9, weight_decay=5e-4)
    seen = batches(run, name)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(seen))
    for batch in seen:
        optimizer.zero_grad()
        loss(student, batch).backward()
        optimizer.step()
        schedule.step()
    return student.state_dict()


def close(a, b):
    return a.keys() == b.keys() and all(
        torch.allclose(a[k].double(), b[k].double(), rtol=1e-4, atol=1e-5) for k in a
    )


# Both arms ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, start", [("experience1", 0), ("alone2", 2), ("alone", 4)])
def test_lwf_without_a_teacher_is_cross_entropy_of_the_new_columns_and_nothing_else(
    finished, name, start
):
    run = finished("lwf")
    assert close(
        trained_by_hand(run, name, lambda student, batch: cross_entropy(student, batch, start)),
        state(run, name),
    )
    assert list(run.experiment.distiller(stage(run, name), run.files).teachers) == []


def test_lwf_with_its_teacher(finished):
    run = finished("lwf")
    teacher = run.trained("taught2")

    def loss(student, batch):
        z = student(batch["input"])
        soft = F.kl_div(
            (z[:, :4] / 2).log_softmax(1),
            (teacher(batch["input"]) / 2).softmax(1),
            reduction="batchmean",
        )
        return F.cross_entropy(z[:, 4:], batch["target"] - 4) + 3 * soft

    assert close(trained_by_hand(run, "distilled", loss), state(run, "distilled"))
    assert not close(
        trained_by_hand(run, "distilled", lambda student, batch: cross_entropy(student, batch, 4)),
        state(run, "distilled"),
    )


def test_joint_is_cross_entropy_of_all_columns_from_the_first_weights(finished):
    run = finished("lwf")
    assert close(trained_by_hand(run, "joint", cross_entropy), state(run, "joint"))
    assert same(
        run.experiment.distiller(stage(run, "joint"), run.files).student.state_dict(),
        run.experiment.model("student").state_dict(),
    )
    assert sorted({int(y) for batch in batches(run, "joint") for y in batch["target"]}) == list(
        range(7)
    )


def test_global_distillations_control(finished):
    """The first experience and "main" by plain cross-entropy, then the head alone with classes in
    balance.
    """
    run = finished("gd")
    for name in ("experience1", "alone2_main", "alone3_main"):
        assert close(trained_by_hand(run, name, cross_entropy), state(run, name)), name
    counts = torch.tensor([1.0, 1, 1, 2, 12, 12, 12])
    weight = class_balance_weights(counts)
    tuned = trained_by_hand(
        run,
        "alone",
        lambda student, batch: cross_entropy(student, batch, weight=weight),
        0.01,
        lambda s: s.fc.parameters(),
    )
    assert close(tuned, state(run, "alone")) and weight.tolist() == pytest.approx(
        (41 / (7 * counts)).tolist()
    )


def test_the_current_teacher_knows_the_new_classes_and_is_unsure_of_all_else(finished):
    run = finished("gd")

    def loss(student, batch):
        z, new = student(batch["input"])[:, 4:], batch["target"] >= 4
        assert (~new).sum() >= 3 and len(z) == 9  # exemplars and the pool
        unsure = -math.log(3) - z[~new].log_softmax(1).mean()
        return F.cross_entropy(z[new], batch["target"][new] - 4) + unsure

    assert close(trained_by_hand(run, "current3", loss), state(run, "current3"))


@pytest.mark.parametrize(
    "config, first, pairs",
    [
        ("lwf", "experience1", [("alone2", "taught2"), ("alone", "distilled")]),
        (
            "gd",
            "experience1",
            [
                ("alone2_main", "main2"),
                ("alone2", "taught2"),
                ("alone3_main", "main3"),
                ("alone", "distilled"),
            ],
        ),
    ],
)
def test_both_arms_see_the_same_labelled_samples_in_the_same_order(finished, config, first, pairs):
    run = finished(config)
    assert same(
        run.experiment.distiller(stage(run, pairs[0][0]), run.files).student.state_dict(),
        run.experiment.distiller(stage(run, pairs[0][1]), run.files).student.state_dict(),
    )
    for a, b in pairs:
        ours, theirs = batches(run, a), batches(run, b)
        share = run.experiment.unlabelled(stage(run, b))
        assert run.experiment.unlabelled(stage(run, a)) == 0 and share == (
            3 if config == "gd" else 0
        )
        for one, other in zip(ours, theirs, strict=True):
            for key in ("input", "target", "index", "view"):
                assert torch.equal(one[key], other[key][:6])
            assert (
                torch.equal(one["class_counts"], other["class_counts"])
                and (other["target"][6:] == -100).all()
                and len(other["target"]) == 6 + share
            )


def test_order_and_views_go_on_from_stage_to_stage(finished):
    """The second experience does not repeat the first one's views; a stage's own epochs differ too."""
    run = finished("lwf")
    assert [
        run.experiment.first_epoch(stage(run, name))
        for name in ("experience1", "alone2", "alone", "distilled", "joint")
    ] == [0, 2, 4, 4, 0]
    assert {int(view) for batch in batches(run, "alone") for view in batch["view"]} == {4, 5}


@pytest.mark.parametrize(
    "config, names",
    [
        ("lwf", ["alone2", "alone", "taught2", "distilled"]),
        ("gd", ["alone2_main", "main2", "current2", "main3", "current3"]),
    ],
)
def test_a_student_starts_as_the_one_before_with_fresh_rows_for_the_new_classes(
    finished, config, names
):
    run = finished(config)
    for name in names:
        before, start, fresh = (
            state(run, run.experiment.source(stage(run, name))),
            run.experiment.distiller(stage(run, name), run.files).student.state_dict(),
            run.experiment.learner(stage(run, name)).state_dict(),
        )
        t = len(stage(run, name).arguments["sizes"]) - 1
        assert set(start) - set(before) == {f"fc.blocks.{t}.weight", f"fc.blocks.{t}.bias"}
        assert same({key: start[key] for key in before}, before)
        assert (
            torch.equal(start[f"fc.blocks.{t}.weight"], fresh[f"fc.blocks.{t}.weight"])
            and start[f"fc.blocks.{t}.weight"].abs().sum() > 0
        )


@pytest.mark.parametrize("config, name", [("lwf", "distilled"), ("gd", "main3")])
def test_teachers_are_the_models_before_and_stay_so_bit_for_bit(finished, config, name):
    run = finished(config)
    distiller = run.experiment.distiller(stage(run, name), run.files)
    origins = {role: state(run, origin) for role, origin in stage(run, name).teachers.items()}
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller.train()
    for batch in batches(run, name)[:3]:
        sum(distiller(batch).values()).backward()
        optimizer.step()
    assert "norm1.running_mean" in origins[next(iter(origins))]
    assert all(same(distiller.model(role).state_dict(), origin) for role, origin in origins.items())


# Warm-up, frozen parts ----------------------------------------------------------------------------
def test_a_warm_up_moves_the_new_head_and_nothing_else(tmp_path, no_report):
    run = run_of(
        tmp_path / "run",
        **{"stages.warm_up": {"length": 1, "optimizer": {"lr": 0.5}}, "stages.joint": False},
    )
    run.train(only=["experience1", "warm_taught2", "taught2"])
    before, warm, after = (state(run, name) for name in ("experience1", "warm_taught2", "taught2"))
    assert same({key: warm[key] for key in before}, before) and set(warm) - set(before) == {
        "fc.blocks.1.weight",
        "fc.blocks.1.bias",
    }
    assert not torch.equal(
        warm["fc.blocks.1.weight"],
        run.experiment.learner(stage(run, "taught2")).state_dict()["fc.blocks.1.weight"],
    )
    assert same(
        run.experiment.distiller(stage(run, "taught2"), run.files).student.state_dict(), warm
    )
    assert {"norm1.running_mean", "conv1.weight", "fc.blocks.0.weight"} <= {
        key for key in warm if not torch.equal(warm[key], after[key])
    }
    assert (
        run.done["warm_taught2"]["matrix"][0]
        == run.done["taught2"]["matrix"][0]
        == [run.done["experience1"]["accuracy_on_1"]]
    )
    assert [len(row) for row in run.done["taught2"]["matrix"]] == [1, 2]


def test_old_heads_that_do_not_train_stay_bit_for_bit(tmp_path, no_report):
    run = run_of(tmp_path / "run", student__train_old_heads=False, student__fixed_norm=True)
    run.train(only=["experience1", "joint", "taught2", "distilled"])
    first, second, third, joint = (
        state(run, name) for name in ("experience1", "taught2", "distilled", "joint")
    )
    for block, before, after in ((0, first, second), (0, second, third), (1, second, third)):
        assert all(
            torch.equal(before[f"fc.blocks.{block}.{kind}"], after[f"fc.blocks.{block}.{kind}"])
            for kind in ("weight", "bias")
        )
    statistics = [
        [s[f"norm1.running_{kind}"] for kind in ("mean", "var")] for s in (first, third, joint)
    ]
    assert (
        all(torch.equal(a, b) for a, b in zip(*statistics[:2]))
        and statistics[0][0].abs().sum() > 0 < statistics[2][0].abs().sum()
    )
    assert not torch.equal(second["conv1.weight"], third["conv1.weight"])
    fresh = run.experiment.model("student").state_dict()
    assert not any(torch.equal(joint[key], fresh[key]) for key in joint if "blocks" in key)


# Figures ------------------------------------------------------------------------------------------
class Answers(nn.Module):
    """Gives what it is shown."""

    def __init__(self, sizes):
        super().__init__()
        self.fc = GrowingHead(1, sizes)

    def forward(self, x):
        return x


def slow_figures(logits, target, sizes):
    """Row by row: which experience, right of all columns, right of its own."""
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    rows = {}
    for z, y in zip(logits.tolist(), target.tolist()):
        k = max(k for k, start in enumerate(starts) if y >= start)
        own = z[starts[k] : starts[k] + sizes[k]]
        rows.setdefault(k, []).append((z.index(max(z)) == y, own.index(max(own)) == y - starts[k]))
    class_il, task_il = (
        {k: 100 * sum(row[i] for row in rows[k]) / len(rows[k]) for k in sorted(rows)}
        for i in (0, 1)
    )
    every = [row[0] for k in rows for row in rows[k]]
    return {
        "average_accuracy": sum(class_il.values()) / len(rows),
        "average_accuracy_task_il": sum(task_il.values()) / len(rows),
        "accuracy": 100 * sum(every) / len(every),
        **{f"accuracy_on_{k + 1}": value for k, value in class_il.items()},
        **{f"task_il_on_{k + 1}": value for k, value in task_il.items()},
    }


@pytest.mark.parametrize("classes", [range(6), [0, 1, 4], [2], [5, 3]])
@pytest.mark.parametrize("sizes", [(2, 1, 3), (6,)])
def test_evaluate_against_a_loop(classes, sizes):
    """Experiences of unequal size, some without a sample, in batches of unequal size."""
    generator = torch.Generator().manual_seed(1)
    target = torch.tensor(list(classes))[torch.randint(len(classes), (41,), generator=generator)]
    logits = torch.randn(41, 6, generator=generator) + 1.5 * F.one_hot(target, 6)
    loader = [{"input": z, "target": y} for z, y in zip(logits.split(13), target.split(13))]
    found = trainer.evaluate(Answers(sizes), loader)
    assert found == pytest.approx(slow_figures(logits, target, sizes)) and list(found) == list(
        slow_figures(logits, target, sizes)
    )
    assert found["average_accuracy_task_il"] >= found["average_accuracy"]
    half = [{"input": batch["input"].bfloat16(), "target": batch["target"]} for batch in loader]
    assert trainer.evaluate(Answers(sizes), half) == pytest.approx(
        slow_figures(logits.bfloat16().float(), target, sizes)
    )
    # rows without a label count nowhere
    more = [{"input": logits[:5], "target": torch.full((5,), -100)}, *loader]
    assert trainer.evaluate(Answers(sizes), more) == found


def test_what_a_run_reports_is_what_its_models_do(finished):
    run = finished("lwf")
    for name, t in (("experience1", 0), ("taught2", 1), ("distilled", 2), ("joint", 2)):
        test = run.experiment.data_set(run.experiment.setting(stage(run, name), "data"), "test")
        with torch.no_grad():
            logits = torch.cat([batch_of(run.trained(name), test, i) for i in range(len(test))])
        expected = slow_figures(logits, test.target, (2, 2, 3)[: t + 1])
        assert {key: run.done[name][key] for key in expected} == pytest.approx(expected)


def batch_of(model, dataset, i):
    return model(dataset.batch(torch.tensor([i]), torch.tensor([0]), 0)["input"])


def hand_made(rows):
    return {
        **{f"accuracy_on_{k + 1}": a for k, a in enumerate(rows)},
        **{f"task_il_on_{k + 1}": 100 - a for k, a in enumerate(rows)},
    }


@pytest.mark.parametrize(
    "config, options, names",
    [
        ("lwf", {}, ["experience1", "taught2", "distilled"]),
        ("lwf", {}, ["experience1", "alone2", "alone"]),
        ("lwf", {"stages.warm_up": {"length": 1}}, ["experience1", "taught2", "distilled"]),
        ("gd", {}, ["experience1", "taught2", "distilled"]),
        ("gd", {}, ["experience1", "alone2", "alone"]),
    ],
)
def test_the_summary_of_hand_made_numbers(tmp_path, config, options, names):
    """Other stages of the same experiences, before and beside, have other numbers and take no part."""
    run = run_of(tmp_path, config, **options)
    for number, one in enumerate(run.experiment.stages):
        run.files.finish(one.name, hand_made([number] * 3))
    matrix = [[80.0], [50.0, 70.0], [30.0, 20.0, 90.0]]
    for name, row in zip(names[:2], matrix):
        run.files.finish(name, hand_made(row))
    found = trainer.summary(run, stage(run, names[2]), hand_made(matrix[2]))
    masked = [[100 - a for a in row] for row in matrix]
    assert found == {
        "class_counts": [2, 2, 3],
        "matrix": matrix,
        "matrix_task_il": masked,
        "average_incremental_accuracy": pytest.approx((80 + 60 + 140 / 3) / 3),
        "forgetting": pytest.approx(((80 - 30) + (70 - 20)) / 2),
        "average_incremental_accuracy_task_il": average_incremental_accuracy(masked),
        "forgetting_task_il": forgetting(masked),
    }


def test_the_summary_on_the_way_of_joint_and_of_other_models(tmp_path):
    run = run_of(tmp_path, "gd")
    run.files.finish("experience1", hand_made([80.0]))
    found = trainer.summary(run, stage(run, "main2"), hand_made([50.0, 70.0]))
    assert (
        found["matrix"] == [[80.0], [50.0, 70.0]]
        and found["class_counts"] == [2, 2]
        and found["forgetting"] == 30
    )
    joint = trainer.summary(run, stage(run, "joint"), hand_made([50.0, 70.0, 90.0]))
    assert joint == {
        "class_counts": [2, 2, 3],
        "matrix": [[50.0, 70.0, 90.0]],
        "matrix_task_il": [[50.0, 30.0, 10.0]],
    }
    assert trainer.summary(run, SimpleNamespace(model="teacher"), {}) == {}


def test_results_and_the_table_compare_only_what_was_tested_alike(finished, capsys):
    run = finished("lwf")
    results = json.loads((run.work_dir / "results.json").read_text())
    assert results["primary"] == "average_accuracy" and list(results["stages"]) == [
        "experience1",
        "alone2",
        "alone",
        "joint",
        "taught2",
        "distilled",
    ]
    distilled = results["stages"]["distilled"]
    assert distilled["matrix"] == [
        [results["stages"][name][f"accuracy_on_{j + 1}"] for j in range(i + 1)]
        for i, name in enumerate(["experience1", "taught2", "distilled"])
    ]
    assert [len(results["stages"][name]["matrix"]) for name in results["stages"]] == [
        1,
        2,
        3,
        1,
        2,
        3,
    ]
    experiment = run.experiment
    way = experiment.on_the_way
    table(results, experiment.arms, experiment.task, way, Console(width=200))
    rows = {
        line.split("│")[1].strip(): line.split("│")[-3].strip()
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    }
    assert {name: bool(against) for name, against in rows.items()} == {
        "alone": False,
        "joint": True,
        "distilled": True,
    }
    assert float(rows["distilled"]) == pytest.approx(
        distilled["average_accuracy"] - results["stages"]["alone"]["average_accuracy"], abs=0.01
    )


def test_the_report_says_what_the_control_is(finished):
    text = " ".join((finished("lwf").work_dir / "report.html").read_text().split())
    assert (
        "is the last of 2 stages that go on with one student, from <code>taught2</code> on; "
        "together they have as many steps as "
        "those from <code>alone2</code> to <code>alone</code>." in text
    )
    assert "so it has had more steps" not in text


# Class order --------------------------------------------------------------------------------------
def test_columns_follow_the_order_in_training_test_and_file(finished):
    run = finished("lwf")
    for name, classes in (("experience1", ORDER[:2]), ("taught2", ORDER[:4]), ("distilled", ORDER)):
        assert weights(run, name)["meta"]["classes"] == [CLASSES[c] for c in classes]
        data = run.experiment.setting(stage(run, name), "data")
        for part, own in (
            ("train", classes[-(2, 2, 3)[len(stage(run, name).arguments["sizes"]) - 1] :]),
            ("test", classes),
        ):
            made = run.experiment.data_set(data, part)
            source = made.sources[0]
            assert {
                (CLASSES[int(source.target[i])], int(y)) for i, y in zip(made.places, made.target)
            } == {(CLASSES[c], ORDER.index(c)) for c in own}
    assert read_weights(run.work_dir / "student.pth")[1]["classes"] == [CLASSES[c] for c in ORDER]


def test_a_drawn_order_is_one_for_all_stages_of_a_seed(tmp_path):
    orders = {}
    for seed in (0, 1):
        run = run_of(
            tmp_path, seed=seed, **{f"data.{part}.stream.order": None for part in ("train", "test")}
        )
        torch.manual_seed(99 + seed)
        found = [
            run.experiment.data_set(run.experiment.setting(one, "data"), part).classes
            for one in reversed(run.experiment.stages)
            for part in ("test", "train")
        ]
        orders[seed] = max(found, key=len)
        assert (
            all(classes == orders[seed][: len(classes)] for classes in found)
            and sorted(orders[seed]) == CLASSES
        )
    assert orders[0] != orders[1]


def test_training_and_test_of_different_classes(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"data.test: it has 1 classes that the training data "
        r"lacks: 'a' .* 2: \['e', 'b'\].* 2: \['a', 'b'\]",
    ):
        run_of(tmp_path, data__test__stream__order=[0, 1, 5, 4, 3, 2, 6]).train()
    with pytest.raises(
        ValueError,
        match=r"'experience1': the student's head has 3 columns \(3,\), "
        r"the stream has brought 2 classes: \['e', 'b'\]",
    ):
        run = run_of(tmp_path, student__sizes=(3, 4))
        run.experiment.train_loader(run.experiment.stages[0])
    assert not list(tmp_path.iterdir())


def test_a_test_stream_in_another_order_within_its_experiences(tmp_path):
    """By name: the columns are the training stream's."""
    run = run_of(tmp_path, data__test__stream__order=[1, 4, 0, 5, 6, 3, 2])
    for one in run.experiment.stages:
        data = run.experiment.setting(one, "data")
        made = run.experiment.data_set(data, "test")
        assert made.classes == [CLASSES[c] for c in ORDER[: len(made.classes)]]
        source = made.sources[0]
        assert {(int(source.target[i]), int(y)) for i, y in zip(made.places, made.target)} == {
            (c, ORDER.index(c)) for c in ORDER[: len(made.classes)]
        }
        assert made.class_counts.tolist() == torch.bincount(made.target).tolist()


# Exemplars and the pool ---------------------------------------------------------------------------
def test_the_training_sets_of_a_run_with_exemplars(finished):
    run = finished("gd")
    sets = {
        name: run.experiment.train_loader(stage(run, name), run.files).dataset
        for name in ("experience1", "main2", "alone2", "main3", "alone", "joint")
    }
    assert {name: made.class_counts.tolist() for name, made in sets.items()} == {
        "experience1": [12, 12],
        "main2": [2, 3, 12, 12],
        "alone2": [2, 3, 12, 12],
        "main3": [1, 1, 1, 2, 12, 12, 12],
        "alone": [1, 1, 1, 2, 12, 12, 12],
        "joint": [12] * 7,
    }
    assert {name: int((made.target == -100).sum()) > 0 for name, made in sets.items()} == {
        "experience1": False,
        "main2": True,
        "alone2": False,
        "main3": True,
        "alone": False,
        "joint": False,
    }


def test_what_is_taken_from_the_pool_is_chosen_once_by_the_student_before(finished):
    run = finished("gd")
    files = {
        path.stem: torch.load(path, weights_only=True)
        for path in (run.work_dir / "sampled").iterdir()
    }
    assert set(files) == {"experience1", "taught2"}
    pool = run.experiment.data_set(run.experiment.config["data"], "train").pool
    for before, names, labelled in (
        ("experience1", ("current2", "main2", "taught2"), 29),
        ("taught2", ("current3", "main3", "distilled"), 41),
    ):
        found = files[before]
        index = torch.cat([found["confident"], found["random"]]).sort().values
        for name in names:
            made = run.experiment.train_loader(stage(run, name), run.files).dataset
            assert (
                torch.equal(made.places[made.target == -100], index)
                and int((made.target >= 0).sum()) == labelled
            )
            assert {
                int(i) for batch in batches(run, name) for i in made.places[batch["index"][6:]]
            } <= set(index.tolist())
        with torch.no_grad():
            scores = torch.cat([run.trained(before)(plain(pool, i)) for i in range(len(pool))])
        per_class = (labelled - round(0.7 * labelled)) // scores.shape[1]
        assert found["confident"].tolist() == sorted(
            {
                int(i)
                for column in scores.T
                for i in column.argsort(descending=True, stable=True)[:per_class]
            }
        )
        assert len(found["random"]) <= round(0.7 * labelled)


def plain(pool, i):
    return (pool.images[i : i + 1].float() / 255 - 0.5) / 0.25


def test_before_the_model_is_there_the_choice_is_random_and_not_kept(tmp_path):
    run = run_of(tmp_path / "run", "gd")
    made = run.experiment.train_loader(stage(run, "main2"), run.files).dataset
    assert int((made.target == -100).sum()) == 29 and not (tmp_path / "run").exists()
    rows = dry_run(run.experiment)
    assert [row["stage"] for row in rows] == [one.name for one in run.experiment.stages] and not (
        tmp_path / "run"
    ).exists()


def test_a_former_run_in_the_folder_has_no_say(tmp_path, no_report):
    """It is moved aside, and what it took from its own, larger pool is not taken for this run's."""
    former = run_of(tmp_path / "run", "gd", **{"data.train.pool.per_class": 60})
    former.train(only=["experience1", "current2"])
    run = run_of(tmp_path / "run", "gd", seed=3)
    run.train(only=["experience1", "current2"])
    ours, theirs = (
        torch.load(folder / "sampled" / "experience1.pth", weights_only=True)
        for folder in (tmp_path / "run", tmp_path / "run.1")
    )
    assert (
        max(torch.cat([*theirs.values()]).tolist())
        >= 60
        > max(torch.cat([*ours.values()]).tolist())
    )
    made = run.experiment.train_loader(stage(run, "current2"), run.files).dataset
    assert made.places[made.target == -100].tolist() == sorted(torch.cat([*ours.values()]).tolist())


# Stopping and going on ----------------------------------------------------------------------------
def resumed(tmp_path, config, name, iteration, only):
    with pytest.raises(KeyboardInterrupt):
        run_of(
            tmp_path / "run",
            config,
            custom_hooks=[{"type": "small_streams.StopAt", "stage": name, "iteration": iteration}],
        ).train(only=only)
    stamp = tmp_path / "run" / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))
    torch.manual_seed(77)
    sampled = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (tmp_path / "run").glob("sampled/*")
    }
    assert bool(sampled) == (config == "gd")
    run = run_of(tmp_path / "run", config)
    run.train(resume=True, only=only)
    assert all(
        (path.read_bytes(), path.stat().st_mtime_ns) == before for path, before in sampled.items()
    )
    return run


@pytest.mark.parametrize(
    "config, name, iteration, only",
    [
        ("lwf", "taught2", 2, ["experience1", "taught2", "distilled"]),
        ("gd", "main2", 3, ["experience1", "current2", "main2", "taught2"]),
    ],
)
def test_resume_in_the_middle_of_a_taught_stage_equals_no_stop(
    finished, tmp_path, no_report, config, name, iteration, only
):
    run, whole = resumed(tmp_path, config, name, iteration, only), finished(config)
    for one in only:
        assert same(state(run, one), state(whole, one)), one
        assert {k: v for k, v in run.done[one].items() if k != "seconds"} == {
            k: v for k, v in whole.done[one].items() if k != "seconds"
        }
    optimizers = [list(walk(weights(r, only[-1])["resume"]["optimizer"])) for r in (run, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*optimizers, strict=True)) and optimizers[0]


def test_what_differs_between_a_run_and_its_resume_is_said_once(finished):
    run = finished("gd")
    with pytest.raises(ConfigError) as error:
        run_of(run.work_dir, "gd", **{"data.train.memory": 9}).train(resume=True)
    assert str(error.value).splitlines()[1:-1] == ["  data.train.memory: 5 -> 9"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, options",
    [
        ("lwf", {**LWM, "student.network.norm": False}),
        ("gd", {"student.network.norm": False, "data.unlabelled_per_batch": 2}),
    ],
)
def test_two_gloo_processes_equal_one(tmp_path, config, options):
    """With exemplars, so that each rank has its own number of new rows, over which the current
    teacher's mean is.
    """
    script = [
        str(ROOT / "tools" / "train.py"),
        str(SMALL / f"{config}.py"),
        "--cfg-options",
        "stages.joint=False",
        *(f"{key}={value!r}" for key, value in options.items()),
    ]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run(
        [sys.executable, *script, "--work-dir", str(tmp_path / "one")],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "localhost:0",
            *script,
            "--work-dir",
            str(tmp_path / "two"),
            "--launcher",
            "pytorch",
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for folder in sorted(
        path.name for path in (tmp_path / "one" / "stages").iterdir() if path.is_dir()
    ):
        one, two = (
            torch.load(tmp_path / n / "stages" / folder / "last.pth", weights_only=True)[
                "state_dict"
            ]
            for n in ("one", "two")
        )
        assert all(
            torch.allclose(value, two[key], rtol=1e-3, atol=1e-5) for key, value in one.items()
        ), folder


# Other people's data, networks and machines -------------------------------------------------------
def on(kind):
    """The two streams of another kind of data set."""
    if kind == "stream_of_sets":
        return {
            f"data.{part}.stream": {
                "type": "small_streams.stream_of_sets",
                "train": part == "train",
                "sizes": (2, 2, 3),
            }
            for part in ("train", "test")
        }
    return {
        f"data.{part}.stream.dataset": {
            "type": f"small_streams.{kind}",
            "train": part == "train",
            "classes": 7,
        }
        for part in ("train", "test")
    }


@pytest.mark.parametrize("kind", ["tensors", "Listed", "Dicts", "stream_of_sets"])
def test_map_style_data_sets_learn(tmp_path, no_report, kind):
    run = run_of(tmp_path / "run", **on(kind), length=4)
    results = run.train(only=["experience1", "taught2"])["stages"]
    assert results["taught2"]["task_il_on_1"] >= 90 and [
        len(row) for row in results["taught2"]["matrix"]
    ] == [1, 2]
    classes = (
        ["8", "32", "0", "40"]
        if kind == "stream_of_sets"
        else [str(c) if kind == "tensors" else CLASSES[c] for c in ORDER[:4]]
    )
    assert weights(run, "taught2")["meta"]["classes"] == classes


def test_global_distillation_with_a_map_style_pool(tmp_path, no_report):
    run = run_of(
        tmp_path / "run",
        "gd",
        **on("Listed"),
        **{"data.train.pool": {"type": "small_streams.only_inputs", "per_class": 10}},
    )
    assert "main2" in run.train(only=["experience1", "current2", "main2"])["stages"]
    made = run.experiment.train_loader(stage(run, "main2"), run.files).dataset
    kept = torch.load(run.work_dir / "sampled" / "experience1.pth", weights_only=True)
    assert sorted(made.places[made.target == -100].tolist()) == sorted(
        torch.cat([*kept.values()]).tolist()
    )


def test_a_seed_draws_one_order_for_samples_that_have_to_be_read(tmp_path):
    run = run_of(
        tmp_path, **on("Dicts"), **{f"data.{part}.stream.order": None for part in ("train", "test")}
    )
    sets = [
        run.experiment.data_set(run.experiment.config["data"], part) for part in ("train", "test")
    ]
    assert sets[0].classes == sets[1].classes and len(sets[0].classes) == 7
    run.experiment.train_loader(run.experiment.stages[0])


@pytest.mark.parametrize("options", [{}, LWM], ids=["lwf", "lwm"])
def test_a_step_in_bfloat16(tmp_path, no_report, options):
    run = run_of(tmp_path / "run", amp="bfloat16", length={"iterations": 1}, **options)
    run.train(only=["experience1", "taught2"])
    entry = weights(run, "taught2")["resume"]["history"][0]
    assert all(math.isfinite(value) for value in entry.values()) and {
        "loss_cls",
        "loss_lwf",
    } <= set(entry)
    assert all(
        value.dtype in (torch.float32, torch.int64) for value in state(run, "taught2").values()
    )


def test_lwm_learns_the_first_experience_as_lwf_does(finished, tmp_path, no_report):
    """Only what has a teacher pulls on attention; the control is LwF's, which compare.py counts on."""
    run = run_of(tmp_path / "run", **LWM)
    run.train(only=["experience1", "alone2", "taught2"])
    for name in ("experience1", "alone2"):
        assert same(state(run, name), state(finished("lwf"), name))
    assert "loss_attention" in weights(run, "taught2")["resume"]["history"][0] and not same(
        state(run, "taught2"), state(finished("lwf"), "taught2")
    )


# Files and tools ----------------------------------------------------------------------------------
def test_the_student_loads_strictly_into_the_plain_model(finished):
    run = finished("gd")
    file, meta = read_weights(run.work_dir / "student.pth")
    plain_model = growing(Net(), (2, 2, 3))
    plain_model.load_state_dict(file, strict=True)
    assert same(file, state(run, "distilled")) and meta["spec"]["sizes"] == [2, 2, 3]
    assert weights(run, "taught2")["meta"]["spec"]["sizes"] == [2, 2]


def test_weights_of_an_earlier_experience_do_not_pass_for_those_of_the_last(finished, capsys):
    run = finished("lwf")
    with pytest.raises(SystemExit):
        cli.test(
            [
                str(SMALL / "lwf.py"),
                str(run.folder(stage(run, "taught2")) / "last.pth"),
                "--device",
                "cpu",
            ]
        )
    assert "data.test: it has 3 classes that the training data lacks" in capsys.readouterr().err


def test_a_file_of_an_earlier_experience_may_begin_a_student_but_is_no_whole_teacher(
    finished, tmp_path
):
    file = str(finished("lwf").folder(stage(finished("lwf"), "taught2")) / "last.pth")
    config = {
        **small(),
        "stages": [
            {"name": "alone", "role": "control", "student": file},
            {"name": "distilled", "student": file, "teachers": {"teacher": file}},
        ],
    }
    run = Run(config, tmp_path, device="cpu", quiet=True)
    before, start = (
        state(finished("lwf"), "taught2"),
        run.experiment.distiller(stage(run, "alone"), run.files).student.state_dict(),
    )
    assert same({key: start[key] for key in before}, before) and len(start) == len(before) + 2
    with pytest.raises(ConfigError, match="the config has no model 'teacher'"):
        run.experiment.distiller(stage(run, "distilled"), run.files)
    config["teachers"] = {"teacher": {**config["student"], "checkpoint": file}}
    with pytest.raises(ValueError, match="missing: fc.blocks.2.weight, fc.blocks.2.bias"):
        (run := Run(config, tmp_path, device="cpu", quiet=True)).experiment.distiller(
            stage(run, "distilled"), run.files
        )
    config["teachers"]["teacher"]["sizes"] = (2, 2)
    run = Run(config, tmp_path, device="cpu", quiet=True)
    assert same(
        run.experiment.distiller(stage(run, "distilled"), run.files).model("teacher").state_dict(),
        before,
    )


def evaluated(capsys, *arguments):
    cli.test([*map(str, arguments), "--device", "cpu"])
    return {
        line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()
    }


def test_a_newcomers_first_run_and_what_can_be_done_with_it(tmp_path, capsys, monkeypatch):
    """default.py with another seed, which draws another order of classes: the tools find it out by
    themselves.
    """
    config = ROOT / "configs" / "incremental" / "default.py"
    monkeypatch.chdir(tmp_path)
    cli.train([str(config), "--seed", "3", "--device", "cpu", "--cfg-options", "length=1"])
    folder = tmp_path / "work_dirs" / "incremental_default-length=1" / "seed3"
    results = json.loads((folder / "results.json").read_text())
    for name, rows in (("alone", 5), ("joint", 1), ("distilled", 5)):
        found = results["stages"][name]
        assert (
            found["class_counts"] == [2] * 5
            and len(found["matrix"]) == len(found["matrix_task_il"]) == rows
        )
    assert {"student.pth", "student.json", "report.html", "config.py", "train.log"} <= {
        path.name for path in folder.iterdir()
    }
    capsys.readouterr()
    found = evaluated(capsys, config, folder / "student.pth")
    distilled = results["stages"]["distilled"]
    assert (
        found == pytest.approx({name: distilled[name] for name in found}, abs=1e-3)
        and "task_il_on_5" in found
    )
    cli.export([str(folder), "--format", "pth"])
    assert "its outputs differ from the student's by at most 0" in capsys.readouterr().out
    assert found == evaluated(capsys, config, folder / "student_plain.pth")
    # now nothing says which order of classes it was
    (folder / "student_plain.json").unlink()
    assert found == evaluated(capsys, config, folder / "student_plain.pth", "--seed", "3")
    cli.test([str(config), str(folder / "student_plain.pth"), "--device", "cpu"])
    assert "student_plain.pth' does not say of which seed it is" in capsys.readouterr().err
    # by name, in the student's columns
    assert found == evaluated(capsys, config, folder / "student.pth", "--seed", "4")
    before = copy.deepcopy(torch.load(folder / "student.pth", weights_only=True))
    Run(small(), tmp_path / "unused", device="cpu", quiet=True)
    assert same(before, torch.load(folder / "student_plain.pth", weights_only=True))


HEADS = {
    "losses.loss_lwf": {
        "type": "kdtasks.incremental.LwFLoss",
        "of": ["student.old_heads", "teacher.heads"],
    }
}


@pytest.mark.parametrize(
    "changes, message",
    [
        (HEADS, "'teacher.heads' is none: cache=None, or a loss of one tensor"),
        (LWM, "'teacher' says of a sample alone, but it needs 'student.attended'.*cache=None"),
    ],
)
def test_a_cache_of_what_cannot_be_kept_is_refused_before_the_first_step(
    tmp_path, changes, message
):
    run = run_of(tmp_path / "run", cache={"views": 1}, **changes)
    with pytest.raises(ConfigError, match=f"the cache keeps .*{message}"):
        run.train()
    assert not list(tmp_path.rglob("*.pth"))


def test_the_task_incremental_accuracy_of_one_class_is_said_to_mean_nothing():
    network = growing(nn.Sequential(nn.Linear(2, 1)), (2, 1))
    batch = {"input": torch.randn(6, 2), "target": torch.tensor([0, 1, 2, 2, 0, 1])}
    with pytest.warns(
        UserWarning,
        match=r"experiences \[2\] have one class each: their "
        r"task-incremental accuracy is 100",
    ):
        assert trainer.evaluate(network, [batch])["task_il_on_2"] == 100
