"""The stages of a run over a stream of experiences:
``stages=dict(type='kdtasks.incremental.stages.…')`` of a config.

Each experience goes on with the student of the one before, whose head grows by the new classes, and
is tested on all classes seen so far. The number of classes of each experience is the student's
``sizes``.

**Experiences of one class.** A softmax over one column is 1 whatever its logit: its cross-entropy
and its divergence are 0, and train nothing. Every list of stages here refuses such a loss before
anything is trained, and says which form learns: all seen columns in one softmax (``of=('student',
'target')``), or a sigmoid for each class (``lwf_losses('lwf_mc')``). What such a loss is of
decides: the new columns of an experience of one class; an old head of one class, or the only old
class; and all columns of a first experience of one class. The task-incremental accuracy of an
experience of one class is always 100.
"""

from collections.abc import Mapping, Sequence

from kdtasks.core.stages import control

_SOFTMAX = {
    "CrossEntropyLoss",
    "cross_entropy",
    "KDLoss",
    "kd_loss",
    "LwFLoss",
    "lwf_loss",
    "CurrentTeacherLoss",
    # losses that take a softmax of their first tensor
    "BalancedCrossEntropyLoss",
    "GlobalDistillationLoss",
}
_ALL = {"student.new": "student", "target.new": "target"}
# where nothing has been learned before
_FREE = {"fixed_norm": False, "train_old_heads": True}


def class_incremental_stages(
    config: Mapping,
    warm_up: Mapping | None = None,
    first: Mapping | None = None,
    head: str = "fc",
    joint: bool = True,
) -> list[dict]:
    """Fine-tuning ("alone") and the taught student, experience by experience; and all classes at
    once ("joint").

    The first experience, ``experience1``, has no teacher and is both arms' beginning. From then on
    ``alone2 … alone`` go on without a teacher, ``taught2 … distilled`` with the student of the
    experience before as ``teacher``.

    Args:
        config: given by the engine; ``student`` has ``sizes``, ``data.train`` and ``data.test`` are
            :func:`kdtasks.incremental.data.experiences`.
        warm_up: ``optimizer``, ``schedule``, ``length`` of a stage before each experience but the
            first, in both arms, which trains the new head alone with BatchNorm fixed (the LwF
            paper's warm-up); None: there is none.
        first: the same of the first experience, where they differ.
        head: path of the growing head in the network.
        joint: whether ``joint`` is there: fresh weights, the labelled samples of all experiences.

    Raises:
        ValueError: the student has no ``sizes``, or only one; there are exemplars, but a loss of
            ``target.new``; a loss is a softmax over one class.
    """
    sizes = sizes_of(config)
    _check_softmax(config["losses"], sizes)
    only_new = [name for name, entry in config["losses"].items() if "target.new" in entry["of"]]
    if config["data"]["train"].get("memory") and only_new:
        raise ValueError(
            f"{only_new[0]} is of target.new, in which exemplars (data.train.memory="
            f"{config['data']['train']['memory']}) have no class: expected of=('student', 'target')"
        )

    def arm(prefix: str, last: str, teach: bool) -> list[dict]:
        found, before = [], "experience1"
        for t in range(1, len(sizes)):
            name, start = last if t == len(sizes) - 1 else f"{prefix}{t + 1}", before
            if warm_up is not None:
                start = f"warm_{name}"
                found.append(
                    {
                        **experience_settings(config, t, fixed_norm=True),
                        **warm_up,
                        "name": start,
                        "student": before,
                        "train": [f"student.{head}.blocks.{t}", "losses"],
                    }
                )
            found.append(
                {
                    **experience_settings(config, t),
                    "name": name,
                    "student": start,
                    "teachers": {"teacher": before} if teach else {},
                }
            )
            before = name
        return found

    return [
        {**experience_settings(config, 0), **(first or {}), "name": "experience1"},
        *arm("alone", "alone", False),
        *([joint_stage(config)] if joint else []),
        *arm("taught", "distilled", True),
    ]


