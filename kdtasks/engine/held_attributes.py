"""State that the parts of a stage keep in plain attributes, for its checkpoints."""

import types
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from kdtasks.core import Distiller
from kdtasks.core.attributes import attributes_of, changed_attributes, set_attributes
from kdtasks.engine.optim import ForeignScheduler


class HeldAttributes:
    """What learners, losses, hooks, routes, other libraries' schedulers and the distiller itself
    (``kept``) hold in attributes, as they are now; see :mod:`kdtasks.core.attributes`.

    Args:
        distiller: built.
        hooks, schedulers: of the stage.
        routes: of its teachers, by name.
    """

    def __init__(
        self,
        distiller: Distiller,
        hooks: Sequence[object],
        schedulers: Sequence[object],
        routes: Mapping[str, object],
    ):
        flat = {
            **{f"hook {k} {type(hook).__name__}": hook for k, hook in enumerate(hooks)},
            **_learning_modules(distiller),
            **{f"route {name}": route for name, route in routes.items()},
        }
        deep = {
            **{
                f"schedule {k}": scheduler
                for k, scheduler in enumerate(schedulers)
                if isinstance(scheduler, ForeignScheduler)
            },
            **_losses_with_state(distiller),
            "kept": distiller.kept,
        }
        # of the deep ones, objects inside them too
        self._owners: dict[str, tuple[object, bool]] = {
            **{name: (owner, False) for name, owner in flat.items()},
            **{name: (owner, True) for name, owner in deep.items()},
        }
        self._as_made = self._read()

    def _read(self) -> dict[str, dict[str, tuple]]:
        return {name: attributes_of(owner, deep) for name, (owner, deep) in self._owners.items()}

    def changed(self) -> dict[str, dict]:
        """What differs from how it was made, by owner."""
        changed = {
            name: changed_attributes(attributes, self._as_made[name])
            for name, attributes in self._read().items()
        }
        return {name: attributes for name, attributes in changed.items() if attributes}

    def put_back(self, changed: Mapping[str, Mapping[str, tuple]], device: torch.device) -> None:
        """What :meth:`changed` gave; an owner that is not there any more is passed over."""
        for name, attributes in changed.items():
            if name in self._owners:
                set_attributes(self._owners[name][0], attributes, device)


def _learning_modules(distiller: Distiller) -> dict[str, nn.Module]:
    """The student and its peers, and every module inside them."""
    return {
        f"{role}.{path}": part
        for role in distiller.learners
        for path, part in distiller.model(role).named_modules()
    }


def _losses_with_state(distiller: Distiller) -> dict[str, object]:
    """The losses that are no functions, by name, and every module inside them."""
    stateful: dict[str, object] = {}
    for name, (loss, _, _) in distiller.terms.items():
        if isinstance(loss, nn.Module):
            stateful |= {f"losses.{name}.{path}": part for path, part in loss.named_modules()}
        elif not isinstance(loss, types.FunctionType):
            stateful[f"losses.{name}"] = loss
    return stateful
