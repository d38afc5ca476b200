"""Stop an avalanche strategy between two experiences, and go on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdtasks.incremental.plugin.base import OldModelPlugin
from kdtasks.incremental.plugin.models import load_model, model_state

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


def checkpoint(strategy: "SupervisedTemplate") -> dict:
    """All that :func:`resume` needs, between two experiences, in tensors, numbers and lists.

    Model, optimizer by parameter name, the plugins of this package, avalanche's counters, torch's
    random state (CPU). Not other plugins, nor the evaluator's history. ``torch.save`` it;
    ``torch.load(weights_only=True)`` reads it.
    """
    clock = {name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)}
    return {
        "model": model_state(strategy.model),
        "optimizer": _optimizer_state(strategy),
        "plugins": [plugin.state_dict() for plugin in _old_model_plugins(strategy)],
        "clock": clock,
        "rng": torch.get_rng_state(),
    }


def resume(strategy: "SupervisedTemplate", state: dict, experiences: Sequence = ()) -> None:
    """Put a new strategy where :func:`checkpoint` left another: its next experience gives the same
    weights (on one CPU thread).

    Args:
        strategy: made anew, with the same kind of model, optimizer and plugins, that has trained on
            nothing. Heads that avalanche or ``GrowingHead`` had grown are grown.
        state: of :func:`checkpoint`.
        experiences: those that are over; :class:`GlobalDistillationPlugin` takes its coreset out of
            them.

    Raises:
        ValueError: another number of plugins or parameter groups.
        RuntimeError: the model's weights do not fit.
    """
    plugins, groups = _old_model_plugins(strategy), state["optimizer"]["groups"]
    _check_count("plugins", len(plugins), len(state["plugins"]))
    _check_count("parameter groups", len(strategy.optimizer.param_groups), len(groups))
    strategy.model.to(strategy.device)
    # avalanche's own first call; later, it would empty the state
    strategy.make_optimizer(reset_optimizer_state=True)
    load_model(strategy.model, state["model"])
    strategy.make_optimizer(remove_params=True)
    _load_optimizer(strategy, state["optimizer"])
    for plugin, saved in zip(plugins, state["plugins"]):
        plugin.load_state_dict(saved, strategy.model, experiences)
    vars(strategy.clock).update(state["clock"])
    torch.set_rng_state(state["rng"])


def _old_model_plugins(strategy: "SupervisedTemplate") -> list[OldModelPlugin]:
    return [plugin for plugin in strategy.plugins if isinstance(plugin, OldModelPlugin)]


def _optimizer_state(strategy: "SupervisedTemplate") -> dict:
    """The optimizer's state by parameter name, and its settings."""
    names = {id(parameter): name for name, parameter in strategy.model.named_parameters()}
    state = strategy.optimizer.state_dict()
    by_name = {}
    for number, parameter in enumerate(_optimized(strategy)):
        if id(parameter) in names and state["state"].get(number):
            by_name[names[id(parameter)]] = state["state"][number]
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in state["param_groups"]
    ]
    return {"state": by_name, "groups": groups}


def _load_optimizer(strategy: "SupervisedTemplate", saved: dict) -> None:
    """The inverse of :func:`_optimizer_state`."""
    state = strategy.optimizer.state_dict()
    numbers = {id(parameter): number for number, parameter in enumerate(_optimized(strategy))}
    parameters = dict(strategy.model.named_parameters())
    state["state"] = {
        numbers[id(parameters[name])]: value for name, value in saved["state"].items()
    }
    for group, settings in zip(state["param_groups"], saved["groups"]):
        group.update(settings)
    strategy.optimizer.load_state_dict(state)


def _optimized(strategy: "SupervisedTemplate") -> list[nn.Parameter]:
    """The optimizer's parameters, in the order in which its state numbers them."""
    groups = strategy.optimizer.param_groups
    return [parameter for group in groups for parameter in group["params"]]


def _check_count(what: str, present: int, saved: int) -> None:
    if present != saved:
        raise ValueError(f"the checkpoint has {saved} {what}, the strategy {present}")
