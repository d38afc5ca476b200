r"""Learning without Forgetting: the old model's outputs kept on new data (Li and Hoiem, ECCV 2016,
arXiv 1606.09282).

New classes come, the old data is gone. The model of before, frozen, is shown the new images, and
what it says of its own l classes is the target of the student's l old columns, both softened by a
temperature T:

.. math:: L_{\mathrm{old}} =
    \frac{1}{B} \sum_{b=1}^{B} \sum_{c=1}^{l} q_{bc} \,(\log q_{bc} - \log p_{bc}), \qquad
    q = \mathrm{softmax}(z^t / T), \quad p = \mathrm{softmax}(z^s_{\mathrm{old}} / T)

The paper writes probabilities raised to 1/T and normalised, which are these, and minimises the
cross-entropy :math:`-\sum q \log p`, whose gradient is the same: :math:`(p - q) / (T B)`.
**There is no T² here**: the authors' code divides by T once. At T = 2 the pull is a quarter of that
of Hinton's loss at the same weight. T = 2 is the paper's, from a grid search.

Several old heads, one an experience (the paper's task-incremental case): a softmax over each, and
the sum over heads.

**LwF.MC** (iCaRL, arXiv 1611.07725) is another loss under the name: one binary cross-entropy over
all r columns, whose targets are the teacher's sigmoids for the old columns and the label for the
new ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised
from kdtasks.general.divergences import binary_cross_entropy_terms
from kdtasks.general.kd import kd_loss

_NEW, _SEEN = ("student.new", "target.new"), ("student", "target")
_HEADS, _OLD = ("student.old_heads", "teacher.heads"), ("student.old", "teacher")
# what cross-entropy and LwF's loss are of, LwF's weight and temperature
PRESETS = {
    "paper": (_NEW, _HEADS, 1.0, 2.0),
    "facil": (_NEW, _OLD, 1.0, 2.0),
    "pycil": (_NEW, _OLD, 3.0, 2.0),
    "mammoth": (_SEEN, _OLD, 0.5, 2.0),
    "avalanche": (_SEEN, _OLD, 1.0, 2.0),
    "lwf_mc": (_SEEN, ("student", "teacher", "target"), 1.0, None),
}


def lwf_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """KL(teacher ‖ student) at a temperature, summed over classes, mean over the batch; no T².

    Args:
        student: ``(B, l)`` logits of the old classes; carries the gradient.
        teacher: ``(B, l)`` logits of the same classes in the same order; never receives a gradient.
        temperature: T > 0; 2 in the paper.

    Returns:
        A scalar in nats. Half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no rows or no old classes.

    Raises:
        ValueError: the shapes differ or are not ``(B, l)``; there is one old class, whose softmax
            is 1 whatever its logit, so that nothing is kept; or the temperature is not positive.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"expected the same old columns of both, (B, l), got student "
            f"{tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}; in a config: of=('student.old', 'teacher')"
        )
    if student.shape[1] == 1:
        raise ValueError(
            f"expected at least two old classes in one softmax, got "
            f"{tuple(student.shape)}: the softmax of one logit is 1 whatever the logit, so nothing "
            "of the class would be kept. Expected one softmax over all old columns, "
            "of=('student.old', 'teacher'), of two or more; or sigmoids: lwf_mc_loss"
        )
    return kd_loss(student, teacher, temperature) / temperature**2


class LwFLoss(nn.Module):
    """:func:`lwf_loss` of one softmax over all old columns, or of each old head, summed.

    Args:
        temperature: T > 0.
        scale_t2: multiply by T², as Hinton's loss is: the gradient then keeps its size when T
            changes.

    Raises:
        ValueError: the temperature is not positive; when called: shapes or numbers of heads differ.
    """

    def __init__(self, temperature: float = 2.0, scale_t2: bool = False):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature, self.scale_t2 = temperature, scale_t2

    def forward(
        self, student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]
    ) -> Tensor:
        """``(B, l)`` of each, ``of=('student.old', 'teacher')``; or lists of ``(B, c)``, one a
        head, ``of=('student.old_heads', 'teacher.heads')``.
        """
        students = [student] if isinstance(student, Tensor) else list(student)
        teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
        if len(students) != len(teachers):
            raise ValueError(
                f"expected as many old heads as the teacher has, got {len(students)} of the "
                f"student, {[tuple(z.shape) for z in students]}, and {len(teachers)} of the "
                f"teacher, {[tuple(z.shape) for z in teachers]}"
            )
        if not students:
            return torch.zeros((), requires_grad=True)
        loss = sum(lwf_loss(s, t, self.temperature) for s, t in zip(students, teachers))
        return loss * self.temperature**2 if self.scale_t2 else loss

    def extra_repr(self) -> str:
        """The arguments."""
        return f"temperature={self.temperature}, scale_t2={self.scale_t2}"


