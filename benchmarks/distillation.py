"""A KD step: by hand, through the Distiller, through torchdistill, with cached teacher outputs."""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import SGD, Line, Step, ratio, same_work, step_times, update
from kdtasks.classification import models
from kdtasks.core import Distiller
from kdtasks.core.cache import TeacherCache
from kdtasks.general import KDLoss

# temperature; weights of cross-entropy, soft targets, each feature
T, HARD, SOFT, HINT = 4.0, 0.1, 0.9, 0.5
FEATURES = ("conv1", "layer1", "layer2", "layer3")


def pair(o) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Teacher, student, images and labels: new objects, the same values in every call."""
    torch.manual_seed(0)
    teacher, student = (getattr(models, name)(100) for name in o.models)
    input, target = torch.randn(o.batch, 3, 32, 32), torch.randint(100, (o.batch,))
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            # the statistics of one batch: features keep a sane size
            module.momentum = 1.0
    with torch.no_grad():
        teacher(input)
    teacher.eval()
    teacher.requires_grad_(False)
    return teacher.to(o.device), student.to(o.device), input.to(o.device), target.to(o.device)


def by_hand(o, features=(), wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> Step:
    """The floor; its hooks are registered once. ``wrap`` is DDP where there are processes."""
    teacher, student, input, target = pair(o)
    optimizer, seen = torch.optim.SGD(student.parameters(), **SGD), {}
    for role, model in (("student", student), ("teacher", teacher)):
        for path in features:
            model.get_submodule(path).register_forward_hook(
                lambda module, args, output, key=(role, path): seen.__setitem__(key, output)
            )
    student = wrap(student)

    def step() -> Tensor:
        with torch.no_grad():
            taught = teacher(input)
        logits = student(input)
        soft = F.kl_div(
            F.log_softmax(logits / T, 1),
            F.log_softmax(taught / T, 1),
            reduction="batchmean",
            log_target=True,
        )
        loss = HARD * F.cross_entropy(logits, target) + SOFT * T**2 * soft
        for path in features:
            loss = loss + HINT * F.mse_loss(seen["student", path], seen["teacher", path])
        seen.clear()
        return update(loss, optimizer)

    return step


def terms(features=()) -> dict[str, tuple]:
    return {
        "loss_cls": (nn.CrossEntropyLoss(), ("student", "target"), HARD),
        "loss_kd": (KDLoss(T), ("student", "teacher"), SOFT),
        **{
            f"loss_{path}": (nn.MSELoss(), (f"student.{path}", f"teacher.{path}"), HINT)
            for path in features
        },
    }


def library(
    o,
    features=(),
    carry: Callable[[nn.Module, Tensor], Callable[[], dict]] = lambda *_: dict,
    wrap: Callable[[nn.Module], nn.Module] = lambda m: m,
    further: Mapping[str, tuple] = MappingProxyType({}),
) -> Step:
    """The Distiller in a plain loop; ``carry(teacher, input)()`` is what a batch brings along of
    the teacher's output, ``wrap`` is DDP where there are processes, ``further`` are more losses.
    """
    teacher, student, input, target = pair(o)
    distiller = Distiller(student, {"teacher": teacher}, {**terms(features), **further})
    distiller.build(input, target)
    optimizer, carried = torch.optim.SGD(distiller.parameters(), **SGD), carry(teacher, input)
    wrapped = wrap(distiller)

    def step() -> Tensor:
        losses = wrapped({"input": input, "target": target, **carried()})
        return update(sum(losses.values()), optimizer)

    return step


def torchdistill(o, features=()) -> dict[str, Step]:
    """torchdistill's box with its own losses and hooks, driven as its examples do; empty where it
    is not installed.
    """
    if importlib.util.find_spec("torchdistill") is None:
        return {}
    from torchdistill.core.distillation import get_distillation_box

    teacher, student, input, target = pair(o)
    weighted = {
        "kd": {
            "weight": 1.0,
            "criterion": {
                "key": "KDLoss",
                "kwargs": {
                    "student_module_path": ".",
                    "student_module_io": "output",
                    "teacher_module_path": ".",
                    "teacher_module_io": "output",
                    "temperature": T,
                    "alpha": HARD,
                    "beta": SOFT,
                },
            },
        }
    }
    for path in features:
        of = {
            name: {"is_from_teacher": name == "target", "module_path": path, "io": "output"}
            for name in ("input", "target")
        }
        weighted[path] = {
            "weight": HINT,
            "criterion": {"key": "MSELoss", "kwargs": {}},
            "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": of},
        }
    model = {
        "forward_proc": "forward_batch_only",
        "forward_hook": {"output": list(features)} if features else {},
    }
    box = get_distillation_box(
        teacher,
        student,
        {},
        {
            "num_epochs": 1,
            "teacher": {**model, "requires_grad": False},
            "student": model,
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": weighted}},
            "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        },
        torch.device(o.device),
        None,
        False,
        1.0,
    )

    def step() -> Tensor:
        loss = box.forward_process(input, target, {})
        box.post_forward_process(loss)  # backward, step, zero_grad
        return loss.detach()

    return {"torchdistill": step}


def kd_step(
    o, what: str = "KD step: ", features=(), bar: float = 1.02, rival: float | None = 1.0
) -> Iterator[Line]:
    """Soft targets; a second step by hand shows what the noise alone does."""
    variants = {
        "by hand": by_hand(o, features),
        "by hand again": by_hand(o, features),
        "library": library(o, features),
        **torchdistill(o, features),
    }
    same_work(variants)
    times = step_times(o, variants)
    yield ratio(what, times, "by hand again", "by hand")
    yield ratio(what, times, "library", "by hand", bar=bar)
    yield ratio(what, times, "torchdistill", "by hand")
    yield ratio(what, times, "library", "torchdistill", bar=rival)


def feature_step(o) -> Iterator[Line]:
    """Soft targets and four feature losses."""
    yield from kd_step(o, "with 4 features: ", FEATURES, bar=1.05, rival=None)


def cached_step(o) -> Iterator[Line]:
    """Teacher logits out of a cache of this batch, in float32 so that the loss is the live one,
    against no teacher at all.
    """
    at = {"index": torch.arange(o.batch), "view": torch.zeros(o.batch, dtype=torch.int64)}

    def cached(teacher: nn.Module, input: Tensor) -> Callable[[], dict]:
        with torch.no_grad():
            cache = TeacherCache.write(
                folder, {}, o.batch, 1, [at], lambda batch: {"teacher": teacher(input)}, half=False
            )
        cache.to(o.device)
        return lambda: cache.fetch(**at)

    _, student, input, target = pair(o)
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            "cached KD step": library(o, carry=cached),
            "student alone": lambda: update(F.cross_entropy(student(input), target), optimizer),
        }
        same_work({"live": library(o), "cached": variants["cached KD step"]})
        yield ratio("", step_times(o, variants), *variants, bar=1.05)
