"""Which parameters of a distiller train, and what else of it has a state."""

import fnmatch
import types
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from kdtasks.core import Distiller
from kdtasks.core.names import did_you_mean
from kdtasks.core.terms import total_loss
from kdtasks.core.trial import keep_state


def losses_with_state(distiller: Distiller) -> dict[str, object]:
    """The losses that are no functions, by name, and every module inside them."""
    found: dict[str, object] = {}
    for name, (loss, _, _) in distiller.terms.items():
        if isinstance(loss, nn.Module):
            found |= {f"losses.{name}.{path}": part for path, part in loss.named_modules()}
        elif not isinstance(loss, types.FunctionType):
            found[f"losses.{name}"] = loss
    return found


def leaves_parameters_out(distiller: Distiller, batch: Mapping) -> bool:
    """Whether some parameter that trains may get no gradient in a step, which DDP has to be told.

    It is seen on one batch; a loss with a schedule may stop pulling later, and of several steps a
    batch each may be of other parameters. Nothing moves, as in :meth:`Distiller.build`.
    """
    if distiller.steps_per_batch > 1:
        return True
    distiller.progress = (0, 1)
    with (
        distiller.at_rest(training=True),
        keep_state(distiller.losses.modules()),
        torch.enable_grad(),
    ):
        losses = distiller(batch)
        trained = [p for p in distiller.parameters() if p.requires_grad]
        found = torch.autograd.grad(torch.as_tensor(total_loss(losses)), trained, allow_unused=True)
    return any(g is None for g in found) or any(
        callable(weight) for _, _, weight in distiller.terms.values()
    )


def select_parameters(distiller: Distiller, patterns: Sequence[str]) -> list[nn.Parameter]:
    """The parameters named by the patterns; the others need no gradient from here on.

    A pattern names a parameter, a module (``'student'``, ``'student.layer3'``: all below it) or
    many (``fnmatch``). Peers train whenever the student does. What the model itself has frozen
    stays frozen.

    Raises:
        ValueError: a pattern matches nothing.
    """
    named = {name: p for name, p in distiller.named_parameters() if p.requires_grad}
    patterns = [
        *patterns,
        *(["peers"] if any(p.split(".")[0] == "student" for p in patterns) else []),
    ]

    def matches(name: str, pattern: str) -> bool:
        return name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)

    for pattern in patterns:
        if pattern not in ("losses", "peers") and not any(matches(name, pattern) for name in named):
            known = [
                name.rsplit(".", cut)[0] for name in named for cut in range(name.count(".") + 1)
            ]
            raise ValueError(
                f"train={list(patterns)!r}: nothing that can train is called {pattern!r}; "
                f"{did_you_mean(pattern, known)}"
            )
    chosen = []
    for name, parameter in named.items():
        if any(matches(name, pattern) for pattern in patterns):
            chosen.append(parameter)
        else:
            parameter.requires_grad_(False)
    return chosen
