r"""Patient and consistent teaching (Beyer et al., CVPR 2022, arXiv 2106.05237): mixup that teacher
and student see alike.

Knowledge distillation as function matching: over a very long training the student imitates the
teacher on images that nobody has labelled, far from the data, and on **the same** view of each:
crop, flip and mixup,

.. math:: \tilde x_b = a\, x_b + (1 - a)\, x_{b-1}, \qquad a = \max(a', 1 - a'), \quad
    a' \sim \mathrm{Beta}(\alpha, \alpha)

with one a for a batch, each image mixed with the one before it. The loss is KD at T = 1 and nothing
else, no labels; a teacher whose answers were computed beforehand, for a fixed view, is the losing
arm of the paper. Any gain is to be read against the same epochs without a teacher, which are many:
the control learns from the mixed labels (:func:`mixed_cross_entropy`).

    distiller = dict(type='kdtasks.general.MixupDistiller')
    losses = dict(
        loss_cls=dict(  # alone: weight 1
            type='kdtasks.general.mixed_cross_entropy',
            of=('student', 'target', 'target.other', 'input.share'),
            weight=0,
        ),
        loss_kd=dict(type='kdtasks.general.KDLoss', temperature=1.0, of=('student', 'teacher')),
    )
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.core.classes import UNLABELLED
from kdtasks.core.precision import raised


def mixup(
    inputs: Tensor, alpha: float = 1.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Each image mixed with the one before it.

    Args:
        inputs: ``(B, *)``, floating.
        alpha: > 0; 1 as released, where every share is as likely.
        generator: of the share, on the CPU; None: torch's.

    Returns:
        The mixed images, and the share of the first of the two: a scalar on the CPU, in [0.5, 1].

    Raises:
        ValueError: inputs that are not floating, or alpha is not positive.
    """
    if not inputs.is_floating_point():
        raise ValueError(f"expected floating inputs, got {inputs.dtype}")
    if not alpha > 0:
        raise ValueError(f"alpha must be > 0, got {alpha}")
    share = _beta(float(alpha), generator)
    share = torch.maximum(share, 1 - share)
    return share * inputs + (1 - share) * inputs.roll(1, 0), share


def _beta(alpha: float, generator: torch.Generator | None) -> Tensor:
    """One draw of Beta(alpha, alpha), on the CPU."""
    distribution = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha))
    if generator is None:
        return distribution.sample()
    # torch's distributions take no generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return distribution.sample()


def mixed_cross_entropy(student: Tensor, target: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of mixed images: share · CE(first) + (1 - share) · CE(other).

    Args:
        student: ``(B, C)`` logits of the mixed images; carries the gradient.
        target, other: ``(B,)`` class numbers of the two that were mixed; -100: unlabelled, whose
            part is left out.
        share: of the first, a scalar.

    Returns:
        A scalar in nats, mean over the rows in which the first is labelled; half precision is
        raised to float32, float64 stays. A zero that still backpropagates when there are none.

    Raises:
        ValueError: the shapes do not fit.
    """
    fit = target.shape == student.shape[:1] == other.shape
    if student.dim() != 2 or not student.shape[1] or not fit:
        raise ValueError(
            "expected logits (B, C), C at least 1, and two targets (B,), got student "
            f"{tuple(student.shape)}, target {tuple(target.shape)} and other {tuple(other.shape)}"
        )
    (student,) = raised(student)
    labelled = target != UNLABELLED
    first, second = (
        F.cross_entropy(student, y, ignore_index=UNLABELLED, reduction="none")
        for y in (target, other)
    )
    rows = (share * first + (1 - share) * second).masked_fill(~labelled, 0)
    return rows.sum() / labelled.sum().clamp(min=1)


class MixupDistiller(Distiller):
    """A :class:`~kdtasks.core.Distiller` that mixes a batch's images before any model sees them.

    ================  ==============================================================================
    ``input``         the mixed images, of teacher, student and peers alike
    ``target.other``  (B,) the targets of the images that were mixed in, where there is ``target``
    ``input.share``   a scalar on the CPU: the share of the image whose target is ``target``
    ================  ==============================================================================

    Args:
        student, teachers, losses, peers, compile: see :class:`~kdtasks.core.Distiller`.
        alpha: of :func:`mixup`.

    Raises:
        ValueError: alpha is not positive; on a batch, what a teacher has said about the images
            before they were mixed (a cache).
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        alpha: float = 1.0,
        peers: Sequence[nn.Module] = (),
        compile: bool | dict = False,
    ):
        super().__init__(student, teachers, losses, peers=peers, compile=compile)
        if not alpha > 0:
            raise ValueError(f"alpha must be > 0, got {alpha}")
        self.alpha = alpha

    def prepare(self, batch: dict[str, object]) -> dict[str, object]:
        """The batch with mixed images."""
        cached = [name for name in batch if name.partition(".")[0] in self.teachers]
        if cached:
            raise ValueError(
                f"the batch has {cached}, which a teacher said about other images than the mixed "
                "ones: mixup needs a teacher that runs in the step (no cache)"
            )
        mixed, share = mixup(batch["input"], self.alpha)
        prepared = {**batch, "input": mixed, "input.share": share}
        if "target" in batch:
            prepared["target.other"] = batch["target"].roll(1, 0)
        return prepared
