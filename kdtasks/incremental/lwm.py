r"""Learning without Memorizing: the old model's attention kept (Dhar et al., CVPR 2019, arXiv
1811.08051).

On new images, with none of the old, the student keeps what the model of before says of the l old
classes, and where it looks when it says so:

.. math:: L = L_C + \beta L_D + \gamma L_{AD}

- L_C: cross-entropy of the labels.
- L_D: binary cross-entropy of the old columns' sigmoids, **summed** over the l classes
  (:func:`lwm_distill_bce`).
- L_AD: the L1 distance of two L2-normalised attention maps (:func:`lwm_attention_loss`).

A map is Grad-CAM's (:func:`grad_cam`), of the old class b that the **student** finds likeliest, the
same b for both models. With A the activation (K, h, w) of a layer and :math:`z_b` the logit:

.. math:: \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial z_b}{\partial A_{kij}}, \qquad
    Q = \mathrm{relu}\Bigl(\sum_k \alpha_k A_k\Bigr), \qquad
    L_{AD} = \frac{1}{B} \sum_{n=1}^{B}
    \Bigl\lVert \frac{Q^s_n}{\lVert Q^s_n \rVert_2}
    - \frac{Q^t_n}{\lVert Q^t_n \rVert_2} \Bigr\rVert_1

L_AD is at most :math:`\sqrt{2hw}`, 11.3 for 8x8 pixels, so it is not small beside a cross-entropy.

**Second order.** alpha depends on the weights, so the gradient of L_AD goes through it too
(``second_order=True``). Where the network ends in pooling and a linear head, :math:`\alpha = W_b /
hw`: nothing needs to be differentiated twice, or at all. This short cut (``fast``), found out by
itself, is exact, and the two orders differ in W's gradient only.

**Weights.** The paper gives none for beta and gamma, as FACIL's code notes. Public codes have 1 and
1, or 2 and 1 (FACIL's grid); they go with their own reductions, so no number carries over. FACIL's
attention term has no gradient at all: activation and slope are detached and the map is made under
``no_grad``, in each version of it that we read, so that its gamma changes nothing (one version also
normalised the map over an axis of length 1). A gamma tuned there says nothing here.

**Not settled**, since the paper's own text could not be read here: it is said to print L_D without
its (1 - y) half (:func:`lwm_distill`), which would push old scores up only, so we take the whole
binary cross-entropy; and it is not known to call alpha a constant, so we do not.

::

    losses = dict(
        loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
        loss_distill=dict(type='kdtasks.incremental.lwm.lwm_distill_bce',
                          of=('student.old', 'teacher'), weight=1.0),
        loss_attention=dict(type='kdtasks.incremental.lwm.lwm_attention_loss',
                            of=('student.attention', 'teacher.attention')),
        dead_maps=dict(type='kdtasks.incremental.lwm.dead_share', of='student.attention'),
    )
    distiller = dict(type='kdtasks.incremental.lwm.LwMDistiller', attention='layer3')
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.layouts import check_channels_first, to_nchw
from kdtasks.core.names import did_you_mean, split_call
from kdtasks.core.outputs import map_tensors
from kdtasks.core.precision import raised
from kdtasks.core.recorder import FeatureRecorder, module_paths
from kdtasks.core.trial import try_out
from kdtasks.general.divergences import binary_cross_entropy_terms, times
from kdtasks.incremental.distiller import IncrementalDistiller
from kdtasks.incremental.models import head_of

# a map of a smaller norm is dead
EPS = 1e-12
_NOT_COMPILED = (
    "maps by derivatives cannot be had inside of compiled code (AOTAutograd); expected "
    "compile=False"
)


# ------------------------------------------------------------------------------------------- losses
def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """``relu(sum over k of alpha_k A_k)``, alpha the gradient's mean over the pixels.

    Args:
        activation, gradient: ``(B, K, h, w)``, A and the derivative of a logit by it;
            differentiable in both.

    Returns:
        ``(B, h, w)``, at least float32.

    Raises:
        ValueError: the shapes differ, or are not of four axes.
    """
    if activation.dim() != 4 or activation.shape != gradient.shape:
        raise ValueError(
            f"expected two equal shapes (B, K, h, w), got activation {tuple(activation.shape)} and "
            f"gradient {tuple(gradient.shape)}"
        )
    activation, gradient = raised(activation, gradient)
    return _cam(activation, gradient.mean((2, 3)))


def lwm_attention_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """L1 distance of L2-normalised maps, summed over the pixels, mean over the batch.

    The scale of a map does not matter. A dead one (all zero) counts as zeros and receives no
    gradient; that of a map close to it is large, as 1 / norm: clip gradients where it happens.

    Args:
        student_map: ``(B, h, w)``, >= 0; carries the gradient.
        teacher_map: ``(B, h, w)``; never receives a gradient.

    Returns:
        A scalar from 0 to sqrt(2 h w). Half precision is raised to float32, float64 stays. A zero
        that still backpropagates when there are no rows.

    Raises:
        ValueError: the shapes differ, or are not of three axes.
    """
    if student_map.dim() != 3 or student_map.shape != teacher_map.shape:
        raise ValueError(
            f"expected two equal shapes (B, h, w), got student {tuple(student_map.shape)} and "
            f"teacher {tuple(teacher_map.shape)}"
        )
    student_map, teacher_map = raised(student_map, teacher_map.detach())
    difference = _normalized(student_map) - _normalized(teacher_map)
    return difference.abs().sum() / max(len(student_map), 1)


def lwm_distill_bce(student: Tensor, teacher: Tensor, reduction: str = "sum") -> Tensor:
    """Binary cross-entropy with the teacher's sigmoids, over the old classes; mean over the batch.

    Args:
        student: ``(B, l)`` logits of the old classes; carries the gradient.
        teacher: ``(B, l)`` logits; never receives a gradient.
        reduction: over classes. ``'sum'``, as the paper; ``'mean'``, as public codes: l times
            smaller, with a beta of its own.

    Returns:
        A scalar in nats; not 0 where the two agree, but least there. Half precision is raised to
        float32, float64 stays. A zero that still backpropagates when there are no rows or no
        classes.

    Raises:
        ValueError: the shapes differ, or there is no such reduction.
    """
    student, teacher, count = _checked(student, teacher, reduction)
    return binary_cross_entropy_terms(student, teacher.sigmoid()).sum() / count


def lwm_distill(student: Tensor, teacher: Tensor, reduction: str = "sum") -> Tensor:
    """``-sum of sigmoid(teacher) · log sigmoid(student)``, said to be the printed form: half of
    :func:`lwm_distill_bce`.

    Without the other half it is least at infinite scores, not where the two agree. Arguments and
    errors are the same.
    """
    student, teacher, count = _checked(student, teacher, reduction)
    return -times(teacher.sigmoid(), F.logsigmoid(student)).sum() / count


def dead_share(attention: Tensor) -> Tensor:
    """Share of the maps ``(B, h, w)`` that are zero everywhere, and so teach nothing; 0 when there
    are none.
    """
    return attention.flatten(1).any(1).logical_not().float().sum() / max(len(attention), 1)


def _cam(activation: Tensor, weights: Tensor) -> Tensor:
    """(B, K, h, w), (B, K) -> (B, h, w), in full precision under autocast too."""
    with torch.autocast(activation.device.type, enabled=False):
        return torch.einsum("bk,bkhw->bhw", weights, activation.to(weights.dtype)).relu()


def _normalized(maps: Tensor) -> Tensor:
    squared = maps.square().sum((1, 2), keepdim=True)
    live = squared > EPS**2
    return maps * squared.where(live, 1).rsqrt().where(live, 0)


def _checked(student: Tensor, teacher: Tensor, reduction: str) -> tuple[Tensor, Tensor, int]:
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"expected the same old columns of both, (B, l), got student "
            f"{tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}; in a config: of=('student.old', 'teacher')"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(
            f"no reduction {reduction!r}; {did_you_mean(str(reduction), ('sum', 'mean'))}"
        )
    count = len(student) if reduction == "sum" else student.numel()
    return *raised(student, teacher.detach()), max(count, 1)


# ---------------------------------------------------------------------------------------- distiller
class LwMDistiller(IncrementalDistiller):
    """An :class:`~kdtasks.incremental.distiller.IncrementalDistiller` whose losses may also be of
    attention maps.

    =======================  =======================================================================
    ``student.attention``    (B, h, w) map of the class ``student.attended``; its gradient reaches
                             all weights
    ``<teacher>.attention``  (B, h, w) map of the same class; carries no gradient
    ``student.attended``     (B,) int64 b: the old class that the student finds likeliest, as a
                             column; or what the batch has under this name
    =======================  =======================================================================

    Each model runs once. Whether a model ends in pooling and its growing head, so that the short
    cut is exact, is found out on a few rows of the first batch (:meth:`build` has one), the student
    in training mode: a dropout before the head is seen, or a BatchNorm. Modes, buffers and random
    streams are put back.

    Args:
        student, teachers, losses, peers: see :class:`~kdtasks.core.Distiller`.
        attention: dotted path of the submodule, in the student and every teacher, whose output is A
            (B, K, h, w): the last one before the pooling, after its ReLU. After a lower one,
            BatchNorm in training mode would mix the samples' maps.
        second_order: the student's gradient goes through alpha too; False: alpha is a constant.
        fast: None: the short cut where it is exact. False: never. True: an error where it is not.
        compile: with the short cut only: within what is compiled nothing can be differentiated.
        layout: of A: ``'nchw'``, ``'nhwc'`` (Swin) or ``'tokens'`` (ViT); None: ``'nchw'``, and an
            error where only the last axis can be channels.
        prefix_tokens: of ``'tokens'``: how many come before those of the places (the class's,
            registers) and are dropped.

    Raises:
        ValueError: a model has no such submodule; compile without the short cut. On the first
            batch: the submodule's output is not (B, K, h, w) of more than one pixel; ``fast=True``
            or compile where the short cut is not exact. On a run: there are no old classes, or a
            teacher has not as many columns.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        attention: str,
        second_order: bool = True,
        fast: bool | None = None,
        peers: Sequence[nn.Module] = (),
        compile: bool | dict = False,
        layout: str | None = None,
        prefix_tokens: int = 0,
    ):
        super().__init__(student, teachers, losses, peers=peers, compile=compile)
        self.layout, self.prefix_tokens = layout, prefix_tokens
        self.attention, self.second_order, self.fast = attention, second_order, fast
        self.path, self.call = split_call(attention)
        for role in ("student", *self.teachers):
            paths = module_paths(self.model(role))
            if self.path not in paths:
                raise ValueError(
                    f"attention={attention!r}: {role} is a "
                    f"{type(self.model(role)).__name__} without this submodule; "
                    f"{did_you_mean(self.path, paths)}"
                )
        if fast is False and compile:
            raise ValueError(f"fast=False with compile={compile}: {_NOT_COMPILED}")

    def names(self, role: str) -> list[str]:
        """What :class:`~kdtasks.incremental.distiller.IncrementalDistiller` supplies, and the names
        above.
        """
        names = super().names(role)
        if role == "student":
            return [*names, "student.attention", "student.attended"]
        return [*names, f"{role}.attention"] if role in self.teachers else names

    def needs(self, role: str) -> list[str]:
        """A teacher's map is of the class b that the student chooses."""
        follows = role in self.teachers and f"{role}.attention" in self.wanted[role]
        return ["student.attended"] if follows else []

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role, from one forward; a teacher's map is of the student's b."""
        attention = f"{role}.attention"
        rest = [name for name in wanted if name not in (attention, "student.attended")]
        if len(rest) == len(wanted) or role in self.learners[1:]:
            return super().outputs(role, batch, wanted)
        if attention not in wanted:
            values = super().outputs(role, batch, [*rest, role])
            return values | {"student.attended": self._attended(values[role], batch)}
        short, gradients = self._is_short(role, batch), torch.is_grad_enabled()
        activation = f"{role}.{self.attention}"
        module = self.model(role).get_submodule(self.path)
        with nullcontext() if short else _anchored(module) as anchors:
            values = super().outputs(role, batch, [*rest, role, activation])
        if role == "student":
            values["student.attended"] = self._attended(values[role], batch)
            attended = values["student.attended"]
        else:
            attended = batch["student.attended"]
        self._check_columns(role, values[role])
        if short:
            return values | {attention: self._short_map(role, values[activation], attended)}
        anchor = anchors[self.call or 0]
        attention_map = self._derived_map(values[role], anchor, attended, gradients)
        if not gradients:
            values = {name: map_tensors(torch.detach, value) for name, value in values.items()}
        return values | {attention: attention_map}

    def _attended(self, logits: Tensor, batch: Mapping[str, object]) -> Tensor:
        if "student.attended" in batch:
            return batch["student.attended"]
        old = self.head("student").old
        if old == 0:
            raise ValueError(
                "the student has no old classes whose attention could be kept: its head has one "
                "block"
            )
        return logits.detach()[:, :old].argmax(1)

    def _check_columns(self, role: str, logits: Tensor) -> None:
        old = self.head("student").old
        if role != "student" and logits.shape[1] != old:
            raise ValueError(
                f"{role} has {logits.shape[1]} columns, the student {old} old ones: expected the "
                "same classes"
            )

    def _derived_map(
        self, logits: Tensor, activation: Tensor, attended: Tensor, gradients: bool
    ) -> Tensor:
        """By the definition; the logits' graph is kept if the student will be differentiated."""
        order = self.second_order and gradients
        with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
            score = raised(logits)[0].gather(1, attended[:, None]).sum()
            (slope,) = torch.autograd.grad(
                score, activation, retain_graph=gradients, create_graph=order
            )
        return grad_cam(
            self._maps(activation if gradients else activation.detach()), self._maps(slope)
        )

    def _maps(self, activation: Tensor) -> Tensor:
        return to_nchw(activation, self.layout, self.prefix_tokens)

    def _short_map(self, role: str, activation: Tensor, attended: Tensor) -> Tensor:
        """Of the head's weights, since alpha = W_b / hw."""
        # (columns, K)
        weight = torch.cat(raised(*(block.weight for block in self.head(role).blocks)))
        activation = self._maps(activation)
        alpha = weight[attended] / activation.shape[2:].numel()
        return _cam(activation, alpha if self.second_order else alpha.detach())

    def _is_short(self, role: str, batch: Mapping[str, object]) -> bool:
        """Whether the short cut is exact; found out once."""
        facts = self.facts(role)
        if "short" not in facts:
            short = self._find_short(role, self.read(batch, "input", role))
            if not short and (self.fast or self._compile):
                setting = f"fast={self.fast}" if self.fast else f"compile={self._compile}"
                hint = _NOT_COMPILED if self._compile else "expected fast=None"
                raise ValueError(
                    f"{setting}: the logits of {role} are not its growing head on the mean over "
                    f"the pixels of {self.attention!r}, in training; {hint}"
                )
            facts["short"] = short
        return facts["short"]

    def _find_short(self, role: str, input: object) -> bool:
        """Whether the logits are the head of the pooled activation, in the mode in which the model
        trains or teaches.
        """
        if isinstance(input, Tensor):
            input = input[:8] if len(input) > 1 else torch.rand(2, *input.shape[1:]).to(input)
        model = self.model(role)
        taps = FeatureRecorder(
            model, [self.attention], model if role == "student" else self.teachers[role]
        )
        with try_out(model, training=role == "student"):
            logits, values = taps(input)
            activation = self._checked_maps(role, values[self.attention])
            return self.fast is not False and _is_head_of_mean(model, activation, logits)

    def _checked_maps(self, role: str, activation: object) -> Tensor:
        """(B, K, h, w) of more than one pixel."""
        if isinstance(activation, Tensor):
            if self.layout is None:
                check_channels_first(activation)
            activation = self._maps(activation)
            if activation.dim() == 4 and activation.shape[2:].numel() > 1:
                return activation
            description = str(tuple(activation.shape))
        else:
            description = type(activation).__name__
        raise ValueError(
            f"attention={self.attention!r} of {role} gives {description}; expected maps "
            "(B, K, h, w) of more than one pixel"
        )


