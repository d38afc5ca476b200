"""The Distiller: which models run, what each loss gets, what it is called, and what must not move."""

import collections
import copy
import gc
import warnings
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import nn

from kdtasks.core import Distiller, Linear, Steps, Teacher
from kdtasks.general import KDLoss, kd_loss
from tests.syncs import Syncs


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch._dynamo.reset()


class Net(nn.Module):
    """Two layers with names, BatchNorm and dropout; it counts its forwards."""

    def __init__(self, width=6, classes=3):
        super().__init__()
        self.layer1 = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)
        )
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)
        self.forwards = 0

    def forward(self, x):
        self.forwards += 1
        return self.head(self.drop(self.layer1(x)))


class Hint(nn.Module):
    """A loss with an adapter that only ``build`` can size."""

    def __init__(self):
        super().__init__()
        self.adapter = None

    def build(self, student, teacher):
        self.adapter = nn.Sequential(
            nn.Linear(student.shape[1], teacher.shape[1]), nn.BatchNorm1d(teacher.shape[1])
        )

    def forward(self, student, teacher):
        return F.mse_loss(self.adapter(student), teacher)


class LazyHint(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.adapter = nn.Sequential(nn.LazyLinear(width), nn.BatchNorm1d(width))

    def forward(self, student, teacher):
        return F.mse_loss(self.adapter(student), teacher)


CLS = (F.cross_entropy, ("student", "target"))
KD = (kd_loss, ("student", "teacher"))
HINT_OF = ("student.layer1", "teacher.layer1")


def batch(rows=8, classes=3):
    return {"input": torch.randn(rows, 4), "target": torch.arange(rows) % classes}


def state(module):
    """Every parameter and buffer, copied; of the teachers too."""
    models = [module, *(t.model for t in getattr(module, "teachers", {}).values())]
    return [
        value.detach().clone()
        for model in models
        for value in (*model.parameters(), *model.buffers())
    ]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def total(losses):
    return sum(value for name, value in losses.items() if "loss" in name)


def gradients(distiller):
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in distiller.named_parameters()
    }


def quiet(*models):
    """Networks without dropout and batch statistics, so that two runs agree."""
    return [model.eval() for model in models]