def global_distillation(
    config: Mapping,
    finetune: Mapping,
    current: Mapping | None = None,
    first: Mapping | None = None,
    head: str = "fc",
    terms: str = "PCQ",
    temperature: float = 2.0,
    confidence: float = 1.0,
    joint: bool = True,
) -> list[dict]:
    """Global Distillation (Lee et al., arXiv 1903.12648): three stages an experience; see
    :mod:`kdtasks.incremental.gd`.

    ``current<k>`` is the teacher C of the new classes (not there, and not trained, where ``terms``
    have no C), ``main<k>`` learns from C and from the student P of the experience before,
    ``taught<k>`` (the last one ``distilled``) fine-tunes the head with classes in balance. The
    control, ``alone<k>_main`` and ``alone<k>``, has the same exemplars and steps of the last two,
    by cross-entropy. The first experience has no teacher and no unlabelled samples, and is both
    arms' beginning.

    Args:
        config: as for :func:`class_incremental_stages`. With ``pool`` in ``data.train``,
            ``data.unlabelled_per_batch`` rows of a batch are of it.
        finetune: ``optimizer``, ``schedule``, ``length`` of the fine-tuning.
        current: those of the stages that train C, where they differ.
        first: those of the first experience, where they differ.
        head: path of the growing head in the network.
        terms, temperature: of :class:`~kdtasks.incremental.gd.GlobalDistillationLoss`.
        confidence: weight of the confidence loss of C.
        joint: as for :func:`class_incremental_stages`; with the config's ``losses``.

    Raises:
        ValueError: as :func:`class_incremental_stages`; or there is a pool, but no row of it in a
            batch; an experience of one class, where C, or the first experience, has a softmax over
            its classes.
    """
    sizes, package = sizes_of(config), "kdtasks.incremental.gd"
    unlabelled = config["data"]["unlabelled_per_batch"]
    if config["data"]["train"].get("pool") and not unlabelled:
        raise ValueError("data.train has a pool, and data.unlabelled_per_batch=0 leaves it unused")
    # in C's place, and not looked at
    current_columns = ["current.new"] if "C" in terms else ["previous"]
    only_head = {"train": [f"student.{head}", "losses"]}

    def plain(balanced: bool) -> dict:
        return {
            "loss_cls": {
                "type": f"{package}.BalancedCrossEntropyLoss",
                "balanced": balanced,
                "of": ["student", "target.all", "class_counts"],
            }
        }

    def distilled(balanced: bool) -> dict:
        return {
            "loss_gd": {
                "type": f"{package}.GlobalDistillationLoss",
                "balanced": balanced,
                "terms": terms,
                "temperature": temperature,
                "of": ["student", "previous", *current_columns, "target.all", "class_counts"],
            }
        }

    teacher_of_new = {
        "loss_new": {
            "type": f"{package}.CurrentTeacherLoss",
            "confidence": confidence,
            "of": ["student.new", "target.new"],
        }
    }
    with_c = "C" in terms
    _check_softmax(
        {"loss_cls": plain(False)["loss_cls"], **(teacher_of_new if with_c else {})}, sizes
    )
    alone, taught, control, before = [], [], "experience1", "experience1"
    for t in range(1, len(sizes)):
        name, other = (
            ("distilled", "alone") if t == len(sizes) - 1 else (f"taught{t + 1}", f"alone{t + 1}")
        )
        teachers = {"previous": before, **({"current": f"current{t + 1}"} if with_c else {})}
        own, labelled = (
            experience_settings(config, t),
            experience_settings(_without_pool(config), t),
        )
        alone += [
            {**labelled, "name": f"alone{t + 1}_main", "student": control, "losses": plain(False)},
            {
                **labelled,
                **finetune,
                **only_head,
                "name": other,
                "student": f"alone{t + 1}_main",
                "losses": plain(True),
            },
        ]
        data = {**own["data"], "unlabelled_per_batch": unlabelled}
        taught += [
            *(
                [
                    {
                        **own,
                        **(current or {}),
                        "data": data,
                        "name": f"current{t + 1}",
                        "student": before,
                        "losses": teacher_of_new,
                    }
                ]
                if with_c
                else []
            ),
            {
                **own,
                "name": f"main{t + 1}",
                "student": before,
                "teachers": teachers,
                "losses": distilled(False),
            },
            {
                **own,
                **finetune,
                **only_head,
                "name": name,
                "student": f"main{t + 1}",
                "teachers": teachers,
                "losses": distilled(True),
            },
        ]
        control, before = other, name
    return [
        {
            **experience_settings(_without_pool(config), 0),
            **(first or {}),
            "name": "experience1",
            "losses": plain(False),
        },
        *alone,
        *([joint_stage(_without_pool(config))] if joint else []),
        *taught,
    ]


