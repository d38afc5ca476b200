"""Which parameters of a distiller train, which get no gradient, and in which groups they step."""

import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdtasks.core import Distiller
from kdtasks.core.names import did_you_mean
from kdtasks.core.terms import total_loss
from kdtasks.core.trial import keep_state
from kdtasks.engine import builder
from kdtasks.engine.errors import ConfigError

# of the arguments that most optimizers have; torch's sentences say the rest
_EXPECTED = {
    "lr": "a number >= 0",
    "momentum": "a number >= 0",
    "weight_decay": "a number >= 0",
    "eps": "a number >= 0",
    "betas": "two numbers in [0, 1)",
}


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
        gradients = torch.autograd.grad(
            torch.as_tensor(total_loss(losses)), trained, allow_unused=True
        )
    return any(g is None for g in gradients) or any(
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

    _check_patterns(patterns, named, f"train={list(patterns)!r}")
    chosen = []
    for name, parameter in named.items():
        if any(_matches(name, pattern) for pattern in patterns):
            chosen.append(parameter)
        else:
            parameter.requires_grad_(False)
    return chosen


def clip_groups(distiller: Distiller) -> list[list[nn.Parameter]]:
    """The student with the losses, and each peer: what is clipped by itself."""
    student = [*distiller.student.parameters(), *distiller.losses.parameters()]
    parts = [student, *(list(peer.parameters()) for peer in distiller.peers)]
    return [[p for p in part if p.requires_grad] for part in parts]


def build_optimizer(
    spec: Mapping[str, Any], distiller: Distiller, trained: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of a config, with learning rates of their own where it has ``factors``.

    ``factors={'student.backbone': 0.1}`` gives the parameters of a pattern, as those of
    :func:`select_parameters`, the learning rate times the factor; of several patterns that fit the
    last one counts. Schedules keep the proportions.

    Weight decay leaves those parameters alone that the module which has them names in its attribute
    ``undecayed``, as learned steps and levels of a quantizer.

    Args:
        spec: ``dict(type=…, lr=…, factors=…)``.
        distiller: whose names the patterns are of.
        trained: the parameters that learn.

    Raises:
        ConfigError: an optimizer that cannot be built.
        ValueError: a pattern that nothing has that trains, a factor that is not positive, or no
            ``lr``.
    """
    factors = spec.get("factors") or {}
    plain = {key: value for key, value in spec.items() if key != "factors"}
    if not factors:
        return _built(plain, _apart_from_decay(distiller, [{"params": list(trained)}]))
    rate = plain.get("lr")
    if not isinstance(rate, int | float):
        raise ValueError(f"optimizer.factors are of its lr, which must be a number, got {rate!r}")
    learning = {id(parameter) for parameter in trained}
    named = {name: p for name, p in distiller.named_parameters() if id(p) in learning}
    _check_patterns(list(factors), named, "optimizer.factors")
    by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in named.items():
        fitting = [value for pattern, value in factors.items() if _matches(name, pattern)]
        by_factor.setdefault(float(fitting[-1]) if fitting else 1.0, []).append(parameter)
    for factor in by_factor:
        if not 0 < factor < float("inf"):
            raise ValueError(
                f"optimizer.factors: expected numbers > 0, got {factor}; what must not learn is "
                "left out of the stage's train"
            )
    groups = [{"params": members, "lr": rate * factor} for factor, members in by_factor.items()]
    return _built(plain, _apart_from_decay(distiller, groups))


def _built(spec: Mapping[str, Any], groups: list[dict]) -> torch.optim.Optimizer:
    """The optimizer, or an error that names the arguments without which it could be built."""
    try:
        optimizer = builder.build(spec, "optimizer", params=groups)
    # torch's own checks raise whatever they happen to
    except Exception as error:
        wrong = [name for name in spec if name != "type" and _is_built(spec, name)]
        kind = getattr(builder.resolve(spec["type"], "optimizer"), "__name__", spec["type"])
        said = str(error).removeprefix(f"optimizer ({kind}): ")
        if not wrong:
            raise ConfigError(f"optimizer ({kind}): {said}") from error
        given = ", ".join(f"optimizer.{name}={spec[name]!r}" for name in wrong)
        expected = "".join(
            f"; expected {_EXPECTED[name]}" for name in wrong[:1] if name in _EXPECTED
        )
        raise ConfigError(f"{given} ({kind}): {said}{expected}") from error
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"optimizer.type={spec['type']!r}: its step() computes the losses several times, by a "
            "closure; expected an optimizer that takes a step from gradients, as torch.optim.SGD"
        )
    return optimizer


def _is_built(spec: Mapping[str, Any], without: str) -> bool:
    """Whether an optimizer of one number can be built with the default of one argument."""
    rest = {name: value for name, value in spec.items() if name != without}
    try:
        builder.build(rest, "optimizer", params=[nn.Parameter(torch.zeros(1))])
    except Exception:
        return False
    return True


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)


def _check_patterns(patterns: Sequence[str], named: Mapping[str, object], where: str) -> None:
    for pattern in patterns:
        if pattern not in ("losses", "peers") and not any(
            _matches(name, pattern) for name in named
        ):
            names = [
                name.rsplit(".", cut)[0] for name in named for cut in range(name.count(".") + 1)
            ]
            raise ValueError(
                f"{where}: nothing that can train is called {pattern!r}; "
                f"{did_you_mean(pattern, names)}"
            )


def _apart_from_decay(module: nn.Module, groups: Sequence[dict]) -> list[dict]:
    """The groups of an optimizer, each in two where weight decay leaves some parameters alone:
    those that the module which has them names in its attribute ``undecayed``.
    """
    apart = {
        id(getattr(part, name))
        for part in module.modules()
        for name in getattr(part, "undecayed", ())
    }
    split = []
    for group in groups:
        decayed = [p for p in group["params"] if id(p) not in apart]
        undecayed = [p for p in group["params"] if id(p) in apart]
        split.append({**group, "params": decayed})
        split.append({**group, "params": undecayed, "weight_decay": 0.0})
    return [group for group in split if group["params"]]