# -------------------------------------------------------------------------------- names and weights
def test_losses_are_the_hand_written_ones_weighted():
    student, teacher, data = Net(), Net(), batch()
    distiller = Distiller(
        *quiet(student),
        {"teacher": teacher},
        {"loss_cls": (*CLS, 0.1), "loss_kd": (*KD, 0.9), "loss_one": KD},
    )
    losses = distiller(data)
    s, t = student(data["input"]), teacher(data["input"]).detach()
    assert list(losses) == ["loss_cls", "loss_kd", "loss_one"]
    torch.testing.assert_close(
        losses["loss_cls"], 0.1 * F.cross_entropy(s, data["target"]), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(losses["loss_kd"], 0.9 * kd_loss(s, t), rtol=0, atol=1e-7)
    torch.testing.assert_close(losses["loss_one"], kd_loss(s, t), rtol=0, atol=1e-7)
    for name, value in distiller(data["input"], data["target"]).items():
        assert torch.equal(value, losses[name])  # the short form


def test_a_dict_or_a_list_of_losses_is_named_and_weighted_entry_by_entry():
    def several(student):
        return {"a": student.sum(), "b": student.mean()}

    distiller = Distiller(
        *quiet(Net()),
        losses={
            "loss_d": (several, "student", 2.0),
            "loss_l": (lambda s: [s.sum(), s.mean()], ("student",), 3.0),
            "loss_t": (lambda s: (s.sum(),), "student"),
        },
    )
    data = batch()
    s, losses = distiller.student(data["input"]), distiller(data)
    expected = {
        "loss_d_a": 2 * s.sum(),
        "loss_d_b": 2 * s.mean(),
        "loss_l_0": 3 * s.sum(),
        "loss_l_1": 3 * s.mean(),
        "loss_t_0": s.sum(),
    }
    assert list(losses) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_an_entry_without_loss_in_its_name_has_no_gradient_and_need_not_have_one():
    distiller = Distiller(
        Net(),
        {"teacher": Net()},
        {
            "loss_cls": CLS,
            "mean": (lambda s: s.mean(), "student", 2.0),
            "itself": (lambda s: s, "student"),
            "plain": (None, "student"),
            "agreement": (
                lambda s, t: (s.argmax(1) == t.argmax(1)).float().mean(),
                ("student", "teacher"),
            ),
        },
    )
    losses = distiller(batch())
    assert {name: value.requires_grad for name, value in losses.items()} == {
        "loss_cls": True,
        "mean": False,
        "itself": False,
        "plain": False,
        "agreement": False,
    }


def test_entries_called_loss_under_a_name_that_only_informs_are_an_error_not_a_term_that_never_trains():
    entry = (lambda s: {"loss_q": s.mean()}, "student")
    with pytest.raises(ValueError, match=r"gd.*'loss_q'.*loss_gd"):
        Distiller(Net(), losses={"loss_cls": CLS, "gd": entry})(batch())
    with pytest.raises(ValueError, match=r"gd.*'loss_q'.*loss_gd"):
        Distiller(Net(), losses={"loss_cls": CLS, "gd": entry}).build(batch())
    assert "loss_gd_loss_q" in Distiller(Net(), losses={"loss_gd": entry})(batch())


def test_weight_zero_skips_the_loss_and_a_teacher_that_nobody_else_wants():
    def never(*tensors):
        raise AssertionError("was computed")

    first, second = Net(), Net()
    distiller = Distiller(
        Net(),
        {"first": first, "second": second},
        {
            "loss_cls": CLS,
            "loss_never": (never, ("student", "first"), 0),
            "loss_kd": (kd_loss, ("student", "second"), 0.5),
        },
    )
    assert list(distiller(batch())) == ["loss_cls", "loss_kd"]
    assert (first.forwards, second.forwards) == (0, 1)


def test_a_schedule_is_called_with_the_progress_and_needs_it():
    distiller = Distiller(
        *quiet(Net()), losses={"loss_cls": CLS, "loss_two": (*CLS, Linear(4.0, 0.0))}
    )
    data = batch()
    with pytest.raises(RuntimeError, match=r"loss_two is a schedule: set distiller.progress"):
        distiller(data)
    for iteration, weight in ((0, 4.0), (5, 2.0), (9, 0.4)):
        distiller.progress = (iteration, 10)
        losses = distiller(data)
        torch.testing.assert_close(losses["loss_two"], weight * losses["loss_cls"])


def test_while_a_schedule_is_zero_its_teacher_rests_and_its_adapter_stays_connected_with_zero_gradient():
    teacher, other = Net(), Net()
    distiller = Distiller(
        Net(),
        {"teacher": teacher, "other": other},
        {
            "loss_cls": CLS,
            "loss_hint": (Hint(), HINT_OF, Steps([1.0, 0.0, 1.0], at=[0.4, 0.7])),
            "loss_kd": (kd_loss, ("student", "other")),
        },
    )
    data = batch()
    distiller.build(data)
    teacher.forwards = other.forwards = 0
    for iteration, hint in ((0, True), (5, False), (8, True)):
        distiller.zero_grad()
        before = teacher.forwards, other.forwards
        distiller.progress = (iteration, 10)
        losses = distiller(data)
        total(losses).backward()
        adapter = distiller.losses["loss_hint"].adapter
        assert (teacher.forwards, other.forwards) == (before[0] + hint, before[1] + 1)
        assert adapter[0].weight.grad is not None and bool(adapter[0].weight.grad.any()) == hint
        assert losses["loss_hint"].item() > 0 if hint else losses["loss_hint"].item() == 0


def test_a_zero_stays_zero_beside_weights_that_are_not_finite():
    distiller = Distiller(
        Net(),
        {"teacher": Net()},
        {"loss_cls": CLS, "loss_hint": (Hint(), HINT_OF, lambda progress: 0.0)},
    )
    distiller.build(batch())
    with torch.no_grad():
        distiller.losses["loss_hint"].adapter[0].weight.fill_(float("inf"))
    distiller.progress = (0, 1)
    assert distiller(batch())["loss_hint"].item() == 0


# --------------------------------------------------------------------------------- which models run
def test_a_batch_that_carries_the_teachers_names_costs_no_teacher():
    teacher = Net()
    distiller = Distiller(
        *quiet(Net(8)), {"teacher": teacher}, {"loss_kd": KD, "loss_hint": (Hint(), HINT_OF)}
    )
    data = batch()
    distiller.build(data)
    teacher.forwards = 0
    expected = distiller(data)
    assert teacher.forwards == 1
    known = {"teacher": teacher(data["input"]), "teacher.layer1": teacher.layer1(data["input"])}
    teacher.forwards = 0
    for name, value in distiller({**data, **known}).items():
        assert torch.equal(value, expected[name])
    assert teacher.forwards == 0
    # a part is carried: it stays
    losses = distiller({**data, "teacher": known["teacher"] + 1000 * torch.eye(3)[:1]})
    assert (
        teacher.forwards == 1
        and losses["loss_kd"] > 10
        and torch.equal(losses["loss_hint"], expected["loss_hint"])
    )


def test_what_one_batch_carries_the_next_one_need_not():
    student, teacher = quiet(Net(), Net())
    distiller = Distiller(
        student,
        {"teacher": teacher},
        {
            "loss_kd": KD,
            "loss_a": (F.mse_loss, HINT_OF),
            "loss_b": (F.mse_loss, ("student.head", "teacher.head")),
        },
    )
    data = batch()
    known = {"teacher": teacher(data["input"]), "teacher.layer1": teacher.layer1(data["input"])}
    losses = [
        distiller({**data, **carried})
        for carried in (known, {}, {"teacher.layer1": known["teacher.layer1"]}, {})
    ]
    assert all(
        torch.equal(value, found[name]) for found in losses for name, value in losses[0].items()
    )


def test_carried_names_need_no_teacher_at_all():
    distiller = Distiller(*quiet(Net()), losses={"loss_kd": KD})
    data = {**batch(), "teacher": torch.randn(8, 3)}
    distiller.build(data)
    assert torch.equal(
        distiller(data)["loss_kd"], kd_loss(distiller.student(data["input"]), data["teacher"])
    )


def test_a_hint_alone_runs_the_teacher_once_without_gradient():
    teacher = Net()
    distiller = Distiller(Net(), {"teacher": teacher}, {"loss_hint": (F.mse_loss, HINT_OF)})
    distiller(batch())["loss_hint"].backward()
    assert teacher.forwards == 1 and distiller.student.head.weight.grad is None
    assert distiller.student.layer1[0].weight.grad.any() and all(
        p.grad is None for p in teacher.parameters()
    )


def test_each_model_runs_once_however_many_losses_want_it():
    student, teacher = Net(), Net()
    distiller = Distiller(
        student,
        {"teacher": teacher},
        {"loss_cls": CLS, "loss_kd": KD, "loss_again": KD, "loss_hint": (F.mse_loss, HINT_OF)},
    )
    distiller(batch())
    assert (student.forwards, teacher.forwards) == (1, 1)


def test_several_teachers_each_by_its_name():
    student, first, second = quiet(Net(), Net(), Net())
    distiller = Distiller(
        student,
        {"first": first, "second": second},
        {
            "loss_a": (kd_loss, ("student", "first")),
            "loss_b": (kd_loss, ("student", "second")),
            "loss_c": (F.mse_loss, ("first", "second.head")),
        },
    )
    data = batch()
    losses = distiller(data)
    s, a, b = (model(data["input"]) for model in (student, first, second))
    assert torch.equal(losses["loss_a"], kd_loss(s, a)) and torch.equal(
        losses["loss_b"], kd_loss(s, b)
    )
    assert torch.equal(losses["loss_c"], F.mse_loss(a, b)) and not torch.equal(
        losses["loss_a"], losses["loss_b"]
    )


def test_peers_are_a_list_in_order_and_all_learn():
    def mutual(peers, target):
        return [F.cross_entropy(p, target) * (k + 1) for k, p in enumerate(peers)]

    models = quiet(Net(), Net(), Net())
    losses = {
        "loss_dml": (mutual, ("peers", "target")),
        "loss_p": (F.mse_loss, ("peer1.head", "peer2")),
    }
    distiller = Distiller(models[0], losses=losses, peers=models[1:])
    data = batch()
    distiller.build(data)
    losses = distiller(data)
    for k, model in enumerate(models):
        assert torch.equal(
            losses[f"loss_dml_{k}"], (k + 1) * F.cross_entropy(model(data["input"]), data["target"])
        )
    total(losses).backward()
    assert all(p.grad is not None for model in models for p in model.parameters())
    assert {id(p) for p in distiller.parameters()} == {
        id(p) for m in models for p in m.parameters()
    }


def test_a_teacher_has_no_graph_and_a_student_has_one_where_gradients_are_on():
    distiller = Distiller(
        Net(),
        {"teacher": Net()},
        {"loss_kd": KD, "teacher_grad": (lambda t: torch.tensor(t.requires_grad), "teacher")},
    )
    data = batch()
    # a frozen model alone would give it a graph
    data["input"].requires_grad_()
    assert not distiller(data)["teacher_grad"]
    assert distiller(batch())["loss_kd"].requires_grad and torch.is_grad_enabled()
    with torch.no_grad():
        assert not distiller(batch())["loss_kd"].requires_grad


# ------------------------------------------------------------------------- the student's own losses
class Detector(Distiller):
    """Supplies two losses that the student computes itself, and a name of another form."""

    OWN = ("student.loss_rpn", "student.loss_box")

    def names(self, role):
        return [*super().names(role), *(self.OWN if role == "student" else ["rois.target"])]

    def needs(self, role):
        return ["student"] if role == "teacher" else []

    def outputs(self, role, batch, wanted):
        found = self.run(
            role,
            batch["input"],
            [name for name in wanted if name not in (*self.OWN, "rois.target")],
        )
        if role == "student":
            found |= {
                "student.loss_rpn": found["student"].square().mean(),
                "student.loss_box": found["student"].abs().mean(),
            }
        else:
            # what a teacher makes of the student's choice
            found["rois.target"] = batch["student"].detach() + 1
        return found


def test_the_students_own_losses_enter_with_weight_one_unless_they_are_listed():
    student, teacher = quiet(Net(), Net())
    data = batch()
    s = student(data["input"])
    losses = Detector(student, {"teacher": teacher}, {"loss_kd": KD})(data)
    assert list(losses) == ["loss_kd", "loss_rpn", "loss_box"]
    assert torch.equal(losses["loss_rpn"], s.square().mean()) and torch.equal(
        losses["loss_box"], s.abs().mean()
    )
    losses = Detector(
        student, {"teacher": teacher}, {"loss_hard": (None, "student.loss_rpn", 0.5), "loss_kd": KD}
    )(data)
    assert list(losses) == ["loss_hard", "loss_kd", "loss_box"] and torch.equal(
        losses["loss_hard"], 0.5 * s.square().mean()
    )
    losses = Detector(
        student, {"teacher": teacher}, {"loss_off": (None, "student.loss_rpn", 0), "loss_kd": KD}
    )(data)
    # listed at weight 0: gone, not back at 1
    assert list(losses) == ["loss_kd", "loss_box"]
    losses = Detector(
        student, {"teacher": teacher}, {"loss_roi": (F.mse_loss, ("student", "rois.target"))}
    )(data)
    torch.testing.assert_close(losses["loss_roi"], torch.tensor(1.0))
    assert list(Detector(student)(data)) == ["loss_rpn", "loss_box"]  # and they are enough


def test_own_losses_of_peers_have_names_of_their_own():
    class Two(Distiller):
        def names(self, role):
            return [*super().names(role), f"{role}.loss_own"]

        def outputs(self, role, batch, wanted):
            found = self.run(role, batch["input"], [])
            return {**found, f"{role}.loss_own": found[role].mean()}

    assert list(Two(Net(), peers=[Net()])(batch())) == ["loss_own", "peer1_loss_own"]


def test_a_submodule_that_is_called_loss_something_is_no_loss():
    student = Net()
    student.loss_fn = nn.CrossEntropyLoss()
    assert list(Distiller(student, losses={"loss_cls": CLS})(batch())) == ["loss_cls"]


def test_outputs_that_forget_a_name_are_an_error():
    class Forgetful(Detector):
        def outputs(self, role, batch, wanted):
            return self.run(role, batch["input"], [])

    with pytest.raises(
        ValueError,
        match=r"Forgetful.outputs\('student'\) did not give "
        r"\['student.loss_rpn', 'student.loss_",
    ):
        Forgetful(Net())(batch())


# ------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "losses, message",
    [
        (
            {"loss_h": (F.mse_loss, ("student.layr1.0", "teacher.layer1"))},
            r"loss_h: no model supplies 'student.layr1.0'; did you mean 'student.layer1",
        ),
        (
            {"loss_h": (F.mse_loss, ("student.layer1", "teacher.layer1.9"))},
            r"loss_h: no model supplies 'teacher.layer1.9'; did you mean 'teacher.layer1",
        ),
        ({"loss_h": (F.mse_loss, ("student.head@x", "teacher"))}, "after '@' comes the number"),
        (
            {"loss_x": (None, ("student", "teacher"))},
            "loss_x: an entry without a loss takes one tensor",
        ),
        ({"loss_x": (3.0, "student")}, "loss_x: 3.0 is no loss"),
        ({}, "no loss trains the student"),
        ({"accuracy": CLS}, r"no loss trains the student: the losses are \['accuracy'\]"),
        ({"loss_cls": (*CLS, 0)}, "no loss trains the student"),
    ],
)
def test_what_is_wrong_is_said_at_construction(losses, message):
    with pytest.raises(ValueError, match=message):
        Distiller(Net(), {"teacher": Net()}, losses)


