"""Where a network's responses stand before the ReLU, by how it is built: what AB compares
(:mod:`kdtasks.general.ab`).
"""

from torch import nn


def pre_relu_paths(model: nn.Module) -> list[str]:
    """Where the responses before the ReLU stand at the end of each stage, the shallowest first.

    It goes by how a network is built, and knows

    - the ResNets of :mod:`kdtasks.classification.models`: the residual sums
      ``layer<k>.<last>.add``; its wide ResNets: what a stage hands on, behind the first batch norm
      of the next (``layer2.0.bn1``, ``layer3.0.bn1``, ``bn``), as in the authors' code; its chains
      of convolutions (VGG, digits): the last batch norm of each layer;
    - torchvision's ResNets: the residual sums, ``layer<k>.<last>.relu.before@-1``, once
      :func:`expose_pre_relu` has made modules of them;
    - torchvision's MobileNetV2: the expansions (convolution and batch norm) of the blocks that
      halve the map, from a quarter of the image's size on, and the last convolution's: four maps of
      1/4, 1/8, 1/16 and 1/32, as a ResNet has.

    Returns:
        Paths for :class:`~kdtasks.core.FeatureRecorder`, or with ``'student.'`` in front for a
        ``Distiller``.

    Raises:
        ValueError: another kind of network, or a torchvision ResNet as it comes.
    """
    if isinstance(getattr(model, "features", None), nn.Sequential):
        return _of_inverted_residuals(model)
    stages = {name: part for name, part in model.named_children() if _is_stage(name, part)}
    if not stages:
        raise ValueError(
            f"{type(model).__name__} has no stages layer1, layer2, … and no inverted residuals "
            "among its features: name the modules whose outputs a ReLU is given yourself"
        )
    ends = {name: stage[-1] for name, stage in stages.items()}
    if all(hasattr(block, "add") for block in ends.values()):
        return [f"{name}.{len(stage) - 1}.add" for name, stage in stages.items()]
    if all(hasattr(block, "shortcut") for block in ends.values()) and hasattr(model, "bn"):
        return [*(f"{name}.0.bn1" for name in list(stages)[1:]), "bn"]
    if all(hasattr(block, "downsample") for block in ends.values()):
        return [_of_shared_relu(name, stage) for name, stage in stages.items()]
    norms = {name: _last_norm(stage) for name, stage in stages.items()}
    if all(norms.values()):
        return [f"{name}.{norm}" for name, norm in norms.items()]
    raise ValueError(
        f"the stages {list(stages)} of {type(model).__name__} are of no kind that is known here: "
        "name the modules whose outputs a ReLU is given yourself"
    )


def expose_pre_relu(model: nn.Module) -> nn.Module:
    """A torchvision ResNet in which what the last ReLU of each stage is given is a module's output.

    There the residual sum is no module's, and one ``relu`` runs two or three times in a block: it
    becomes an ``Identity`` called ``before``, and the ReLU. What the network computes and its
    state_dict stay. In a config: ``dict(type='kdtasks.general.expose_pre_relu',
    model=dict(type='torchvision.models.resnet18'))``.

    Args:
        model: changed in place, and returned.

    Raises:
        ValueError: it has no stages of blocks with a ``relu``.
    """
    stages = [part for name, part in model.named_children() if _is_stage(name, part)]
    blocks = [stage[-1] for stage in stages if isinstance(stage[-1], nn.Module)]
    if not blocks or not all(isinstance(getattr(b, "relu", None), nn.Module) for b in blocks):
        raise ValueError(
            f"expected a ResNet as torchvision builds it, with stages layer1, layer2, … of blocks "
            f"with a relu, got {type(model).__name__}"
        )
    for block in blocks:
        if not hasattr(block.relu, "before"):
            block.relu = nn.Sequential()
            block.relu.add_module("before", nn.Identity())
            block.relu.add_module("relu", nn.ReLU())
    return model


def _is_stage(name: str, part: nn.Module) -> bool:
    return name.startswith("layer") and name[5:].isdigit() and isinstance(part, nn.Sequential)


def _of_shared_relu(name: str, stage: nn.Sequential) -> str:
    path = f"{name}.{len(stage) - 1}.relu"
    if not hasattr(getattr(stage[-1], "relu", None), "before"):
        raise ValueError(
            f"what {path!r} is given is no module's output: call expose_pre_relu(model) first"
        )
    return f"{path}.before@-1"


def _last_norm(stage: nn.Sequential) -> str | None:
    return next(
        (
            n
            for n, part in reversed(list(stage.named_children()))
            if isinstance(part, nn.BatchNorm2d)
        ),
        None,
    )


def _of_inverted_residuals(model: nn.Module) -> list[str]:
    paths = []
    for k, block in enumerate(model.features):
        # expansion, depthwise convolution, projection, batch norm
        parts = getattr(block, "conv", None)
        if isinstance(parts, nn.Sequential) and len(parts) == 4 and parts[1][0].stride[0] == 2:
            paths.append(f"features.{k}.conv.0.1")
    last = model.features[-1]
    if len(paths) < 2 or not isinstance(last, nn.Sequential):
        raise ValueError(
            f"the features of {type(model).__name__} are no inverted residuals: name the modules "
            "whose outputs a ReLU is given yourself"
        )
    # the first expansion is of half the size, which no stage of a ResNet has
    return [*paths[1:], f"features.{len(model.features) - 1}.1"]