def _without_pool(config: Mapping) -> dict:
    """The config for stages without unlabelled samples: they are the same whether there is a pool
    or not.
    """
    data = config["data"]
    return {
        **config,
        "data": {
            **data,
            "train": {key: value for key, value in data["train"].items() if key != "pool"},
        },
    }


def sizes_of(config: Mapping) -> tuple[int, ...]:
    """Classes of each experience."""
    sizes = tuple(config["student"].get("sizes") or ())
    if len(sizes) < 2:
        raise ValueError(
            f"expected a student with the sizes of at least two experiences, got "
            f"{config['student']}: dict(type='kdtasks.incremental.models.growing', "
            "network=dict(type=…), sizes=(5, 5))"
        )
    return sizes


def _check_softmax(losses: Mapping[str, Mapping], sizes: Sequence[int]) -> None:
    """No loss is a softmax over one class, in any experience."""
    for t in range(len(sizes)):
        columns = {"student": sum(sizes[: t + 1]), "student.new": sizes[t]}
        if t:
            columns |= {"student.old": sum(sizes[:t]), "student.old_heads": min(sizes[:t])}
        for name, entry in losses.items():
            of = entry["of"] if isinstance(entry["of"], str) else entry["of"][0]
            kind = entry.get("type", "")
            kind = (
                kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")
            )
            if kind in _SOFTMAX and columns.get(of) == 1 and entry.get("weight", 1) != 0:
                raise ValueError(
                    f"{name}: {kind} of {of!r} is a softmax over one class in experience "
                    f"{t + 1} of sizes "
                    f"{tuple(sizes)}: it is 0 whatever the logit, and trains nothing. Expected two "
                    "classes or more in each softmax: experiences of several classes, "
                    "of=('student', 'target') for all seen columns in one; or a sigmoid for each "
                    "class, lwf_losses('lwf_mc'), which learns one by one"
                )


def experience_settings(config: Mapping, t: int, **arguments) -> dict:
    """What every stage of experience t (from 0) has: the head so far, its samples, the test of all
    classes seen.
    """
    sizes, data = list(config["student"]["sizes"]), config["data"]
    arguments = arguments or ({} if t else _free(config))
    return {
        "arguments": {"sizes": sizes[: t + 1], **arguments},
        "data": {part: {**data[part], "experience": t} for part in ("train", "test")},
    }


def joint_stage(config: Mapping) -> dict:
    """The stage "joint": all classes are new, and there are as many steps as in all experiences of
    an arm.
    """

    def all_new(of: str | Sequence[str]) -> str | list[str]:
        return (
            _ALL.get(of, of) if isinstance(of, str) else [_ALL.get(tensor, tensor) for tensor in of]
        )

    plain = control(config["losses"], {"teacher": None})
    losses = {name: {**entry, "of": all_new(entry["of"])} for name, entry in plain.items()}
    steps = config["length"].get("iterations") if isinstance(config["length"], Mapping) else None
    longer = (
        {} if steps is None else {"length": {"iterations": steps * len(config["student"]["sizes"])}}
    )
    return {
        **longer,
        "name": "joint",
        "losses": losses,
        "arguments": _free(config),
        "data": {
            "train": {**config["data"]["train"], "experience": None, "memory": 0},
            "test": config["data"]["test"],
        },
    }


def _free(config: Mapping) -> dict:
    return {name: value for name, value in _FREE.items() if name in config["student"]}
