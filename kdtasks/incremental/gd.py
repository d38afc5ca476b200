r"""Global Distillation: three teachers, and unlabelled images from anywhere (Lee et al., ICCV 2019,
arXiv 1903.12648).

A model knows l classes; m more arrive, r = l + m. Labelled are the images of the new classes and a
coreset, a few of each class before. Beside them stands a large pool of unlabelled images. One
experience is four steps:

0. **Sample** (:mod:`kdtasks.incremental.sampling`): from the pool, as many images as there are
   labelled ones; 30 % of them those that the model before, P, takes most for one of its classes, 70
   % at random.
1. **Current teacher** C, from P's weights, learns the m new classes alone
   (:class:`CurrentTeacherLoss`), and to be unsure of everything else: of the coreset and of all
   external images. With U the uniform distribution over the m classes:

   .. math:: L = \underset{\text{new}}{\mathrm{mean}}\, \mathrm{CE}_m
       + \underset{\text{all others}}{\mathrm{mean}}\, \mathrm{KL}(U \,\|\, p^C)

   The first experience has no P: all external images are random ones, and what this step trains is
   the model itself.
2. **Global distillation** (:class:`GlobalDistillationLoss`): M, from P's weights, learns from
   labels, P, C, and Q, the two as one teacher of all r classes. Over the B rows of a batch, with a
   softmax over l or m columns only for P and C, at T = 2:

   .. math::
       L_{\mathrm{cls}} &= \tfrac{1}{B} \sum_{\text{labelled}} w_y\, \mathrm{CE}_r, \qquad
       L_Q = \tfrac{1}{B} \sum_{\text{unlabelled}} \mathrm{KL}(q \,\|\, p^M) \\
       L_P &= \tfrac{l}{r} \tfrac{T^2}{B} \sum_{\text{all}} w^P\,
           \mathrm{KL}(p^P_T \,\|\, p^{M,\,\text{old}}_T), \qquad
       L_C = \tfrac{m}{r} \tfrac{T^2}{B} \sum_{\text{all}} w^C\,
           \mathrm{KL}(p^C_T \,\|\, p^{M,\,\text{new}}_T)

   added as they are; all w are 1 here. Q takes an external image for one of the classes before: P's
   top class k keeps its probability, and what is left is shared so that the other old classes and
   the new ones have the same mean:

   .. math:: q_k = p^P_k, \qquad q_{\text{other old } i} = \tfrac{l-1}{r-1}\, p^P_i, \qquad
       q_{\text{new } j} = \tfrac{m}{r-1}\, (1 - p^P_k)\, p^C_j
3. **Fine-tuning** of the head alone, with the same teachers and images, and weights against the
   coreset's small classes: of K classes with :math:`n_k` of N labelled samples, :math:`w_k = N /
   (n_k K)`. The cross-entropy weighs all r classes; P's term the l, with their own N and K; C's
   term the m. A row without a label, or whose label is not among a term's classes, has weight 1.
   Afterwards M is the next P, and the coreset is drawn anew.

In each step a batch mixes rows of all images there are. Formulas, steps and T = 2 are those of the
authors' code. What that code also does, and is **not done here**:

- An unlabelled row has the target -1 or -2, which as an index means class 99 or 98 of 100. Once
  these have been learned, external images take *their* weight in fine-tuning. Here a row without a
  label has weight 1.
- A batch without labelled rows divides 0 by 0 where Q does not pull. Here the absent part is a zero
  that backpropagates.
- With weights during all of training (an ablation), its count of out-of-distribution images reads
  the targets in place of the sources. Here only labelled samples are counted.
- A step whose backward fails is left out, with a line in a file. Here it fails.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdtasks.core.gather import mean_over_processes
from kdtasks.core.precision import raised, raised_dtype
from kdtasks.general.divergences import kl_terms, times


def ensemble_probabilities(previous: Tensor, current: Tensor) -> Tensor:
    """Q: the previous model and the current teacher as one teacher of all classes; see the formula
    above.

    Args:
        previous: ``(B, l)`` logits of P, l >= 1.
        current: ``(B, m)`` logits of C, m >= 1.

    Returns:
        ``(B, l + m)`` probabilities, without gradient: rows add up to 1, and the largest of P's (of
        equal ones the first) is as it was. float64 if an input is, else float32.

    Raises:
        ValueError: other shapes.
    """
    if any(z.dim() != 2 or not z.shape[1] or len(z) != len(current) for z in (current, previous)):
        raise ValueError(
            f"expected logits (B, l) and (B, m), l and m at least 1, got previous "
            f"{tuple(previous.shape)} and current {tuple(current.shape)}"
        )
    previous, current = raised(previous.detach(), current.detach())
    l, m = previous.shape[1], current.shape[1]
    p, c = previous.softmax(1), current.softmax(1)
    top = p.argmax(1, keepdim=True)  # (B, 1)
    others = p.scatter(1, top, 0)
    old = (others * ((l - 1) / (l + m - 1))).scatter(1, top, p.gather(1, top))
    return torch.cat([old, c * others.sum(1, keepdim=True) * (m / (l + m - 1))], 1)


def confidence_loss(logits: Tensor) -> Tensor:
    """KL(uniform ‖ softmax): 0 where a row is equally unsure of every class, large where it is sure
    of one.

    Args:
        logits: ``(B, m)``, m >= 1.

    Returns:
        A scalar in nats, mean over B: minus the mean log-probability, minus log m. A connected 0
            when B = 0.

    Raises:
        ValueError: another shape.
    """
    if logits.dim() != 2 or not logits.shape[1]:
        raise ValueError(f"expected logits (B, m), m at least 1, got {tuple(logits.shape)}")
    return _sureness(*raised(logits)).sum() / max(len(logits), 1)


def class_balance_weights(counts: Tensor | Sequence[float]) -> Tensor:
    """w_k = N / (n_k K), with which every class that has samples weighs the same; 1 for a class
    that has none.

    Args:
        counts: n_k, the labelled samples of each of the K classes (empty ones count too); a list,
            an array or a tensor.

    Returns:
        (K,) on the device of ``counts``; float64 if these are a float64 array or tensor, else
        float32.

    Raises:
        ValueError: not one-dimensional.
    """
    counts = torch.as_tensor(counts)
    if counts.dim() != 1:
        raise ValueError(
            f"expected one number a class, (K,), got counts of shape {tuple(counts.shape)}"
        )
    (counts,) = raised(counts)
    is_present = ~(counts <= 0)  # a NaN stays one
    return torch.where(is_present, counts.sum() / (counts.where(is_present, 1) * len(counts)), 1)


def global_distillation_losses(
    student: Tensor,
    previous: Tensor,
    current: Tensor,
    target: Tensor,
    labelled: Tensor,
    temperature: float = 2.0,
    class_weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """The four terms of a step of global distillation; they are added as they are.

    Args:
        student: ``(B, l + m)`` logits of M, columns ``[previous | current]``; carries the gradient.
        previous: ``(B, l)`` logits of P, and current: ``(B, m)`` of C; they never receive one.
        target: ``(B,)`` integers, read only where ``labelled``; elsewhere it may hold anything.
        labelled: ``(B,)`` bool; on another device than the logits, it is copied.
        temperature: T > 0 of P's and C's terms; 2 as in the authors' code. Q's is 1.
        class_weight: ``(l + m,)``, for the cross-entropy of labelled rows; None: 1.
            :class:`GlobalDistillationLoss` also weighs P's and C's terms.

    Returns:
        ``loss_cls`` and ``loss_q``, both divided by all B rows, so that an absent part contributes
        0; ``loss_p`` and ``loss_c``, means over all rows, times T² and l / (l + m), m / (l + m).
        Scalars in nats; half precision is raised to float32, float64 stays. Zeros that still
        backpropagate when B = 0.

    Raises:
        ValueError: shapes that do not fit, a target that is no integer, or a temperature that is
            not positive.
    """
    if class_weight is not None and class_weight.shape != student.shape[1:]:
        raise ValueError(
            f"expected class_weight (r,) of student (B, r) = {tuple(student.shape)}, got "
            f"{tuple(class_weight.shape)}"
        )
    weights = {} if class_weight is None else {"cls": class_weight}
    losses = _losses(student, previous, current, target, labelled, temperature, "PCQ", weights)
    return {f"loss_{name}": loss for name, loss in losses.items()}


class GlobalDistillationLoss(nn.Module):
    """:func:`global_distillation_losses` of rows that are labelled where ``target >= 0``, for
    training and for fine-tuning.

    Args:
        temperature: as in the function.
        balanced: True, for fine-tuning: weigh the classes by ``counts``, in each term by those of
            its classes.
        terms: which teachers pull beside the labels: some of the letters P, C, Q. Without C, P's
            factor is 1, not l / r. Without Q, the cross-entropy is divided by the labelled rows
            only. Q without C, which is not trained then, shares out what belongs to the new classes
            evenly (as a C does whose logits are all equal). So does the authors' code: ``'PC'`` is
            its form without external data, and ``'P'``, ``'PC'``, ``'Q'`` are its ablations. Where
            these fine-tune without C, Q does not pull there, and P is the M that goes in, with all
            r columns; ``'P'`` alone takes such a one.

    Raises:
        ValueError: a temperature that is not positive, or other terms.
    """

    def __init__(self, temperature: float = 2.0, balanced: bool = False, terms: str = "PCQ"):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        if not terms or set(terms) - set("PCQ") or len(set(terms)) < len(terms):
            raise ValueError(
                "terms must be some of the letters P, C and Q, each once, as in 'PCQ' or 'P', got "
                f"{terms!r}"
            )
        self.temperature, self.balanced, self.terms = temperature, balanced, terms

    def forward(
        self,
        student: Tensor,
        previous: Tensor,
        current: Tensor | None,
        target: Tensor,
        counts: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``{'cls': …, 'q': …, 'p': …, 'c': …}``, less the teachers that are not among ``terms``.

        Args:
            student: ``(B, r)`` logits; previous: ``(B, l)``; current: ``(B, r - l)``, not looked at
                (None) without C's term.
            target: ``(B,)`` integers; negative where a row has no label, such as -100.
            counts: ``(r,)`` labelled samples of each class in the whole training set; wanted where
                ``balanced``, else ignored.

        Raises:
            ValueError: shapes that do not fit, a target that is no integer, or counts that are
                missing.
        """
        weights = {}
        if self.balanced:
            counts, old = _checked_counts(counts, student, previous), previous.shape[-1]
            parts = {"cls": counts, "p": counts[:old], "c": counts[old:]}
            weights = {name: class_balance_weights(part) for name, part in parts.items()}
        return _losses(
            student, previous, current, target, target >= 0, self.temperature, self.terms, weights
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return f"temperature={self.temperature}, balanced={self.balanced}, terms={self.terms!r}"


class CurrentTeacherLoss(nn.Module):
    """What trains the current teacher C, and the model of the first experience: sure of the new
    classes, unsure of all else.

    On M's own new columns, at weight m / r, with P's term at l / r, it is the ablation in which
    labels take C's place.

    Args:
        confidence: weight of the :func:`confidence_loss`; 1 as in the authors' code.
    """

    def __init__(self, confidence: float = 1.0):
        super().__init__()
        self.confidence = confidence

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """``{'cls': …, 'confidence': …}``, each a mean over its own rows, and a connected 0 where
        there are none.

        Args:
            logits: ``(B, m)``, the columns of the new classes.
            target: ``(B,)`` integers below m; negative, such as -100, where a row shows no new
                class: coreset, external images.

        Raises:
            ValueError: shapes that do not fit, one class only, or a target that is no integer.
        """
        _check_rows(logits, target)
        _check_several(logits)
        (logits,) = raised(logits)
        new = target >= 0
        return {
            "cls": _mean_over(new, _cross_entropy(logits.log_softmax(1), target, new)),
            "confidence": self.confidence * _mean_over(~new, _sureness(logits)),
        }

    def extra_repr(self) -> str:
        """The arguments."""
        return f"confidence={self.confidence}"


class BalancedCrossEntropyLoss(nn.Module):
    """Cross-entropy, with each row weighed by its class: the steps above for a student without
    teachers.

    Args:
        balanced: weigh the classes by ``counts``; False: plain cross-entropy.
    """

    def __init__(self, balanced: bool = False):
        super().__init__()
        self.balanced = balanced

    def forward(self, student: Tensor, target: Tensor, counts: Tensor | None = None) -> Tensor:
        """Sum of w_y CE over the labelled rows, divided by their number; a connected 0 where there
        are none.

        Args:
            student: ``(B, r)`` logits.
            target: ``(B,)`` integers; rows where it is negative are left out.
            counts: as in :class:`GlobalDistillationLoss`.

        Raises:
            ValueError: shapes that do not fit, one class only, a target that is no integer, or
                counts that are missing.
        """
        _check_rows(student, target)
        _check_several(student)
        (student,) = raised(student)
        labelled = target >= 0
        costs = _cross_entropy(student.log_softmax(1), target, labelled)
        if self.balanced:
            class_weight = class_balance_weights(_checked_counts(counts, student, student))
            costs = costs * _row_weights(class_weight, target, labelled)
        return _mean_over(labelled, costs)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"balanced={self.balanced}"


def step_losses(
    temperature: float = 2.0, confidence: float = 1.0, terms: str = "PCQ"
) -> dict[str, tuple[type[nn.Module], dict]]:
    """The loss of each step of an experience and its arguments: ``current``, which trains C,
    ``main`` and ``finetune``.

    Args:
        temperature, terms: of :class:`GlobalDistillationLoss`.
        confidence: of :class:`CurrentTeacherLoss`.
    """
    shared = {"terms": terms, "temperature": temperature}
    return {
        "current": (CurrentTeacherLoss, {"confidence": confidence}),
        "main": (GlobalDistillationLoss, {"balanced": False, **shared}),
        "finetune": (GlobalDistillationLoss, {"balanced": True, **shared}),
    }


def _losses(
    student: Tensor,
    previous: Tensor,
    current: Tensor | None,
    target: Tensor,
    labelled: Tensor,
    temperature: float,
    terms: str,
    weights: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The terms by name; ``weights`` are the class weights of 'cls', 'p' and 'c', where they are
    not 1.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    _check_rows(student, target, labelled)
    student, previous, current = _checked_logits(student, previous, current, terms)
    labelled = labelled.to(student.device, non_blocking=True)
    weights = {
        name: weight.to(student.device, student.dtype, non_blocking=True)
        for name, weight in weights.items()
    }
    rows, (l, r) = max(len(student), 1), (previous.shape[1], student.shape[1])
    log_p = student.log_softmax(1)

    hard = _cross_entropy(log_p, target, labelled)
    hard = hard * _row_weights(weights.get("cls"), target, labelled)
    if "Q" in terms:
        losses = {"cls": torch.where(labelled, hard, 0).sum() / rows}
        q = ensemble_probabilities(previous, current)
        soft = times(q, q.log() - log_p).sum(1)
        losses["q"] = torch.where(labelled, 0, soft).sum() / rows
    else:
        losses = {"cls": _mean_over(labelled, hard)}
    if "P" in terms:
        share = l / r if "C" in terms else 1
        soft = _divergence(student[:, :l], previous, temperature)
        soft = soft * _row_weights(weights.get("p"), target, labelled & (target < l))
        losses["p"] = soft.sum() * (temperature**2 * share / rows)
    if "C" in terms:
        soft = _divergence(student[:, l:], current, temperature)
        soft = soft * _row_weights(weights.get("c"), target - l, labelled & (target >= l))
        losses["c"] = soft.sum() * (temperature**2 * (r - l) / r / rows)
    return losses


def _checked_logits(
    student: Tensor, previous: Tensor, current: Tensor | None, terms: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits in one precision, the teachers' without gradient."""
    if current is None and "C" in terms:
        raise ValueError(f"terms={terms!r} needs current (B, r - l), got None")
    if "C" not in terms and "Q" in terms:
        # without C, all new classes are alike to Q
        old_width = previous.shape[-1] if previous.dim() else 0
        current = student.new_zeros(len(student), max(student.shape[1] - old_width, 0))
    if terms == "P":
        _check_teachers(student, [previous])
        current = student[:0]  # not looked at
    else:
        _check_teachers(student, [previous, current])
    return raised(student, previous.detach(), current.detach())


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(B, C) logits -> (B,) KL of the teacher's softened softmax and the student's."""
    return kl_terms(student / temperature, teacher / temperature).sum(1)


def _cross_entropy(log_p: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """(B,) minus the log-probability of the target; of class 0 where there is none."""
    return -log_p.gather(1, torch.where(labelled, target, 0).long()[:, None]).squeeze(1)


def _sureness(logits: Tensor) -> Tensor:
    """(B, m) -> (B,) KL(uniform ‖ softmax)."""
    return -logits.log_softmax(1).mean(1) - math.log(logits.shape[1])


def _row_weights(class_weight: Tensor | None, target: Tensor, inside: Tensor) -> Tensor | float:
    """(B,) the weight of each row's class; 1 for rows that are not ``inside``."""
    if class_weight is None:
        return 1.0
    return torch.where(inside, class_weight[torch.where(inside, target, 0).long()], 1)


def _mean_over(rows: Tensor, costs: Tensor) -> Tensor:
    """The mean of the costs of some rows, over all processes; a connected 0 if there are none."""
    count, unit = mean_over_processes(rows.sum().to(costs.dtype))
    return torch.where(rows, costs, 0).sum() / count.clamp(min=unit)


def _checked_counts(counts: Tensor | None, student: Tensor, teacher: Tensor) -> Tensor:
    if counts is None:
        raise ValueError(
            "balanced=True needs counts: the labelled samples of each class, (r,), as in a batch's "
            "'counts'"
        )
    if counts.shape != student.shape[1:]:
        raise ValueError(
            f"expected counts (r,) of student (B, r) = {tuple(student.shape)}, got "
            f"{tuple(counts.shape)}"
        )
    return counts.to(student.device, raised_dtype(student, teacher), non_blocking=True)


def _check_rows(logits: Tensor, target: Tensor, labelled: Tensor | None = None) -> None:
    """(B, classes) logits, and (B,) integers and booleans."""
    columns = {"target": target}
    if labelled is not None:
        columns["labelled"] = labelled
    fit = all(tensor.shape == logits.shape[:1] for tensor in columns.values())
    if logits.dim() != 2 or not logits.shape[1] or not fit:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in columns.items())
        raise ValueError(
            f"expected logits (B, classes) and beside them (B,), got {tuple(logits.shape)}, "
            f"{shapes}"
        )
    if target.is_floating_point() or (labelled is not None and labelled.dtype != torch.bool):
        kinds = ", ".join(f"{name} {tensor.dtype}" for name, tensor in columns.items())
        raise ValueError(f"expected a target of integers and labelled of bool, got {kinds}")


def _check_several(logits: Tensor) -> None:
    if logits.shape[1] == 1:
        raise ValueError(
            f"expected at least two classes, got {tuple(logits.shape)}: the softmax of one logit "
            "is 1 whatever the logit, so that nothing would be learned; lwf_mc_loss, with "
            "sigmoids, learns one class at a time"
        )


def _check_teachers(student: Tensor, teachers: list[Tensor]) -> None:
    """Together they have the student's columns; P alone may have fewer."""
    fit = all(z.dim() == 2 and len(z) == len(student) and z.shape[1] for z in teachers)
    missing = student.shape[1] - sum(z.shape[-1] for z in teachers) if fit else -1
    if missing < 0 or (missing and len(teachers) > 1):
        logits = dict(zip(("student", "previous", "current"), [student, *teachers]))
        shapes = ", ".join(f"{name} {tuple(z.shape)}" for name, z in logits.items())
        raise ValueError(
            f"expected logits (B, l + m), (B, l) and (B, m), l and m at least 1, got {shapes}"
        )
