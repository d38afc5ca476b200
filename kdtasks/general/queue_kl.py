r"""Similarities to a queue of the teacher's vectors: CompRess (Abbasi Koohpayegani et al., NeurIPS
2020, arXiv 2010.14713) and SEED (Fang et al., ICLR 2021, arXiv 2101.04731).

No labels: an image is described by how alike it is to K earlier images, and the student shall
describe it as the teacher does. With vectors s and t of length 1, the teacher's K latest vectors Q,
and the softmax over them,

.. math::
    P^t = \operatorname{softmax}(Q t / T_t), \qquad P^s = \operatorname{softmax}(Q s / T_s), \qquad
    L = \operatorname*{mean}_b \operatorname{KL}(P^t_b \,\|\, P^s_b)

=====================  ====================  =========  ===========  =======  ======================
variant                student's queue       own vector T_t, T_s     K        student's projector
=====================  ====================  =========  ===========  =======  ======================
CompRess, one queue    the teacher's         no         0.04, 0.04   128,000  linear
CompRess, two queues   its own               no         0.04, 0.04   128,000  none
SEED                   the teacher's         column 0   1e-4, 0.2    65,536   two layers, to 128
=====================  ====================  =========  ===========  =======  ======================

as their codes have it (the paper of SEED: T_t = 0.01, recalled and not verified; its loss is the
soft cross-entropy, which differs from the KL by a constant). At 1e-4 the teacher is one-hot on its
own vector, and what is learned is to be near that. The vectors of the second variant are of a
moving average of the student, which whoever wants it has to supply:
:func:`queue_kl_loss` takes them. There is no factor T².

Both codes fill the queue with noise at the start; here only what was put in counts, so the first
step, which has nothing to be compared with, gives 0. A batch is put in after its loss.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core.gather import gather_rows
from kdtasks.core.precision import raised
from kdtasks.general.directions import directions
from kdtasks.general.divergences import kl_terms
from kdtasks.general.projection import ProjectedLoss


def queue_kl_loss(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    student_queue: Tensor | None = None,
    temperature: float = 0.04,
    student_temperature: float | None = None,
    own: bool = False,
) -> Tensor:
    """KL of the teacher's and the student's similarities to a queue; see the module.

    Args:
        student: ``(B, Ds)``, of any length; carries the gradient. A vector shorter than 1e-6 has
            the similarity 0 to all, and no gradient.
        teacher: ``(B, Dt)``; never receives a gradient.
        queue: ``(K, Dt)``, of any length; no gradient.
        student_queue: ``(K, Ds)``, the student's vectors of the same images; None: the student is
            compared with the teacher's, and Ds = Dt.
        temperature: of the teacher; 0.04 as CompRess's code; with ``own`` 0.01 is a sounder choice
            than SEED's 1e-4 (ours, not measured).
        student_temperature: None: the teacher's; SEED 0.2.
        own: whether the teacher's vector of the image itself is one more to be compared with.

    Returns:
        A scalar in nats, mean over the batch; half precision is raised to float32, float64 stays. A
        zero that still backpropagates without rows, or without a queue.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, or ``own`` with a
            ``student_queue``, in which the image itself has no place.
    """
    _check_temperatures(temperature, student_temperature)
    _check_shapes(student, teacher, queue, student_queue, own)
    student, teacher = raised(student, teacher.detach())
    if not len(student) or not (len(queue) or own):
        return student.sum() * 0
    student, teacher = directions(student), directions(teacher)
    teacher_directions = directions(queue.detach().to(teacher))
    student_directions = (
        teacher_directions
        if student_queue is None
        else directions(student_queue.detach().to(student))
    )
    teacher_scores, student_scores = teacher @ teacher_directions.T, student @ student_directions.T
    if own:
        teacher_scores = torch.cat([(teacher * teacher).sum(1, keepdim=True), teacher_scores], 1)
        student_scores = torch.cat([(student * teacher).sum(1, keepdim=True), student_scores], 1)
    divisor = temperature if student_temperature is None else student_temperature
    return kl_terms(student_scores / divisor, teacher_scores / temperature).sum(1).mean()


def _check_temperatures(*temperatures: float | None) -> None:
    for value in temperatures:
        if value is not None and not value > 0:
            raise ValueError(f"a temperature must be positive, got {value!r}")


def _check_shapes(
    student: Tensor, teacher: Tensor, queue: Tensor, student_queue: Tensor | None, own: bool
) -> None:
    if own and student_queue is not None:
        raise ValueError("own=True is of one queue, the teacher's: expected student_queue=None")
    compared = queue if student_queue is None else student_queue
    fit = (
        all(tensor.dim() == 2 for tensor in (student, teacher, queue, compared))
        and len(student) == len(teacher)
        and len(compared) == len(queue)
        and queue.shape[1] == teacher.shape[1]
        and compared.shape[1] == student.shape[1]
    )
    if not fit:
        tensors = {"student": student, "teacher": teacher, "queue": queue}
        tensors |= {} if student_queue is None else {"student_queue": student_queue}
        raise ValueError(
            "expected student (B, Ds), teacher (B, Dt), queue (K, Dt) and student_queue (K, Ds), "
            "without which Ds = Dt, got "
            + ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        )


class FeatureQueue(nn.Module):
    """The latest ``size`` vectors of a stream, brought to length 1.

    Its state is in ``state_dict``: a run that is resumed goes on with the same queue. In several
    processes all vectors are gathered, in the order of their ranks, so that all have the same one.

    Args:
        size: K; a batch need not divide it, and of a larger one the last rows stay.
        dim: of the vectors.

    Raises:
        ValueError: a size or dim below 1; in :meth:`push`, other rows.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"expected size >= 1 and dim >= 1, got {size} and {dim}")
        self.size, self.dim, self.written = size, dim, 0
        self.register_buffer("rows", torch.zeros(size, dim))

    @property
    def filled(self) -> Tensor:
        """``(k, dim)``: what was put in, k <= size; in no order."""
        return self.rows[: min(self.written, self.size)]

    @torch.no_grad()
    def push(self, vectors: Tensor) -> None:
        """Put vectors ``(B, dim)`` in the place of the oldest."""
        if vectors.dim() != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"expected rows (B, {self.dim}), got {tuple(vectors.shape)}")
        vectors = directions(gather_rows(raised(vectors)[0]))
        first = self.written + max(0, len(vectors) - self.size)
        self.written += len(vectors)
        places = torch.arange(first, self.written, device=self.rows.device) % self.size
        self.rows[places] = vectors[len(vectors) - len(places) :].to(self.rows)

    def get_extra_state(self) -> dict[str, int]:
        """How many vectors were put in so far."""
        return {"written": self.written}

    def set_extra_state(self, state: Any) -> None:
        """Put it back."""
        self.written = int(state["written"])

    def extra_repr(self) -> str:
        """Size and width."""
        return f"size={self.size}, dim={self.dim}"


