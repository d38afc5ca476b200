"""RKD's angles against torchdistill's, DarkRank against a log-sum-exp for each place, and a loop of
pytorch-metric-learning.
"""

import functools
import importlib.util
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.distillation import pair
from benchmarks.measure import (
    SGD,
    Line,
    Step,
    apart,
    fewer,
    gradient,
    peak_bytes,
    ratio,
    same_gradients,
    same_work,
    step_times,
    update,
)
from kdtasks.core import Distiller
from kdtasks.engine.processes import keep_memory
from kdtasks.general import RKDLoss, rkd_angle_loss
from kdtasks.metric_learning import darkrank_hard_loss


def embeddings(o, n: int, *widths: int) -> list[Tensor]:
    """The first is the student's."""
    torch.manual_seed(0)
    student, *others = (torch.randn(n, width).to(o.device) for width in widths)
    return [student.requires_grad_(), *others]


def angles_one_by_one(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the angles by normalised differences, in float64, a few vertices at a
    time.
    """
    student, teacher, loss = student.detach().double().requires_grad_(), teacher.double(), 0.0
    for v in torch.arange(len(student), device=student.device).split(8):
        # (v, N, D)
        arms, taught = (F.normalize(x[None] - x[v, None], dim=2) for x in (student, teacher))
        part = (
            F.smooth_l1_loss(arms @ arms.mT, taught @ taught.mT, reduction="sum")
            / len(student) ** 3
        )
        part.backward()
        loss += part.detach()
    return loss, student.grad


def rkd_angle(o) -> Iterator[Line]:
    """512 columns. torchdistill's form has tensors of N² · 512, too many for a CPU at 1024 rows.
    The bars are for 256.
    """
    largest, variants = 1024 if o.device == "cuda" else 256, {"RKD angle": rkd_angle_loss}
    if importlib.util.find_spec("torchdistill"):
        from torchdistill.losses.mid_level import RKDLoss

        usual = RKDLoss("", "", dist_factor=0, angle_factor=1, reduction="mean")
        variants["torchdistill"] = lambda student, teacher: usual.compute_rkd_angle_loss(
            teacher, student
        )
    # seconds a step beyond
    longest = 5 if o.device == "cuda" else 4
    for n in (64, 128, 256, 1024, 4096)[: 3 if o.rounds < 5 else longest]:
        student, teacher = embeddings(o, n, 512, 512)
        steps = {
            name: functools.partial(gradient, loss, student, teacher)
            for name, loss in variants.items()
            if name == "RKD angle" or n <= largest
        }
        same_gradients(steps)
        few = fewer(o, 7 if n < 256 else 3)
        times = step_times(o if n == 256 else few, steps)
        peaks = {name: peak_bytes(o, step) for name, step in steps.items()}
        if n > largest:
            yield Line(
                f"{n} rows: RKD angle",
                times["RKD angle"],
                unit="s",
                note=f"{peaks['RKD angle'] / 2**20:.0f} MiB",
            )
            continue
        yield ratio(
            f"{n} rows: ", times, "RKD angle", "torchdistill", bar=1 / 4 if n == 256 else None
        )
        if "torchdistill" in peaks:
            yield Line(
                f"{n} rows: memory / torchdistill's",
                [peaks["RKD angle"] / peaks["torchdistill"]],
                1 / 20 if n == 256 else None,
                note=f"torchdistill: {peaks['torchdistill'] / 2**20:.0f} MiB",
            )
        if n == 256:
            error = apart(steps["RKD angle"](), angles_one_by_one(student, teacher))
            yield Line(
                "256 rows: RKD angle off float64",
                [1e6 * error],
                1.0,
                "e-6",
                "relative, loss and gradient",
            )


def darkrank_by_suffix(student: Tensor, teacher: Tensor) -> Tensor:
    """Hard DarkRank of whole lists as one would write it down: a log-sum-exp for every place."""
    student, teacher, places = F.normalize(student), F.normalize(teacher), range(len(student) - 1)
    order = torch.cdist(teacher, teacher).fill_diagonal_(math.inf).argsort(1)[:, :-1]
    scores = (-3 * torch.cdist(student, student) ** 3).gather(1, order)
    return (
        (torch.stack([torch.logsumexp(scores[:, i:], 1) for i in places], 1) - scores).sum(1).mean()
    )


def darkrank(o) -> Iterator[Line]:
    """Whole lists, 128 columns taught by 512; by suffix in float64, as the library computes, and in
    float32. The bar is for 256 rows in float64.
    """
    variants = {
        "DarkRank hard": functools.partial(darkrank_hard_loss, list_length=None),
        "by suffix": lambda student, teacher: darkrank_by_suffix(
            student.double(), teacher.double()
        ),
        "in float32": darkrank_by_suffix,
    }
    for n in (64, 128, 256, 1024)[: 3 if o.rounds < 5 else 4]:  # seconds a step beyond
        student, teacher = embeddings(o, n, 128, 512)
        steps = {
            name: functools.partial(gradient, loss, student, teacher)
            for name, loss in variants.items()
        }
        same_gradients(steps)
        few = fewer(o, 7 if n < 256 else 3)
        times = step_times(o if n == 256 else few, steps)
        yield ratio(
            f"{n} rows: ", times, "DarkRank hard", "by suffix", bar=1 / 5 if n == 256 else None
        )
        yield ratio(f"{n} rows: ", times, "DarkRank hard", "in float32")


def pml_loop(o) -> Iterator[Line]:
    """A step of an embedder, PML's contrastive loss and RKD, its batch out of a DataLoader: by
    hand, by pytorch-metric-learning's trainer with our loss, by the Distiller with PML's loss; in a
    process that keeps its memory, as a run of the engine does (see the row ``dml_step``).
    """
    keep_memory()
    what = "embedder with RKD: "
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        yield Line(f"{what}PML's trainer / by hand", [], note="not installed: kdtasks[metric]")
        return
    variants = {
        "by hand": _embedder_by_hand(o),
        "by hand again": _embedder_by_hand(o),
        "library": _embedder_by_distiller(o),
        "PML's trainer": _embedder_by_pml(o),
    }
    same_work(variants)
    times = step_times(o, variants)
    yield ratio(what, times, "by hand again", "by hand")
    yield ratio(what, times, "library", "by hand", bar=1.02)
    yield ratio(what, times, "PML's trainer", "by hand")
    yield ratio(what, times, "library", "PML's trainer", bar=1.0)


def _embedder(o) -> tuple:
    """Teacher, student, its optimizer, a loader of one batch, both losses."""
    from pytorch_metric_learning.losses import ContrastiveLoss

    teacher, student, input, target = pair(o)
    # two of each class, so that the contrastive loss has its pairs
    images = TensorDataset(input.cpu(), torch.arange(len(target)) // 2)
    loader = DataLoader(images, len(images))
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    return teacher, student, optimizer, loader, ContrastiveLoss(), RKDLoss()


def _embedder_by_hand(o) -> Step:
    teacher, student, optimizer, loader, metric, rkd = _embedder(o)

    def step() -> Tensor:
        images, labels = (tensor.to(o.device) for tensor in next(iter(loader)))
        with torch.no_grad():
            taught = teacher(images)
        embeddings = student(images)
        return update(metric(embeddings, labels) + rkd(embeddings, taught), optimizer)

    return step


def _embedder_by_distiller(o) -> Step:
    teacher, student, optimizer, loader, metric, rkd = _embedder(o)
    losses = {
        "loss_metric": (metric, ("student", "target")),
        "loss_rkd": (rkd, ("student", "teacher")),
    }
    distiller = Distiller(student, {"teacher": teacher}, losses)

    def step() -> Tensor:
        images, labels = (tensor.to(o.device) for tensor in next(iter(loader)))
        return update(sum(distiller(images, labels).values()), optimizer)

    return step


def _embedder_by_pml(o) -> Step:
    from kdtasks.metric_learning.plugin import DistillMetricTrainer

    teacher, student, optimizer, loader, metric, rkd = _embedder(o)
    trainer = DistillMetricTrainer(
        models={"trunk": student, "embedder": torch.nn.Identity()},
        optimizers={"trunk_optimizer": optimizer},
        batch_size=loader.batch_size,
        loss_funcs={"metric_loss": metric, "distill_loss": rkd},
        dataset=loader.dataset,
        sampler=loader.sampler,
        dataloader_num_workers=0,
        data_device=torch.device(o.device),
        teacher=teacher,
    )
    trainer.initialize_dataloader()
    trainer.set_to_train()

    def step() -> Tensor:
        trainer.forward_and_backward()
        return trainer.losses["total_loss"].detach()

    return step