@pytest.mark.parametrize(
    "name", ["student", "peers", "peer1", "input", "target", "index", "labelled", "a.b"]
)
def test_a_teacher_cannot_have_the_name_of_something_else(name):
    with pytest.raises(ValueError, match=f"a teacher cannot be called '{name}'"):
        Distiller(Net(), {name: Net()}, {"loss_cls": CLS}, peers=[Net()])


def test_two_losses_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"two losses are called 'loss_rpn'"):
        Detector(Net(), losses={"loss_rpn": CLS})


def test_two_entries_that_come_out_under_one_name_are_an_error_not_one_lost_loss():
    losses = {
        "loss_a": (lambda s: {"b": s.mean()}, "student"),
        "loss_a_b": (lambda s: s.sum(), "student"),
    }
    with pytest.raises(ValueError, match=r"'loss_a_b'"):
        Distiller(Net(), losses=losses)(batch())


@pytest.mark.parametrize("share", ["model", "layer", "parameter"])
def test_a_student_that_shares_with_its_teacher_is_an_error_and_is_not_frozen_by_it(share):
    student, teacher = Net(), Net()
    if share == "model":
        teacher = student
    if share == "layer":
        teacher.layer1 = student.layer1
    if share == "parameter":
        teacher.head.weight = student.head.weight
    with pytest.raises(ValueError, match=r"student and teacher share.*(head.weight|layer1)"):
        Distiller(student, {"teacher": teacher}, {"loss_cls": CLS})
    assert all(p.requires_grad for p in student.parameters()) and student.training
    Distiller(student, {"teacher": copy.deepcopy(teacher)}, {"loss_cls": CLS})


def test_a_key_that_the_batch_lacks_is_an_error_with_the_nearest_when_built_and_when_run():
    distiller = Distiller(
        Net(), {"teacher": Net()}, {"loss_cls": (F.cross_entropy, ("student", "taget"))}
    )
    for call in (distiller, distiller.build):
        with pytest.raises(
            ValueError,
            match=r"loss_cls: neither a model nor the batch supplies "
            r"'taget'; did you mean 'targ",
        ):
            call(batch())
    distiller = Distiller(Net(), {"teacher": Net()}, {"loss_kd": (kd_loss, ("student", "teachr"))})
    with pytest.raises(ValueError, match=r"'teachr'; did you mean 'teacher'"):
        distiller(batch())
    with pytest.raises(ValueError, match=r"supplies 'target'; there are 'input'"):
        Distiller(Net(), losses={"loss_cls": CLS})(torch.randn(8, 4))
    with pytest.raises(ValueError, match=r"supplies 'input'; did you mean 'inputs'"):
        Distiller(Net(), losses={"loss_cls": CLS})(
            {"inputs": torch.randn(8, 4), "target": torch.zeros(8).long()}
        )


def test_a_name_that_is_no_submodule_and_no_entry_of_the_output_is_an_error_with_the_nearest_when_built_and_when_run():
    for of, known in (
        (("student.layr1", "teacher"), "student.layer1"),
        (("student", "teacher.layr1"), "teacher.layer1"),
        (("student", "teacher.1"), "teacher."),
    ):
        distiller = Distiller(Net(), {"teacher": Net()}, {"loss_h": (F.mse_loss, of)})
        wrong = next(name for name in of if "." in name)
        for call in (distiller, distiller.build):
            with pytest.raises(
                ValueError,
                match=rf"loss_h: '{wrong}' is no submodule.*a tensor "
                rf"\(8, 3\).*'{known}",
            ):
                call(batch())


def test_a_module_that_does_not_run_is_an_error_that_names_it():
    student = Net()
    student.spare = nn.Linear(2, 2)
    distiller = Distiller(student, losses={"loss_x": (lambda s: s.sum(), "student.spare")})
    with pytest.raises(ValueError, match=r"'spare' gave no value"):
        distiller.build(batch())


