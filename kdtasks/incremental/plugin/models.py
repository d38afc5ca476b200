"""Models of avalanche's and ours as plain tensors, and back, whatever heads have grown since."""

import torch
from torch import Tensor, nn

from kdtasks.incremental.models import GrowingHead


def model_state(model: nn.Module) -> dict:
    """The tensors of a model, and what avalanche's modules of several tasks know beside them."""
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
    from avalanche.models import IncrementalClassifier, MultiHeadClassifier

    tensors, device = state["tensors"], next(model.parameters()).device
    for path, module in list(model.named_modules()):
        if isinstance(module, MultiHeadClassifier):
            wanted = _children(tensors, f"{path}.classifiers." if path else "classifiers.")
            size = module.starting_out_features
            for task in [task for task in module.classifiers if task not in wanted]:
                del module.classifiers[task], module._buffers[f"active_units_T{task}"]
            for task in [task for task in wanted if task not in module.classifiers]:
                module.classifiers[task] = IncrementalClassifier(
                    module.in_features, size, masking=False, auto_adapt=False
                )
                module.register_buffer(f"active_units_T{task}", torch.zeros(size, dtype=torch.int8))
        if isinstance(module, GrowingHead):
            wanted = _children(tensors, f"{path}.blocks." if path else "blocks.")
            del module.blocks[len(wanted) :]
            for _ in wanted[len(module.blocks) :]:
                module.grow(1)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in tensors.items():
        if name in own and own[name].shape != value.shape:
            _replace(model, name, own[name].new_empty(value.shape))
    for path, (known, count) in state["tasks"].items():
        module = model.get_submodule(path)
        module.known_train_tasks_labels, module.max_class_label = {*known}, count
    model.load_state_dict(tensors)
    return model.to(device)


def _children(tensors: dict[str, Tensor], prefix: str) -> list[str]:
    """The names that follow a prefix, each once, in order."""
    return list(
        dict.fromkeys(
            name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)
        )
    )


def _replace(model: nn.Module, name: str, value: Tensor) -> None:
    """A parameter or buffer of another size in the place of the present one."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    setattr(
        module,
        leaf,
        nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value,
    )
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
