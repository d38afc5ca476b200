"""Stop an avalanche strategy between two experiences, and go on."""

from collections.abc import Sequence

import torch

from kdtasks.incremental.plugin.base import OldModelPlugin
from kdtasks.incremental.plugin.models import load_model, model_state


def checkpoint(strategy) -> dict:
    """All that :func:`resume` needs, between two experiences, in tensors, numbers and lists.

    Model, optimizer by parameter name, the plugins of this package, avalanche's counters, torch's
    random state (CPU). Not other plugins, nor the evaluator's history. ``torch.save`` it;
    ``torch.load(weights_only=True)`` reads it.
    """
    optimizer = strategy.optimizer
    names = {id(parameter): name for name, parameter in strategy.model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    return {
        "model": model_state(strategy.model),
        "optimizer": {
            "state": {
                names[id(parameter)]: state["state"][number]
                for number, parameter in enumerate(parameters)
                if id(parameter) in names and state["state"].get(number)
            },
            "groups": [
                {key: value for key, value in group.items() if key != "params"}
                for group in state["param_groups"]
            ],
        },
        "plugins": [
            plugin.state_dict() for plugin in strategy.plugins if isinstance(plugin, OldModelPlugin)
        ],
        "clock": {
            name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)
        },
        "rng": torch.get_rng_state(),
    }


def resume(strategy, state: dict, experiences: Sequence = ()) -> None:
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
    plugins = [plugin for plugin in strategy.plugins if isinstance(plugin, OldModelPlugin)]
    groups = state["optimizer"]["groups"]
    own_groups = strategy.optimizer.param_groups
    for what, own, saved in (
        ("plugins", plugins, state["plugins"]),
        ("parameter groups", own_groups, groups),
    ):
        if len(own) != len(saved):
            raise ValueError(f"the checkpoint has {len(saved)} {what}, the strategy {len(own)}")
    strategy.model.to(strategy.device)
    # avalanche's own first call; later, it would empty the state
    strategy.make_optimizer(reset_optimizer_state=True)
    load_model(strategy.model, state["model"])
    strategy.make_optimizer(remove_params=True)
    own = strategy.optimizer.state_dict()
    parameters = [
        id(parameter) for group in strategy.optimizer.param_groups for parameter in group["params"]
    ]
    numbers = {
        name: parameters.index(id(parameter))
        for name, parameter in strategy.model.named_parameters()
    }
    own["state"] = {numbers[name]: value for name, value in state["optimizer"]["state"].items()}
    for group, saved in zip(own["param_groups"], groups):
        group.update(saved)
    strategy.optimizer.load_state_dict(own)
    for plugin, saved in zip(plugins, state["plugins"]):
        plugin.load_state_dict(saved, strategy.model, experiences)
    vars(strategy.clock).update(state["clock"])
    torch.set_rng_state(state["rng"])