# ------------------------------------------------------------------------------------ labelled rows
@pytest.mark.parametrize("labelled", [[1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0, 0, 0], [1] * 8])
def test_supervised_losses_see_the_labelled_rows_and_the_others_see_all(labelled):
    labelled = torch.tensor(labelled).bool()
    data = batch()
    data["target"][~labelled] = -100
    seen = {}

    def mutual(peers, target):
        seen["peers"] = peers
        return [F.cross_entropy(p, target) for p in peers]

    student, peer, teacher = quiet(Net(), Net(), Net())
    distiller = Distiller(
        student,
        {"teacher": teacher},
        {
            "loss_cls": (
                lambda s, y: (
                    seen.update(student=s, target=y) or F.cross_entropy(s, y, reduction="sum")
                ),
                CLS[1],
            ),
            "loss_three": (
                lambda f, s, y: f.sum() + F.cross_entropy(s, y),
                ("student.layer1", "student", "target"),
            ),
            "loss_dml": (mutual, ("peers", "target")),
            "loss_kd": KD,
        },
        peers=[peer],
    )
    losses = distiller({**data, "labelled": labelled})
    s, t, p, y = (
        student(data["input"]),
        teacher(data["input"]),
        peer(data["input"])[labelled],
        data["target"][labelled],
    )
    assert torch.equal(losses["loss_cls"], F.cross_entropy(s[labelled], y, reduction="sum"))
    feature = student.layer1(data["input"])
    torch.testing.assert_close(
        losses["loss_three"], feature[labelled].sum() + F.cross_entropy(s[labelled], y)
    )
    assert torch.equal(losses["loss_dml_1"], F.cross_entropy(p, y)) and len(seen["peers"]) == 2
    # all rows
    assert torch.equal(losses["loss_kd"], kd_loss(s, t))
    first = bool(labelled[: labelled.sum()].all())
    # a view where they come first
    assert (seen["target"].data_ptr() == data["target"].data_ptr()) == first
    assert seen["student"]._is_view() == first


def test_labelled_rows_are_taken_from_lists_and_dicts_and_not_from_what_has_no_rows():
    got = {}

    def loss(student, target, levels, outputs, prior):
        got.update(target=target, levels=levels, outputs=outputs, prior=prior)
        return student.sum()

    distiller = Distiller(
        *quiet(Net()),
        losses={"loss_det": (loss, ("student", "target", "levels", "outputs", "prior"))},
    )
    data = {
        "input": torch.randn(4, 4),
        "target": ["a", "b", "c", "d"],
        "levels": [torch.arange(4), torch.arange(8).view(4, 2)],
        "outputs": {"cls": torch.arange(4)},
        "prior": torch.arange(3),
        "labelled": torch.tensor([False, True, False, True]),
    }
    distiller(data)
    assert got["target"] == ["b", "d"] and [v.tolist() for v in got["levels"]] == [
        [1, 3],
        [[2, 3], [6, 7]],
    ]
    assert got["outputs"]["cls"].tolist() == [1, 3] and got["prior"].tolist() == [0, 1, 2]


def test_none_labelled_gives_a_zero_that_reaches_student_and_adapter():
    class Supervised(nn.Module):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(3, 3)

        def forward(self, student, target):
            assert len(student), "is not called with nothing"
            return F.cross_entropy(self.extra(student), target)

    distiller = Distiller(
        Net(),
        {"teacher": Net()},
        {
            "loss_cls": CLS,
            "loss_own": (Supervised(), CLS[1]),
            "loss_peers": (lambda outputs, target: outputs[0].sum(), ("peers", "target")),
        },
    )
    data = {**batch(), "target": torch.full((8,), -100), "labelled": torch.zeros(8).bool()}
    # 0 · inf would be nan
    distiller.student.head.weight.data.fill_(float("inf"))
    losses = distiller(data)
    assert [value.item() for value in losses.values()] == [0, 0, 0]
    total(losses).backward()
    grads = gradients(distiller)
    assert all(g is not None for g in grads.values()) and not grads["student.head.bias"].any()
    assert not grads["losses.loss_own.extra.weight"].any()


# -------------------------------------------------------------------------------------------- build
def test_build_moves_nothing_and_makes_the_adapters_before_the_optimizer():
    torch.manual_seed(3)
    student, teacher = Net(6), Net(10)
    teacher.train()
    distiller = Distiller(
        student,
        {"teacher": teacher},
        {
            "loss_cls": CLS,
            "loss_hint": (Hint(), HINT_OF),
            "loss_lazy": (LazyHint(10), HINT_OF),
            "loss_drop": (
                lambda s: F.dropout(s, 0.5).sum() + torch.rand(()),
                "student",
                Linear(0, 1),
            ),
        },
    )
    # a flag that is not its parent's
    student.layer1.eval()
    data = {**batch(), "labelled": torch.tensor([True, False] * 4)}
    flags, random = {m: m.training for m in distiller.modules()}, torch.get_rng_state()
    before = state(student), state(teacher)
    shapes = distiller.build(data)
    assert {m: m.training for m in flags} == flags and torch.equal(torch.get_rng_state(), random)
    assert same(state(student), before[0]) and same(state(teacher), before[1])
    assert not any("forward" in m.__dict__ for model in (student, teacher) for m in model.modules())
    assert all(p.grad is None for p in distiller.parameters())
    assert shapes == {
        "student": (8, 3),
        "target": (8,),
        "student.layer1": (8, 6),
        "teacher.layer1": (8, 10),
    }
    names = dict(distiller.named_parameters())
    assert all(
        names[f"losses.{name}.adapter.0.weight"].shape == (10, 6)
        for name in ("loss_hint", "loss_lazy")
    )
    assert all(p.requires_grad for p in names.values()) and all(
        m.training for m in distiller.losses.modules()
    )
    assert all(
        distiller.losses[name].adapter[1].num_batches_tracked == 0
        for name in ("loss_hint", "loss_lazy")
    )
    distiller.progress = (1, 2)
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
    total(distiller(data)).backward()
    optimizer.step()
    assert all(p.grad is not None for p in names.values())


def test_build_twice_keeps_the_adapters_that_the_optimizer_knows():
    distiller = Distiller(Net(), {"teacher": Net()}, {"loss_hint": (Hint(), HINT_OF)})
    distiller.build(batch())
    adapter = distiller.losses["loss_hint"].adapter
    distiller.build(batch())
    clone = copy.deepcopy(distiller)
    clone.build(batch())
    assert distiller.losses["loss_hint"].adapter is adapter and same(
        state(clone.losses), state(distiller.losses)
    )


def test_build_after_a_run_without_gradient_and_a_model_that_fails_leaves_no_trace():
    distiller = Distiller(
        Net(), {"teacher": Net()}, {"loss_cls": CLS, "loss_hint": (F.mse_loss, HINT_OF)}
    ).train()
    wrong, random = torch.randn(2, 5), torch.get_rng_state()
    with pytest.raises(RuntimeError):
        distiller.build(wrong, torch.zeros(2).long())
    assert (
        torch.equal(torch.get_rng_state(), random)
        and distiller.student.training
        and torch.is_grad_enabled()
    )
    assert not any("forward" in m.__dict__ for m in distiller.student.modules())


