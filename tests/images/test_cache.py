"""Kept images: damage, links and other people's files are errors; a disk that is full is none."""

import os
import resource
import signal

import numpy as np
import pytest
from PIL import Image

from kdtasks.classification import data
from kdtasks.core import files
from kdtasks.core.files import check_own
from kdtasks.super_resolution.pairs import Pairs


@pytest.fixture
def readers(tmp_path):
    """Each reads images and keeps them in ``tmp_path/cache``."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    path = tmp_path / "in" / "a" / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        path
    )
    cache = tmp_path / "cache"
    return {
        "arrays": lambda: data.image_folder(tmp_path / "in", cache_dir=cache).images,
        "pairs": lambda: Pairs([str(path)], cache_dir=cache).target.pixels,
    }


@pytest.mark.parametrize("kind", ["arrays", "pairs"])
def test_one_damaged_byte_of_the_pixels_is_an_error_that_names_the_file(readers, tmp_path, kind):
    read = readers[kind]
    first = read()
    (file,) = (tmp_path / "cache").iterdir()
    assert (read() == first).all()
    whole = file.read_bytes()
    for at in (len(whole) // 3, len(whole) // 2, 200):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(RuntimeError, match=rf"cache .*{file.name} is damaged .*delete it"):
            read()
    file.write_bytes(whole[:-100])
    with pytest.raises(RuntimeError, match="is damaged"):
        read()


@pytest.mark.parametrize("kind", ["arrays", "pairs"])
def test_a_link_or_somebody_elses_file_is_refused(readers, tmp_path, kind, monkeypatch):
    read = readers[kind]
    read()
    (file,) = (tmp_path / "cache").iterdir()
    moved = file.rename(tmp_path / "elsewhere.npz")
    file.symlink_to(moved)
    with pytest.raises(PermissionError, match=f"{file.name} is a link"):
        read()
    file.unlink()
    # would be written through
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PermissionError, match=f"{file.name} is a link"):
        read()
    file.unlink()
    moved.rename(file)
    real = os.lstat

    def lstat(path):
        found = real(path)
        return (
            os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))
            if str(path) == str(file)
            else found
        )

    monkeypatch.setattr(files.os, "lstat", lstat)
    with pytest.raises(
        PermissionError,
        match=rf"{file.name} belongs to user \d+, neither to this "
        r"one",
    ):
        read()


def test_what_belongs_to_the_folders_owner_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "x").touch()
    monkeypatch.setattr(files.os, "geteuid", lambda: os.getuid() + 7)
    assert check_own(tmp_path / "x") and not check_own(tmp_path / "y")


@pytest.mark.parametrize("kind", ["arrays", "pairs"])
def test_a_full_disk_costs_the_cache_and_no_more(readers, tmp_path, kind):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.warns(
            UserWarning,
            match=r"cache .* was not written.*: File too large: .*: "
            r"[\d,]+ bytes were needed, [\d,]+ are free",
        ):
            read = readers[kind]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list((tmp_path / "cache").iterdir())
    assert (readers[kind]() == read).all() and len(list((tmp_path / "cache").iterdir())) == 1
