"""Load the weights of a file into a model, or say why they are not its."""

import warnings
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdtasks.core.finite import not_finite
from kdtasks.core.handover import BACKBONE, PART, placed_backbone
from kdtasks.core.trial import keep_state
from kdtasks.core.weight_files import read_weights
from kdtasks.core.weight_names import A_PART, other_readings, renamed, without_prefix


def load_weights(model: nn.Module, path: str | Path, grown: bool = False, prefix: str = "") -> dict:
    """Load ``path`` into ``model``, as torch's strict ``load_state_dict`` does, or change nothing;
    return the file's ``meta``.

    Modules that know how to read older files do so: BatchNorms without ``num_batches_tracked``, a
    former weight_norm, observers of quantization-aware training, whose buffers have the sizes of
    the file.

    Where the names do not fit, wrappers that torch.compile, FSDP and activation checkpointing leave
    in names (``_orig_mod.``) are left out, then a prefix that all names share (Lightning's
    ``model.``); or that of a part, ``student.``, ``model.``, ``net.`` and the like, which alone
    makes all of the model's names, the rest being left out. A warning says so. A file that says it
    is a backbone (a run of representation writes such) is put where the model has it, and a warning
    says what of the model stays as it was made (:mod:`kdtasks.core.handover`).

    Args:
        model: gets the weights.
        path: of the file.
        grown: a module that has grown since the file was written may have a method
            ``complete_state(state, prefix)``: it adds what the file cannot know, and may rename.
        prefix: only the tensors whose names begin so are read, without it.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_weights`; or names or shapes differ (the first
            few are listed), or several parts of the file fit; or a value is NaN or infinite where
            the model as it was built has another. The model is then as it was.
    """
    state, meta = read_weights(path)
    state = without_prefix(state, prefix) if prefix else state
    if _fits(model, state, grown):
        _load(model, _completed(model, state, grown), path)
        return meta
    readings = [(state, ""), *other_readings(model, state)]
    for fits in (_fits, _loads):
        fitting = [(reading, said) for reading, said in readings if fits(model, reading, grown)]
        parts = [said for _, said in fitting if said.startswith(A_PART)]
        if len(parts) == len(fitting) > 1:
            raise ValueError(
                f"{str(path)!r} holds several sets of weights for this {type(model).__name__}: "
                f"expected one, got {'; '.join(parts)}. Save the one that is meant by itself"
            )
        if fitting:
            reading, said = fitting[0]
            _load(model, _completed(model, reading, grown), path)
            if said:
                warnings.warn(f"{str(path)!r}: {said}", stacklevel=2)
            return meta
    if meta.get(PART) == BACKBONE:
        placed, said = placed_backbone(model, state, path)
        _load(model, placed, path)
        warnings.warn(f"{str(path)!r}: {said}", stacklevel=2)
        return meta
    raise ValueError(
        f"{str(path)!r} is not a checkpoint of this {type(model).__name__}: "
        + (_differences(model, _completed(model, state, grown)) or "torch refuses it")
        + (f". It says it is {meta['model']}" if "model" in meta else "")
        + _hint_of_backbone(model, state, path)
    )


def _hint_of_backbone(model: nn.Module, state: dict, path: str | Path) -> str:
    """Where a file would do as a backbone, what says that it is one."""
    if state.keys() & model.state_dict().keys():
        return ""
    try:
        _, said = placed_backbone(model, state, path)
    except ValueError:
        return ""
    beside = Path(path).with_suffix(".json").name
    return (
        f". If it is the backbone that a run of representation has trained, keep that run's "
        f"{beside!r} beside it, which says so: {said}"
    )


def _completed(model: nn.Module, state: dict, grown: bool) -> dict:
    """A copy, since torch changes what it loads; with what modules that have grown add."""
    state = renamed(state, str)
    for path, module in model.named_modules() if grown else ():
        complete = getattr(module, "complete_state", None)
        if complete is not None:
            complete(state, f"{path}." if path else "")
    return state


def _fits(model: nn.Module, state: dict, grown: bool) -> bool:
    return not _differences(model, _completed(model, state, grown))


def _loads(model: nn.Module, state: dict, grown: bool) -> bool:
    """Whether torch can load it, by trying; the model is as it was afterwards."""
    with torch.no_grad(), ExitStack() as undo:
        undo.enter_context(keep_state(model.modules()))
        for parameter in model.parameters():
            if not is_lazy(parameter):
                undo.callback(parameter.copy_, parameter.clone())
        try:
            model.load_state_dict(_completed(model, state, grown), strict=True)
        # what a module's own upgrade raises on other files
        except Exception:
            return False
    return True


def _differences(model: nn.Module, state: dict) -> str:
    """What keeps a file's names and shapes from being the model's; '' if nothing does."""
    current = model.state_dict()
    missing = [name for name in current if name not in state]
    extra = [name for name in state if name not in current]
    both = [
        (name, current[name], state[name])
        for name in current
        if isinstance(state.get(name), torch.Tensor)
        and isinstance(current[name], torch.Tensor)
        and not is_lazy(current[name])
    ]
    other = [
        f"{name} {tuple(given.shape)} instead of {tuple(ours.shape)}"
        for name, ours, given in both
        if given.shape != ours.shape
    ]
    differences = [
        f"{what}: {', '.join(names[:4])}" + (f" (+{len(names) - 4} more)" if len(names) > 4 else "")
        for what, names in (("missing", missing), ("unexpected", extra), ("other shape", other))
        if names
    ]
    return "; ".join(differences)


def _load(model: nn.Module, state: dict, path: str | Path) -> None:
    """Load a state that fits, if what is not finite in it is so in the model as built too (-inf in
    a mask, the first range of an observer).
    """
    current = model.state_dict()
    for name in not_finite(
        {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    ):
        given, built = state[name], current.get(name)
        wrong = ~given.isfinite()
        if isinstance(built, torch.Tensor) and not is_lazy(built) and built.shape == given.shape:
            built = built.to(given.device)
            wrong &= ~((given == built) | (given.isnan() & built.isnan()))
        if bool(wrong.any()):
            raise ValueError(
                f"{str(path)!r} holds {float(given[wrong][0])} in {name!r} ({int(wrong.sum())} of "
                f"its {wrong.numel()} values): a model with such weights computes nothing"
            )
    model.load_state_dict(state, strict=True)