def test_build_does_not_read_targets_of_unlabelled_rows():
    data = {**batch(), "labelled": torch.zeros(8).bool()}
    data["target"][:] = -1
    shapes = Distiller(Net(), losses={"loss_cls": CLS}).build(data)
    assert shapes["student"][0] == 8
    # of labelled ones it does
    with pytest.raises(ValueError, match="Target -1 is out of bounds"):
        Distiller(Net(), losses={"loss_cls": CLS}).build({**data, "labelled": torch.ones(8).bool()})


@pytest.mark.parametrize("number", [3, 99, -1])
def test_build_names_a_class_that_the_student_lacks(number):
    data = batch()
    data["target"][2], data["target"][5] = -100, number
    distiller = Distiller(Net(), losses={"loss_x": (nn.CrossEntropyLoss(), ("student", "target"))})
    with pytest.raises(ValueError, match=rf"target has the class number {number}, but student "):
        distiller.build(data)
    data["target"][5] = 2
    distiller.build(data)


@pytest.mark.parametrize(
    "loss, of, message",
    [
        (
            KDLoss(),
            ("student", "teacher"),
            r"loss_x cannot be computed from student \(8, 3\), teacher "
            r"\(8, 5\): expected two equal",
        ),
        (
            nn.MSELoss(),
            HINT_OF,
            r"loss_x cannot be computed from student.layer1 \(8, 6\), "
            r"teacher.layer1 \(8, 9\)",
        ),
        (
            F.mse_loss,
            ("student", "column"),
            r"loss_x cannot be computed from student \(8, 3\), column "
            r"\(8, 1\): Using a target",
        ),
        (F.smooth_l1_loss, ("student", "column"), "Using a target size"),
        (
            lambda s: s,
            "student",
            r"loss_x gave shape \(8, 3\) from student \(8, 3\); expected one "
            r"scalar",
        ),
        (lambda s: 1.0, "student", "loss_x gave float from"),
        (lambda s: {"a": s.mean(), "b": [s.mean()]}, "student", "loss_x gave list from"),
        (
            lambda s, names: s.mean() * names,
            ("student", "names"),
            r"loss_x cannot be computed from "
            r"student \(8, 3\), names list",
        ),
    ],
)
def test_build_names_the_loss_and_the_shapes_of_what_does_not_fit(loss, of, message):
    distiller = Distiller(Net(), {"teacher": Net(9, 5)}, {"loss_x": (loss, of)})
    with warnings.catch_warnings():
        # whatever the user's filters say
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            distiller.build({**batch(), "column": torch.zeros(8, 1), "names": ["a"]})


def test_build_finds_a_tap_inside_of_reentrant_checkpointing_that_is_only_there_with_gradients():
    class WithCp(Net):
        def forward(self, x):
            x = self.drop(x).requires_grad_(torch.is_grad_enabled())
            cp = torch.utils.checkpoint.checkpoint
            return self.head(
                cp(self.layer1, x, use_reentrant=True) if x.requires_grad else self.layer1(x)
            )

    distiller = Distiller(WithCp(), {"teacher": Net()}, {"loss_hint": (F.mse_loss, HINT_OF)})
    with pytest.raises(ValueError, match="'layer1' is inside gradient checkpointing"):
        distiller.build(batch())
    Distiller(Net(), {"teacher": WithCp()}, {"loss_hint": (F.mse_loss, HINT_OF)}).build(batch())


# --------------------------------------------------------------------------------- what is replaced
def test_a_replaced_student_teacher_or_loss_takes_the_place_of_the_former_at_once():
    data, losses = (
        batch(),
        {
            "loss_cls": CLS,
            "loss_hint": (Hint(), HINT_OF),
            "loss_kd": (KDLoss(), ("student", "teacher")),
        },
    )
    distiller = Distiller(Net(), {"teacher": Net()}, losses)
    distiller.build(data)
    distiller(data)
    old = distiller.student, distiller.teachers["teacher"].model
    student, teacher, loss = Net(), Net(), KDLoss(temperature=1.0)
    distiller.student = student
    distiller.teachers["teacher"] = teacher
    distiller.losses["loss_kd"] = loss
    forwards = [model.forwards for model in old]
    assert isinstance(distiller.teachers["teacher"], Teacher) and not any(
        p.requires_grad for p in teacher.parameters()
    )
    quiet(student)
    found = distiller(data)
    with torch.no_grad():
        torch.testing.assert_close(
            found["loss_cls"].detach(), F.cross_entropy(student(data["input"]), data["target"])
        )
        torch.testing.assert_close(
            found["loss_kd"].detach(), loss(student(data["input"]), teacher(data["input"]))
        )
    total(found).backward()
    assert student.head.weight.grad.any() and [model.forwards for model in old] == forwards
    for name in ("student", "teachers", "losses"):
        assert not any(
            p is q for p in distiller.parameters() for model in old for q in model.parameters()
        ), name
    # by every way of writing it
    distiller.teachers.teacher = Net(9)
    with pytest.raises(RuntimeError):
        # its hint is of another width
        distiller(data)
    distiller.teachers["teacher"].model = third = Net().train()
    distiller(data)
    assert (
        third.forwards == 1
        and not third.training
        and not any(p.requires_grad for p in third.parameters())
    )
    distiller.teachers = {"teacher": (fourth := Net())}
    distiller(data)
    assert fourth.forwards == 1 and not any(
        p is q for p in distiller.parameters() for q in fourth.parameters()
    )


def test_a_new_adapter_is_built_and_a_loss_of_no_known_tensors_is_an_error():
    distiller = Distiller(Net(), {"teacher": Net()}, {"loss_hint": (Hint(), HINT_OF)})
    distiller.build(batch())
    distiller.losses["loss_hint"] = hint = Hint()
    distiller.build(batch())
    assert hint.adapter is not None and distiller(batch())["loss_hint"] > 0
    distiller.losses["loss_more"] = nn.MSELoss()
    with pytest.raises(
        ValueError,
        match=r"losses\['loss_more'\] came after the Distiller was "
        r"made",
    ):
        distiller(batch())


def test_what_does_not_fit_a_replaced_model_is_an_error():
    distiller = Distiller(Net(), {"teacher": Net()}, {"loss_hint": (F.mse_loss, HINT_OF)})
    distiller(batch())
    distiller.student = distiller.teachers["teacher"].model
    with pytest.raises(ValueError, match="student and teacher share"):
        distiller(batch())
    distiller.student = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"'student.layer1' is no submodule"):
        distiller(batch())
    plain = Detector(Net(), losses={"loss_cls": CLS})
    plain.student = Net()
    plain(batch())


def test_a_student_made_ready_for_quantization_learns_under_its_own_taps():
    distiller = Distiller(Net(), {"teacher": Net()}, {"loss_hint": (F.mse_loss, HINT_OF)})
    distiller(batch())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = copy.deepcopy(distiller.student)
        prepared.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        distiller.student = torch.ao.quantization.prepare_qat(prepared.train())
    distiller(batch())["loss_hint"].backward()
    assert (
        distiller.student.layer1[0].weight.grad.any()
        and "layer1.0.weight_fake_quant.scale" in distiller.student.state_dict()
    )
    assert distiller.student.forwards == 2


# ----------------------------------------------------------------------------- entries of an output
Named = collections.namedtuple("Named", ["logits", "aux"])
SHAPES = {
    "tuple": ("0", "1", lambda a, b: (a, b)),
    "list": ("0", "-1", lambda a, b: [a, b]),
    "dict": ("logits", "aux", lambda a, b: {"logits": a, "aux": b}),
    "field": ("logits", "aux", Named),
    "numbered": ("0", "-1", Named),
    "keys": ("0", "1", lambda a, b: {0: a, 1: b}),
}