class QueueKLLoss(ProjectedLoss):
    """:func:`queue_kl_loss` with the teacher's queue, and a projector of the student to the
    teacher's width.

    Args:
        size: of the queue; 65,536 as SEED's code. A queue of more vectors than there are images
            holds each of them several times.
        temperature, student_temperature, own: see :func:`queue_kl_loss`.
        hidden: None: a linear projector (CompRess); or the width of the hidden layer of one of two
            layers with a ReLU (SEED: the student's own width).
        student_channels, teacher_channels: None: found by :meth:`build`.

    Raises:
        ValueError: a setting out of its range; in ``forward``, shapes that do not fit.
    """

    def __init__(
        self,
        size: int = 65536,
        temperature: float = 0.04,
        student_temperature: float | None = None,
        own: bool = False,
        hidden: int | None = None,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
    ):
        if size < 1 or (hidden is not None and hidden < 1):
            raise ValueError(f"expected size >= 1 and hidden >= 1, got {size} and {hidden}")
        _check_temperatures(temperature, student_temperature)
        self.hidden = hidden  # the projector is made of it
        super().__init__(student_channels, teacher_channels)
        self.size, self.own = size, own
        self.temperature, self.student_temperature = temperature, student_temperature
        self.queue = FeatureQueue(size, teacher_channels) if teacher_channels else None

    def make_projector(self, inputs: int, outputs: int) -> nn.Module:
        """One linear layer, or two."""
        if self.hidden is None:
            return nn.Conv2d(inputs, outputs, 1)
        first, second = nn.Conv2d(inputs, self.hidden, 1), nn.Conv2d(self.hidden, outputs, 1)
        return nn.Sequential(first, nn.ReLU(), second)

    def features(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``(B, C)``; of maps, the mean over their places."""
        pooled = [t.mean((2, 3)) if t.dim() == 4 else t for t in (student, teacher)]
        return super().features(*pooled)

    def build(self, student: Tensor, teacher: Tensor) -> None:
        """Makes projector and queue if they are not there."""
        super().build(student, teacher)
        if self.queue is None:
            width = self.features(student, teacher)[1].shape[1]
            self.queue = FeatureQueue(self.size, width).to(teacher.device)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of rows or maps, a scalar; in training the teacher's vectors are then put in."""
        student, teacher = self.projected(*raised(student, teacher.detach()))
        if self.queue is None:
            self.queue = FeatureQueue(self.size, teacher.shape[1]).to(teacher.device)
        loss = queue_kl_loss(
            student,
            teacher,
            self.queue.filled,
            None,
            self.temperature,
            self.student_temperature,
            self.own,
        )
        if self.training:
            self.queue.push(teacher)
        return loss

    def extra_repr(self) -> str:
        """The settings of the formula."""
        return (
            f"size={self.size}, temperature={self.temperature}, "
            f"student_temperature={self.student_temperature}, own={self.own}"
        )