def lwf_mc_loss(student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
    """LwF.MC: binary cross-entropy of every column, mean over batch **and** columns.

    An old column's target is the teacher's sigmoid, for rows of old classes (exemplars) too; a new
    column's is 1 where it is the row's class, else 0.

    Args:
        student: ``(B, r)`` logits, old columns first; carries the gradient.
        teacher: ``(B, l)`` logits, l <= r; never receives a gradient. None in the first experience:
            every column is new.
        target: ``(B,)`` int64 columns.

    Returns:
        A scalar in nats, r times smaller than a sum over columns: iCaRL's learning rate of 2
        belongs to it. Half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no rows.

    Raises:
        ValueError: the shapes do not fit.
    """
    rows, old = len(student), 0 if teacher is None else teacher.shape[-1]
    teacher_fits = teacher is None or teacher.shape == (rows, old)
    fit = student.dim() == 2 and student.shape[1] >= max(old, 1)
    if not fit or target.shape != (rows,) or not teacher_fits:
        teacher_shape = None if teacher is None else tuple(teacher.shape)
        raise ValueError(
            "expected student (B, r), r >= 1, teacher (B, l) with l <= r or None, target (B,), got "
            f"student {tuple(student.shape)}, teacher {teacher_shape}, target {tuple(target.shape)}"
        )
    if teacher is None:
        (student,) = raised(student)
    else:
        student, teacher = raised(student, teacher.detach())
    # (B, r)
    probabilities = torch.zeros_like(student).scatter_(1, target[:, None], 1.0)
    if teacher is not None:
        probabilities[:, :old] = teacher.sigmoid()
    return binary_cross_entropy_terms(student, probabilities).sum() / max(student.numel(), 1)


def one_hot_bce(student: Tensor, target: Tensor) -> Tensor:
    """:func:`lwf_mc_loss` without a teacher: what its control trains with."""
    return lwf_mc_loss(student, None, target)


def lwf_losses(
    preset: str = "paper",
    weight: float | None = None,
    temperature: float | None = None,
    scale_t2: bool = False,
) -> dict[str, dict]:
    """The ``losses`` of a config, as the paper or a public code base has them: ``losses =
    lwf_losses('pycil')``.

    Six systems call these LwF; they differ in more than numbers. KL stands here for their
    cross-entropy: another value, the same gradient. No preset has T².

    =============  ====================  ==========================  ============  ================
    preset         cross-entropy over    distillation                weight, T     source
    =============  ====================  ==========================  ============  ================
    ``paper``      the new head          a softmax an old head       1, 2          MatConvNet code
    ``facil``      the new columns       one softmax, old columns    1 (10), 2     approach/lwf.py
    ``pycil``      the new columns       one softmax, old columns    3, 2          models/lwf.py
    ``mammoth``    all seen columns      one softmax, old columns    0.5, 2        models/lwf.py
    ``avalanche``  all seen columns      one softmax, old columns    1, 2          plugins/lwf.py
    ``lwf_mc``     (binary, with both)   :func:`lwf_mc_loss`         none          mammoth's lwf_mc
    =============  ====================  ==========================  ============  ================

    FACIL's default weight is 1, its survey's grid has 10: ``weight=10``. avalanche's ``LwFPlugin``
    has the defaults alpha 1 and temperature 2 (its strategy ``LwF`` has none).

    Experiences of **one** class: a softmax over one column is 1 whatever its logit, so its loss is
    0 and teaches nothing. The stages refuse what is one (:mod:`kdtasks.incremental.stages`):
    cross-entropy of the new columns, LwF's loss of a head with one class, and of the only old
    class. ``lwf_mc``, with a sigmoid for each class, learns and keeps them.

    Not in the losses, and not reproduced by them:

    - paper: the warm-up, in which the new head learns alone. A stage before, with
      ``train=['student.fc.blocks.<last>.*']``.
    - FACIL: 1e-5 / l mixed into every probability; cross-entropy over all seen columns once there
      are exemplars; old heads that do not learn (a stage's ``train`` patterns can leave them out).
    - mammoth: teacher's logits stored before the experience, of images without augmentation; a
      warm-up of the new columns.
    - avalanche: a teacher in training mode, whose BatchNorm follows the new data. Its multi-head
      case is ``paper``.

    In the first experience there is no teacher, and only the cross-entropy is left; so in the
    control, "alone". For ``lwf_mc`` that is :func:`one_hot_bce`, whose weight is 0 when taught,
    since :func:`lwf_mc_loss` holds the new columns too. Over the new columns only, a batch needs a
    row of a new class: torch's mean over no row is nan.

    Args:
        preset: see the table.
        weight, temperature: of the distillation; None: the preset's.
        scale_t2: see :class:`LwFLoss`.

    Raises:
        ValueError: an unknown preset; a weight, temperature or T² for ``lwf_mc``, which has none.
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; {did_you_mean(str(preset), PRESETS)}")
    hard, soft, usual_weight, usual_temperature = PRESETS[preset]
    if preset == "lwf_mc":
        if weight is not None or temperature is not None or scale_t2:
            raise ValueError(
                f"lwf_mc is one loss without weight or temperature, got weight={weight}, "
                f"temperature={temperature}, scale_t2={scale_t2}"
            )
        return {
            "loss_cls": dict(type=f"{__name__}.one_hot_bce", of=hard, weight=0.0),
            "loss_lwf": dict(type=f"{__name__}.lwf_mc_loss", of=soft, weight=usual_weight),
        }
    return {
        "loss_cls": dict(type="torch.nn.CrossEntropyLoss", of=hard, weight=1.0),
        "loss_lwf": dict(
            type=f"{__name__}.LwFLoss",
            temperature=usual_temperature if temperature is None else temperature,
            scale_t2=scale_t2,
            of=soft,
            weight=usual_weight if weight is None else weight,
        ),
    }
