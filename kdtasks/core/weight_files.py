"""What a file of weights holds, read without ever unpickling code."""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from kdtasks.core.names import did_you_mean
from kdtasks.core.weight_names import COUNTERS, without_prefix

# Where files have their weights. Averaged ones come first, see read_weights.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema_model", "ema")
_PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "params", "net", "module")


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """``(state_dict, meta)`` of a ``.pth`` file (``torch.load`` with ``weights_only=True``) or a
    ``.safetensors`` file.

    A ``.pth`` file of weights alone has its meta in the ``.json`` of the same name beside it, if a
    run wrote one (:func:`checksum` says whether both belong together).

    A file may hold the plain state_dict, or a dict with it under ``'state_dict'`` or ``'model'``
    (torchvision, mmengine and timm do so), ``'model_state_dict'`` and the like, beside other
    things; the prefix ``module.`` that DDP adds is taken off, and so are the counters beside it
    (``n_averaged`` of torch's AveragedModel). Foreign objects among the other things (the log of
    mmengine's Runner) come out empty: their code is not run, nor even imported.

    Where a file has averaged weights (EMA) beside the raw ones, the averaged ones are taken, for
    they are what its author evaluated, and a warning says so: ``state_dict_ema`` (timm),
    ``model_ema`` (torchvision), ``ema_state_dict``, ``params_ema`` (BasicSR), ``ema``. mmengine's
    EMAHook and Lightning's WeightAveraging have put them into ``state_dict`` themselves, and the
    raw ones elsewhere.

    Raises:
        FileNotFoundError: there is no such file; neighbours with a similar name are listed.
        ValueError: the file is truncated, is no checkpoint, needs code to be unpickled, or holds no
            tensors; or the ``.json`` beside it is of other weights.
    """
    path = Path(path)
    _check_exists(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _check_format(path)
    content = _unpickle(path)
    state = _inner(content)
    _warn_of_averages(path, content, state)
    if not _is_state(state):
        is_dict = isinstance(state, dict)
        kind = f"a dict with the keys {list(state)[:6]}" if is_dict else f"a {type(state).__name__}"
        raise ValueError(
            f"{str(path)!r} holds no state_dict but {kind}; expected {{name: tensor}}, plain or "
            "under 'state_dict'"
        )
    meta = _meta_beside(path) if state is content else content.get("meta")
    names = [name for name in state if name not in COUNTERS]
    if names and all(name.startswith("module.") for name in names):
        state = without_prefix(state, "module.")
    return state, meta if isinstance(meta, dict) else {}


def _check_exists(path: Path) -> None:
    if path.is_file():
        return
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    names = sorted(p.name for p in beside if p.suffix in (".pth", ".pt", ".safetensors"))
    hint = did_you_mean(path.name, names)
    if not names:
        lies = "no checkpoint lies in" if path.parent.is_dir() else "there is no folder"
        hint = f"{lies} {str(path.parent)!r}"
    raise FileNotFoundError(f"no checkpoint {str(path)!r}; {hint}")


def _check_format(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    # a zip archive, or a pickle as torch wrote before 1.6
    if not start.startswith((b"PK", b"\x80")):
        raise ValueError(
            f"{str(path)!r} is not a checkpoint ({path.stat().st_size} bytes, begins with "
            f"{start!r})"
        )
    if _is_torchscript(path):
        raise ValueError(
            f"{str(path)!r} is a TorchScript file (torch.jit.save): a program with its weights. "
            "Save the weights by themselves: torch.save(torch.jit.load(path).state_dict(), "
            "other_path)"
        )


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _unpickle(path: Path) -> Any:
    """The content of a ``.pth`` file; no code of it is run.

    Raises:
        ValueError: it is damaged, or needs code.
    """
    try:
        return _load_plainly(path)
    # a broken file may raise anything
    except Exception as error:
        is_refusal = isinstance(error, pickle.UnpicklingError)
        refused = re.search(r"GLOBAL (\S+)", str(error)) if is_refusal else None
        if refused:
            raise ValueError(
                f"{str(path)!r} holds {refused[1]}, which is no plain weight, and is not "
                "unpickled, since that can run code. Where you trust it, load it yourself and save "
                "its state_dict: torch.save(model.state_dict(), path)"
            ) from None
        reason = type(error).__name__ if is_refusal else str(error).partition("\n")[0]
        raise ValueError(
            f"{str(path)!r} is truncated, damaged or no checkpoint ({path.stat().st_size} bytes): "
            f"{reason}"
        ) from None


class _Nothing:
    """Stands for an object that is no plain value; its content is dropped."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: object):
        pass


def _an_empty_list(*args) -> list:
    return []


def _an_empty_dict(*args) -> dict:
    return {}


# torch fills these item by item, which it allows with lists and dicts only
_STAND_INS = {"collections.deque": _an_empty_list, "collections.defaultdict": _an_empty_dict}


def _load_plainly(path: Path) -> Any:
    """``torch.load`` with ``weights_only=True``; where it refuses an object beside the weights, an
    empty one stands there.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as refusal:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            with torch.serialization.safe_globals(
                [(_STAND_INS.get(name, _Nothing), name) for name in names]
            ):
                content = torch.load(path, map_location="cpu", weights_only=True)
        # damaged, of old, or a module that torch bars
        except Exception:
            raise refusal from None
        if not _is_state(_inner(content)):
            raise refusal from None
        return content


def _inner(content: Any) -> Any:
    """What a file has under the usual keys, or all of it."""
    if isinstance(content, dict):
        for key in _AVERAGED:
            if _is_state(_under(content, key)) and not _is_swapped(content):
                return _under(content, key)
        for key in _PLAIN:
            if isinstance(content.get(key), dict):
                return content[key]
    return content


def _under(content: dict, key: str) -> object:
    value = content.get(key)
    # {"ema": {"module": state_dict, "updates": 7}}
    inner = value.get("module") if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else value


def _is_swapped(content: dict) -> bool:
    """mmengine's EMAHook (whose averaged model counts its steps) or Lightning's WeightAveraging has
    averages in state_dict.
    """
    averaged = content.get("ema_state_dict")
    return (isinstance(averaged, dict) and "steps" in averaged) or "averaging_state" in content


def _warn_of_averages(path: Path, whole: object, taken: object) -> None:
    """Warn that the averaged weights of a file are taken."""
    if taken is whole or not isinstance(whole, dict):
        return
    key = next(
        (
            key
            for key in (*_AVERAGED, *_PLAIN)
            if _under(whole, key) is taken or whole.get(key) is taken
        ),
        None,
    )
    if key in _AVERAGED:
        others = [other for other in _PLAIN if isinstance(whole.get(other), dict)]
        warnings.warn(
            f"{str(path)!r}: the averaged weights (EMA) under {key!r} are taken"
            + (f", not the raw ones under {others[0]!r}" if others else ""),
            stacklevel=3,
        )
    elif _is_swapped(whole):
        warnings.warn(
            f"{str(path)!r}: the weights under {key!r} are taken, which are the averaged ones "
            "(EMA) in such a file",
            stacklevel=3,
        )


def _is_state(content: object) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(
            isinstance(value, torch.Tensor) or str(name).endswith("_extra_state")
            for name, value in content.items()
        )
    )


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError(
            f"{str(path)!r} needs the package safetensors: pip install 'kdtasks[export]'"
        ) from None
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()  # a safetensors file cannot be iterated itself
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, parsed_metadata(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is truncated or no safetensors file: {error}") from None


def parsed_metadata(metadata: dict[str, str]) -> dict:
    """safetensors and ONNX keep texts only: those that are JSON are read as such."""

    def value(text: str) -> object:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {key: value(text) for key, text in metadata.items()}


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, as ``sha256`` in the ``.json`` beside weights of a run says which weights
    it is about.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_meta(path: str | Path) -> bool:
    """Whether a run wrote this ``.json`` beside weights: its first key is ``"kdtasks"``."""
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
        raise ValueError(
            f"{str(beside)!r} is damaged; it says what {path.name!r} beside it is. Where you know "
            "that, remove it"
        ) from None
    if checksum(path) != expected:
        raise ValueError(
            f"{str(beside)!r} is about other weights than {path.name!r} beside it: one of them was "
            "replaced, or a run was killed between the two. The run's --resume writes both anew; "
            f"if these weights are your own, remove {beside.name!r}"
        )
    return meta
