"""Data of which one picture in the middle is another one is other data; what was kept of it, too."""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import small
from torch.utils.data import ConcatDataset, Subset

from kdtasks.classification.data import image_folder
from kdtasks.engine.data_contents import contents_sum
from kdtasks.engine.data_sets import Renumbered
from kdtasks.engine.preparation import preparation
from kdtasks.engine.run import Run
from kdtasks.images.arrays import ImageArrays
from kdtasks.incremental.data import class_incremental, experiences
from kdtasks.metric_learning.data import with_teacher
from kdtasks.representation.data import bank_and_queries, without_labels
from kdtasks.super_resolution.data import paired_folders

REPLACED = "a/5.bmp"


def noise(path, seed, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def photos(root, side=8):
    """A folder a class, of files that all have the same size in bytes."""
    for k in range(20):
        noise(root / f"{'ab'[k // 10]}/{k % 10}.bmp", k, side)
    return root


def replace(path, seed=99, side=8):
    before = path.stat()
    noise(path, seed, side)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(time.time_ns(), before.st_mtime_ns + 1))


def made(root):
    """A data set of a user's own, by the names of its files below a folder."""

    class Own:
        __slots__ = ("names", "root")

        def __init__(self):
            self.root, self.names = str(root), np.array([f"a/{k}.bmp" for k in range(10)], object)

    return Own()


def files(root):
    return image_folder(root, train=False, size=8, small=False)


def pixels(root):
    return image_folder(root, train=False, size=8)


def part(root, number):
    stream = class_incremental(pixels(root), [1, 1], ["a", "b"])
    return experiences(stream, number, memory=4 if number else 0)


def lists(root):
    return {"pairs": [(str(root / f"a/{k}.bmp"), k) for k in range(10)]}


KINDS = {
    "files": files,
    "pixels": pixels,
    "of torch": lambda root: ConcatDataset([Subset(files(root), [0, 5, 9]), files(root)]),
    "renumbered": lambda root: Renumbered(files(root), ["b", "a"]),
    "without labels": lambda root: without_labels(files(root)),
    "with embeddings": lambda root: with_teacher(pixels(root), torch.ones(20, 2)),
    "bank": lambda root: bank_and_queries(pixels(root.parent / "hr"), pixels(root)),
    "first part": lambda root: part(root, 0),
    "later part with a memory": lambda root: part(root, 1),
    "LR beside HR": lambda root: paired_folders(root.parent / "hr", root, patch=4),
    "one's own": made,
    "lists": lists,
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_picture_in_the_middle_changes_the_sum(kind, tmp_path):
    root = photos(tmp_path / "lr")
    photos(tmp_path / "hr", 16)
    before = contents_sum(KINDS[kind](root))
    assert contents_sum(KINDS[kind](root)) == before
    replace(root / REPLACED)
    assert contents_sum(KINDS[kind](root)) != before


def test_transforms_and_what_they_remember_are_no_data(tmp_path):
    data = files(photos(tmp_path))
    before = contents_sum(data)
    data.transform.last = torch.rand(3)
    assert contents_sum(data) == before


def test_arrays_count_by_value_wherever_they_lie(tmp_path):
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    sums = {contents_sum(ImageArrays(images))}
    for place in (0, 17, 39):
        other = images.clone()
        other[place, 0, 3, 4] = 1
        sums.add(contents_sum(ImageArrays(other)))
    for dtype in (torch.bfloat16, torch.float32, torch.bool):
        sums.add(contents_sum(images.to(dtype)))
    mapped = np.memmap(tmp_path / "x.npy", np.uint8, "w+", shape=(4, 4))
    sums.add(contents_sum(mapped))
    assert len(sums) == 8
    loop = [1]
    loop.append(loop)
    assert contents_sum(loop) == contents_sum(loop)


def kept(run):
    """What the cache of a run says of all images, and in which folder it lies."""
    experiment = run.experiment
    stage = experiment.stage("distilled")
    loader = experiment.train_loader(stage)
    distiller = experiment.distiller(stage, run.files)
    batches = list(loader.epoch(0))
    prepare = preparation(experiment, stage, distiller, run.files, batches[0], {})
    of = {
        int(i): row
        for batch in batches
        for i, row in zip(batch["index"], prepare(batch)["teacher"])
    }
    return of, {path.name for path in (run.work_dir / "cache").iterdir() if path.is_dir()}


@pytest.mark.parametrize("in_memory", [False, True])
def test_what_a_teacher_said_of_a_picture_is_not_used_for_another_one(in_memory, tmp_path):
    root = photos(tmp_path / "photos")

    def run():
        data = {
            "type": "kdtasks.classification.data.image_folder",
            "root": str(root),
            "size": 8,
            "small": in_memory,
        }
        net = {"type": "small_parts.Net", "width": 4, "num_classes": 2, "channels": 3}
        options = {"data.train": data, "data.test": data, "data.batch_size": 5, "cache.views": 1}
        config = small(**options, length=1, student=net, teacher=net)
        if not in_memory:
            config["data"]["train"]["augment"] = None
        return Run(config, tmp_path / "run", quiet=True)

    first = run()
    first.train(only=["teacher"])
    said, folders = kept(first)
    assert len(folders) == 1 and len(said) == 20

    def again():
        other = run()
        other.train(only=["teacher"], resume=True)
        return kept(other)

    same, unchanged = again()
    assert unchanged == folders and all(torch.equal(same[i], said[i]) for i in said)
    # in the order of the names; neither the first batch nor one of the samples that are looked at
    replace(root / REPLACED)
    other, more = again()
    assert len(more) == 2 and more > folders
    assert [i for i in said if not torch.equal(said[i], other[i])] == [5]
    # a file that was only touched may be another one
    os.utime(root / REPLACED)
    assert len(again()[1]) == 3
