"""Checkpoints, weights and results as files, and the state a run needs to go on exactly."""

import json
import os
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kdtasks
from kdtasks.core.files import write_atomically, write_text
from kdtasks.core.weight_files import checksum, is_meta


def save(state: Mapping, path: str | Path) -> None:
    """``torch.save``, atomically, of what ``weights_only=True`` reads back.

    Raises:
        OSError: the disk is full or not writable; the former file, if any, still stands and is
            named.
        TypeError: something in ``state`` would need code to be unpickled; the message says where it
            is.
    """
    _check_plain(state, "state")
    _save(path, lambda temporary: torch.save(dict(state), temporary), _bytes(state))


def _save(path: str | Path, write: Callable[[Path], None], size: int) -> None:
    try:
        write_atomically(path, write, size)
    except (OSError, RuntimeError) as error:
        former = (
            "the former one there still loads" if os.path.exists(path) else "no file was left there"
        )
        code, text = getattr(error, "errno", None), getattr(error, "strerror", None) or error
        raise OSError(
            *[code] * (code is not None), f"could not save {str(path)!r} ({text}); {former}"
        ) from error


def _bytes(value: Any) -> int:
    """Of all tensors in a state."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def save_weights(state_dict: Mapping, meta: Mapping, path: str | Path) -> None:
    """Weights as a plain state_dict, and what is known of them in the ``.json`` beside it.

    The facts are written first: after a kill between the two, the weights of before are beside the
    facts of now, which :func:`kdtasks.core.weight_files.read_weights` refuses.

    Raises:
        OSError: as :func:`save`.
        TypeError: as :func:`save`.
    """
    _check_plain(state_dict, "state_dict")

    def write(temporary: Path) -> None:
        # as it is: its _metadata has modules' versions
        torch.save(state_dict, temporary)
        save_meta(meta, temporary, path)

    _save(path, write, _bytes(state_dict))


def save_meta(meta: Mapping, weights: str | Path, path: str | Path) -> None:
    """What is known of the file ``weights``, which goes to ``path`` next, and its checksum, in the
    ``.json`` beside ``path``.

    Raises:
        ValueError: a ``.json`` of that name is there that no run has written.
    """
    beside = Path(path).with_suffix(".json")
    if beside.exists() and not is_meta(beside):
        raise ValueError(
            f"{str(beside)!r} is no file of a run, and {Path(path).name!r} needs its name for what "
            "is known of the weights; move it, or use another name"
        )
    save_json({"kdtasks": kdtasks.__version__, **meta, "sha256": checksum(weights)}, beside)


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{where}[{number}]")
    elif type(value) not in (
        int,
        float,
        bool,
        str,
        type(None),
        bytes,
        torch.Tensor,
        torch.nn.Parameter,
    ):
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint is read without running code and "
            "cannot hold it"
        )


def save_json(content: Any, path: str | Path) -> None:
    """Indented JSON, atomically."""
    write_atomically(
        path, lambda temporary: write_text(temporary, json.dumps(content, indent=2) + "\n")
    )


def load(path: str | Path) -> dict:
    """A checkpoint of ours, read with ``weights_only=True``.

    Raises:
        ValueError: it is no file of ours, or not whole.
    """
    state = read(path)
    if not isinstance(state, dict) or "resume" not in state:
        raise ValueError(f"{str(path)!r} holds no training state; a stage's last.pth does")
    return state


def read(path: str | Path) -> Any:
    """What :func:`save` has written, or ``torch.save`` of tensors, numbers and texts; no code of
    the file is run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not whole, or holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    # whose message advises to run it
    except pickle.UnpicklingError:
        raise ValueError(
            f"{str(path)!r} cannot be read: it is damaged, or holds code, which is not run"
        ) from None
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def random_state() -> dict:
    """The states of Python's, NumPy's and torch's random streams, in plain types."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (
            kind,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping) -> None:
    """Put the streams back to where :func:`random_state` found them."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
