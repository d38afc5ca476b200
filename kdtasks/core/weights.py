"""Reading a model's weights from a file, without ever unpickling code."""

import hashlib
import json
import pickle
import re
from pathlib import Path

import torch
from torch import nn

from kdtasks.core.names import did_you_mean


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """``(state_dict, meta)`` of a ``.pth`` file (``torch.load`` with ``weights_only=True``) or a ``.safetensors`` file.

    A ``.pth`` file of weights alone has its meta in the ``.json`` of the same name beside it, if a run wrote one
    (:func:`checksum` says whether both belong together).

    A file may hold the plain state_dict, or a dict with it under ``'state_dict'`` or ``'model'`` (torchvision,
    mmengine and timm do so) beside other things; the prefix ``module.`` that DDP adds is taken off. Foreign objects among
    the other things (the log of mmengine's Runner) come out empty: their code is not run, nor even imported.

    Raises:
        FileNotFoundError: there is no such file; neighbours with a similar name are listed.
        ValueError: the file is truncated, is no checkpoint, needs code to be unpickled, or holds no tensors; or the
            ``.json`` beside it is of other weights.
    """
    path = Path(path)
    if not path.is_file():
        lies = path.parent.iterdir() if path.parent.is_dir() else ()
        near = sorted(p.name for p in lies if p.suffix in (".pth", ".pt", ".safetensors"))
        raise FileNotFoundError(f"no checkpoint {str(path)!r}; "
                                + (did_you_mean(path.name, near) if near else f"no checkpoint lies in {str(path.parent)!r}"))
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith((b"PK", b"\x80")):                              # a zip archive, or a pickle as of old
        raise ValueError(f"{str(path)!r} is not a checkpoint ({path.stat().st_size} bytes, begins with {start!r})")
    try:
        content = _loaded(path)
    except Exception as error:                                             # a broken file raises whatever it happens to
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise ValueError(f"{str(path)!r} holds {refused[1]}, which is no plain weight, and is not unpickled, since that "
                             "can run code. Where you trust it, load it yourself and save its state_dict: "
                             "torch.save(model.state_dict(), path)") from None
        reason = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0]
        raise ValueError(f"{str(path)!r} is truncated, damaged or no checkpoint ({path.stat().st_size} bytes): "
                         f"{reason}") from None
    whole, content = content, _inner(content)
    if not _is_state(content):
        kind = f"a dict with the keys {list(content)[:6]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{str(path)!r} holds no state_dict but {kind}; expected {{name: tensor}}, plain or under "
                         "'state_dict'")
    meta = _meta_beside(path) if content is whole else whole.get("meta")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content, meta if isinstance(meta, dict) else {}


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, as ``sha256`` in the ``.json`` beside weights of a run says which weights it is about."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_meta(path: str | Path) -> bool:
    """Whether this ``.json`` is what a run wrote of weights, and nobody else's: it begins with ``"kdtasks"``, the version."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return bool(re.match(r'\s*\{\s*"kdtasks"\s*:', file.read(100)))
    except (FileNotFoundError, IsADirectoryError):
        return False


def _meta_beside(path: Path) -> dict:
    beside = path.with_suffix(".json")
    if not is_meta(beside):
        return {}
    try:
        meta = dict(json.loads(beside.read_text(encoding="utf-8")))
        expected = meta.pop("sha256")
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{str(beside)!r} is damaged; it says what {path.name!r} beside it is. Where you know that, "
                         "remove it") from None
    if checksum(path) != expected:
        raise ValueError(f"{str(beside)!r} is about other weights than {path.name!r} beside it: one of them was replaced, or a "
                         "run was killed between the two. The run's --resume writes both anew; if these weights are your own, "
                         f"remove {beside.name!r}")
    return meta


class _Nothing:
    """Stands for an object that is no plain value; whatever it is made of is dropped."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def _an_empty_list(*args) -> list:
    return []


def _an_empty_dict(*args) -> dict:
    return {}


# What is filled item by item, which torch allows with lists and dicts only.
_STAND_INS = {"collections.deque": _an_empty_list, "collections.defaultdict": _an_empty_dict}


def _loaded(path: Path):
    """``torch.load`` with ``weights_only=True``; where it refuses an object beside the weights, an empty one stands there."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as refusal:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            with torch.serialization.safe_globals([(_STAND_INS.get(name, _Nothing), name) for name in names]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:                                                  # damaged, of old, or a module that torch bars
            raise refusal from None
        if not _is_state(_inner(content)):
            raise refusal from None
        return content


def _inner(content):
    """What a file has under the usual keys, or all of it."""
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), dict):
                return content[key]
    return content


def _is_state(content) -> bool:
    return isinstance(content, dict) and len(content) > 0 and all(isinstance(v, torch.Tensor) for v in content.values())


def load_weights(model: nn.Module, path: str | Path, grown: bool = False) -> dict:
    """Load ``path`` into ``model``, every name and shape matching; return the file's ``meta``.

    With ``grown``, a module that has grown since the file was written may have a method ``complete_state(state, prefix)``: it
    adds what the file cannot know.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_weights`; or names or shapes differ (the first few are listed).
    """
    state, meta = read_weights(path)
    own = model.state_dict()
    for prefix, module in model.named_modules():
        if grown and hasattr(module, "complete_state"):
            module.complete_state(state, f"{prefix}." if prefix else "")
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    other = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
             for name in own if name in state and state[name].shape != own[name].shape]
    if missing or extra or other:
        found = [f"{what}: {', '.join(names[:4])}" + (f" (+{len(names) - 4} more)" if len(names) > 4 else "")
                 for what, names in (("missing", missing), ("unexpected", extra), ("other shape", other)) if names]
        raise ValueError(f"{str(path)!r} is not a checkpoint of this {type(model).__name__}: " + "; ".join(found)
                         + (f". It says it is {meta['model']}" if "model" in meta else ""))
    model.load_state_dict(state, strict=True)
    return meta


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError(f"{str(path)!r} needs the package safetensors: pip install 'kdtasks[export]'") from None
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, _parsed(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is truncated or no safetensors file: {error}") from None


def _parsed(metadata: dict[str, str]) -> dict:
    """safetensors keeps texts only: those that are JSON are read as such."""
    def value(text: str):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return {key: value(text) for key, text in metadata.items()}