class Two(Net):
    """Gives two heads' outputs while it trains, and one tensor else."""

    def __init__(self, kind, always=False):
        super().__init__()
        self.kind, self.always, self.other = kind, always, nn.Linear(6, 3)

    def forward(self, x):
        features = self.layer1(x)
        both = self.head(features), self.other(features)
        return SHAPES[self.kind][2](*both) if self.training or self.always else sum(both) / 2


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("compiled", [False, {"backend": "eager"}])
def test_entries_of_an_output_that_is_several_in_training_are_named(kind, compiled):
    first, second, _ = SHAPES[kind]
    student, teacher, data = Two(kind), Two(kind, always=True), batch()
    losses = {
        "loss_cls": (F.cross_entropy, (f"student.{first}", "target")),
        "loss_kd": (kd_loss, (f"student.{second}", f"teacher.{first}")),
        "loss_tap": (F.mse_loss, HINT_OF),
    }
    distiller = Distiller(student, {"teacher": teacher}, losses, compile=compiled)
    shapes = distiller.build(data)
    assert shapes[f"student.{second}"] == shapes[f"teacher.{first}"] == (8, 3) and student.training
    before, x = copy.deepcopy(student), data["input"]
    with torch.no_grad():
        feature, taught = before.layer1(x), teacher.layer1(x)
        expected = [
            F.cross_entropy(before.head(feature), data["target"]),
            kd_loss(before.other(feature), teacher.head(taught)),
            F.mse_loss(feature, taught),
        ]
    found = distiller(data)
    for value, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value.detach(), wanted)
    total(found).backward()
    assert (
        student.other.weight.grad.any() and student.head.weight.grad.any() and student.forwards == 0
    )
    eval_only = distiller.tensors(data)
    assert (
        f"student.{first}" not in eval_only
        and eval_only["student"].shape == (8, 3)
        and f"teacher.{first}" in eval_only
    )


@pytest.mark.parametrize("kind", SHAPES)
def test_an_output_of_several_that_is_taken_whole_is_an_error_with_their_names_when_built(kind):
    first = SHAPES[kind][0]
    distiller = Distiller(Two(kind), {"teacher": Net()}, {"loss_cls": CLS})
    named = rf"student in training is a \w+ of .*'student.{first}' \(8, 3\).*: name the entry that is meant"
    with pytest.raises(ValueError, match=named):
        distiller.build(batch())
    distiller = Distiller(
        Two(kind),
        {"teacher": Two(kind, True)},
        {"loss_cls": (F.cross_entropy, ("student.logit", "target"))},
    )
    for call in (distiller.build, distiller):
        with pytest.raises(
            ValueError,
            match=r"loss_cls: 'student.logit' is no submodule, and the "
            r"output of student in training",
        ):
            call(batch())


def test_entries_of_peers_and_of_a_batch_that_carries_them_and_a_submodule_of_that_path_comes_first():
    x = batch()
    both = Distiller(
        Two("tuple"),
        losses={"loss_peer": (F.mse_loss, ("student.0", "peer1.1"))},
        peers=[Two("tuple")],
    )
    total(both(x)).backward()
    assert both.peers[0].other.weight.grad.any() and both.peers[0].head.weight.grad is None
    carried = torch.randn(8, 3)
    taught = Distiller(
        Two("tuple"), {"teacher": Net()}, {"loss_kd": (F.mse_loss, ("student.0", "teacher.1"))}
    )
    taught({**x, "teacher.1": carried})
    assert taught.teachers["teacher"].model.forwards == 0
    parts = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    first = Distiller(parts, losses={"loss_mean": (torch.mean, "student.0")})(x)["loss_mean"]
    assert torch.equal(first, parts[0](x["input"]).mean())


@pytest.mark.parametrize("name", ["googlenet", "deit"])
def test_real_models_with_more_heads_in_training_than_in_eval(name):
    if name == "googlenet":
        student = torchvision.models.googlenet(aux_logits=True, init_weights=False, num_classes=3)
        entries, side = ("logits", "aux_logits2"), 64
    else:
        student = timm.create_model(
            "deit_tiny_distilled_patch16_224", num_classes=3, img_size=32, depth=1
        )
        student.set_distilled_training(True)
        entries, side = ("0", "1"), 32
    data = {
        "input": torch.randn(2, 3, side, side),
        "target": torch.tensor([0, 1]),
        "teacher": torch.randn(2, 3),
    }
    with pytest.raises(
        ValueError,
        match=rf"student in training is a \w+ of 'student.{entries[0]}' "
        r"\(2, 3\), ",
    ):
        Distiller(student, losses={"loss_cls": CLS}).build(data)
    losses = {
        "loss_cls": (F.cross_entropy, (f"student.{entries[0]}", "target")),
        "loss_kd": (kd_loss, (f"student.{entries[1]}", "teacher")),
    }
    distiller = Distiller(student, losses=losses)
    before = state(student)
    distiller.build(data)
    assert same(before, state(student)) and all(module.training for module in student.modules())
    assert all(value > 0 for value in distiller(data).values())


# ---------------------------------------------------------------------------- copies, state, dtypes
def test_a_copy_trains_by_itself_and_shares_the_teachers():
    distiller = Distiller(
        Net(), {"teacher": Net()}, {"loss_cls": CLS, "loss_kd": KD, "loss_hint": (Hint(), HINT_OF)}
    )
    data = batch()
    distiller.build(data)
    distiller(data)
    clone = copy.deepcopy(distiller)
    assert (
        clone.teachers["teacher"] is distiller.teachers["teacher"]
        and clone.student is not distiller.student
    )
    assert (
        clone._terms["loss_hint"][0]
        is clone.losses["loss_hint"]
        is not distiller.losses["loss_hint"]
    )
    assert not any("forward" in m.__dict__ or m._forward_hooks for m in clone.modules())
    before, optimizer = state(distiller), torch.optim.SGD(clone.parameters(), 0.5)
    random = torch.get_rng_state()
    losses = distiller.eval()(data)
    total(clone(data)).backward()
    optimizer.step()
    assert all(p.grad is not None for p in clone.parameters()) and all(
        p.grad is None for p in distiller.parameters()
    )
    assert same(state(distiller), before)
    torch.set_rng_state(random)
    clone.eval()
    assert all(not torch.equal(value, losses[name]) for name, value in clone(data).items())


def test_a_copied_student_and_a_copied_subclass_are_whole():
    distiller = Detector(Net(), {"teacher": Net()}, {"loss_hint": (F.mse_loss, HINT_OF)})
    distiller.extra = [1]
    distiller(batch())
    clone = copy.deepcopy(distiller)
    assert type(clone) is Detector and clone.extra == [1] and clone.extra is not distiller.extra
    assert list(clone(batch())) == ["loss_hint", "loss_rpn", "loss_box"]
    student = copy.deepcopy(distiller.student)
    assert not any("forward" in m.__dict__ for m in student.modules())


