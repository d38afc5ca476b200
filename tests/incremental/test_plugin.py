"""Our methods inside avalanche's own strategies, on digits in an order of classes that is not
theirs, against loops.
"""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

pytest.importorskip("avalanche", reason="avalanche-lib is not installed")

from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.task_aware import task_incremental_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import LwFPlugin as TheirLwF
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.templates import SupervisedTemplate
from small_avalanche import (
    ORDER,
    Images,
    ManyHeads,
    Net,
    Steps,
    benchmark,
    single_heads,
    strategy_of,
    task_benchmark,
    trained,
)

from kdtasks.incremental import der_loss, lwf_loss, weight_alignment
from kdtasks.incremental.gd import CurrentTeacherLoss, GlobalDistillationLoss
from kdtasks.incremental.models import growing, head_of
from kdtasks.incremental.plugin import (
    BiCPlugin,
    DERPlugin,
    GlobalDistillationPlugin,
    ICaRLPlugin,
    LwFMCPlugin,
    LwFPlugin,
    LwMPlugin,
    WAPlugin,
    checked_benchmark,
    checkpoint,
    classes_of,
    resume,
)
from kdtasks.incremental.sampling import sample_external
from tests.loops import softmax

EXACT = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def slow_lwf(student, teacher, classes, temperature):
    """KL of the columns ``classes``, mean over the rows, loop by loop."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        p, q = (softmax([row[number] for number in classes], temperature) for row in (s, t))
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q))
    return total / len(student)


def slow_cross_entropy(logits, target, columns):
    rows = [(row, y) for row, y in zip(logits.tolist(), target.tolist()) if y in columns]
    return -sum(
        math.log(softmax([row[c] for c in columns])[columns.index(y)]) for row, y in rows
    ) / len(rows)


# LwF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", [lambda: LwFPlugin(weight=[7.0]), lambda: LwMPlugin()])
def test_the_first_experience_is_the_strategy_s_own(plugin):
    _, _, steps = trained(Net(nn.Linear(8, 10)), plugin(), benchmark().train_stream, 1)
    assert len(steps) == 3 and all(
        torch.equal(step["loss"], F.cross_entropy(step["logits"], step["y"])[None])
        for step in steps
    )


@pytest.mark.parametrize("ce_over", ["new", "seen"])
@pytest.mark.parametrize("head", single_heads())
def test_lwf_is_of_the_columns_of_the_classes_before_whatever_their_order(head, ce_over):
    plugin = LwFPlugin(weight=[9.0, 9.0, 1.5], temperature=3.0, scale_t2=True, ce_over=ce_over)
    _, teacher, steps = trained(single_heads()[head](), plugin, benchmark().train_stream, 3)
    assert len(steps) == 3 and {*torch.cat([step["y"] for step in steps]).tolist()} == {9, 2}
    for step in steps:
        columns = [2, 9] if ce_over == "new" else list(range(step["logits"].shape[1]))
        wanted = slow_cross_entropy(step["logits"], step["y"], columns)
        wanted += 1.5 * 9 * slow_lwf(step["logits"], teacher(step["x"]), [3, 7, 1, 0], 3.0)
        assert step["loss"].shape == (1,) and step["loss"].item() == pytest.approx(wanted, rel=1e-4)
    assert plugin.seen == {0: [0, 1, 2, 3, 7, 9]}


def test_a_growing_head_may_grow_between_experiences():
    model, plugin, steps = growing(Net(nn.Linear(8, 10)), (2,)), LwFPlugin(), Steps()
    strategy = strategy_of(model, [plugin, steps])
    first, second = list(benchmark(order=list(range(10))).train_stream)[:2]
    strategy.train(first)
    teacher, steps.seen = copy.deepcopy(model).eval(), []
    head_of(model)[1].grow(2)
    fresh = head_of(model)[1].blocks[1].weight.detach().clone()
    strategy.train(second)
    for step in steps.seen:
        wanted = slow_cross_entropy(step["logits"], step["y"], [2, 3]) + slow_lwf(
            step["logits"], teacher(step["x"]), [0, 1], 2.0
        )
        assert step["loss"].item() == pytest.approx(wanted, rel=1e-4)
    # the optimizer was told
    assert not torch.equal(head_of(model)[1].blocks[1].weight, fresh)


def test_rows_of_a_replay_take_no_part_in_the_cross_entropy_of_new_classes():
    plugin, steps = LwFPlugin(), Steps()
    strategy = strategy_of(Net(nn.Linear(8, 10)), [plugin, steps, ReplayPlugin(mem_size=20)])
    first, second = list(benchmark().train_stream)[:2]
    strategy.train(first)
    teacher, steps.seen = copy.deepcopy(strategy.model).eval(), []
    strategy.train(second)
    assert {*torch.cat([step["y"] for step in steps.seen]).tolist()} == {0, 1, 3, 7}
    for step in steps.seen:
        wanted = slow_cross_entropy(step["logits"], step["y"], [0, 1]) + slow_lwf(
            step["logits"], teacher(step["x"]), [3, 7], 2.0
        )
        assert step["loss"].item() == pytest.approx(wanted, rel=1e-4)
    replay = SimpleNamespace(
        model=strategy.model,
        mb_x=steps.seen[0]["x"][:2],
        mb_y=torch.tensor([3, 7]),
        mb_output=torch.zeros(2, 10),
        loss=torch.zeros(1),
    )
    # a batch of the replay alone
    plugin.before_backward(replay)
    assert torch.isfinite(replay.loss)


@pytest.mark.parametrize(
    "plugin", [lambda: LwFPlugin(), lambda: LwFMCPlugin(), lambda: LwMPlugin()]
)
def test_the_teacher_is_frozen_and_its_batchnorm_stays(plugin):
    modes = []

    class Modes:
        def before_update(self, strategy, **kwargs):
            modes.append(
                {module.training for module in plugin.teacher.model.modules()}
                if plugin.teacher
                else {False}
            )

    plugin, stream = plugin(), list(benchmark().train_stream)
    strategy = strategy_of(Net(nn.Linear(8, 10)), [plugin, Modes()])
    strategy.train(stream[0])
    taught = copy.deepcopy(strategy.model.state_dict())
    teacher = plugin.teacher
    strategy.train(stream[1])
    assert modes == [{False}] * 6 and plugin.teacher is not teacher
    assert all(
        torch.equal(value, taught[name]) for name, value in teacher.model.state_dict().items()
    )
    # the student's moves
    assert not torch.equal(strategy.model.stem[1].running_mean, taught["stem.1.running_mean"])
    # once a batch
    assert strategy.model.stem[1].num_batches_tracked == 6
    assert not any(
        parameter.requires_grad or parameter.grad is not None
        for parameter in teacher.model.parameters()
    )
    optimised = {
        id(parameter) for group in strategy.optimizer.param_groups for parameter in group["params"]
    }
    assert optimised == {id(parameter) for parameter in strategy.model.parameters()}
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in strategy.model.modules()
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_every_old_head_is_distilled_on_its_classes(scaled):
    strategy, teacher, steps = trained(
        ManyHeads(scaled=scaled), LwFPlugin(weight=2.0), task_benchmark().train_stream, 3
    )
    for step in steps:
        student = copy.deepcopy(strategy.model)
        student.load_state_dict(step["state"])
        # in training mode, as it was
        logits = student(step["x"], None)
        old = [
            slow_lwf(logits[task], teacher(step["x"], task), classes, 2.0)
            for task, classes in [(0, [3, 7]), (1, [0, 1])]
        ]
        assert min(old) > 0
        wanted = slow_cross_entropy(step["logits"], step["y"], [2, 9]) + 2 * sum(old)
        assert step["loss"].item() == pytest.approx(wanted, rel=1e-4)
    # 3 batches in each of 3 experiences; without a shared trunk, once more for each task that is
    # known
    assert strategy.model.net.stem[1].num_batches_tracked == (9 + 3 * 2 + 3 * 3 if scaled else 9)


@pytest.mark.parametrize("heads", [False, True])
def test_it_agrees_with_avalanche_s_own_on_a_net_without_batchnorm(heads):
    found = []
    for plugin in (
        LwFPlugin(weight=0.7, temperature=2.0, ce_over="seen"),
        TheirLwF(alpha=0.7, temperature=2.0),
    ):
        torch.manual_seed(1)
        model = ManyHeads(norm=False) if heads else Net(IncrementalClassifier(8), norm=False)
        strategy, _, steps = trained(
            model, plugin, task_benchmark().train_stream if heads else benchmark().train_stream, 3
        )
        found.append(([step["loss"].item() for step in steps], [*strategy.model.parameters()]))
    (ours, our_weights), (theirs, their_weights) = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    for a, b in zip(our_weights, their_weights):
        torch.testing.assert_close(a, b, **EXACT)


def test_errors_of_lwf():
    with pytest.raises(ValueError, match="'new' or 'seen', got 'all'"):
        LwFPlugin(ce_over="all")
    with pytest.raises(ValueError, match=r"weight has 1 entries, and this is experience 2"):
        trained(Net(nn.Linear(8, 10)), LwFPlugin(weight=[1.0]), benchmark().train_stream, 2)
    for plugin in (LwFMCPlugin(), LwMPlugin()):
        with pytest.raises(
            ValueError, match="needs one head for all classes; ManyHeads has one a task"
        ):
            trained(ManyHeads(), plugin, task_benchmark().train_stream, 1)


# LwF.MC -------------------------------------------------------------------------------------------


def test_lwf_mc_takes_the_place_of_the_loss():
    def slow(step, teacher, old, new):
        total = 0.0
        for row, taught, y in zip(
            step["logits"].tolist(), teacher(step["x"]).tolist(), step["y"].tolist()
        ):
            for c in old + new:
                wanted = 1 / (1 + math.exp(-taught[c])) if c in old else float(c == y)
                p = 1 / (1 + math.exp(-row[c]))
                total -= wanted * math.log(p) + (1 - wanted) * math.log(1 - p)
        return total / len(step["y"]) / len(old + new)

    for count, old, new in ((1, [], [3, 7]), (3, [3, 7, 1, 0], [9, 2])):
        _, teacher, steps = trained(
            Net(IncrementalClassifier(8)), LwFMCPlugin(), benchmark().train_stream, count
        )
        assert [step["loss"].item() for step in steps] == pytest.approx(
            [slow(step, teacher, old, new) for step in steps], rel=1e-4
        )


# LwM ----------------------------------------------------------------------------------------------


def by_hand(model, teacher, x, y, old, beta, gamma, second_order=True):
    """The loss of a net that ends in pooling and a linear head, where Grad-CAM is CAM: no gradient
    is asked for inside.
    """
    activation = model.features(x)
    logits = model.head(activation.mean((2, 3)))
    taught = teacher.features(x).detach()
    teacher_logits = teacher.head(taught.mean((2, 3))).detach()
    loss = F.cross_entropy(logits, y)
    for i in range(len(x)):
        b = max(old, key=lambda c: logits[i, c].item())
        weight = model.head.weight[b] if second_order else model.head.weight[b].detach()
        maps = [
            torch.relu((w[:, None, None] * a).sum(0))
            for w, a in ((weight, activation[i]), (teacher.head.weight[b].detach(), taught[i]))
        ]
        loss = loss + gamma / len(x) * sum(
            abs(p / max(maps[0].norm(), 1e-12) - q / max(maps[1].norm(), 1e-12))
            for p, q in zip(*(m.flatten() for m in maps))
        )
        for c in old:
            p, q = logits[i, c].sigmoid(), teacher_logits[i, c].sigmoid()
            loss = loss - beta / len(x) * (q * p.log() + (1 - q) * (1 - p).log())
    return loss


@pytest.mark.parametrize(
    "beta, gamma, second_order",
    [(1.0, 1.0, True), (0.5, 2.0, False), (0.0, 1.0, True), (1.0, 0.0, True)],
)
def test_lwm_is_of_the_strategy_s_own_forward_and_its_gradient_reaches_all_weights(
    beta, gamma, second_order
):
    gradients = []

    class Gradients:
        def after_backward(self, strategy, **kwargs):
            gradients.append([parameter.grad.clone() for parameter in strategy.model.parameters()])

    plugin, steps = LwMPlugin(gamma=gamma, beta=beta, second_order=second_order), Steps()
    strategy = strategy_of(Net(nn.Linear(8, 10)), [plugin, steps, Gradients()], epochs=2)
    first, second = list(benchmark().train_stream)[:2]
    strategy.train(first)
    teacher, steps.seen = copy.deepcopy(strategy.model).eval(), []
    gradients.clear()
    with torch.no_grad():
        # so that a new class is likeliest
        strategy.model.head.bias[:2] += 9
    strategy.train(second)
    for step, found in zip(steps.seen, gradients):
        student = copy.deepcopy(strategy.model).train()
        student.load_state_dict(step["state"])
        wanted = by_hand(student, teacher, step["x"], step["y"], [3, 7], beta, gamma, second_order)
        torch.testing.assert_close(
            step["loss"].detach(), wanted.detach()[None], rtol=1e-4, atol=1e-5
        )
        wanted.backward()
        for a, b in zip(found, student.parameters()):
            torch.testing.assert_close(a, b.grad, rtol=1e-3, atol=1e-4)
        assert not torch.isin(step["logits"].argmax(1), torch.tensor([3, 7])).any()
    assert len(gradients) == 6


@pytest.mark.parametrize("second_order", [True, False])
def test_of_the_attention_the_head_learns_in_second_order_only(second_order):
    heads = []
    for gamma in (0.0, 1.0):
        torch.manual_seed(0)
        plugin, steps = LwMPlugin(gamma=gamma, second_order=second_order), Steps()
        strategy = strategy_of(Net(nn.Linear(8, 10), norm=False), [plugin, steps], momentum=0)
        first, second = list(benchmark().train_stream)[:2]
        strategy.train(first)
        with torch.no_grad():
            # so that it looks elsewhere
            strategy.model.layer3[0].weight.add_(0.1 * torch.randn(8, 6, 3, 3))
        strategy.train_mb_size, before = 32, copy.deepcopy(strategy.model)
        strategy.train(second)
        # three, and now one
        assert len(steps.seen) == 4
        heads.append(
            [after - old for after, old in zip(strategy.model.parameters(), before.parameters())]
        )
    without, with_ = heads
    # the stem, in both orders
    assert not torch.allclose(without[0], with_[0], atol=1e-6)
    # the head's weight
    assert torch.equal(without[-2], with_[-2]) is not second_order
    # its bias never
    assert torch.equal(without[-1], with_[-1])


def test_a_value_that_is_changed_in_place_afterwards_is_taken_as_it_was():
    plugin, steps = LwMPlugin(attention="layer3.0"), Steps()
    strategy = strategy_of(Net(nn.Linear(8, 10), norm=False), [plugin, steps])
    first, second = list(benchmark().train_stream)[:2]
    strategy.train(first)
    teacher, steps.seen = copy.deepcopy(strategy.model).eval(), []
    strategy.train(second)
    step = steps.seen[-1]
    student = copy.deepcopy(strategy.model)
    student.load_state_dict(step["state"])
    maps = []
    # 0, 1 -> 3, 7
    b = student(step["x"])[:, [3, 7]].argmax(1).mul(4).add(3)
    for model in (student, teacher):
        before = model.layer3[0](model.stem(step["x"]))
        alpha = (model.head.weight[b][:, :, None, None] * (before > 0)).mean((2, 3))
        maps.append(
            F.normalize(torch.einsum("bk,bkhw->bhw", alpha, before).relu().flatten(1), dim=1)
        )
    wanted = F.cross_entropy(step["logits"], step["y"]) + (maps[0] - maps[1]).abs().sum(1).mean()
    wanted = wanted + F.binary_cross_entropy_with_logits(
        step["logits"][:, [3, 7]], teacher(step["x"])[:, [3, 7]].sigmoid(), reduction="sum"
    ) / len(step["y"])
    torch.testing.assert_close(step["loss"].detach(), wanted.detach()[None], rtol=1e-4, atol=1e-5)


def test_errors_of_lwm():
    with pytest.raises(ValueError, match=r"attention='layer2'.*Net has no such submodule.*layer3"):
        trained(Net(nn.Linear(8, 10)), LwMPlugin("layer2"), benchmark().train_stream, 1)

    class Twice(Net):
        def features(self, x):
            return self.layer3(self.stem[2](self.stem(x)))

    with pytest.raises(ValueError, match=r"attention='stem.2' ran 2 times"):
        trained(Twice(nn.Linear(8, 10)), LwMPlugin("stem.2"), benchmark().train_stream, 2)


# Global Distillation ------------------------------------------------------------------------------


def pool(n=60):
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3)))


def columns_of(target, order):
    """The place of each class in the order in which they came; -100 of what has none."""
    return torch.tensor([order.index(y) if y in order else -100 for y in target.tolist()])


class Watch:
    """Stands before the plugin at an experience's end, and keeps the model as the main step leaves
    it.
    """

    def after_training_exp(self, strategy, **kwargs):
        self.main = copy.deepcopy(strategy.model)


def distilled(count, unlabelled, lr=0.5, momentum=0.9, size=1000, **options):
    """``count`` experiences of Global Distillation, by batches of everything or of ``size``: what
    there was at each point of the last.
    """
    watch, steps, teachers = Watch(), Steps(), []

    class Teachers:
        def before_backward(self, strategy, **kwargs):
            teachers.append(plugin.current)

    plugin = GlobalDistillationPlugin(
        lambda p: torch.optim.SGD(p, lr=lr), "head", 1, 1, coreset=10, pool=unlabelled, **options
    )
    strategy = strategy_of(
        Net(nn.Linear(8, 10)), [watch, plugin, steps, Teachers()], momentum=momentum
    )
    before = None
    for experience in list(benchmark().train_stream)[:count]:
        before, steps.seen = copy.deepcopy(strategy.model), []
        strategy.train_mb_size = size
        strategy.train(experience)
    return strategy, plugin, before, steps.seen, teachers[-1], watch.main


@pytest.mark.parametrize("unlabelled", [None, pool()])
def test_global_distillation_s_main_step_is_of_the_classes_columns(unlabelled):
    _, plugin, before, steps, current, _ = distilled(3, unlabelled, size=16)
    loss = GlobalDistillationLoss(terms="PC" if unlabelled is None else "PCQ")
    for step in steps:
        logits, x = step["logits"][:, ORDER[:6]], step["x"]
        with torch.no_grad():
            wanted = loss(
                logits,
                copy.deepcopy(before).eval()(x)[:, ORDER[:4]],
                current(x)[:, ORDER[4:6]],
                columns_of(step["y"], ORDER[:6]),
            )
        torch.testing.assert_close(step["loss"].detach(), sum(wanted.values())[None], **EXACT)
    assert plugin.arrived == [3, 7, 0, 1, 2, 9] and not current.model.training


def test_its_first_experience_is_the_current_teacher_s_step():
    _, _, _, (step,), _, _ = distilled(1, pool())
    wanted = CurrentTeacherLoss()(step["logits"][:, ORDER[:2]], columns_of(step["y"], ORDER[:2]))
    torch.testing.assert_close(step["loss"].detach(), sum(wanted.values())[None], **EXACT)
    # as many of the pool as labelled ones
    assert len(step["y"]) == 40 and (step["y"] < 0).sum() == 20


def test_its_current_teacher_and_its_head_take_the_step_that_their_losses_say():
    strategy, _, before, (step,), current, main = distilled(2, pool(), lr=0.1)
    x, new = step["x"], columns_of(step["y"], ORDER[2:4])
    student = copy.deepcopy(before).train()
    sum(CurrentTeacherLoss()(student(x)[:, ORDER[2:4]], new).values()).backward()
    for found, start in zip(current.model.parameters(), student.parameters()):
        torch.testing.assert_close(found, start - 0.1 * start.grad, rtol=1e-4, atol=1e-6)

    target, after = columns_of(step["y"], ORDER[:4]), copy.deepcopy(main).train()
    counts = torch.tensor([5, 5, 10, 10])
    assert torch.equal(torch.bincount(target[target >= 0]), counts)
    loss = GlobalDistillationLoss(balanced=True)
    sum(
        loss(
            after(x)[:, ORDER[:4]],
            before.eval()(x)[:, ORDER[:2]],
            current(x)[:, ORDER[2:4]],
            target,
            counts,
        ).values()
    ).backward()
    for (name, found), start in zip(strategy.model.named_parameters(), after.parameters()):
        moved = 0.1 * start.grad if name.startswith("head.") else 0
        torch.testing.assert_close(found, start - moved, rtol=1e-4, atol=1e-6)
        assert found.requires_grad


def test_its_batches_are_the_experience_the_coreset_and_the_sample():
    _, plugin, before, steps, _, _ = distilled(3, pool(), size=7)
    data, y, x = (
        Images(),
        torch.cat([step["y"] for step in steps]),
        torch.cat([step["x"] for step in steps]),
    )
    # 10 kept of 4 classes, the latest first
    assert [(y == number).sum().item() for number in ORDER[:6]] == [2, 2, 3, 3, 10, 10]
    # 10 of 6: 1, 1, 2, 2, 2, 2
    assert [len(some) for _, some in plugin.kept] == [2, 4, 4]
    old = {tuple(image.flatten().tolist()) for image in x[torch.isin(y, torch.tensor(ORDER[:4]))]}
    ours = {
        tuple(image.flatten().tolist())
        for image in data.tensors[0][torch.isin(data.tensors[1], torch.tensor(ORDER[:4]))]
    }
    assert len(old) == 10 and old <= ours
    kept = {
        tuple(images[i][0].flatten().tolist()) for images, some in plugin.kept[:2] for i in some
    }
    # what was thrown away does not come back
    assert kept <= old
    with torch.no_grad():
        scores = before.eval()(pool().tensors[0])[:, ORDER[:4]]
    sample = torch.cat([*sample_external(scores, 30, draw=2)])
    found = sorted(image.flatten().tolist() for image in x[y < 0])
    assert found == sorted(image.flatten().tolist() for image in pool().tensors[0][sample])


def test_errors_of_global_distillation():
    plugin = GlobalDistillationPlugin(lambda p: torch.optim.SGD(p, lr=0.1), "fc", 1, 1)
    with pytest.raises(ValueError, match="head='fc': Net has no such submodule"):
        trained(Net(nn.Linear(8, 10)), plugin, benchmark().train_stream, 1)
    plugin.head, again = "head", benchmark().train_stream[0]
    with pytest.raises(
        ValueError,
        match=r"experience 2 has no new class: all of \[3, 7\] were "
        r"seen before",
    ):
        trained(Net(nn.Linear(8, 10)), plugin, [again, again], 2)
    with pytest.raises(ValueError, match="expected the 1 experiences that are over"):
        plugin.load_state_dict(plugin.state_dict(), Net(nn.Linear(8, 10)))


# Benchmarks ---------------------------------------------------------------------------------------


def test_a_class_that_a_benchmark_lost_is_named():
    with pytest.raises(
        ValueError,
        match=r"classes \[5\] are in no experience of the stream "
        r"'train'",
    ):
        checked_benchmark(benchmark(3))
    assert checked_benchmark(benchmark(3), classes=ORDER[:9]) is not None
    with pytest.raises(ValueError, match=r"classes \[11\] are in no experience"):
        checked_benchmark(benchmark(), classes=[3, 11])


def test_lists_of_classes_are_sorted_and_complete():
    for made in (benchmark(), task_incremental_benchmark(benchmark(), reset_task_labels=True)):
        assert checked_benchmark(made) is made
        for stream in made.streams.values():
            experience = list(stream)[2]
            assert [
                experience.classes_in_this_experience,
                experience.previous_classes,
                experience.classes_seen_so_far,
                experience.future_classes,
            ] == [[2, 9], [0, 1, 3, 7], [0, 1, 2, 3, 7, 9], [4, 5, 6, 8]]


def test_datasets_without_task_labels_are_enough():
    made = checked_benchmark(benchmark(data=lambda: as_classification_dataset(Images())))
    assert not hasattr(made.train_stream[0].dataset, "targets_task_labels")
    plugin = LwFPlugin()
    _, teacher, steps = trained(Net(IncrementalClassifier(8)), plugin, made.train_stream, 2)
    wanted = [
        slow_cross_entropy(s["logits"], s["y"], [0, 1])
        + slow_lwf(s["logits"], teacher(s["x"]), [3, 7], 2.0)
        for s in steps
    ]
    assert [step["loss"].item() for step in steps] == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match="a AvalancheDataset has no targets"):
        checked_benchmark(
            benchmark_from_datasets(train=[AvalancheDataset([TensorDataset(torch.zeros(2, 1))])])
        )
    del made.train_stream[0].classes_in_this_experience
    # out of the targets
    assert classes_of(made.train_stream[0]) == [3, 7]


# DER and WA ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("head", ["linear", "incremental"])
def test_der_adds_what_two_draws_of_its_buffer_cost(head, beta):
    """The columns of classes that had come, in the order in which they came."""
    plugin, order = DERPlugin(12, alpha=0.7, beta=beta), [3, 7, 0, 1]
    drawn, model = [], single_heads()[head]()
    draw = plugin.buffer.draw
    plugin.buffer.draw = lambda count: drawn.append(draw(count)) or drawn[-1]
    _, _, steps = trained(model, plugin, benchmark().train_stream, 2)
    per_step = 2 if beta else 1
    drawn = drawn[-per_step * len(steps) :]
    assert len(steps) == 3 and {*drawn[0]["target"].tolist()} <= {3, 7}
    assert drawn[0]["columns"].tolist() == [2] * 8 and drawn[-1]["columns"].max() == 4
    for number, step in enumerate(steps):
        net = copy.deepcopy(model).train()
        net.load_state_dict(step["state"])
        parts = drawn[per_step * number : per_step * (number + 1)]
        wanted = F.cross_entropy(step["logits"], step["y"])
        wanted = wanted + 0.7 * der_loss(
            net(parts[0]["input"])[:, order], parts[0]["logits"], parts[0]["columns"]
        )
        if beta:
            wanted = wanted + 0.5 * F.cross_entropy(net(parts[1]["input"]), parts[1]["target"])
            assert not torch.equal(parts[0]["input"], parts[1]["input"])
        torch.testing.assert_close(step["loss"].squeeze(), wanted, **EXACT)
    assert plugin.teacher is None and plugin.buffer.seen == 40 and len(plugin.buffer) == 12


def test_what_der_keeps_are_the_logits_of_the_step_before_its_update():
    plugin, order = DERPlugin(100), [3, 7, 0, 1]
    _, _, steps = trained(Net(nn.Linear(8, 10)), plugin, benchmark().train_stream, 2)
    kept = plugin.buffer.kept
    for name, key in (("input", "x"), ("target", "y")):
        torch.testing.assert_close(kept[name][20:], torch.cat([step[key] for step in steps]))
    logits = torch.cat([step["logits"] for step in steps])
    torch.testing.assert_close(kept["logits"][20:], logits[:, order])
    assert not kept["logits"][:20, 2:].any() and kept["columns"].tolist() == [2] * 20 + [4] * 20


@pytest.mark.parametrize("head", single_heads())
def test_wa_weighs_the_losses_and_aligns_the_new_classes_before_they_teach(head):
    plugin, model = WAPlugin(temperature=3.0), single_heads()[head]()
    _, teacher, steps = trained(model, plugin, benchmark().train_stream, 3)
    for step in steps:
        columns = [0, 1, 3, 7]
        wanted = (1 / 3) * F.cross_entropy(step["logits"], step["y"]) + (2 / 3) * lwf_loss(
            step["logits"][:, columns], teacher(step["x"])[:, columns], 3.0
        )
        torch.testing.assert_close(step["loss"].squeeze(), wanted, **EXACT)
    rows = [value for name, value in model.state_dict().items() if name.endswith("weight")]
    rows = torch.cat([value for value in rows if value.shape[1:] == (8,)])
    found = rows[[0, 1, 3, 7, 2, 9]]
    torch.testing.assert_close(found, weight_alignment(found, 4))
    assert torch.equal(plugin.teacher(steps[0]["x"]), model.eval()(steps[0]["x"]))
    assert all(weight.requires_grad for weight in model.parameters() if weight.ndim > 1)


def test_errors_of_der_and_wa():
    for plugin in (DERPlugin(5), WAPlugin()):
        with pytest.raises(ValueError, match="needs one head for all classes; ManyHeads has one a"):
            trained(ManyHeads(), plugin, task_benchmark().train_stream, 1)
    flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    with pytest.raises(ValueError, match="no linear layer that has weights that WA could align"):
        trained(flat, WAPlugin(), benchmark().train_stream, 1)
    stream = benchmark(experiences=10).train_stream
    with pytest.raises(ValueError, match="one old class, .3., has a softmax of 1"):
        trained(Net(nn.Linear(8, 10)), WAPlugin(), stream, 2)


# Stop and go on -----------------------------------------------------------------------------------

RUNS = {
    "LwF, one head": (lambda: Net(IncrementalClassifier(8)), lambda: LwFPlugin(), False),
    "LwF, a head a task": (lambda: ManyHeads(), lambda: LwFPlugin(weight=[1.0, 2.0, 3.0]), True),
    "LwF.MC": (lambda: Net(nn.Linear(8, 10)), lambda: LwFMCPlugin(), False),
    "LwM": (lambda: Net(IncrementalClassifier(8)), lambda: LwMPlugin(), False),
    "DER++": (lambda: Net(IncrementalClassifier(8)), lambda: DERPlugin(12, beta=0.5), False),
    "WA": (lambda: Net(IncrementalClassifier(8)), lambda: WAPlugin(), False),
    "iCaRL": (lambda: Net(IncrementalClassifier(8)), lambda: ICaRLPlugin(9), False),
    "BiC": (lambda: Net(IncrementalClassifier(8)), lambda: BiCPlugin(12), False),
    "Global Distillation": (
        lambda: Net(IncrementalClassifier(8)),
        lambda: GlobalDistillationPlugin(
            lambda p: torch.optim.SGD(p, lr=0.05), "head", 1, 1, 10, pool()
        ),
        False,
    ),
}
OPTIMIZERS = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    "two groups": lambda net: torch.optim.SGD(
        [
            {
                "params": [
                    p for name, p in net.named_parameters() if name.startswith("head") is there
                ],
                "lr": lr,
            }
            for there, lr in ((True, 0.01), (False, 0.05))
        ],
        momentum=0.9,
    ),
    "Adam": lambda net: torch.optim.Adam(net.parameters(), lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("run", RUNS)
def test_stopped_and_gone_on_is_never_stopped(run, optimizer, tmp_path):
    model, plugin, tasks = RUNS[run]

    def made(seed):
        torch.manual_seed(seed)
        net = model()
        return SupervisedTemplate(
            model=net,
            optimizer=OPTIMIZERS[optimizer](net),
            evaluator=None,
            train_mb_size=8,
            plugins=[plugin()],
        )

    order = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]
    bench = task_benchmark(order) if tasks else checked_benchmark(benchmark(order=order))
    strategy = made(0)
    for experience in list(bench.train_stream)[:2]:
        strategy.train(experience)
        # which makes heads grow
        strategy.eval(bench.test_stream[: 3 + 2 * experience.current_experience])
        for group in strategy.optimizer.param_groups:
            group["lr"] *= 0.5
    torch.save(checkpoint(strategy), tmp_path / "two.pth")
    strategy.train(bench.train_stream[2])

    other = made(1)
    resume(other, torch.load(tmp_path / "two.pth", weights_only=True), list(bench.train_stream)[:2])
    other.train(bench.train_stream[2])
    assert other.clock.train_exp_counter == strategy.clock.train_exp_counter == 3
    state = strategy.model.state_dict()
    assert [*state] == [*other.model.state_dict()]
    assert all(torch.equal(value, state[name]) for name, value in other.model.state_dict().items())
    assert other.plugins[0].state_dict()["seen"] == strategy.plugins[0].state_dict()["seen"]


def test_errors_of_resume():
    strategy = strategy_of(Net(nn.Linear(8, 10)), [LwFPlugin()])
    strategy.train(benchmark().train_stream[0])
    with pytest.raises(ValueError, match="the checkpoint has 1 plugins, the strategy 0"):
        resume(strategy_of(Net(nn.Linear(8, 10)), []), checkpoint(strategy))
    with pytest.raises(RuntimeError, match="Missing key"):
        resume(
            strategy_of(Net(nn.Linear(8, 10), norm=False), [LwFPlugin()]),
            {**checkpoint(strategy), "model": {"tensors": {}, "tasks": {}}},
        )


# One class at a time ------------------------------------------------------------------------------


def test_a_softmax_over_one_class_is_refused_before_its_first_step():
    """The first experience is the strategy's own, over all ten columns of the head; the second has
    nothing that a softmax keeps.
    """
    stream = benchmark(experiences=10).train_stream
    for plugin in (LwFPlugin(), LwFPlugin(ce_over="seen")):
        with pytest.raises(
            ValueError,
            match="experience 2: LwF's softmax of an old head would be over one class, .* "
            "LwFMCPlugin",
        ):
            trained(Net(nn.Linear(8, 10)), plugin, stream, 2)
    plugin = LwFPlugin()
    plugin.seen, plugin.teacher, plugin.experience = {0: [1, 2]}, object(), 1
    with pytest.raises(ValueError, match="experience 2 has one class, .* Expected ce_over='seen'"):
        plugin.before_training_exp(
            SimpleNamespace(
                device="cpu", experience=next(iter(stream)), model=Net(nn.Linear(8, 10))
            )
        )
    with pytest.raises(ValueError, match="experience 1 has one new class, .* LwFMCPlugin"):
        trained(
            Net(nn.Linear(8, 10)),
            GlobalDistillationPlugin(lambda p: torch.optim.SGD(p, lr=0.1), "head", 1, 1),
            stream,
            1,
        )


def test_sigmoids_learn_one_class_at_a_time():
    stream = benchmark(experiences=10).train_stream
    strategy, before, steps = trained(Net(nn.Linear(8, 10)), LwFMCPlugin(), stream, 2)
    (new,) = list(stream)[1].classes_in_this_experience
    input = steps[-1]["x"]
    strategy.model.eval()
    assert (strategy.model(input)[:, new] > before(input)[:, new]).all()
