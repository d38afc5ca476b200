"""A backbone's weights put into a model that is built on it: a classifier, an embedder, a detector.

Names decide, and everything is accounted for: which tensors of the file went in, which stay out,
and which of the model's stay as they were made.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

# what meta says of a file of such weights
PART, BACKBONE = "part", "backbone"
# groups that models make of a network's first layers
_GROUPS = ("stem.",)
# of BatchNorm, which a frozen one does not have
_COUNTER = "num_batches_tracked"


def placed_backbone(
    model: nn.Module, state: Mapping[str, Tensor], path: object
) -> tuple[dict[str, Tensor], str]:
    """The model's ``state_dict()`` with a backbone's tensors in their places, and the account.

    A tensor's place is its own name, behind a prefix that is the same for all
    (``'backbone.body.'``), where a model may have put the first layers into a group (``'stem.'``).

    Args:
        model: is not changed.
        state: of the backbone, without a head.
        path: of the file, for messages.

    Raises:
        ValueError: fewer than half of the tensors have a place, or one has another shape there.
    """
    current = model.state_dict()
    prefix = _prefix(current, state)
    places: dict[str, str] = {}
    for name in current:
        source = _source(name.removeprefix(prefix), state) if name.startswith(prefix) else None
        if source is not None:
            places[source] = name
    counted = [name for name in state if not name.endswith(_COUNTER)]
    out = [name for name in counted if name not in places]
    if 2 * len(out) > len(counted) or not places:
        raise ValueError(
            f"{str(path)!r} is a backbone whose tensors have no place in this "
            f"{type(model).__name__}: of {len(counted)} (as {', '.join(counted[:3])}) "
            f"{len(counted) - len(out)} have one. Expected a model that is built on the same "
            "network"
        )
    other = [
        f"{place} {tuple(state[name].shape)} instead of {tuple(current[place].shape)}"
        for name, place in places.items()
        if current[place].shape != state[name].shape
    ]
    if other:
        raise ValueError(
            f"{str(path)!r} is a backbone of another shape than this {type(model).__name__}'s: "
            + "; ".join(other[:4])
            + (f" (+{len(other) - 4} more)" if len(other) > 4 else "")
        )
    taken = {place: state[name] for name, place in places.items()}
    fresh = [name for name in current if name not in taken and not name.endswith(_COUNTER)]
    went = sum(not name.endswith(_COUNTER) for name in places)
    said = f"the backbone's {went} tensors were put in{f' at {prefix[:-1]!r}' if prefix else ''}"
    if out:
        said += f"; {len(out)} of the file have no place there: {_modules(out)}"
    said += f"; {len(fresh)} of the model's are not in it and stay as made: {_modules(fresh)}"
    return {**current, **taken}, said if fresh else said.partition("; 0 of the model")[0]


def _prefix(names: Iterable[str], state: Mapping[str, Tensor]) -> str:
    """What stands before most of the backbone's names in the model."""
    votes = Counter(
        name.removesuffix(short)
        for name in names
        for short in state
        if name == short or name.endswith(f".{short}")
    )
    return votes.most_common(1)[0][0] if votes else ""


def _source(rest: str, state: Mapping[str, Tensor]) -> str | None:
    """The backbone's name of a tensor that the model calls so."""
    if rest in state:
        return rest
    shorter = (rest.removeprefix(group) for group in _GROUPS if rest.startswith(group))
    return next((name for name in shorter if name in state), None)


def _modules(names: Iterable[str]) -> str:
    """The modules that tensors belong to, by two parts of their names, with how many each."""
    count = Counter(".".join(name.split(".")[:-1][:2]) or name for name in names)
    return ", ".join(f"{module} ({number})" for module, number in count.items()) or "none"
