"""Whatever file is read: code in it is not run. Every door is tried, and none is left out."""

import ast
import os
import pickle
import re

import numpy as np
import pytest
import torch
from small_runs import ROOT, small

from kdtasks.classification.data import cifar100
from kdtasks.core.weight_files import read_weights
from kdtasks.engine import checkpoint
from kdtasks.engine.run import Run
from kdtasks.images import cache, sets
from kdtasks.metric_learning import data as metric_data
from kdtasks.quantization import read_packed


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def as_torch(value, path):
    torch.save({"resume": value, "state_dict": {"x": torch.ones(1)}}, path)


def as_old_torch(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_numpy(value, path):
    np.save(path, np.array([value], dtype=object), allow_pickle=True)


def as_arrays(value, path):
    np.savez(path, images=np.array([value], dtype=object))


def as_pickle(value, path):
    path.write_bytes(pickle.dumps({"data": value, "fine_labels": value}))


def read_cifar(path):
    """torchvision reads pickles, of the checksums that it knows."""
    folder = path.parent / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(path.read_bytes())
    cifar100(root=path.parent)


DOORS = {
    "a run's checkpoint": (checkpoint.load, "last.pth", as_torch),
    "an old checkpoint": (checkpoint.load, "last.pth", as_old_torch),
    "a choice of samples": (checkpoint.read, "exemplars.pth", as_torch),
    "weights": (read_weights, "teacher.pth", as_old_torch),
    "safetensors": (read_weights, "teacher.safetensors", as_pickle),
    "packed weights": (read_packed, "student_packed.safetensors", as_pickle),
    "arrays": (sets._loaded, "images.npy", as_numpy),
    "arrays that are a pickle": (sets._loaded, "images.npy", as_pickle),
    "several arrays": (lambda path: dict(sets._loaded(path)), "images.npz", as_arrays),
    "decoded images": (cache.load_arrays, "cache.npz", as_arrays),
    "embeddings": (metric_data._read, "embeddings.npy", as_numpy),
    "embeddings of torch": (metric_data._read, "embeddings.pt", as_torch),
    "CIFAR-100": (read_cifar, "train", as_pickle),
}


@pytest.mark.parametrize("door", DOORS)
def test_code_in_a_file_is_not_run(door, tmp_path):
    read, name, write = DOORS[door]
    path, made = tmp_path / name, tmp_path / "made"
    write(Hostile(made), path)
    with pytest.raises((ValueError, RuntimeError)) as refused:
        read(path)
    assert not made.exists()
    # the message of torch, which says how to run it
    assert "weights_only=False" not in str(refused.value)


def test_a_run_that_goes_on_from_a_hostile_checkpoint(tmp_path):
    run = Run(small(length=1), tmp_path / "run", quiet=True)
    run.train(only=["alone"])
    done = tmp_path / "run" / "stages" / "done.json"
    done.unlink()
    as_torch(Hostile(tmp_path / "made"), tmp_path / "run" / "stages" / "1_alone" / "last.pth")
    with pytest.raises(ValueError, match=r"last.pth' cannot be read: .* code, which is not run"):
        run.train(resume=True, only=["alone"])
    assert not (tmp_path / "made").exists() and not done.exists()


# what can run code, and the argument that keeps it from doing so
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
KEPT = {argument for argument, _ in SAFE.values()}
NEVER = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "eval"}
NEVER |= {"exec", "marshal.loads", "torch.jit.load", "torch.hub.load", "yaml.load", "shelve.open"}
TOKENS = r"load|Unpickler|eval\(|exec\(|shelve"
# benchmarks/ runs what it measures in a process of its own, and reads what that one has written
FILES = sorted(path for folder in ("kdtasks", "tools") for path in (ROOT / folder).rglob("*.py"))


def test_there_is_no_other_door():
    found = {name: [] for name in (*SAFE, *NEVER)}
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if re.search(TOKENS, text) else ():
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            name = name.replace("numpy.", "np.")
            if name in found:
                given = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg in KEPT}
                found[name].append((str(path.relative_to(ROOT)), node.lineno, given))
    for name, (argument, value) in SAFE.items():
        assert found[name] and all(given.get(argument) is value for *_, given in found[name])
    assert {name: places for name, places in found.items() if name in NEVER and places} == {}
