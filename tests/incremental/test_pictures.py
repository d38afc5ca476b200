"""What the report draws of a stream: the numbers, maps and images behind it, and that it is drawn
whatever is missing.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.engine import checkpoint, report
from kdtasks.engine import config as configs
from kdtasks.engine.run import Run
from kdtasks.incremental import pictures
from kdtasks.incremental.data import class_incremental, experiences, unaugmented
from kdtasks.incremental.pictures.accuracy import CLASS_IL, draw_course, draw_matrices
from kdtasks.incremental.pictures.attention import attention_of, draw_attention, overlay
from kdtasks.incremental.pictures.gallery import Cell, gallery, images_of, inputs_of
from kdtasks.incremental.pictures.pool import draw_picked, picked_of

DEFAULT = Path(__file__).parents[2] / "configs" / "incremental" / "default.py"
POOL = {"type": "kdtasks.classification.data.digits", "augment": {"crop": 3}}
COLORS = {"alone": report.CONTROL, "distilled": report.TAUGHT, "joint": report.OTHERS[0]}


def tiny(folder, **options):
    """A run on three experiences of two digits each, with a pool; nothing is trained."""
    sizes, order = [2, 2, 6], [7, 3, 5, 0, 8, 1, 2, 4, 6, 9]
    streams = {
        f"data.{part}.stream.{key}": value
        for part in ("train", "test")
        for key, value in (("sizes", sizes), ("order", order))
    }
    changed = {
        "student.sizes": sizes,
        "student.network.width": 4,
        "data.train.pool": POOL,
        **streams,
    }
    return Run(
        configs.load(DEFAULT, {**changed, **{k.replace("__", "."): v for k, v in options.items()}}),
        folder,
        quiet=True,
    )


def finish(run, names):
    """As if these stages had been trained: random weights, and what these are measured to be."""
    for stage in run.experiment.stages:
        if stage.name in names:
            torch.manual_seed(len(run.done))
            model = run.experiment.learner(stage)
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.4)
            checkpoint.save(
                {"meta": {}, "state_dict": model.state_dict()}, run.folder(stage) / "last.pth"
            )
            with torch.no_grad():
                found = {
                    **run.experiment.task.evaluate(model.eval(), run.experiment.test_loader(stage)),
                    "seconds": 1.0,
                }
            run.files.finish(
                stage.name, {**found, **run.experiment.task.summary(run, stage, found)}
            )


LWM = {"distiller__type": "kdtasks.incremental.LwMDistiller", "distiller__attention": "layer3"}
NAMES = ["experience1", "alone2", "alone", "joint", "taught2", "distilled"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tiny(tmp_path_factory.mktemp("whole"), **LWM)
    finish(run, NAMES)
    sample(run, "taught2")
    return run


def sample(run, name, confident=range(3, 1200, 30), random=range(1, 1200, 17)):
    chosen = {
        "confident": torch.tensor(list(confident)).long(),
        "random": torch.tensor(list(random)).long(),
    }
    checkpoint.save(chosen, run.work_dir / "sampled" / f"{name}.pth")


def saved(figure):
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return figure


def panels(figure):
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def said(figure):
    return [text.get_text() for text in figure.texts]


# What there is ------------------------------------------------------------------------------------
def test_a_whole_run(whole):
    drawn = whole.experiment.task.pictures(whole)
    starts = [
        "Accuracy, %",
        "Accuracy, %",
        "Accuracy and forgetting",
        "Where the student looks",
        "What taught2 took",
    ]
    assert all(
        title.startswith(start) and saved(figure)
        for (title, figure), start in zip(drawn, starts, strict=True)
    )
    assert "class-incremental" in drawn[0][0] and "task-incremental" in drawn[1][0]


@pytest.mark.parametrize(
    "count, figures, shown",
    [
        (0, 0, []),
        (1, 0, []),
        (2, 4, ["alone2"]),
        (3, 4, ["alone"]),
        (4, 4, ["alone"]),
        (5, 5, ["alone", "taught2"]),
    ],
)
def test_what_is_not_finished_is_left_out(tmp_path, count, figures, shown):
    run = tiny(tmp_path, **LWM)
    sample(run, "taught2")
    finish(run, NAMES[:count])
    drawn = run.experiment.task.pictures(run)
    assert len(drawn) == figures
    if drawn:
        assert [
            axes.get_title(loc)
            for axes in drawn[0][1].axes
            for loc in ("left", "center")
            if axes.get_title(loc)
        ] == shown
        assert len(drawn[2][1].axes[0].lines) == 2 * len(shown) + 2 * (count > 3)


def test_without_attention_and_without_a_choice_there_are_three(tmp_path):
    run = tiny(tmp_path)
    finish(run, NAMES)
    assert len(run.experiment.task.pictures(run)) == 3


def test_a_control_on_its_own_is_one_arm(tmp_path):
    """As tools/compare.py trains one that several configs share."""
    run = tiny(tmp_path)
    run.experiment.stages = run.experiment.stages[:3]
    finish(run, NAMES[:3])
    assert {goal: stage.name for goal, stage in pictures.arms_of(run).items()} == {"alone": "alone"}


def test_a_matrix_with_a_hole_is_not_drawn(tmp_path):
    run = tiny(tmp_path)
    finish(run, NAMES)
    run.files.finish("alone", {**run.done["alone"], "matrix": [[50.0], [40.0]]})
    assert {goal: stage.name for goal, stage in pictures.arms_of(run).items()} == {
        "alone": "alone2",
        "distilled": "distilled",
    }


# Numbers ------------------------------------------------------------------------------------------
def test_the_cells_are_the_matrix(whole):
    for key in ("matrix", "matrix_task_il"):
        _, figure = draw_matrices(
            {name: whole.done[name][key] for name in ("alone", "distilled")}, ""
        )
        for axes, name in zip(figure.axes, ("alone", "distilled")):
            matrix, mesh = whole.done[name][key], axes.collections[0]
            values = mesh.get_array().reshape(3, 3)
            for i in range(3):
                assert (
                    values[i, : i + 1].tolist() == pytest.approx(matrix[i], rel=1e-6)
                    and np.isnan(values.data[i, i + 1 :]).all()
                )
            written = {text.get_position(): text.get_text() for text in axes.texts}
            assert written == {
                (j + 0.5, i + 0.5): f"{matrix[i][j]:.1f}" for i in range(3) for j in range(i + 1)
            }
            assert mesh.get_clim() == (0, 100) and axes.yaxis_inverted()


@pytest.mark.parametrize("count", [2, 5, 10, 20, 21])
def test_numbers_fit_into_their_cells_and_can_be_read(count):
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    from matplotlib.colors import to_rgb

    matrix = [[100.0 - 7 * (i + 3 * j) % 101 for j in range(i + 1)] for i in range(count)]
    matrix[-1][0] = 100.0
    with style.context(report.STYLE, after_reset=True):
        _, figure = draw_matrices({"alone": matrix, "distilled": matrix}, CLASS_IL)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    for axes in figure.axes[:2]:
        assert len(axes.texts) == (count * (count + 1) // 2 if count <= 20 else 0)
        shades = axes.collections[0].cmap
        for text in axes.texts:
            box = text.get_window_extent(canvas.get_renderer())
            assert (
                text.get_fontsize() >= 8
                and box.width < axes.bbox.width / count + 1
                and box.height < axes.bbox.height / count
            )
            bright = sorted(
                [
                    luminance(to_rgb(text.get_color())),
                    luminance(shades(float(text.get_text()) / 100)),
                ]
            )
            assert (bright[1] + 0.05) / (bright[0] + 0.05) > 3.5
        labels = [
            label.get_window_extent(canvas.get_renderer())
            for label in axes.get_xticklabels()
            if label.get_text()
        ]
        assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i])


def test_accuracy_and_forgetting_after_each_experience():
    matrices = {
        "alone": [[90.0], [20.0, 80.0], [30.0, 5.0, 70.0]],
        "distilled": [[90.0], [60.0, 50.0]],
    }
    easier = {
        name: [[50 + v / 2 for v in row] for row in matrix] for name, matrix in matrices.items()
    }
    title, figure = draw_course(matrices, easier, COLORS, (88.0, 99.0))
    left, right = saved(figure).axes
    means = [line.get_ydata() for line in left.lines]
    # solid: alone, distilled, joint
    np.testing.assert_allclose(means[0], [90, 50, 35])
    np.testing.assert_allclose(means[1], [90, 55])
    # dashed
    np.testing.assert_allclose(means[3], [95, 75, 67.5])
    assert [means[2][0], means[5][0]] == [88, 99] and len(means) == 6
    lost = [line.get_ydata() for line in right.lines[:4]]
    # from the best ever: 90 to 30, 80 to 5
    np.testing.assert_allclose(lost[0], [70, (60 + 75) / 2])
    np.testing.assert_allclose(lost[1], [30])
    np.testing.assert_allclose(lost[2], [35, 33.75])
    assert list(right.lines[0].get_xdata()) == [2, 3]
    assert [line.get_linestyle() for line in left.lines] == ["-"] * 3 + ["--"] * 3
    assert [line.get_color() for line in left.lines] == [*COLORS.values()] * 2
    assert title.endswith(
        "after experience 2, class-incremental: alone 50.0 % and 70.0 points; distilled 55.0 % and "
        "30.0 points"
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *COLORS,
        "class-IL",
        "task-IL",
    ]
    # no joint
    assert len(saved(draw_course(matrices, easier, COLORS)[1]).axes[0].lines) == 4


# Attention ----------------------------------------------------------------------------------------
def slow_map(model, image, column):
    """Grad-CAM by its definition."""
    activation = image
    for name, layer in model.named_children():
        activation = layer(activation)
        if name == "layer3":
            activation = kept = activation.detach().requires_grad_()
    (slope,) = torch.autograd.grad(activation[0, column], kept)
    q = (slope.mean((2, 3))[0, :, None, None] * kept[0]).sum(0).relu().detach()
    return q / q.norm() if q.any() else q


def test_the_maps_are_of_the_old_class_that_the_new_model_finds_likeliest(whole):
    found, images, target, classes = attention_of(whole, pictures.arms_of(whole), "layer3")
    assert [(pair.before, pair.after) for pair in found] == [
        ("alone2", "alone"),
        ("taught2", "distilled"),
    ]
    dataset = whole.experiment.test_loader(whole.experiment.stages[-1]).dataset
    old = (dataset.target < 4).nonzero()[:, 0]
    index = old[evenly_spaced(len(old), 256)]
    assert torch.equal(dataset.target[index], target) and classes == [
        "7",
        "3",
        "5",
        "0",
        "8",
        "1",
        "2",
        "4",
        "6",
        "9",
    ]
    assert set(target.tolist()) == {0, 1, 2, 3} and all(
        len(pair.distance) == min(256, len(old)) for pair in found
    )
    for pair in found:
        models = [whole.trained(name) for name in (pair.before, pair.after)]
        for k in range(0, len(index), 40):
            image = inputs_of(dataset, index[k : k + 1], 0)
            column = int(models[1](image)[0, :4].argmax())
            slow = [slow_map(model, image, column) for model in models]
            assert int(pair.attended[k]) == column
            for one, expected in zip(pair.maps, slow):
                torch.testing.assert_close(one[k], expected, atol=1e-5, rtol=1e-4)
            assert float(pair.distance[k]) == pytest.approx(
                float((slow[0] - slow[1]).abs().sum()), abs=1e-4
            )
    raw = dataset.sources[0]
    for image, k in zip(images, evenly_spaced(len(index), 8), strict=True):
        place = int(dataset.places[index[k]])
        np.testing.assert_allclose(image, raw.images[place, 0] / 255, atol=1e-6)
        assert raw.classes[int(raw.target[place])] == classes[int(target[k])]


def test_attention_is_drawn_with_its_class_and_distance(whole):
    found, images, target, classes = attention_of(whole, pictures.arms_of(whole), "layer3")
    title, figure = draw_attention(found, images, target, classes)
    assert len(panels(saved(figure))) == 8 * 5
    heads = ["image", "alone2", "alone", "taught2", "distilled"] * 2
    assert said(figure)[:10] == heads
    k = evenly_spaced(len(target), 8)[0]
    first = [
        classes[target[k]],
        *(f"for {classes[pair.attended[k]]}: {pair.distance[k]:.2f}" for pair in found),
    ]
    assert said(figure)[10:13] == first
    np.testing.assert_allclose(panels(figure)[0], images[0], atol=1e-6)
    top = max(float(one[k].max()) for pair in found for one in pair.maps)
    np.testing.assert_allclose(
        panels(figure)[3], overlay(images[0], found[1].maps[0][k] / top), atol=1e-6
    )
    for pair in found:
        assert f"{pair.after} {pair.distance.mean():.2f}" in title
    height, width = found[0].maps[0].shape[1:]
    assert f"at most {(2 * height * width) ** 0.5:.1f}" in title


def test_an_overlay_is_brightest_where_the_map_is_and_keeps_the_image_below():
    image, attention = np.zeros((8, 8), dtype=np.float32), torch.zeros(2, 2)
    image[:, ::2] = 1
    attention[1, 0] = 1
    drawn = overlay(image, attention)
    assert drawn.shape == (8, 8, 3) and drawn.min() >= 0 and drawn.max() <= 1
    assert drawn[7, 1].sum() > drawn[0, 7].sum() + 1 and drawn[0, 6].sum() > drawn[0, 7].sum() + 1
    colored = overlay(np.stack([image, 0 * image, 0 * image], -1), attention)
    # luma, on the same map
    np.testing.assert_allclose(colored[0, 6] - colored[0, 7], 0.4 * 0.299, atol=1e-6)


# The pool -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("score", ["logit", "prob"])
def test_the_pool_s_images_are_those_of_the_largest_score_of_a_class(tmp_path, score):
    run = tiny(tmp_path, **({"data__train__sampling": {"score": score}} if score == "prob" else {}))
    finish(run, ["experience1", "alone2", "taught2"])
    sample(run, "experience1")
    sample(run, "taught2")
    # not finished
    sample(run, "distilled")
    picked = picked_of(run)
    assert (picked.stage, picked.pool, picked.confident, picked.random) == ("taught2", 1258, 40, 71)
    pool = unaugmented(
        run.experiment.data_set(
            run.experiment.setting(run.experiment.stages[-1], "data"), "train"
        ).pool
    )
    with torch.no_grad():
        scores = run.trained("taught2")(
            pool.batch(torch.arange(1258), torch.zeros(1258), 0)["input"]
        )
    scores = scores if score == "logit" else scores.log_softmax(1)
    assert list(picked.classes) == ["7", "3", "5", "0"]
    test = run.experiment.test_loader(run.experiment.stages[-1]).dataset.sources[0]
    for column, (name, (example, best)) in enumerate(picked.classes.items()):
        rank = sorted(range(3, 1200, 30), key=lambda i, column=column: -float(scores[i, column]))[
            :9
        ]
        for (image, value), i in zip(best, rank, strict=True):
            np.testing.assert_allclose(image, pool.images[i, 0] / 255, atol=1e-6)
            assert value == pytest.approx(float(scores[i, column]), abs=1e-4)
        same = [k for k in range(len(test.images)) if np.allclose(example, test.images[k, 0] / 255)]
        assert test.classes[int(test.target[same[0]])] == name
    drawn = range(1, 1200, 17)
    for (image, name, value), k in zip(picked.others, evenly_spaced(71, 9), strict=True):
        np.testing.assert_allclose(image, pool.images[drawn[k], 0] / 255, atol=1e-6)
        assert (
            value == pytest.approx(float(scores[drawn[k]].max()), abs=1e-4)
            and name == list(picked.classes)[int(scores[drawn[k]].argmax())]
        )
    title, figure = draw_picked(picked)
    assert (
        len(panels(saved(figure))) == 4 * 10 + 9
        and "1,258" in title
        and "40 on which" in title
        and "71 at random" in title
    )
    assert any(("log-probability" if score == "prob" else "logit") in text for text in said(figure))


@pytest.mark.parametrize("confident, random", [([], range(5)), (range(5), []), ([], [])])
def test_few_or_none_may_have_been_taken(tmp_path, confident, random):
    run = tiny(tmp_path)
    finish(run, ["experience1"])
    sample(run, "experience1", [*confident], [*random])
    drawn = run.experiment.task.pictures(run)
    assert len(drawn) == bool(len(confident) + len(random)) and all(
        saved(figure) for _, figure in drawn
    )


# Images -------------------------------------------------------------------------------------------
def test_map_style_data_is_stretched_to_what_can_be_seen():
    class Pairs:
        targets = (0, 1, 1, 0)

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.full((3, 4, 4), float(i)) + torch.arange(4.0), self.targets[i]

    made = experiences(class_incremental(Pairs(), [1, 1], [1, 0]), 1, test=True)
    # of class 0, then 1: samples 3 and 1
    index = torch.tensor([3, 0])
    inputs = inputs_of(made, index, 0)
    assert inputs.shape == (2, 3, 4, 4) and inputs[:, 0, 0, 0].tolist() == [3, 1]
    shown = images_of(made, index)
    np.testing.assert_allclose(
        shown[0], np.broadcast_to(np.arange(4)[:, None] / 3, (4, 4, 3)), atol=1e-6
    )


def test_every_text_lies_inside_its_figure_and_off_the_pictures(whole):
    names = ["a_very_long_name_of_a_class", *(f"aquarium_fish_{k}" for k in range(5))]
    found, images, target, _ = attention_of(whole, pictures.arms_of(whole), "layer3")
    picked = picked_of(whole)
    picked.classes = dict(zip(names, picked.classes.values()))
    picked.others = [
        (image, name, value) for (image, _, value), name in zip(picked.others, names * 2)
    ]
    for _, figure in (
        draw_attention(found, images, target, names),
        draw_picked(picked),
        draw_attention(found[1:], images[:3], target[:3], names),
    ):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer, whole_box = canvas.get_renderer(), figure.bbox
        boxes = [text.get_window_extent(renderer) for text in figure.texts]
        assert all(text.get_fontsize() >= 8 for text in figure.texts)
        assert all(
            box.x0 >= 0 and box.x1 <= whole_box.x1 + 1 and box.y0 >= -1 and box.y1 <= whole_box.y1
            for box in boxes
        )
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert not any(
            box.shrunk(1, 0.8).overlaps(axes.bbox) for box in boxes for axes in figure.axes
        )


def test_a_gallery_leaves_out_what_is_not_there():
    cell = Cell(np.zeros((4, 6, 3)), ("one", "two"))
    figure = gallery([({0: "head"}, [cell, None]), ({}, [None, Cell(None, ("no image",))])])
    assert len(panels(saved(figure))) == 1 and said(figure) == ["head", "one", "two"]