def test_no_parameter_or_state_of_a_teacher_is_in_the_distiller_and_the_state_loads_strictly():
    def made():
        made = Distiller(
            Net(),
            {
                "teacher": Teacher(
                    Net(), mean=[0.0], std=[1.0], student_mean=[1.0], student_std=[2.0]
                )
            },
            {"loss_cls": CLS, "loss_hint": (Hint(), HINT_OF)},
        )
        made.build({**batch(4), "teacher.layer1": torch.randn(4, 9)})
        return made

    first, second = made(), made()
    teacher = {id(p) for p in first.teachers["teacher"].model.parameters()}
    assert not teacher & {id(p) for p in first.parameters()}
    assert {name.split(".")[0] for name in first.state_dict()} == {"student", "losses"}
    second.load_state_dict(first.state_dict(), strict=True)
    assert same(state(first.student), state(second.student)) and same(
        state(first.losses), state(second.losses)
    )


def test_a_teacher_follows_to_and_the_losses_are_float64():
    distiller = Distiller(Net(), {"teacher": Net()}, {"loss_cls": CLS, "loss_kd": KD}).to(
        torch.float64
    )
    assert all(p.dtype is torch.float64 for p in distiller.teachers["teacher"].model.parameters())
    losses = distiller(torch.randn(4, 4, dtype=torch.float64), torch.zeros(4).long())
    assert {value.dtype for value in losses.values()} == {torch.float64}


def test_autocast_in_bfloat16_runs_both_models_in_it_and_the_losses_in_float32():
    seen = {}

    def spy(s, t, f):
        seen.update(student=s.dtype, teacher=t.dtype, feature=f.dtype)
        return kd_loss(s, t)

    distiller = Distiller(
        Net(),
        {"teacher": Net(), "exact": Teacher(Net(), precision="float32")},
        {
            "loss_cls": CLS,
            "loss_kd": (spy, ("student", "teacher", "student.layer1.0")),
            "loss_exact": (
                lambda s, t: seen.update(exact=t.dtype) or kd_loss(s, t),
                ("student", "exact"),
            ),
        },
    )
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller(batch())
    assert seen == {
        "student": torch.bfloat16,
        "teacher": torch.bfloat16,
        "feature": torch.bfloat16,
        "exact": torch.float32,
    }
    assert losses["loss_kd"].dtype is torch.float32
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in distiller.student.parameters())


def test_nothing_keeps_the_graph_of_a_step_alive():
    alive = []

    def loss(s, t, f):
        alive.extend(weakref.ref(x) for x in (s, t, f))
        return kd_loss(s, t) + f.mean()

    distiller = Distiller(
        Net(), {"teacher": Net()}, {"loss_x": (loss, ("student", "teacher", "student.layer1"))}
    )
    gc.disable()
    try:
        for _ in range(2):
            losses = distiller(batch())
            alive.append(weakref.ref(losses["loss_x"]))
            losses["loss_x"].backward()
            del losses
        assert len(alive) == 8 and all(ref() is None for ref in alive)
    finally:
        gc.enable()


def test_a_step_reads_no_value_back_to_the_host():
    distiller = Distiller(
        Net(),
        {"teacher": Net()},
        {"loss_cls": (*CLS, Linear(1, 0)), "loss_kd": KD, "loss_hint": (Hint(), HINT_OF)},
    )
    data = batch()
    distiller.build(data)
    distiller.progress = (0, 10)
    for extra in ({}, {"labelled": torch.tensor([True] * 3 + [False] * 5)}):
        with Syncs() as syncs:
            total(distiller({**data, **extra})).backward()
        # only the flags, which are on the CPU
        allowed = {(5,), (8,), (3,), ()} if extra else set()
        assert all(tuple(shape) in allowed for _, shape in syncs.found), syncs.found
        assert bool(syncs.found) == bool(extra)


# -------------------------------------------------------------------------------------- whole steps
class Digits(nn.Module):
    def __init__(self, width, dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


def digits():
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def test_the_plain_loop_trains_and_the_teacher_stays_bit_for_bit():
    x, y = digits()
    student, teacher = Digits(16), Digits(64, dropout=0.5)
    tutor = torch.optim.Adam(teacher.parameters(), lr=0.01)
    for rows in torch.randperm(len(x)).repeat(4).split(128):
        tutor.zero_grad()
        F.cross_entropy(teacher(x[rows]), y[rows]).backward()
        tutor.step()
    teacher.zero_grad()
    distiller = Distiller(
        student,
        {"teacher": teacher},
        {
            "loss_cls": (nn.CrossEntropyLoss(), ("student", "target"), 0.1),
            "loss_kd": (KDLoss(4.0), ("student", "teacher"), 0.9),
            "loss_hint": (Hint(), ("student.body", "teacher.body")),
        },
    )
    distiller.build(x[:8], y[:8])
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not known & {id(p) for p in teacher.parameters()}
    before, history = state(teacher), []
    for epoch in range(3):
        distiller.train()
        # somebody meddles
        teacher.train(epoch > 0)
        for rows in torch.randperm(len(x)).split(128):
            losses = distiller(x[rows], y[rows])
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append({name: value.item() for name, value in losses.items()})
    for name in history[0]:
        assert sum(h[name] for h in history[-5:]) < 0.8 * sum(h[name] for h in history[:5]), name
    assert (
        same(state(teacher), before)
        and not teacher.training
        and not any(m.training for m in teacher.modules())
    )
    assert (
        all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        and student.training
    )


@pytest.mark.parametrize("fraction", [0.0, 0.9])
def test_a_compiled_distiller_gives_the_losses_and_gradients_of_a_plain_one(fraction):
    models = Net().train(), Net()
    models[0].drop.p = 0.0
    losses = {
        "loss_cls": (*CLS, 0.1),
        "loss_kd": KD,
        "loss_hint": (Hint(), HINT_OF, Steps([1.0, 0.0], [0.5])),
    }
    plain = Distiller(models[0], {"teacher": models[1]}, losses)
    # losses have their adapters now
    plain.build(batch())
    student, losses = copy.deepcopy((plain.student, losses))
    compiled = Distiller(student, {"teacher": models[1]}, losses, compile={"backend": "eager"})
    for rows in (8, 8, 5):
        data = batch(rows)
        for distiller in (plain, compiled):
            distiller.progress = (fraction * 10, 10)
            distiller.zero_grad()
            total(distiller(data)).backward()
        mine, theirs = gradients(compiled), gradients(plain)
        assert list(mine) == list(theirs)
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], msg=name)
    assert same(state(plain), state(compiled))


def test_compiling_the_whole_distiller_gives_no_wrong_number():
    models = quiet(Net(), Net())
    distiller = Distiller(
        models[0], {"teacher": models[1]}, {"loss_cls": CLS, "loss_hint": (F.mse_loss, HINT_OF)}
    )
    whole, data = torch.compile(copy.deepcopy(distiller), backend="eager"), batch()
    for _ in range(3):
        try:
            losses = whole(data)
        # torch 2.11 cannot, and says so
        except (torch._dynamo.exc.InternalTorchDynamoError, AssertionError) as error:
            pytest.skip(f"torch {torch.__version__}: {str(error).splitlines()[0]}")
        for name, value in losses.items():
            torch.testing.assert_close(value, distiller(data)[name])


