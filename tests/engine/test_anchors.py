"""Routes of anchors: chosen on the way as in a loop of one's own, resumed, and checked."""

import pytest
import torch
from small_runs import small, weights

from kdtasks.core.terms import total_loss
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run
from kdtasks.general import anchor_hardness, greedy_route

HELD_OUT = {"type": "small_parts.Digits", "first": 500, "count": 60}


def greedy(threshold, held_out=HELD_OUT, **options):
    """Candidates after each of the teacher's four epochs; a share of the student has seven steps."""
    stages = {
        "type": "kdtasks.general.rco.stages",
        "interval": 1,
        "greedy": {"threshold": threshold, "held_out": held_out},
    }
    changes = {"student.norm": False, "teacher.norm": False, "schedule": [], "length": 4}
    return small(**{**changes, **options}, stages=stages)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(greedy(1.6), tmp_path_factory.mktemp("greedy") / "run", quiet=True)
    run.train()
    return run


def in_a_loop(run, threshold):
    """The same search by hand: weights and route."""
    experiment, files = run.experiment, run.files
    stage = experiment.stage("distilled")
    sources = stage.teachers["teacher"]
    distiller, loader = experiment.distiller(stage, files), experiment.train_loader(stage, files)
    distiller.build(experiment.first_batch(stage, files))
    optimizer = torch.optim.SGD(distiller.student.parameters(), lr=0.1, momentum=0.9)
    share, total = len(loader), 4 * len(loader)
    batches = [batch for epoch in range(4) for batch in loader.epoch(epoch)]
    images = experiment.data_set({**experiment.config["data"], "train": HELD_OUT}, "train").images
    teacher = distiller.model("teacher")

    def teach(anchor):
        experiment.load(teacher, sources[anchor], files)
        while batches:
            distiller.progress = (total - len(batches), total)
            distiller.train()
            total_loss(distiller(batches.pop(0))).backward()
            optimizer.step()
            optimizer.zero_grad()
            # the last one has what is left
            if anchor < 3 and len(batches) % share == 0:
                break

    @torch.no_grad()
    def hardness():
        answers = []
        for source in sources:
            experiment.load(teacher, source, files)
            answers.append(teacher(images))
        return anchor_hardness(distiller.student(images), answers)

    route = greedy_route(teach, hardness, threshold)
    return distiller.student.state_dict(), [sources[anchor] for anchor in route]


def test_the_stage_goes_as_the_search_in_a_loop(run):
    ours, route = in_a_loop(run, 1.6)
    assert run.results["stages"]["distilled"]["routes"] == {"teacher": route}
    for name, value in weights(run, "distilled")["state_dict"].items():
        torch.testing.assert_close(value, ours[name])


@pytest.mark.parametrize("threshold, numbers", [(1e9, [0, 3]), (1e-9, [0, 1, 2, 3])])
def test_the_threshold_decides(run, tmp_path, threshold, numbers):
    other = Run(greedy(threshold), tmp_path / "run", quiet=True)
    other.open()
    for stage in ("teacher", "alone"):
        other.files.link_stage(stage, run.files.folder(stage))
    other.train(resume=True)
    sources = ["teacher.1", "teacher.2", "teacher.3", "teacher"]
    assert other.done["distilled"]["routes"] == {"teacher": [sources[k] for k in numbers]}
    assert f"teacher ({', '.join(sources[k] for k in numbers)})" in (
        other.work_dir / "report.html"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"held_out": {"type": "small_parts.Digits", "first": 1000, "count": 200}}, "tested on"),
        (
            {"held_out": {"type": "small_parts.Digits", "first": 0, "count": 200, "noise": 0.1}},
            "learns from",
        ),
        ({"held_out": None}, "has no held_out"),
        ({"threshold": 0.0}, "threshold must be > 0, got 0.0"),
    ],
)
def test_images_and_thresholds_that_cannot_be(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        Run(greedy(**{"threshold": 2.0, **change}), tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run").exists()


def test_a_chooser_that_stands_still_and_too_many_anchors(tmp_path):
    stages = [
        {"name": "teacher", "model": "teacher", "keep": [1, 2]},
        {
            "name": "distilled",
            "teachers": {"teacher": ["teacher.1", "teacher.2", "teacher"]},
            "route": {"type": "small_parts.StandStill", "held_out": HELD_OUT},
        },
    ]
    with pytest.raises(ConfigError, match="goes on by 1 to 1 anchors, got 0 from its chooser"):
        Run({**small(), "stages": stages}, tmp_path / "run", quiet=True).train()
    del stages[1]["route"]
    stages[1]["length"] = {"iterations": 2}
    with pytest.raises(ConfigError, match="the 3 anchors of 'teacher' share 2 iterations"):
        Run({**small(), "stages": stages}, tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run").exists()


def test_a_route_without_anchors(tmp_path):
    stages = [
        {"name": "teacher", "model": "teacher"},
        {
            "name": "distilled",
            "teachers": {"teacher": "teacher"},
            "route": {"type": "kdtasks.general.GreedyRoute", "threshold": 2, "held_out": HELD_OUT},
        },
    ]
    with pytest.raises(ConfigError, match="no teacher has any"):
        Run({**small(), "stages": stages}, tmp_path / "run", quiet=True).train()


def test_a_teacher_that_never_moves_is_said_before_the_student_starts(tmp_path):
    """Its BatchNorm statistics do; and it is said again on a resume."""
    stages = {"type": "kdtasks.general.rco.stages", "interval": 1}
    config = small(teacher_training__optimizer={"lr": 0.0})
    config = {**config, "stages": stages}
    for resume in (False, True):
        run = Run(config, tmp_path / "run", quiet=True)
        with pytest.raises(ConfigError, match=r"stage 'teacher' has not learned: .*'lr': 0\.0"):
            run.train(resume=resume)
        assert not run.done and not run.files.folder("alone").exists()


def test_a_teacher_that_a_hook_ends_before_its_anchors(tmp_path):
    stages = {"type": "kdtasks.general.rco.stages", "epochs": [1, 2]}
    hooks = [{"type": "small_parts.EndAt", "stage": "teacher", "iterations": 8}]
    run = Run({**small(), "stages": stages, "custom_hooks": hooks}, tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="stage 'teacher' ended before epoch 2, which a later"):
        run.train()
