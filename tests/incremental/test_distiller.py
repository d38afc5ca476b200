"""Old and new columns by their names: which columns, which rows, and how many forwards."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_incremental import SMALL  # noqa: F401
from small_streams import Net
from torch import nn

from kdtasks.incremental import IncrementalDistiller, LwFLoss
from kdtasks.incremental.models import growing

# columns 0-1 and 2 are old, 3-5 new
TARGET = torch.tensor([0, 2, 3, 5, 4, 1, -100, 2])
CALLS = []


def given(*tensors):
    """A loss that notes what it is called with."""
    CALLS.append(tensors)
    floats = [
        t
        for value in tensors
        for t in (value if isinstance(value, list) else [value])
        if t.is_floating_point()
    ]
    return sum((t.sum() for t in floats), torch.zeros((), requires_grad=True))


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def models(student=(2, 1, 3), teacher=(2, 1)):
    torch.manual_seed(0)
    return growing(Net(), student), growing(Net(), teacher)


def batch(rows=8):
    return {
        "input": torch.randn(rows, 1, 6, 6, generator=torch.Generator().manual_seed(1)),
        "target": TARGET[:rows],
    }


def distiller(*of, student=(2, 1, 3), teacher=(2, 1), **losses):
    s, t = models(student, teacher)
    losses = losses or {"loss": (given, of)}
    wanted = [name for _, names, *_ in losses.values() for name in names]
    return IncrementalDistiller(
        s, {"teacher": t} if any(name.startswith("teacher") for name in wanted) else {}, losses
    )


def test_the_columns_of_each_name():
    names = (
        "student.old",
        "student.new",
        "student.old_heads",
        "teacher.old",
        "teacher.new",
        "teacher.heads",
        "student",
        "teacher",
    )
    made = distiller(*names).eval()
    made(batch())
    values, (z, t) = dict(zip(names, CALLS[-1])), CALLS[-1][-2:]
    assert z.shape == (8, 6) and t.shape == (8, 3)
    for name, expected in (
        ("student.old", z[:, :3]),
        ("student.new", z[:, 3:]),
        ("teacher.old", t[:, :2]),
        ("teacher.new", t[:, 2:]),
    ):
        assert torch.equal(values[name], expected), name
    for name, expected in (
        ("student.old_heads", [z[:, :2], z[:, 2:3]]),
        ("teacher.heads", [t[:, :2], t[:, 2:]]),
    ):
        assert len(values[name]) == 2 and all(
            torch.equal(a, b) for a, b in zip(values[name], expected)
        ), name
    assert z.requires_grad and not t.requires_grad


def test_targets_count_from_the_first_new_column_and_leave_out_what_is_no_new_class():
    distiller("student.new", "target.new", "target.all")(batch())
    _, new, everything = CALLS[-1]
    assert (
        new.tolist() == [-100, -100, 0, 2, 1, -100, -100, -100]
        and everything.tolist() == TARGET.tolist()
    )


def test_losses_of_target_see_labelled_rows_and_those_of_target_all_see_every_row():
    made = distiller(
        loss_a=(given, ("student", "target")),
        loss_b=(given, ("student", "target.all")),
        loss_c=(given, ("student.new", "target.new")),
    )
    rows = TARGET.argsort(descending=True)
    made(
        {**{name: value[rows] for name, value in batch().items()}, "labelled": torch.arange(8) < 7}
    )
    assert [len(value) for call in CALLS for value in call] == [7, 7, 8, 8, 8, 8]
    assert (CALLS[0][1] >= 0).all() and CALLS[1][1][-1] == -100


def test_the_first_experience_has_no_old_column():
    distiller("student.old", "student.new", "student.old_heads", "target.new", student=(4,))(
        {**batch(4), "target": torch.arange(4)}
    )
    old, new, heads, target = CALLS[-1]
    assert (
        old.shape == (4, 0)
        and new.shape == (4, 4)
        and heads == []
        and target.tolist() == [0, 1, 2, 3]
    )


def test_cross_entropy_over_the_new_columns_by_hand():
    """Rows of old classes count neither in the sum nor in the mean, and old heads are not pushed."""
    made = distiller(loss_cls=(nn.CrossEntropyLoss(), ("student.new", "target.new")))
    loss = made.eval()(batch())["loss_cls"]
    z = made.student(batch()["input"]).double()
    expected = [
        -(z[i, y] - z[i, 3:].exp().sum().log()) for i, y in enumerate(TARGET.tolist()) if y >= 3
    ]
    assert loss.item() == pytest.approx(sum(expected).item() / len(expected), rel=1e-5)
    loss.backward()
    blocks = made.student.fc.blocks
    assert [float(block.weight.grad.abs().sum()) > 0 for block in blocks] == [False, False, True]


def test_a_softmax_for_each_old_head_is_not_one_over_all_of_them():
    names = ("student.old_heads", "teacher.heads")
    made = distiller(
        loss_heads=(LwFLoss(), names),
        loss_all=(LwFLoss(), ("student.old", "teacher")),
        student=(2, 3, 1),
        teacher=(2, 3),
    ).eval()
    found = made(batch())
    z, t = (model(batch()["input"]) for model in (made.student, made.model("teacher")))
    parts = [
        F.kl_div((z[:, a:b] / 2).log_softmax(1), (t[:, a:b] / 2).softmax(1), reduction="batchmean")
        for a, b in ((0, 2), (2, 5), (0, 5))
    ]
    assert found["loss_heads"].item() == pytest.approx((parts[0] + parts[1]).item(), rel=1e-4)
    assert found["loss_all"].item() == pytest.approx(parts[2].item(), rel=1e-4)
    assert parts[2].item() != pytest.approx((parts[0] + parts[1]).item(), rel=0.1)


def test_each_model_runs_once_for_all_its_names_and_not_at_all_for_targets():
    count = {}

    def counted(made):
        for role in ("student", "teacher"):
            if role == "student" or role in made.teachers:
                made.model(role).register_forward_hook(
                    lambda *_, role=role: count.update({role: count.get(role, 0) + 1})
                )
        return made

    counted(
        distiller(
            "student",
            "student.old",
            "student.conv2",
            "teacher.heads",
            "teacher",
            "teacher.conv2",
            "target.new",
        )
    )(batch())
    assert count == {"student": 1, "teacher": 1}
    count.clear()
    counted(distiller("student.new", "teacher.heads", "teacher", "teacher.new"))(
        {**batch(), "teacher": torch.ones(8, 3)}
    )
    assert (
        count == {"student": 1}
        and CALLS[-1][1][1].shape == (8, 1)
        and CALLS[-1][3].tolist() == [[1.0]] * 8
    )
    count.clear()
    counted(distiller("teacher", "teacher.conv2"))({**batch(), "teacher": torch.ones(8, 3)})
    # what the batch carries stays
    assert count == {"teacher": 1} and torch.equal(CALLS[-1][0], torch.ones(8, 3))
    count.clear()
    counted(distiller("target.new", "target.all"))(batch())
    assert count == {}


def test_a_teacher_of_other_columns_and_a_model_without_a_growing_head():
    made = distiller("teacher.heads")
    with pytest.raises(ValueError, match=r"teacher gives 5 columns, its head has 3 \(2, 1\)"):
        made({**batch(), "teacher": torch.ones(8, 5)})
    made = IncrementalDistiller(Net(), {}, {"loss": (given, ("student.new",))})
    with pytest.raises(ValueError, match="Net has 0 growing heads, expected one"):
        made(batch())
    with pytest.raises(
        ValueError, match="'student.odl' is no submodule.*did you mean 'student.old'"
    ):
        distiller("student.odl").build(batch())
    with pytest.raises(
        ValueError,
        match=r"expected at least two old classes in one softmax, got "
        r"\(8, 1\)",
    ):
        distiller(loss=(LwFLoss(), ("student.old_heads", "teacher.heads")))(batch())


def test_the_teacher_is_as_it_was_bit_for_bit_and_the_student_is_not():
    """BatchNorm's statistics too; in training mode, after a few steps with momentum and weight
    decay.
    """
    made = distiller(
        loss_cls=(nn.CrossEntropyLoss(), ("student.new", "target.new")),
        loss_lwf=(LwFLoss(), ("student.old", "teacher")),
    )
    made.model("teacher").norm1.running_mean.fill_(0.3)
    before = copy.deepcopy({role: made.model(role).state_dict() for role in ("student", "teacher")})
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    made.train()
    for _ in range(3):
        optimizer.zero_grad()
        sum(made(batch()).values()).backward()
        optimizer.step()
    moved = {
        role: [
            name
            for name, value in made.model(role).state_dict().items()
            if not torch.equal(value, before[role][name])
        ]
        for role in before
    }
    assert moved["teacher"] == [] and {
        "norm1.running_mean",
        "fc.blocks.0.weight",
        "fc.blocks.2.weight",
        "conv1.weight",
    } <= set(moved["student"])
