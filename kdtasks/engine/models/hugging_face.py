"""Models of Hugging Face's transformers by name: ``'hf:<folder>'`` or ``'hf:<id>'``."""

import importlib
import json
import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.engine.models.facts import Facts

OUTPUTS = ("logits", "pooled", "features")
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


class HuggingFaceModel(nn.Module):
    """A model of transformers that takes images and gives one tensor, or a list of maps.

    Losses can name ``'<role>.pooled'`` and ``'<role>.tokens'``, what is pooled and what is not (the
    last hidden state: (B, N, D), or (B, D, H, W)), where it gives no maps.

    Args:
        model: the network; its parameters have the prefix ``model.``.
        output: ``'logits'``; ``'pooled'``: ``pooler_output`` (B, D) where it has one, or else the
            first token, or the mean over places; ``'features'``: a backbone's ``feature_maps``.

    Attributes:
        has_head: whether its last layer is one of classes.
    """

    def __init__(self, model: nn.Module, output: str):
        super().__init__()
        self.model, self.output = model, output
        self.pooled, self.tokens = nn.Identity(), nn.Identity()
        self.channels: list[int] = list(getattr(model, "channels", ()))
        self.has_head = output == "logits"

    def forward(self, image: Tensor) -> Any:
        """Images (B, C, H, W) -> (B, classes), (B, D) or a list of maps."""
        output = self.model(pixel_values=image)
        if self.output == "features":
            return list(output.feature_maps)
        if self.output == "logits":
            return output.logits
        tokens = self.tokens(output.last_hidden_state)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = tokens.mean((2, 3)) if tokens.ndim == 4 else tokens[:, 0]
        return self.pooled(pooled.flatten(1))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"output={self.output!r}"


def build(
    name: str, weights: str | bool | None = True, output: str | None = None, **options: Any
) -> nn.Module:
    """A network of transformers.

    Args:
        name: a folder with ``config.json`` and weights, which is read without any connection; or
            an id, whose files may be downloaded.
        weights: True: its own; None or False: fresh ones.
        output: see :class:`HuggingFaceModel`; None: the logits of an image classifier, else what is
            pooled.
        options: of its config: ``num_labels``, ``image_size`` …; ``out_indices`` of ``'features'``.

    Layers that the weights lack are warned of, for they are as they were made; but a pooler that
    was never trained (a ViT classifier has none, its plain model does) is left out, so that
    ``'pooled'`` is the first token.

    Raises:
        ValueError: transformers is not installed, or cannot read it; or no such output.
    """
    transformers = _transformers()
    check(name, weights, output)
    where: dict[str, Any] = {"local_files_only": True} if Path(name).is_dir() else {}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **where, **options)
        kind = output or _usual_output(config.architectures)
        auto = {
            "logits": transformers.AutoModelForImageClassification,
            "pooled": transformers.AutoModel,
            "features": transformers.AutoBackbone,
        }[kind]
        if weights and kind == "features":
            # AutoBackbone would ask the hub for a folder too; its network's own class does not
            with torch.device("meta"):
                auto = type(auto.from_config(config))
        if weights:
            model, report = auto.from_pretrained(
                name, config=config, output_loading_info=True, **where
            )
            _take_account(name, model, report["missing_keys"])
        else:
            model = auto.from_config(config)
    except (OSError, ImportError, KeyError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"transformers cannot read {name!r}: {first}") from error
    return HuggingFaceModel(model.train(), kind)


def _take_account(name: str, model: Any, missing: Collection[str]) -> None:
    """Of layers that the weights lack."""
    poolers = [key for key in missing if key.startswith("pooler.")]
    if poolers:
        model.pooler = None
    others = sorted(set(missing) - set(poolers))
    if others:
        warnings.warn(
            f"the weights of {name!r} lack {', '.join(others[:3])}{' …' if others[3:] else ''}: "
            f"{len(others)} tensors of {type(model).__name__} are as they were made, untrained",
            stacklevel=2,
        )


def check(name: str, weights: object = None, output: object = None, **options: Any) -> None:
    """Transformers is there, and so is the folder, if it is one.

    Raises:
        ValueError, FileNotFoundError: what is not.
    """
    _transformers()
    if output not in (None, *OUTPUTS):
        raise ValueError(f"output must be None or one of {list(OUTPUTS)}, got {output!r}")
    if weights not in (None, True, False):
        raise ValueError(
            f"hf: models bring their own weights: expected weights=True or None, got {weights!r}"
        )
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the folder {name!r} has no config.json")
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~"))):
        raise FileNotFoundError(f"there is no folder {name!r}")


def facts(name: str, weights: object = True, **options: Any) -> Facts:
    """What ``preprocessor_config.json``, ``config.json`` and the README beside the weights say."""
    common = Facts(f"hf:{name}", name if weights else None)
    how, config = (
        _json(_beside(name, file)) for file in ("preprocessor_config.json", "config.json")
    )
    normalized = how.get("do_normalize", True)
    labels = config.get("id2label") or {}
    classes = [labels[key] for key in sorted(labels, key=int)]
    return Facts(
        common.name,
        common.weights,
        _licence(_beside(name, "README.md")),
        how.get("image_mean") if normalized else None,
        how.get("image_std") if normalized else None,
        _side(how.get("crop_size") if how.get("do_center_crop") else how.get("size")),
        _INTERPOLATIONS.get(how.get("resample", 0)),
        classes or None,
        len(classes) or None,
    )


def _usual_output(architectures: list[str] | None) -> str:
    return (
        "logits"
        if any("Classification" in architecture for architecture in architectures or ())
        else "pooled"
    )


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise ValueError(
            "the package transformers is not installed: pip install 'kdtasks[hf]'"
        ) from None


def _beside(name: str, file: str) -> Path | None:
    """A file beside the weights: in the folder, or of an id as transformers keeps it."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    missing = {"_raise_exceptions_for_missing_entries": False}
    cached = _transformers().utils.cached_file(name, file, **missing)
    return Path(cached) if cached else None


def _json(path: Path | None) -> dict:
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error


def _side(size: Any) -> tuple[int, int] | None:
    """``{"height": …, "width": …}``, ``{"shortest_edge": …}`` or one number."""
    if isinstance(size, int):
        return size, size
    size = size or {}
    edge = size.get("shortest_edge")
    sides = size.get("height", edge), size.get("width", edge)
    return None if None in sides else sides


def _licence(readme: Path | None) -> str | None:
    """``license:`` of the lines between ``---`` at the beginning of a README."""
    if readme is None:
        return None
    head = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.S)
    match = re.search(r"^license:\s*(\S+)", head[1], re.M) if head else None
    return match[1] if match else None
