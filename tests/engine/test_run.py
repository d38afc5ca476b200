"""A run leaves what it promises, and its control is a fair one."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from small_runs import same, small, walk, weights

from kdtasks.core.weight_files import read_weights
from kdtasks.engine import caching
from kdtasks.engine import config as configs
from kdtasks.engine.anchors import routes_of
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.preparation import preparation
from kdtasks.engine.run import Run


def test_a_run_leaves_its_files(undisturbed):
    names = {p.name for p in undisturbed.work_dir.iterdir()}
    assert {
        "config.py",
        "results.json",
        "student.pth",
        "student.json",
        "report.html",
        "train.log",
        "stages",
    } <= names
    assert [p.name for p in sorted((undisturbed.work_dir / "stages").iterdir()) if p.is_dir()] == [
        "0_teacher",
        "1_alone",
        "2_distilled",
    ]
    results = json.loads((undisturbed.work_dir / "results.json").read_text())
    assert list(results) == ["config", "seed", "device", "primary", "higher_is_better", "stages"]
    assert list(results["stages"]) == ["teacher", "alone", "distilled"]
    assert all({"accuracy", "seconds"} <= set(stage) for stage in results["stages"].values())
    assert not list(undisturbed.work_dir.rglob("*.tmp"))


def test_results_are_what_an_evaluation_by_hand_gives(undisturbed):
    model = undisturbed.trained("distilled")
    test = undisturbed.experiment.data_set(undisturbed.experiment.config["data"], "test")
    with torch.no_grad():
        right = sum(
            int(model(test.images[i : i + 1]).argmax()) == int(test.target[i])
            for i in range(len(test))
        )
    assert undisturbed.results["stages"]["distilled"]["accuracy"] == pytest.approx(
        100 * right / len(test)
    )


def test_student_file_loads_strictly_and_holds_no_teacher(undisturbed):
    file, last = (
        torch.load(undisturbed.work_dir / "student.pth", weights_only=True),
        weights(undisturbed, "distilled"),
    )
    student = undisturbed.experiment.model("student")
    student.load_state_dict(file)
    assert same(file, last["state_dict"]) and len(file) == len(student.state_dict())
    known = json.loads((undisturbed.work_dir / "student.json").read_text())
    assert {name: known[name] for name in known if name != "sha256"} == last["meta"]
    assert (known["stage"], known["seed"], known["classes"]) == (
        "distilled",
        0,
        [str(k) for k in range(10)],
    )
    assert read_weights(undisturbed.work_dir / "student.pth")[1] == last["meta"]
    text = str({**weights(undisturbed, "distilled"), "state_dict": 0})
    teacher_shape = undisturbed.experiment.model("teacher")[-1].weight.shape
    assert "teacher." not in text and str(tuple(teacher_shape)) not in text
    sizes = {t.shape for t in walk(weights(undisturbed, "distilled")) if t.dim() == 2}
    assert teacher_shape not in sizes


def test_teacher_is_bit_for_bit_what_its_stage_left(undisturbed):
    """The teacher has BatchNorm and dropout; its stage's file was written before the student
    learned from it.
    """
    stage = undisturbed.experiment.stages[2]
    distiller = undisturbed.experiment.distiller(stage, undisturbed.files)
    before = copy.deepcopy(distiller.model("teacher").state_dict())
    assert same(before, weights(undisturbed, "teacher")["state_dict"])
    loader = undisturbed.experiment.train_loader(stage)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller.train()
    for batch in loader.epoch(0):
        sum(distiller(batch).values()).backward()
        optimizer.step()
    assert same(before, distiller.model("teacher").state_dict())


def test_alone_is_plain_cross_entropy_on_the_same_labelled_samples(tmp_path):
    """The control against a loop written here: weight 1, the labelled rows of the distilled run's
    batches, no teacher.
    """
    config = small(
        data__train={
            "type": "small_parts.Digits",
            "first": 0,
            "count": 200,
            "labelled": 60,
            "noise": 0.1,
        },
        data__batch_size=16,
        data__unlabelled_per_batch=8,
        data__iterations_per_epoch=5,
        schedule=[],
    )
    run = Run(config, tmp_path / "run", quiet=True)
    run.train()
    distilled_loader = run.experiment.train_loader(run.experiment.stages[2])
    student = run.experiment.model("student").train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    # dropout's stream, as the run seeds it
    torch.manual_seed(0)
    for epoch in range(3):
        for batch in distilled_loader.epoch(epoch):
            rows = batch["labelled"]
            assert (
                rows.sum() == 16
                and (batch["target"][rows] >= 0).all()
                and (batch["target"][~rows] == -100).all()
            )
            optimizer.zero_grad()
            F.cross_entropy(student(batch["input"][rows]), batch["target"][rows]).backward()
            optimizer.step()
    assert same(student.state_dict(), weights(run, "alone")["state_dict"])
    assert not same(student.state_dict(), weights(run, "distilled")["state_dict"])


def test_alone_and_distilled_start_from_the_same_weights(undisturbed):
    alone, distilled = (
        undisturbed.experiment.distiller(s, undisturbed.files).student.state_dict()
        for s in undisturbed.experiment.stages[1:]
    )
    assert same(alone, distilled)
    other = Run(small(), "unused", seed=1, quiet=True).experiment.model("student").state_dict()
    assert not same(alone, other)


def test_a_users_own_loss_trains_through_one_line(tmp_path):
    run = Run(
        small(losses__loss_mine={"type": "small_parts.AgreeLoss", "of": ("student", "teacher")}),
        tmp_path / "run",
        quiet=True,
    )
    run.train(only=["teacher", "distilled"])
    history = weights(run, "distilled")["resume"]["history"]
    mine = [entry["loss_mine"] for entry in history if "loss_mine" in entry]
    assert len(mine) > 2 and mine[-1] < mine[0]


def test_a_function_is_a_loss_too(tmp_path):
    entry = {"type": "kdtasks.general.kd_loss", "temperature": 2.0, "of": ("student", "teacher")}
    run = Run(small(losses__loss_kd=entry), tmp_path / "run", quiet=True)
    distiller = run.experiment.distiller(run.experiment.stages[2], load=False).eval()
    batch = next(iter(run.experiment.train_loader(run.experiment.stages[2])))
    s, t = distiller.student(batch["input"]), distiller.teachers["teacher"](batch["input"])
    expected = 4 * F.kl_div(
        F.log_softmax(s / 2, 1), F.log_softmax(t / 2, 1), reduction="batchmean", log_target=True
    )
    assert torch.allclose(distiller(batch)["loss_kd"], expected)


def test_cached_teacher_trains_to_the_same_student(tmp_path):
    """With fixed views, outputs from the cache are the outputs: teacher precision kept by a check
    of the range.
    """
    live, cached = (
        Run(small(**options), tmp_path / name, quiet=True)
        for name, options in (
            ("live", {"data__train__noise": 0.0}),
            ("cached", {"data__train__noise": 0.0, "cache": {"views": 1}}),
        )
    )
    live.train()
    cached.train()
    assert (tmp_path / "cached" / "cache").is_dir()
    a, b = weights(live, "distilled")["state_dict"], weights(cached, "distilled")["state_dict"]
    assert all(torch.allclose(a[k].double(), b[k].double(), atol=2e-3) for k in a) and not same(
        a, weights(live, "alone")["state_dict"]
    )


def test_a_cached_step_never_runs_the_teacher(tmp_path, monkeypatch, capsys):
    run = Run(small(cache={"views": 2}), tmp_path / "run", quiet=True)
    run.train(only=["teacher"])
    stage = run.experiment.stages[2]
    loader = run.experiment.train_loader(stage)
    distiller = run.experiment.distiller(stage, run.files)
    monkeypatch.setattr(caching, "SILENT_SECONDS", -1)
    first = next(iter(loader))
    prepare = preparation(run.experiment, stage, distiller, run.files, first, {}, quiet=False)
    assert "distilled: teacher's outputs 0/" in capsys.readouterr().err
    expected = {}
    for view in range(2):
        index = torch.arange(200)
        rows = distiller.teachers["teacher"](
            loader.dataset.batch(index, torch.full_like(index, view), 0)["input"]
        )
        expected |= {(int(i), view): row for i, row in zip(index, rows)}
    monkeypatch.setattr(distiller.teachers["teacher"], "forward", None)
    batch = prepare(next(iter(loader.epoch(3))))
    assert set(batch["view"].tolist()) <= {0, 1}
    for i, v, row in zip(batch["index"], batch["view"], batch["teacher"]):
        assert torch.allclose(row.float(), expected[int(i), int(v)], rtol=1e-3, atol=1e-3)
    assert "loss_kd" in distiller(batch)


def test_a_former_run_is_moved_aside(tmp_path):
    for _ in range(2):
        Run(small(), tmp_path / "run", quiet=True).train(only=["alone"])
    assert {p.name for p in tmp_path.iterdir()} == {"run", "run.1"}
    assert (tmp_path / "run.1" / "results.json").exists()


def test_the_written_config_trains_again(undisturbed):
    again = configs.load(undisturbed.work_dir / "config.py")
    assert (
        configs.difference(configs.jsonable(undisturbed.experiment.config), configs.jsonable(again))
        == []
    )


def test_epochs_to_keep_and_best(tmp_path):
    stages = [
        {
            "name": "teacher",
            "model": "teacher",
            "losses": {
                "loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}
            },
            "keep": [1, 2],
            "length": 3,
        },
        {
            "name": "distilled",
            "teachers": {"teacher": "teacher.1"},
            "losses": small()["losses"],
            "length": 1,
        },
    ]
    run = Run({**small(), "stages": stages}, tmp_path / "run", quiet=True)
    run.train()
    files = {p.name for p in run.folder(run.experiment.stages[0]).iterdir()}
    assert {"epoch_1.pth", "epoch_2.pth", "last.pth", "best.pth", "history.json"} == files
    assert same(
        run.experiment.distiller(run.experiment.stages[-1], run.files)
        .model("teacher")
        .state_dict(),
        weights(run, "teacher", "epoch_1.pth")["state_dict"],
    )
    accuracies = [
        e["accuracy"] for e in weights(run, "teacher")["resume"]["history"] if "accuracy" in e
    ]
    assert weights(run, "teacher", "best.pth")["meta"]["metrics"]["accuracy"] == max(accuracies)


def test_parts_of_the_student_train(undisturbed, tmp_path):
    file = str(undisturbed.folder(undisturbed.experiment.stages[0]) / "last.pth")
    stage = {
        "name": "distilled",
        "teachers": {"teacher": file},
        "losses": small()["losses"],
        "train": ["student.10"],
        "length": 1,
    }
    run = Run({**small(), "stages": [stage]}, tmp_path / "run", quiet=True)
    run.train()
    before, after = (
        run.experiment.model("student").state_dict(),
        weights(run, "distilled")["state_dict"],
    )
    moved = {
        k
        for k in before
        if not torch.equal(before[k], after[k]) and "running" not in k and "num_batches" not in k
    }
    assert moved == {k for k in before if k.startswith("10.")} and moved
    with pytest.raises(ValueError, match=r"nothing that can train is called 'student.100'"):
        Run(
            {**small(), "stages": [{**stage, "train": ["student.100"]}]},
            tmp_path / "other",
            quiet=True,
        ).train()


def test_two_stages_with_the_optimizers_state_kept_are_one(tmp_path):
    """Momentum, order and views go on from stage to stage; without the momentum the weights come
    out otherwise.
    """
    plain = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}
    rounds = [
        {"name": "alone", "role": "control", "losses": plain, "length": 1},
        {"name": "second", "student": "keep", "losses": plain, "length": 1},
    ]
    one = [{"name": "alone", "role": "control", "losses": plain, "length": 2}]
    kept = [rounds[0], {**rounds[1], "optimizer_state": "keep"}]
    optimizer, found = {"type": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9}, {}
    for name, stages in (("one", one), ("kept", kept), ("fresh", rounds)):
        run = Run(
            {
                **small(student__norm=False),
                "optimizer": optimizer,
                "schedule": [],
                "stages": stages,
            },
            tmp_path / name,
            quiet=True,
        )
        run.train()
        found[name] = weights(run, stages[-1]["name"])["state_dict"]
    assert same(found["one"], found["kept"]) and not same(found["one"], found["fresh"])
    adam = [kept[0], {**kept[1], "optimizer": {"type": "torch.optim.Adam", "lr": 0.01}}]
    with pytest.raises(
        ConfigError,
        match="'second': optimizer_state='keep' needs the optimizer .* "
        "of stage 'alone': it has SGD",
    ):
        Run(
            {**small(), "optimizer": optimizer, "stages": adam}, tmp_path / "adam", quiet=True
        ).train()
    assert not (tmp_path / "adam" / "stages" / "0_alone").exists()
    with pytest.raises(ConfigError, match="with ema a stage hands on their average"):
        Run({**small(ema=0.9), "stages": kept}, tmp_path / "none", quiet=True)
    with pytest.raises(
        ConfigError, match="must be 'keep' or the last weights of a stage, got student='fresh'"
    ):
        Run(
            {**small(), "stages": [{**rounds[0], "optimizer_state": "keep"}]},
            tmp_path / "none",
            quiet=True,
        )


def test_a_route_of_anchors_teaches_share_by_share(tmp_path, monkeypatch):
    """Three anchors over one stage of 12 steps: each is in the same teacher module for 4 of them,
    also after a resume.
    """
    plain = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}
    stages = [
        {"name": "teacher", "model": "teacher", "losses": plain, "keep": [1, 2], "length": 3},
        {
            "name": "distilled",
            "teachers": {"teacher": ["teacher.1", "teacher.2", "teacher"]},
            "length": {"iterations": 12},
        },
    ]
    run = Run({**small(), "stages": stages}, tmp_path / "run", quiet=True)
    run.train(only=["teacher"])
    distiller = run.experiment.distiller(run.experiment.stages[-1], run.files)
    last, files = run.experiment.stages[-1], ("epoch_1.pth", "epoch_2.pth", "last.pth")
    routes = routes_of(run.experiment, last, distiller, run.files)
    follow = preparation(run.experiment, last, distiller, run.files, {}, routes)
    # 5: where a resume may begin
    for iteration in [*range(12), 5]:
        distiller.progress = (iteration, 12)
        follow({})
        assert same(
            distiller.model("teacher").state_dict(),
            weights(run, "teacher", files[iteration // 4])["state_dict"],
        )
    assert "distilled" in run.train(resume=True)["stages"]
    with pytest.raises(ConfigError, match="route of 'teacher' has no anchor"):
        Run(
            {**small(), "stages": [stages[0], {**stages[1], "teachers": {"teacher": []}}]},
            tmp_path / "other",
        )


def test_a_teacher_with_weights_of_its_own_is_not_trained(tmp_path):
    run = Run(small(teacher__checkpoint="own"), tmp_path / "run", quiet=True)
    run.train()
    assert list(run.done) == ["alone", "distilled"]
    assert same(
        run.experiment.distiller(run.experiment.stages[-1], run.files)
        .model("teacher")
        .state_dict(),
        run.experiment.model("teacher").state_dict(),
    )


def test_the_controls_own_arguments(tmp_path):
    """It starts from the same first weights as the student, and is read back as it was trained."""
    run = Run(small(control={"norm": False}), tmp_path / "run", quiet=True)
    alone, distilled = (
        next(s for s in run.experiment.stages if s.name == name) for name in ("alone", "distilled")
    )
    assert [
        any(isinstance(m, torch.nn.BatchNorm2d) for m in run.experiment.learner(stage).modules())
        for stage in (alone, distilled)
    ] == [False, True]
    assert torch.equal(
        run.experiment.learner(alone).state_dict()["0.weight"],
        run.experiment.learner(distilled).state_dict()["0.weight"],
    )
    run.train()
    assert same(run.trained("alone").state_dict(), weights(run, "alone")["state_dict"])
    with pytest.raises(ConfigError, match="control: Net has no argument 'nrom'"):
        small(control={"nrom": False})


def test_a_chain_of_assistants(tmp_path):
    """Teacher, assistant taught by it, student taught by the assistant; the control made by hand in
    the same list.
    """
    taught = small()["losses"]
    plain = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}
    kd = {**taught, "loss_kd": {**taught["loss_kd"], "of": ("student", "assistant")}}
    stages = [
        {"name": "teacher", "model": "teacher", "losses": plain},
        {"name": "alone", "role": "control", "losses": plain},
        {"name": "assistant1", "model": "assistant", "teachers": {"teacher": "teacher.best"}},
        {"name": "distilled", "teachers": {"assistant": "assistant1"}, "losses": kd},
    ]
    config = {
        **small(),
        "stages": stages,
        "models": {"assistant": {"type": "small_parts.Net", "width": 6}},
    }
    run = Run(config, tmp_path / "run", quiet=True)
    assert list(run.train()["stages"]) == ["teacher", "alone", "assistant1", "distilled"]
    assert same(
        run.experiment.distiller(run.experiment.stages[3], run.files)
        .model("assistant")
        .state_dict(),
        weights(run, "assistant1")["state_dict"],
    )
    assert same(
        run.experiment.distiller(run.experiment.stages[2], run.files).model("teacher").state_dict(),
        weights(run, "teacher", "best.pth")["state_dict"],
    )


def test_peers_of_a_config_train_beside_the_student(tmp_path):
    """Two networks, one optimizer, a loss of all outputs: both move, are clipped apart and come
    back on a resume.
    """
    losses = {
        "loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")},
        "loss_mutual": {"type": "small_parts.agreement", "of": ("peers", "target")},
    }
    stages = [{"name": "distilled", "losses": losses}]
    config = {
        **small(clip_grad=1.0),
        "stages": stages,
        "peers": [{"type": "small_parts.Net", "width": 6}],
    }
    run = Run(config, tmp_path / "run", quiet=True)
    run.train()
    assert list(run.done) == ["alone", "distilled"] and list(run.experiment.stages[0].losses) == [
        "loss_cls"
    ]
    first = (
        run.experiment.distiller(run.experiment.stages[-1], run.files).model("peer1").state_dict()
    )
    resume = weights(run, "distilled")["resume"]
    assert len(resume["learners"]) == 2 and not torch.equal(
        resume["learners"][1]["0.weight"], first["0.weight"]
    )
    assert {"loss_mutual_0", "loss_mutual_1"} <= set(resume["history"][0])
    # the peer is tested, and its weights are kept, as the student's are
    primary = run.experiment.task.primary
    assert {primary, f"peer1_{primary}"} <= run.done["distilled"].keys()
    assert f"peer1_{primary}" not in run.done["alone"] and "counts" not in run.done["alone"]
    assert run.done["distilled"]["counts"] == "student"
    kept, meta = read_weights(tmp_path / "run" / "peer1.pth")
    assert same(kept, resume["learners"][1])
    assert meta["spec"] == {"type": "small_parts.Net", "width": 6} and meta["stage"] == "distilled"


# Stages made by a function, models and samples that change from stage to stage --------------------
OWN = {
    "task": "small_task",
    "stages": {"type": "small_task.two_rounds", "length": 1},
    "student.norm": False,
    "schedule": [],
}


def test_stages_made_by_a_function_stay_described_by_it(tmp_path):
    config = small(**OWN, teacher__checkpoint=None)
    run = Run(config, tmp_path / "run", quiet=True)
    assert [stage.name for stage in run.experiment.stages] == [
        "teacher",
        "alone",
        "distilled",
    ] and run.experiment.stages[2].student == "alone"
    assert config["stages"] == OWN["stages"]
    run.files.open(run.experiment.config, 0, resume=False)
    assert len((tmp_path / "run" / "config.py").read_text()) < 3000
    again = configs.load(tmp_path / "run" / "config.py")
    assert (
        configs.difference(configs.jsonable(run.experiment.config), configs.jsonable(again)) == []
    )
    assert [vars(s) for s in Run(again, tmp_path / "other").experiment.stages] == [
        vars(s) for s in run.experiment.stages
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "stages: two_rounds needs 'length'"),
        ({"length": 1, "lenght": 1}, r"stages\[0\] has no key 'lenght'; did you mean 'length'"),
        ({"length": -1}, r"stages\[1\].length: epochs must be a whole number >= 0, got -1"),
        (
            {"length": 1, "optimizer": {"type": "torch.optim.SDG"}},
            "optimizer.type='torch.optim.SDG': torch.optim has no 'SDG'; did you mean 'SGD'",
        ),
        (
            {"length": 1, "model": "student", "arguments": {"widht": 2}},
            r"stages\[0\].arguments: Net "
            r"has no argument 'widht'; did "
            r"you mean 'width'",
        ),
    ],
)
def test_what_such_a_function_makes_is_checked(arguments, message):
    with pytest.raises(ConfigError, match=message):
        small(**{**OWN, "stages": {"type": "small_task.two_rounds", **arguments}})


def test_a_stage_changes_its_models_arguments_where_it_learns_teaches_and_is_read_back(tmp_path):
    plain = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}
    stages = [
        {"name": "wide", "losses": plain, "arguments": {"width": 6}, "length": 1},
        {"name": "alone", "role": "control", "losses": plain, "length": 1},
        {
            "name": "distilled",
            "teachers": {"teacher": "wide"},
            "losses": small()["losses"],
            "length": 1,
        },
    ]
    run = Run({**small(), "stages": stages}, tmp_path / "run", quiet=True)
    run.train()
    wide = weights(run, "wide")
    assert (
        wide["state_dict"]["0.weight"].shape[0] == 6
        and wide["meta"]["spec"]["width"] == 6
        and weights(run, "alone")["meta"]["spec"]["width"] == 4
    )
    assert same(run.trained("wide").state_dict(), wide["state_dict"])
    assert same(
        run.experiment.distiller(run.experiment.stages[2], run.files).model("teacher").state_dict(),
        wide["state_dict"],
    )
    assert (
        run.experiment.distiller(run.experiment.stages[2], run.files).student[0].weight.shape[0]
        == 4
    )
    assert [one.name for one in run.experiment.chain(run.experiment.stages[2])] == ["distilled"]


def test_a_task_may_choose_the_samples_of_a_stage_and_add_to_its_results(tmp_path):
    """Checks before the run look at nothing that stages leave; every training batch is of the
    task's choice, and so is resume's length.
    """
    import small_task

    small_task.CALLS.clear()
    run = Run(small(**OWN), tmp_path / "run", quiet=True)
    results = run.train()["stages"]
    assert set(small_task.CALLS[:3]) == {(name, None) for name in ("teacher", "alone", "distilled")}
    assert {files for _, files in small_task.CALLS[3:]} == {run.files}
    assert [len(run.experiment.train_loader(stage)) for stage in run.experiment.stages] == [6, 6, 2]
    assert (
        weights(run, "distilled")["resume"]["length"] == 2
        and run.experiment.first_epoch(run.experiment.stages[2]) == 1
    )
    assert results["distilled"]["so_far"] == [
        results["alone"]["accuracy"],
        results["distilled"]["accuracy"],
    ]
    assert results["alone"]["so_far"] == [results["alone"]["accuracy"]]
    assert (
        json.loads((tmp_path / "run" / "results.json").read_text())["stages"]["distilled"]["so_far"]
        == results["distilled"]["so_far"]
    )
    assert {
        int(i)
        for batch in run.experiment.train_loader(run.experiment.stages[2]).epoch(1)
        for i in batch["index"]
    } <= set(range(64))


def test_unlabelled_samples_are_for_taught_stages_and_those_that_ask(tmp_path):
    plain = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}
    stages = [
        {"name": "teacher", "model": "teacher", "losses": plain},
        {"name": "alone", "role": "control", "losses": plain},
        {"name": "asks", "losses": plain, "data": {"unlabelled_per_batch": 4}},
        {"name": "none", "teachers": {"teacher": "teacher"}, "data": {"unlabelled_per_batch": 0}},
        {"name": "distilled", "teachers": {"teacher": "teacher"}, "data": {"batch_size": 20}},
    ]
    config = small(
        data__train={"type": "small_parts.Digits", "first": 0, "count": 200, "labelled": 60},
        data__unlabelled_per_batch=8,
        data__batch_size=16,
    )
    run = Run({**config, "stages": stages}, tmp_path, quiet=True)
    found = {
        stage.name: next(iter(run.experiment.train_loader(stage)))
        for stage in run.experiment.stages
    }
    assert {name: len(batch["input"]) for name, batch in found.items()} == {
        "teacher": 16,
        "alone": 16,
        "asks": 20,
        "none": 16,
        "distilled": 28,
    }
    assert {stage.name: run.experiment.unlabelled(stage) for stage in run.experiment.stages} == {
        "teacher": 0,
        "alone": 0,
        "asks": 4,
        "none": 0,
        "distilled": 8,
    }


def test_data_that_are_described_twice_are_read_once_and_drawn_by_the_seed(tmp_path):
    """Inside another description too; whatever the process has drawn before, and in whatever order
    they are asked for.
    """
    import small_parts

    inner = {"type": "small_parts.Random", "count": 50}
    config = small(
        **{
            "data.train": {"type": "small_parts.Shuffled", "dataset": inner},
            "data.test": {"type": "small_parts.Shuffled", "dataset": inner, "first": 9},
        }
    )
    drawn = {}
    for attempt, (seed, parts) in enumerate(
        [(0, ("train", "test")), (0, ("test", "train")), (1, ("train", "test"))]
    ):
        torch.manual_seed(attempt)
        before, small_parts.Random.made = torch.get_rng_state(), 0
        run = Run(config, tmp_path, seed=seed, quiet=True)
        sets = {
            part: run.experiment.data_set(run.experiment.config["data"], part) for part in parts
        }
        assert (
            sets["train"].dataset is sets["test"].dataset
            and small_parts.Random.made == 1
            and torch.equal(torch.get_rng_state(), before)
        )
        assert (
            sets["train"]
            is run.experiment.data_set(run.experiment.config["data"], "train")
            is not sets["test"]
        )
        drawn[attempt] = [sets["train"].order, sets["test"].order, sets["train"].dataset.images]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1])) and torch.equal(
        drawn[0][0], drawn[0][1]
    )
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2]))
    assert not torch.equal(drawn[0][2][0].flatten()[:50].argsort(), drawn[0][0])


def test_an_error_inside_a_description_says_where(tmp_path):
    run = Run(
        small(
            **{
                "data.train": {
                    "type": "small_parts.Shuffled",
                    "dataset": {"type": "small_parts.Random", "count": -1},
                }
            }
        ),
        tmp_path,
        quiet=True,
    )
    with pytest.raises(
        ConfigError,
        match=r"data.train.dataset \(Random\): count must be positive, "
        r"got -1",
    ):
        run.experiment.data_set(run.experiment.config["data"], "train")
