"""pytorch-metric-learning's losses in our configs, and ours in its loop."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdtasks.classification.data import digits
from kdtasks.core import Distiller, Teacher
from kdtasks.metric_learning import DarkRankLoss, RKDLoss, plugin
from kdtasks.metric_learning.models import embedder
from kdtasks.metric_learning.plugin import DistillMetricTrainer, PMLDistillLoss, PMLLoss
from tests.ranks import two_ranks

LOSSES = "pytorch_metric_learning.losses."
RAW = {"type": "pytorch_metric_learning.distances.LpDistance", "normalize_embeddings": False}


def relations(student, teacher):
    """A small relational loss of our kind: the squared differences of the distances, mean."""
    a, b = ((x[:, None] - x[None]).square().sum(2).add(1e-9).sqrt() for x in (student, teacher))
    return (a - b).square().mean()


class Relations(nn.Module):
    def forward(self, student, teacher):
        return relations(student, teacher)


class Noted(nn.Module):
    """The same, its values noted, out of an operation whose backward needs its result."""

    def __init__(self):
        super().__init__()
        self.values = []

    def forward(self, student, teacher):
        value = relations(student, teacher).log().exp()
        self.values.append(float(value.detach()))
        return value


def rows(n=12, width=5, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


# Their losses in our configs ----------------------------------------------------------------------


def test_a_loss_of_theirs_from_a_config():
    from pytorch_metric_learning import distances, losses, miners

    student, target = rows(), torch.arange(12) // 3
    ours = PMLLoss(
        {"type": LOSSES + "TripletMarginLoss", "margin": 0.3, "distance": RAW},
        {
            "type": "pytorch_metric_learning.miners.TripletMarginMiner",
            "margin": 0.1,
            "type_of_triplets": "hard",
            "distance": RAW,
        },
    )
    distance = distances.LpDistance(normalize_embeddings=False)
    mined = miners.TripletMarginMiner(margin=0.1, type_of_triplets="hard", distance=distance)(
        student, target
    )
    theirs = losses.TripletMarginLoss(margin=0.3, distance=distance)
    assert len(mined[0]) > 0 and torch.equal(ours(student, target), theirs(student, target, mined))
    # so the miner counts
    assert not torch.equal(ours(student, target), theirs(student, target))
    by_hand = [
        max(0.0, float((student[a] - student[p]).norm() - (student[a] - student[n]).norm() + 0.3))
        for a in range(12)
        for p in range(12)
        for n in range(12)
        if a != p and target[a] == target[p] and target[a] != target[n]
    ]
    plain = PMLLoss(theirs)(student, target)
    assert float(plain) == pytest.approx(sum(by_hand) / sum(v > 0 for v in by_hand), rel=1e-5)


def test_proxies_are_trained_with_the_student():
    loss = PMLLoss({"type": LOSSES + "ProxyAnchorLoss", "num_classes": 4, "embedding_size": 5})
    student = nn.Linear(5, 5)
    distiller = Distiller(student, losses={"loss_proxy": (loss, ("student", "target"), 1.0)})
    assert len(list(distiller.parameters())) == 3
    sum(distiller(rows(), torch.arange(12) // 3).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.parameters())


@pytest.mark.parametrize(
    "loss",
    [
        {"type": LOSSES + "SelfSupervisedLoss", "loss": {"type": LOSSES + "NTXentLoss"}},
        {"type": LOSSES + "VICRegLoss"},
    ],
)
def test_a_loss_of_two_views_is_refused(loss):
    with pytest.raises(ValueError, match="compares two views of each sample"):
        PMLLoss(loss)


def test_half_precision_is_raised():
    loss, target = PMLLoss({"type": LOSSES + "NTXentLoss"}), torch.arange(12) // 3
    student = rows().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, target)
    assert value.dtype == torch.float32 and torch.equal(value, loss(student.float(), target))


# Our losses in theirs -----------------------------------------------------------------------------


def test_an_adapter_gives_what_the_loss_gives_and_its_gradient():
    student, teacher = rows().requires_grad_(), rows(width=8, seed=1).requires_grad_()
    loss = PMLDistillLoss(relations)
    for labels in (None, torch.arange(12) // 3):
        value = loss(student, labels, None, ref_emb=teacher)
        assert torch.equal(value, relations(student, teacher))
    value.backward()
    (own,) = torch.autograd.grad(relations(student, teacher), student)
    assert torch.equal(student.grad, own) and teacher.grad is None


def test_reducers_act_on_the_queries_of_a_loss_that_has_them_and_regularizers_on_any():
    from pytorch_metric_learning import reducers, regularizers

    student, teacher = rows(), rows(seed=1)
    loss = DarkRankLoss(reduction="none")
    values = loss(student, teacher)
    assert torch.allclose(
        PMLDistillLoss(loss)(student, ref_emb=teacher), DarkRankLoss()(student, teacher)
    )
    assert torch.allclose(
        PMLDistillLoss(loss, reducer=reducers.SumReducer())(student, ref_emb=teacher), values.sum()
    )
    kept = PMLDistillLoss(loss, reducer=reducers.ThresholdReducer(low=float(values.median())))(
        student, ref_emb=teacher
    )
    assert torch.allclose(kept, values[values > values.median()].mean())
    weights = torch.tensor([1.0, 2.0, 0.0, 5.0])
    weighted = PMLDistillLoss(loss, reducer=reducers.ClassWeightedReducer(weights))(
        student, torch.arange(12) // 3, ref_emb=teacher
    )
    assert torch.allclose(weighted, (values * weights.repeat_interleave(3)).mean())
    more = PMLDistillLoss(
        RKDLoss(),
        reducer=reducers.SumReducer(),
        embedding_regularizer=regularizers.LpRegularizer(),
        embedding_reg_weight=0.5,
        distance=None,
    )
    assert torch.allclose(
        more(student, ref_emb=teacher),
        RKDLoss()(student, teacher) + 0.5 * student.norm(dim=1).mean(),
    )


def test_what_an_adapter_refuses():
    from pytorch_metric_learning.distances import LpDistance

    loss, student = PMLDistillLoss(relations), rows()
    with pytest.raises(ValueError, match="needs the teacher's embeddings as ref_emb"):
        loss(student)
    with pytest.raises(ValueError, match=r"same samples, got \(12, 5\) and \(11, 5\)"):
        loss(student, ref_emb=rows(11))
    with pytest.raises(ValueError, match="indices_tuple must be None"):
        loss(student, torch.arange(12) // 3, (torch.tensor([0]),) * 3, rows(seed=1))
    with pytest.raises(ValueError, match="no distance"):
        PMLDistillLoss(relations, distance=LpDistance())
    for other, got in (
        (lambda s, t: {"a": s.sum()}, "dict"),
        (
            lambda s, t: s[:, :1],
            r"\(12, "
            r"1\)",
        ),
        (lambda s, t: s[0], r"\(5,\)"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"one number, or of one a sample, \(12,\), got "
            rf"{got}",
        ):
            PMLDistillLoss(other)(student, ref_emb=rows(seed=1))


def test_it_can_be_copied_and_pickled():
    loss = pickle.loads(pickle.dumps(copy.deepcopy(PMLDistillLoss(Relations()))))
    assert type(loss) is PMLDistillLoss and loss(rows(), ref_emb=rows(seed=1)) == relations(
        rows(), rows(seed=1)
    )
    assert {"PMLDistillLoss", "DistillMetricTrainer", "PMLLoss"} <= set(dir(plugin))
    with pytest.raises(AttributeError, match="no attribute 'PMLDistilLoss'"):
        _ = plugin.PMLDistilLoss


def on_a_rank(rank):
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.copy_(rows(3, 5, 7))
        model.bias.zero_()
    model = nn.parallel.DistributedDataParallel(model)
    own = slice(rank * 6, rank * 6 + 6)
    student, teacher = model(rows()[own]), rows(seed=1)[own]
    value = DistributedLossWrapper(PMLDistillLoss(relations))(student, ref_emb=teacher)
    value.backward()
    try:
        DistributedLossWrapper(PMLDistillLoss(relations), efficient=True)(
            student, torch.arange(6) // 3, ref_emb=teacher
        )
        refused = False
    except ValueError as error:
        refused = "efficient=False" in str(error) or "indices_tuple" in str(error)
    return {"value": value.detach(), "grad": model.module.weight.grad, "refused": refused}


def test_two_processes_equal_one_through_their_wrapper():
    weight = rows(3, 5, 7).requires_grad_()
    value = relations(rows() @ weight.T, rows(seed=1))
    value.backward()
    for found in two_ranks(on_a_rank):
        # PML's wrapper multiplies by the world
        assert torch.allclose(found["value"], 2 * value.detach(), rtol=1e-5)
        assert torch.allclose(found["grad"], weight.grad, rtol=1e-4, atol=1e-6) and found["refused"]


# Their trainer with our teacher -------------------------------------------------------------------


def trainer(teacher, **changes):
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.samplers import MPerClassSampler

    data = digits(train=False)
    images = data.batch(torch.arange(len(data)), torch.zeros(len(data), dtype=torch.int64), 0)[
        "input"
    ]
    torch.manual_seed(0)
    student = embedder("kdtasks.classification.models.digits_cnn", dim=4, in_channels=1, width=4)
    arguments = {
        "models": {"trunk": student},
        "optimizers": {"trunk_optimizer": torch.optim.Adam(student.parameters(), 1e-2)},
        "batch_size": 32,
        "loss_funcs": {
            "metric_loss": TripletMarginLoss(),
            "distill_loss": PMLDistillLoss(relations),
        },
        "dataset": TensorDataset(images, data.target),
        "sampler": MPerClassSampler(data.target, 4, 32, 320),
        "dataloader_num_workers": 0,
        "data_device": torch.device("cpu"),
        "teacher": teacher,
    }
    return DistillMetricTrainer(**{**arguments, **changes}), student


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))


@pytest.mark.parametrize(
    "wrap",
    [
        PMLDistillLoss,
        lambda loss: loss,
        lambda loss: lambda student, teacher: loss(student, teacher),
    ],
)
def test_a_student_learns_in_their_loop_and_the_teacher_stays(wrap):
    teacher = network()
    before = copy.deepcopy(teacher.state_dict())
    seen, modes, loss = [], [], Noted()

    def note(self):
        seen.append(
            [float(self.losses[f"{name}_loss"].detach()) for name in ("distill", "metric", "total")]
        )
        modes.append((self.teacher.model.training, self.models["trunk"].training))

    from pytorch_metric_learning.losses import TripletMarginLoss

    run, student = trainer(
        teacher,
        loss_funcs={"metric_loss": TripletMarginLoss(), "distill_loss": wrap(loss)},
        loss_weights={"metric_loss": 0.5, "distill_loss": 2.0},
        end_of_iteration_hook=note,
    )
    start = copy.deepcopy(student.state_dict())
    run.train(num_epochs=4)
    distill, metric, total = zip(*seen)
    assert (
        len(seen) == 40
        and sum(distill[-5:]) < 0.8 * sum(distill[:5])
        and set(modes) == {(False, True)}
    )
    # PML keeps the weighted ones
    assert distill == pytest.approx([2 * value for value in loss.values]) and min(metric) > 0
    assert total == pytest.approx([d + m for d, m in zip(distill, metric)])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters()) and isinstance(
        run.teacher, Teacher
    )
    assert any(not torch.equal(value, start[name]) for name, value in student.state_dict().items())


def test_distillation_alone_and_a_weight_of_zero():
    run, _ = trainer(network(), loss_funcs={"distill_loss": PMLDistillLoss(relations)})
    run.train(num_epochs=1)
    from pytorch_metric_learning.losses import TripletMarginLoss

    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError("a loss of weight 0 needs no teacher")

    run, _ = trainer(Never(), loss_weights={"metric_loss": 1.0, "distill_loss": 0})
    run.train(num_epochs=1)
    with pytest.raises(ValueError, match="needs a 'distill_loss'"):
        trainer(network(), loss_funcs={"metric_loss": TripletMarginLoss()}, loss_weights=None)
    with pytest.raises(ValueError, match="nothing would train: loss_weights=.'metric_loss': 0"):
        trainer(network(), loss_weights={"metric_loss": 0, "distill_loss": 0.0})


def test_a_teacher_that_shares_parameters_with_the_student_is_refused_and_not_frozen():
    shared = nn.Linear(64, 4)
    student = nn.Sequential(nn.Flatten(), shared)
    for teacher in (student, nn.Sequential(nn.Flatten(), shared, nn.ReLU())):
        with pytest.raises(ValueError, match="the teacher has parameters of the student"):
            trainer(teacher, models={"trunk": student})
    assert all(p.requires_grad for p in student.parameters())


def test_the_teacher_and_its_batches_go_to_the_trainers_device_and_precision():
    for device, dtype in (("meta", None), ("cpu", torch.float64)):
        run, _ = trainer(network().to(dtype), data_device=torch.device(device), dtype=dtype)
        taught = run.teacher_embeddings(torch.zeros(3, 1, 8, 8))
        assert (
            taught.shape == (3, 8)
            and taught.device.type == device
            and taught.dtype == (dtype or torch.float32)
        )


def test_a_miner_mines_for_the_metric_loss_only():
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner

    given = {"metric": [], "distill": []}

    class Metric(TripletMarginLoss):
        def forward(self, embeddings, labels=None, indices_tuple=None, *args, **kwargs):
            given["metric"].append(indices_tuple)
            return super().forward(embeddings, labels, indices_tuple, *args, **kwargs)

    def distill(student, teacher):
        given["distill"].append((len(student), len(teacher)))
        return relations(student, teacher)

    run, _ = trainer(
        network(),
        mining_funcs={"tuple_miner": BatchHardMiner()},
        loss_funcs={"metric_loss": Metric(), "distill_loss": PMLDistillLoss(distill)},
    )
    run.train(num_epochs=1)
    # a triplet a row
    assert given["metric"] and all(
        len(mined) == 3 and len(mined[0]) == 32 for mined in given["metric"]
    )
    # all rows, as they are
    assert given["distill"] and all(rows == (32, 32) for rows in given["distill"])


def test_the_readmes_trainer_runs():
    """The code for PML in configs/metric_learning/README.md as it stands, on digits."""
    import re
    from pathlib import Path

    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.samplers import MPerClassSampler

    pytest.importorskip("kdtasks.general.rkd")
    text = (Path(__file__).parents[2] / "configs" / "metric_learning" / "README.md").read_text()
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.S)
        if "DistillMetricTrainer" in block
    )
    data = digits(train=False)
    images = data.batch(torch.arange(len(data)), torch.zeros(len(data), dtype=torch.int64), 0)[
        "input"
    ]
    student = embedder("kdtasks.classification.models.digits_cnn", dim=4, in_channels=1, width=4)
    start = copy.deepcopy(student.state_dict())
    names = {
        "student": student,
        "teacher": network(),
        "optimizer": torch.optim.SGD(student.parameters(), 0.1),
        "TripletMarginLoss": TripletMarginLoss,
        "dataset": TensorDataset(images, data.target),
        "sampler": MPerClassSampler(data.target, 10, 40, 80),
    }
    exec(
        code.replace("num_epochs=10", "num_epochs=1").replace(
            "batch_size=60", "batch_size=40, dataloader_num_workers=0"
        ),
        names,
    )
    assert not names["teacher"].training and not torch.equal(
        student.state_dict()["backbone.fc.weight"].cpu(), start["backbone.fc.weight"]
    )
