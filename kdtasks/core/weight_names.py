"""The names in a state_dict, read in other ways: without a prefix, without what wrappers add."""

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

# what the texts of a reading that leaves tensors out begin with
A_PART = "the part"
# of torch's and mmengine's averaged models
COUNTERS = ("n_averaged", "steps")
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# what trainers call a model among their parts
_OWNERS = {"module", "model", "student", "teacher", "net", "network"}


def other_readings(model: nn.Module, state: dict) -> Iterator[tuple[dict, str]]:
    """Other ways to read a file's names, and what is said of each: without wrappers; without a
    prefix.
    """
    short_names = {_WRAPPERS.sub("", name): name for name in model.state_dict()}
    plain = renamed(state, lambda name: _WRAPPERS.sub("", name))
    if list(plain) != list(state) or any(name != short for short, name in short_names.items()):
        yield (
            renamed(plain, lambda name: short_names.get(name, name)),
            "what wrappers add to names (_orig_mod.) was left out",
        )
    votes = Counter(
        name.removesuffix(short)
        for short in short_names
        for name in plain
        if name.endswith(f".{short}")
    )
    for prefix, _ in votes.most_common(16):
        part = renamed(without_prefix(plain, prefix), lambda name: short_names.get(name, name))
        rest = sum(not name.startswith(prefix) and name not in COUNTERS for name in plain)
        if not rest:
            yield part, f"the prefix {prefix!r} was taken off the names"
        elif _OWNERS.issuperset(prefix.rstrip(".").split(".")):
            yield part, f"{A_PART} {prefix!r} was read, {rest} other tensors were left out"


def without_prefix(state: dict, prefix: str) -> dict:
    """What begins with a prefix, without it; counters of an averaged model are no weights."""
    return renamed(
        {name: value for name, value in state.items() if name not in COUNTERS},
        lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None,
        getattr(state, "_metadata", {}),
    )


def renamed(state: dict, rename: Callable[[str], str | None], versions: dict | None = None) -> dict:
    """With other names, those of None left out; the modules' versions, by which torch upgrades old
    files, go along.
    """
    recorded: dict = getattr(state, "_metadata", {}) if versions is None else versions
    # torch reads its _metadata
    result: Any = OrderedDict(
        (rename(name), value) for name, value in state.items() if rename(name) is not None
    )
    moved = {rename(f"{path}."): version for path, version in recorded.items() if path}
    result._metadata = OrderedDict(
        (path[:-1], version) for path, version in moved.items() if path is not None
    )
    result._metadata.setdefault("", recorded.get("", {}))
    return result