def _is_head_of_mean(model: nn.Module, activation: Tensor, logits: Tensor) -> bool:
    try:
        _, head = head_of(model)
    except ValueError:
        return False
    if activation.shape[1] != head.features or not activation.any():
        return False
    with torch.autocast(activation.device.type, enabled=False):
        pooled = raised(activation)[0].mean((2, 3))
        columns = []
        for block in head.blocks:
            bias = 0 if block.bias is None else block.bias
            columns.append(pooled @ block.weight.to(pooled).T + bias)
        expected = torch.cat(columns, 1)
    # float64, float32 (or TF32), half precision
    tolerance = {8: 1e-8, 4: 1e-3, 2: 0.05}[logits.element_size()]
    return bool((logits - expected).abs().max() <= tolerance * expected.abs().max())


@contextmanager
def _anchored(module: nn.Module) -> Iterator[list[Tensor]]:
    """What the module returns, call by call; what comes after can be differentiated by it, even if
    it works in place.
    """
    anchors: list[Tensor] = []
    replaced, forward = module.__dict__.get("forward"), module.forward

    def anchored(*args, **kwargs) -> Tensor:
        output = forward(*args, **kwargs)
        anchors.append(output if output.requires_grad else output.detach().requires_grad_())
        return anchors[-1].clone()

    module.__dict__["forward"] = anchored
    try:
        with torch.enable_grad():
            yield anchors
    finally:
        if replaced is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = replaced
