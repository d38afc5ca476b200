"""Every loss is tried once on real tensors before the first step, and built where it has to be."""

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from kdtasks.core.outputs import describe_output, describe_shape, entries_of
from kdtasks.core.terms import Loss, Term, check_informs, named_values
from kdtasks.core.trial import keep_state


def try_terms(
    terms: Mapping[str, Term],
    inputs: Mapping[str, Sequence],
    models: Mapping[str, nn.Module],
    built: dict[str, object],
) -> None:
    """Call each term's loss once; its state is put back, but for what its ``build`` makes.

    Args:
        terms: by name; a loss may have a method ``build(*tensors)``, which is called once.
        inputs: what each is called with.
        models: by role, for messages.
        built: ``{name: loss}`` of those that are built; filled in.

    Raises:
        ValueError: a loss cannot be computed from its tensors, or gives no scalar; the message
            has their shapes.
    """
    for name, term in terms.items():
        tensors = inputs[name]
        _check_classes(name, term, tensors)
        shapes = ", ".join(f"{n} {describe_shape(t)}" for n, t in zip(term.of, tensors))
        try:
            values = _call(name, term, tensors, built)
        except Exception as error:
            hint = _hint_at_entries(term, tensors, models)
            raise ValueError(f"{name} cannot be computed from {shapes}: {error}{hint}") from error
        _check_values(name, values, shapes)


def mode_of(model: nn.Module) -> str:
    """In words, for messages."""
    return "in training" if model.training else "in eval"


def _call(name: str, term: Term, tensors: Sequence, built: dict) -> dict[str, Tensor]:
    loss = term.loss
    with warnings.catch_warnings():
        # torch would broadcast, and only warn
        warnings.filterwarnings("error", message="Using a target size")
        if hasattr(loss, "build") and built.get(name) is not loss:
            loss.build(*tensors)
            built[name] = loss
            _move_to(loss, tensors)
        with keep_state(loss.modules() if isinstance(loss, nn.Module) else [loss]):
            return named_values(name, loss(*tensors))


def _check_values(name: str, values: Mapping[str, object], shapes: str) -> None:
    for value in values.values():
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = "shape " if isinstance(value, Tensor) else ""
            raise ValueError(
                f"{name} gave {what}{describe_shape(value)} from {shapes}; expected one scalar "
                "tensor, or a dict or list of them"
            )
    check_informs(name, values)


def _move_to(loss: Loss, tensors: Sequence) -> None:
    """What a loss has built goes to the tensors' device, and into eval, as the rest is here."""
    if isinstance(loss, nn.Module):
        loss.eval()
        loss.to(next((t.device for t in tensors if isinstance(t, Tensor)), None))


def _check_classes(name: str, term: Term, tensors: Sequence) -> None:
    if not isinstance(term.loss, nn.CrossEntropyLoss):
        return
    _check_targets(name, term, tensors)
    if getattr(tensors[0], "shape", ())[1:2] == (1,):
        raise ValueError(
            f"{name}: {term.of[0]} {describe_shape(tensors[0])} has one class, whose softmax is 1 "
            "whatever the logit: cross-entropy would be 0 and train nothing. Expected two classes "
            "or more, or torch.nn.BCEWithLogitsLoss for one logit"
        )


def _check_targets(name: str, term: Term, tensors: Sequence) -> None:
    """Class numbers that the logits have; on a GPU torch would end with a device-side assert."""
    if len(tensors) != 2 or not all(isinstance(t, Tensor) for t in tensors):
        return
    logits, target = tensors
    if logits.ndim < 2 or target.is_floating_point() or not target.numel():
        return
    wrong = (target < 0) | (target >= logits.shape[1])
    wrong &= target != term.loss.ignore_index
    if wrong.any():
        raise ValueError(
            f"{name}: {term.of[1]} has the class number {int(target[wrong][0])}, but {term.of[0]} "
            f"{describe_shape(logits)} has {logits.shape[1]} classes, numbered from 0 on: the "
            "student's num_classes, or the data's classes, are wrong"
        )


def _hint_at_entries(term: Term, tensors: Sequence, models: Mapping[str, nn.Module]) -> str:
    """The entries of outputs that are no tensor, one of which may be meant."""
    return "".join(
        f"; {role} {mode_of(models[role])} is {describe_output(role, output)}: name the entry that "
        "is meant"
        for role, output in zip(term.of, tensors)
        if role in models and entries_of(output)
    )