def test_distributed_data_parallel_sees_the_learners_and_no_unused_adapter(tmp_path):
    distiller = Distiller(
        Net(),
        {"teacher": Net()},
        {
            "loss_cls": CLS,
            "loss_hint": (
                Hint(),
                ("student", "teacher.layer1"),
                Steps([1.0, 0.0, 1.0], [0.3, 0.6]),
            ),
        },
    )
    data = batch()
    distiller.build(data)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(distiller)
        assert len(list(model.parameters())) == len(list(distiller.student.parameters())) + 4
        # an unused parameter fails the next forward
        for iteration in range(10):
            distiller.progress = (iteration, 10)
            total(model({**data, "labelled": torch.arange(8) < iteration})).backward()
        assert distiller.teachers["teacher"].model.head.weight.grad is None
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.gpu
def test_a_step_on_a_gpu_does_not_wait_for_it():
    distiller = Distiller(
        Net(), {"teacher": Net()}, {"loss_cls": CLS, "loss_kd": KD, "loss_hint": (Hint(), HINT_OF)}
    ).cuda()
    data = {name: value.cuda() for name, value in batch().items()} | {
        "labelled": torch.tensor([True, False] * 4)
    }
    distiller.build(data)
    distiller.cuda()
    total(distiller(data)).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        total(distiller(data)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class OnWhatTheStudentChose(Distiller):
    """The teacher speaks about rows that the student chooses, and so needs a name of it."""

    def names(self, role):
        return [
            *super().names(role),
            *({"student": ["chosen"], "teacher": ["teacher.chosen"]}.get(role, [])),
        ]

    def needs(self, role):
        return {"teacher": ["chosen"]}.get(role, [])

    def outputs(self, role, batch, wanted):
        if role == "student":
            found = self.run(role, batch["input"], [name for name in wanted if name != "chosen"])
            return {**found, "chosen": found["student"].detach().argmax(1)}
        return {
            "teacher.chosen": self.model("teacher")(
                batch["input"] * batch["chosen"][:, None].float()
            )
        }


def test_a_teacher_can_be_run_on_what_the_student_chose():
    student, teacher = nn.Linear(3, 4), nn.Linear(3, 4)
    calls = []
    student.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    distiller = OnWhatTheStudentChose(
        student, {"teacher": teacher}, {"loss_kd": (kd_loss, ("student", "teacher.chosen"))}
    )
    x = torch.randn(5, 3)
    loss = distiller(x)["loss_kd"]
    # once, with gradient, before the teacher
    assert calls == [True]
    expected = kd_loss(student(x), teacher(x * student(x).argmax(1)[:, None].float()))
    assert torch.allclose(loss, expected)
    loss.backward()
    assert student.weight.grad.abs().sum() > 0 and teacher.weight.grad is None


def chosen_of(distiller, **teachers):
    """A Distiller of this class whose teacher speaks about what the student chose."""
    teachers = {"teacher": nn.Linear(3, 4), **teachers}
    return distiller(
        nn.Linear(3, 4), teachers, {"loss_kd": (kd_loss, ("student", "teacher.chosen"))}
    )


def test_a_circle_of_needs_is_an_error_that_names_it():
    class Circle(OnWhatTheStudentChose):
        def needs(self, role):
            return {"teacher": ["chosen"], "student": ["second"], "second": ["teacher.chosen"]}[
                role
            ]

    with pytest.raises(
        ValueError,
        match="teacher needs 'chosen' of student, student needs 'second' of second, "
        r"second needs 'teacher.chosen' of teacher",
    ):
        chosen_of(Circle, second=nn.Linear(3, 4))


def test_a_name_of_another_role_that_is_read_but_not_declared_is_an_error_that_names_needs():
    class Undeclared(OnWhatTheStudentChose):
        def needs(self, role):
            return []

    with pytest.raises(
        ValueError,
        match=r"Undeclared.outputs\('teacher'\) reads 'chosen', which student supplies.*"
        r"needs\('teacher'\) must name it",
    ):
        chosen_of(Undeclared)(torch.randn(5, 3))

    class TheOtherWay(OnWhatTheStudentChose):
        """Reads what is there by the order of turns, which it does not declare."""

        def needs(self, role):
            return []

        def outputs(self, role, batch, wanted):
            if role == "student":
                batch["teacher"]
            return self.run(role, batch["input"], wanted)

    distiller = TheOtherWay(
        nn.Linear(3, 4), {"teacher": nn.Linear(3, 4)}, {"loss_kd": (kd_loss, KD[1])}
    )
    with pytest.raises(ValueError, match=r"reads 'teacher', .*needs\('student'\) must name it"):
        distiller(torch.randn(5, 3))


@pytest.mark.parametrize("name", ["chosn", "teacher.chosen"])
def test_a_need_that_no_other_role_supplies_is_an_error_with_the_nearest(name):
    class Wrong(OnWhatTheStudentChose):
        def needs(self, role):
            return [name] if role == "teacher" else []

    with pytest.raises(ValueError, match=rf"needs\('teacher'\) names '{name}'.*mean 'chosen'"):
        chosen_of(Wrong)


def test_only_the_teachers_that_need_the_student_run_after_it():
    order = []

    class Noting(OnWhatTheStudentChose):
        def outputs(self, role, batch, wanted):
            order.append((role, sorted(set(batch) - {"input"})))
            if role == "other":
                return self.run(role, batch["input"], wanted)
            return super().outputs(role, batch, wanted)

    models = {"teacher": nn.Linear(3, 4), "other": nn.Linear(3, 4)}
    losses = {
        "loss_chosen": (kd_loss, ("student", "teacher.chosen")),
        "loss_other": (kd_loss, ("student", "other")),
    }
    distiller = Noting(nn.Linear(3, 4), models, losses)
    assert distiller.order == ["other", "student", "teacher"]
    distiller(torch.randn(5, 3))
    assert order == [("other", []), ("student", []), ("teacher", ["chosen"])]


def test_what_a_role_needs_is_not_computed_where_the_batch_carries_what_the_role_gives():
    runs = []
    distiller = chosen_of(OnWhatTheStudentChose)
    distiller.student.register_forward_hook(lambda *_: runs.append("student"))
    x = torch.randn(5, 3)
    words = {"student": torch.randn(5, 4), "teacher.chosen": torch.randn(5, 4)}
    distiller.supply({"input": x, **words})
    assert not runs
    distiller.supply({"input": x, "student": words["student"], "chosen": torch.ones(5).long()})
    assert not runs
    distiller.supply({"input": x, "student": words["student"]})
    assert runs == ["student"]


def test_teachers_run_before_the_student():
    order = []
    student, teacher = nn.Linear(3, 4), nn.Linear(3, 4)
    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_hook(lambda *_, name=name: order.append(name))
    Distiller(student, {"teacher": teacher}, {"loss_kd": (kd_loss, ("student", "teacher"))})(
        torch.randn(5, 3)
    )
    assert order == ["teacher", "student"]


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 3, 3)])
def test_cross_entropy_of_one_class_is_refused_in_build(shape):
    """It would be 0 for ever; a sigmoid's loss of one logit is not."""
    model = nn.Identity()
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    with pytest.raises(
        ValueError,
        match=r"loss_cls: student \(4, 1.* has one class, "
        r".*BCEWithLogitsLoss",
    ):
        Distiller(model, losses={"loss_cls": (nn.CrossEntropyLoss(), ("student", "target"))}).build(
            torch.zeros(shape), target
        )
    Distiller(model, losses={"loss_cls": (nn.BCEWithLogitsLoss(), ("student", "target"))}).build(
        torch.zeros(shape), torch.zeros(shape)
    )
