"""The stages of a run over a stream of experiences:
``stages=dict(type='kdtasks.incremental.stages.…')`` of a config.

Each experience continues with the student of the one before, whose head grows by the new classes,
and is tested on all classes seen so far. The number of classes of each experience is the student's
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
from dataclasses import dataclass

from kdtasks.core.control import control_losses, taught_names
from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.incremental.gd import BalancedCrossEntropyLoss, step_losses

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
# the same tensors when all classes are new
_ALL = {"student.new": "student", "target.new": "target"}
# arguments of a student that has learned nothing before
_FREE = {"fixed_norm": False, "train_old_heads": True}


def class_incremental_stages(
    config: Mapping,
    warm_up: Mapping | None = None,
    first: Mapping | None = None,
    head: str = "fc",
    joint: bool = True,
    balance: bool = False,
    finish: str | None = None,
) -> list[dict]:
    """Fine-tuning ("alone") and the taught student, experience by experience; and all classes at
    once ("joint").

    The first experience, ``experience1``, has no teacher; both arms start from it. From then on
    ``alone2 … alone`` go on without a teacher, ``taught2 … distilled`` with the student of the
    experience before as ``teacher``.

    Args:
        config: given by the engine; ``student`` has ``sizes``, ``data.train`` and ``data.test`` are
            :func:`kdtasks.incremental.data.experiences`.
        warm_up: ``optimizer``, ``schedule``, ``length`` of a stage before each experience but the
            first, in both arms, which trains the new head alone with BatchNorm fixed (the LwF
            paper's warm-up); None: there is none.
        first: settings of the first experience that differ from the others'.
        head: path of the growing head in the network.
        joint: whether there is a stage ``joint``: fresh weights, the labelled samples of all
            experiences.
        balance: when taught, losses of a teacher weigh λ = l / (l + m) times their weight, for l
            old and m new classes, and the others 1 - λ, as WA and BiC have it.
        finish: path of the function that changes the taught student at the end of each experience
            but the first, before it is tested and goes on as student and teacher:
            ``'kdtasks.incremental.finish.align_weights'`` (WA) or ``….correct_bias`` (BiC).

    Raises:
        ValueError: the student has no ``sizes``, or only one; there are exemplars, but a loss of
            ``target.new``; a loss is a softmax over one class; ``finish`` lacks what it needs.
    """
    check_softmax(config["losses"], sizes_of(config))
    _check_exemplars(config)
    _check_finish(config, finish)
    start = {**experience_settings(config, 0), **(first or {}), "name": "experience1"}
    start["role"] = "step"
    stages = [start, *_arm(config, False, warm_up, head)]
    if joint:
        stages.append(joint_stage(config))
    taught_stages = _arm(config, True, warm_up, head)
    for stage in taught_stages:
        if balance and stage.get("teachers"):
            stage["losses"] = _balanced(config["losses"], stage["arguments"]["sizes"])
        if finish and stage.get("teachers"):
            stage["finish"] = {"type": finish}
    return [*stages, *taught_stages]


def _balanced(losses: Mapping[str, Mapping], sizes: Sequence[int]) -> dict[str, dict]:
    """The losses at the share of the old classes, where they are of a teacher, and of the new."""
    share = sum(sizes[:-1]) / sum(sizes)
    return {
        name: {
            **entry,
            "weight": entry.get("weight", 1.0)
            * (share if taught_names(entry["of"]) else 1 - share),
        }
        for name, entry in losses.items()
    }


def end_role(is_last: bool, with_teacher: bool) -> str:
    """Of a stage that ends an experience."""
    if not is_last:
        return "step"
    return "taught" if with_teacher else "control"


def _check_finish(config: Mapping, finish: str | None) -> None:
    """BiC has numbers to fit, and samples to fit them to."""
    if finish is None or finish.rpartition(".")[2] != "correct_bias":
        return
    if not config["student"].get("bias_correction") or not config["data"]["train"].get("held_out"):
        raise ValueError(
            f"finish={finish!r} needs student.bias_correction=True, which has the numbers that it "
            "fits, and data.train.held_out=0.1, the share of the exemplars that it fits them to"
        )


def _check_exemplars(config: Mapping) -> None:
    """Exemplars of old classes have no target among the new ones."""
    train = config["data"]["train"]
    memory = train.get("memory") or train.get("memory_per_class")
    of_new = [name for name, entry in config["losses"].items() if "target.new" in entry["of"]]
    if memory and of_new:
        raise ValueError(
            f"{of_new[0]} is of target.new, in which exemplars (data.train.memory={memory}) have "
            "no class: expected of=('student', 'target')"
        )


def _arm(config: Mapping, with_teacher: bool, warm_up: Mapping | None, head: str) -> list[dict]:
    """The stages of one arm after the first experience, ``taught2, taught3, … distilled`` or
    ``alone2, alone3, … alone``.
    """
    prefix, last_name = ("taught", DISTILLED) if with_teacher else (ALONE, ALONE)
    stages: list[dict] = []
    before, experiences = "experience1", len(config["student"]["sizes"])
    for t in range(1, experiences):
        is_last = t == experiences - 1
        name = last_name if is_last else f"{prefix}{t + 1}"
        start = before
        if warm_up is not None:
            start = f"warm_{name}"
            stages.append(
                {
                    **experience_settings(config, t, fixed_norm=True),
                    **warm_up,
                    "name": start,
                    "role": "step",
                    "student": before,
                    "train": [f"student.{head}.blocks.{t}", "losses"],
                }
            )
        stages.append(
            {
                **experience_settings(config, t),
                "name": name,
                "role": end_role(is_last, with_teacher),
                "student": start,
                "teachers": {"teacher": before} if with_teacher else {},
            }
        )
        before = name
    return stages


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

    ``current<k>`` is the teacher C of the new classes (left out, and not trained, if ``terms`` have
    no C), ``main<k>`` learns from C and from the student P of the experience before, ``taught<k>``
    (the last one ``distilled``) fine-tunes the head with balanced classes. The control,
    ``alone<k>_main`` and ``alone<k>``, has the same exemplars and steps as the last two, with
    cross-entropy. The first experience has no teacher and no unlabelled samples; both arms start
    from it.

    Args:
        config: as for :func:`class_incremental_stages`. With ``pool`` in ``data.train``,
            ``data.unlabelled_per_batch`` rows of a batch come from it.
        finetune: ``optimizer``, ``schedule``, ``length`` of the fine-tuning.
        current: settings of the stages that train C, if they differ.
        first: settings of the first experience, if they differ.
        head: path of the growing head in the network.
        terms, temperature: of :class:`~kdtasks.incremental.gd.GlobalDistillationLoss`.
        confidence: weight of the confidence loss of C.
        joint: as for :func:`class_incremental_stages`; with the config's ``losses``.

    Raises:
        ValueError: as :func:`class_incremental_stages`; or there is a pool, but no row of it in a
            batch; an experience of one class, if C, or the first experience, has a softmax over
            its classes.
    """
    sizes = sizes_of(config)
    if config["data"]["train"].get("pool") and not config["data"]["unlabelled_per_batch"]:
        raise ValueError("data.train has a pool, and data.unlabelled_per_batch=0 leaves it unused")
    labelled = _without_pool(config)
    losses = step_losses(temperature, confidence, terms)
    procedure = _GlobalDistillation(config, labelled, losses, finetune, current or {}, head, terms)
    procedure.check_softmax()
    start = {
        **experience_settings(labelled, 0),
        **(first or {}),
        "name": "experience1",
        "role": "step",
        "losses": procedure.cross_entropy(balanced=False),
    }
    control_stages, taught_stages = [start], [start]
    for t in range(1, len(sizes)):
        control_stages += procedure.control_stages(t, before=control_stages[-1]["name"])
        taught_stages += procedure.taught_stages(t, before=taught_stages[-1]["name"])
    if joint:
        control_stages.append(joint_stage(labelled))
    return [*control_stages, *taught_stages[1:]]


@dataclass(frozen=True)
class _GlobalDistillation:
    """The stages of an experience, and their losses.

    Attributes:
        config, labelled: the run's config, and the same without the pool.
        losses: of :func:`kdtasks.incremental.gd.step_losses`.
        finetune, current: settings of these steps.
        head: path of the growing head.
        terms: letters of the teachers.
    """

    config: Mapping
    labelled: Mapping
    losses: Mapping[str, tuple[type, dict]]
    finetune: Mapping
    current: Mapping
    head: str
    terms: str

    def control_stages(self, t: int, before: str) -> list[dict]:
        """The main step and the fine-tuning of experience t (from 0) without teachers; ``before``
        is the control's last stage of the experience before.
        """
        main = f"alone{t + 1}_main"
        return [
            {
                **experience_settings(self.labelled, t),
                "name": main,
                "role": "step",
                "student": before,
                "losses": self.cross_entropy(balanced=False),
            },
            {
                **experience_settings(self.labelled, t),
                **self._only_head(),
                "name": ALONE if self._is_last(t) else f"alone{t + 1}",
                "role": end_role(self._is_last(t), with_teacher=False),
                "student": main,
                "losses": self.cross_entropy(balanced=True),
            },
        ]

    def taught_stages(self, t: int, before: str) -> list[dict]:
        """The current teacher, the main step and the fine-tuning of experience t (from 0);
        ``before`` is the taught student's last stage of the experience before.
        """
        teachers, stages = {"previous": before}, []
        if "C" in self.terms:
            teachers["current"] = f"current{t + 1}"
            stages.append(self._current_stage(t, teachers["current"], before))
        main = f"main{t + 1}"
        return [
            *stages,
            {
                **experience_settings(self.config, t),
                "name": main,
                "role": "step",
                "student": before,
                "teachers": teachers,
                "losses": {"loss_gd": self._distillation("main")},
            },
            {
                **experience_settings(self.config, t),
                **self._only_head(),
                "name": DISTILLED if self._is_last(t) else f"taught{t + 1}",
                "role": end_role(self._is_last(t), with_teacher=True),
                "student": main,
                "teachers": teachers,
                "losses": {"loss_gd": self._distillation("finetune")},
            },
        ]

    def _current_stage(self, t: int, name: str, before: str) -> dict:
        """C has no teacher, so its data says itself that it has unlabelled samples."""
        settings = experience_settings(self.config, t)
        unlabelled = self.config["data"]["unlabelled_per_batch"]
        return {
            **settings,
            **self.current,
            "data": {**settings["data"], "unlabelled_per_batch": unlabelled},
            "name": name,
            "role": "step",
            "student": before,
            "losses": {"loss_new": self._new_classes()},
        }

    def cross_entropy(self, balanced: bool) -> dict:
        """The losses of a student without teachers."""
        of = ["student", "target.all", "class_counts"]
        return {"loss_cls": _entry(BalancedCrossEntropyLoss, {"balanced": balanced}, of)}

    def check_softmax(self) -> None:
        """No stage without a teacher has a softmax over one class."""
        losses = self.cross_entropy(balanced=False)
        if "C" in self.terms:
            losses["loss_new"] = self._new_classes()
        check_softmax(losses, sizes_of(self.config))

    def _new_classes(self) -> dict:
        return _entry(*self.losses["current"], ["student.new", "target.new"])

    def _distillation(self, step: str) -> dict:
        # without C, the loss does not look at what stands in its place
        current = "current.new" if "C" in self.terms else "previous"
        of = ["student", "previous", current, "target.all", "class_counts"]
        return _entry(*self.losses[step], of)

    def _only_head(self) -> dict:
        return {**self.finetune, "train": [f"student.{self.head}", "losses"]}

    def _is_last(self, t: int) -> bool:
        return t == len(self.config["student"]["sizes"]) - 1


def _entry(loss: type, arguments: Mapping, of: list[str]) -> dict:
    """A loss as a config has it."""
    return {"type": f"{loss.__module__}.{loss.__qualname__}", **arguments, "of": of}


def _without_pool(config: Mapping) -> dict:
    """The config of stages without unlabelled samples, which are the same with and without a
    pool.
    """
    data = config["data"]
    train = {key: value for key, value in data["train"].items() if key != "pool"}
    return {**config, "data": {**data, "train": train}}


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


def check_softmax(losses: Mapping[str, Mapping], sizes: Sequence[int]) -> None:
    """No loss is a softmax over one class, in any experience.

    Raises:
        ValueError: one is; the message says which form learns.
    """
    for t in range(len(sizes)):
        columns = {"student": sum(sizes[: t + 1]), "student.new": sizes[t]}
        if t:
            columns |= {"student.old": sum(sizes[:t]), "student.old_heads": min(sizes[:t])}
        for name, entry in losses.items():
            of = entry["of"] if isinstance(entry["of"], str) else entry["of"][0]
            kind = _type_name(entry)
            if kind in _SOFTMAX and columns.get(of) == 1 and entry.get("weight", 1) != 0:
                raise ValueError(
                    f"{name}: {kind} of {of!r} is a softmax over one class in experience {t + 1} "
                    f"of sizes {tuple(sizes)}: it is 0 whatever the logit, and trains nothing. "
                    "Expected two classes or more in each softmax: experiences of several classes, "
                    "of=('student', 'target') for all seen columns in one; or a sigmoid for each "
                    "class, lwf_losses('lwf_mc'), which learns one by one"
                )


def _type_name(entry: Mapping) -> str:
    """The last part of a loss's type, which is a dotted path or a callable."""
    kind = entry.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")


def experience_settings(config: Mapping, t: int, **arguments: object) -> dict:
    """Settings of every stage of experience t (from 0): the head so far, its samples, the test of
    all classes seen.
    """
    sizes, data = list(config["student"]["sizes"]), config["data"]
    if not arguments and t == 0:
        arguments = _free(config)
    return {
        "arguments": {"sizes": sizes[: t + 1], **arguments},
        "data": {part: {**data[part], "experience": t} for part in ("train", "test")},
    }


def joint_stage(config: Mapping) -> dict:
    """The stage "joint": all classes are new, and there are as many steps as in all experiences of
    an arm.
    """
    losses = control_losses(config["losses"], {"teacher": None})
    stage = {
        "name": "joint",
        "role": "joint",
        "losses": {name: {**entry, "of": _all_new(entry["of"])} for name, entry in losses.items()},
        "arguments": _free(config),
        "data": {
            "train": {**config["data"]["train"], "experience": None, "memory": 0},
            "test": config["data"]["test"],
        },
    }
    length = config["length"]
    if isinstance(length, Mapping) and length.get("iterations") is not None:
        experiences = len(config["student"]["sizes"])
        stage["length"] = {"iterations": length["iterations"] * experiences}
    return stage


def _all_new(of: str | Sequence[str]) -> str | list[str]:
    """The tensors of a loss if all classes are new."""
    if isinstance(of, str):
        return _ALL.get(of, of)
    return [_ALL.get(tensor, tensor) for tensor in of]


def _free(config: Mapping) -> dict:
    return {name: value for name, value in _FREE.items() if name in config["student"]}
