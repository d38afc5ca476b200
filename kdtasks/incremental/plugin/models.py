"""Models of avalanche's and ours as plain tensors, and back, whatever heads have grown since."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.incremental.models import GrowingHead

if TYPE_CHECKING:
    from avalanche.models import MultiHeadClassifier


def model_state(model: nn.Module) -> dict:
    """The tensors of a model, and what avalanche's multi-task modules keep beside them."""
    from avalanche.models import MultiTaskModule

    tasks = {
        path: (sorted(module.known_train_tasks_labels), module.max_class_label)
        for path, module in model.named_modules()
        if isinstance(module, MultiTaskModule)
    }
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "tasks": tasks,
    }


def load_model(model: nn.Module, state: dict) -> nn.Module:
    """The model with the saved tensors, its heads made as many and as large as those were."""
    from avalanche.models import MultiHeadClassifier

    tensors, device = state["tensors"], next(model.parameters()).device
    for path, module in list(model.named_modules()):
        prefix = f"{path}." if path else ""
        if isinstance(module, MultiHeadClassifier):
            _match_tasks(module, _children(tensors, f"{prefix}classifiers."))
        if isinstance(module, GrowingHead):
            blocks = _children(tensors, f"{prefix}blocks.")
            del module.blocks[len(blocks) :]
            for _ in blocks[len(module.blocks) :]:
                module.grow(1)
    present = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in tensors.items():
        if name in present and present[name].shape != value.shape:
            _replace(model, name, present[name].new_empty(value.shape))
    for path, (task_labels, largest_class) in state["tasks"].items():
        module = model.get_submodule(path)
        module.known_train_tasks_labels = set(task_labels)
        module.max_class_label = largest_class
    model.load_state_dict(tensors)
    return model.to(device)


def _match_tasks(module: "MultiHeadClassifier", tasks: list[str]) -> None:
    """Give the module a head for each of the tasks, and no other."""
    from avalanche.models import IncrementalClassifier

    size = module.starting_out_features
    for task in list(module.classifiers):
        if task not in tasks:
            del module.classifiers[task], module._buffers[f"active_units_T{task}"]
    for task in tasks:
        if task not in module.classifiers:
            module.classifiers[task] = IncrementalClassifier(
                module.in_features, size, masking=False, auto_adapt=False
            )
            module.register_buffer(f"active_units_T{task}", torch.zeros(size, dtype=torch.int8))


def _children(tensors: dict[str, Tensor], prefix: str) -> list[str]:
    """The names that follow a prefix, each once, in order."""
    names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
    return list(dict.fromkeys(name.split(".")[0] for name in names))


def _replace(model: nn.Module, name: str, value: Tensor) -> None:
    """A parameter or buffer of another size in the place of the present one."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, old.requires_grad)
    setattr(module, leaf, value)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
