"""Reading a model's weights from a file, without ever unpickling code."""

import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn

from kdtasks.core.names import did_you_mean


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """``(state_dict, meta)`` of a ``.pth`` file (``torch.load`` with ``weights_only=True``) or a ``.safetensors`` file.

    A file may hold the plain state_dict, or a dict with it under ``'state_dict'`` or ``'model'`` (torchvision,
    mmengine and timm do so) beside other things; the prefix ``module.`` that DDP adds is taken off.

    Raises:
        FileNotFoundError: there is no such file; neighbours with a similar name are listed.
        ValueError: the file is truncated, is no checkpoint, needs code to be unpickled, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir() if p.suffix in (".pth", ".pt", ".safetensors")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no checkpoint {str(path)!r}; "
                                + (did_you_mean(path.name, near) if near else f"no checkpoint lies in {str(path.parent)!r}"))
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{str(path)!r} is not a plain file of weights and is not unpickled, since that can run code: "
                         f"{reason}. Save its state_dict: torch.save(model.state_dict(), path)") from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4)
        what = "truncated" if start[:2] == b"PK" and size else "not a checkpoint"
        raise ValueError(f"{str(path)!r} is {what} ({size} bytes, begins with {start!r}): "
                         f"{str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    meta = {}
    if isinstance(content, dict):
        meta = content.get("meta", {})
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        kind = f"a dict with the keys {list(content)[:6]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{str(path)!r} holds no state_dict but {kind}; want {{name: tensor}}, plain or under 'state_dict'")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content, meta if isinstance(meta, dict) else {}


def load_weights(model: nn.Module, path: str | Path) -> dict:
    """Load ``path`` into ``model``, every name and shape matching; return the file's ``meta``.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_weights`; or names or shapes differ (the first few are listed).
    """
    state, meta = read_weights(path)
    own = model.state_dict()
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
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is truncated or no safetensors file: {error}") from None
