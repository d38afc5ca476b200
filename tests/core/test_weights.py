"""Weights from files: plain ones are read, foreign and broken ones are named, and none runs code."""

import io
import json
import os
import re
import shutil
from collections import defaultdict, deque

import pytest
import torch
from torch import nn

from kdtasks.core.weights import checksum, load_weights, read_weights


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.pth"


def same(state, network):
    own = network.state_dict()
    return list(state) == list(own) and all(torch.equal(state[name], value) for name, value in own.items())


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "meta": {"model": "net"}, "optimizer": {"lr": 0.1}},
    lambda state: {"model": state, "epoch": 3, "meta": {"model": "net"}},
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {"meta": {"model": "net"}, "state_dict": {f"module.{name}": value for name, value in state.items()}},
    lambda state: {"model": "resnet20", "meta": None, "state_dict": state},
])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_usual_files_are_read(path, wrap, zipped):
    network, other = model(), model()
    content = wrap(network.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    state, meta = read_weights(path)
    assert same(state, network) and meta == (content.get("meta") or {})
    assert load_weights(other, str(path)) == meta and same(state, other)


def test_a_prefix_that_only_some_names_have_is_part_of_the_names(path):
    state = {"module.weight": torch.ones(1), "bias": torch.ones(1)}
    torch.save(state, path)
    assert list(read_weights(path)[0]) == list(state)


def test_safetensors_with_their_metadata(tmp_path):
    from safetensors.torch import save_file
    network = model()
    save_file(network.state_dict(), tmp_path / "net.safetensors", {"model": "net"})
    state, meta = read_weights(tmp_path / "net.safetensors")
    assert {name: value.tolist() for name, value in state.items()} == {n: v.tolist() for n, v in network.state_dict().items()}
    assert meta == {"model": "net"} and load_weights(model(), tmp_path / "net.safetensors") == meta


def test_plain_weights_have_their_meta_in_the_json_beside_them(path):
    torch.save(model().state_dict(), path)
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps({"kdtasks": "0.1.0", "seed": 3, "sha256": checksum(path)}))
    assert read_weights(path)[1] == load_weights(model(), path) == {"kdtasks": "0.1.0", "seed": 3}
    torch.save(model().state_dict(), path)                                                 # other weights beside the same json
    for read in (read_weights, lambda file: load_weights(model(), file)):
        with pytest.raises(ValueError, match=r"net.json' is about other weights than 'net.pth' beside it.*--resume.*remove 'net.json'"):
            read(path)
    torch.save({"state_dict": model().state_dict(), "meta": {"seed": 5}}, path)            # a file that brings its own
    assert read_weights(path)[1] == {"seed": 5}


@pytest.mark.parametrize("text", ['{"seed": 3}', '{"classes": ["kdtasks"]}', "[1, 2]", "", "no json", '{"a": 1}\n{"a": 2}', "\xff"])
def test_a_json_of_somebody_else_beside_weights_is_left_alone(path, text):
    torch.save(model().state_dict(), path)
    path.with_suffix(".json").write_bytes(text.encode("latin-1"))
    assert read_weights(path)[1] == {}


@pytest.mark.parametrize("text", ['{"kdtasks": "0.1.0", "seed": 3}', '{"kdtasks": "0.1.0", "sha2'])
def test_a_json_of_a_run_that_is_damaged_is_an_error(path, text):
    torch.save(model().state_dict(), path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"net.json' is damaged; it says what 'net.pth' beside it is"):
        read_weights(path)


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [
    lambda x: x, lambda x: {"weight": x}, lambda x: {"state_dict": {"weight": torch.ones(1)}, "more": [x]}])
def test_a_file_with_code_is_refused_and_the_code_does_not_run(path, tmp_path, wrap, zipped):
    target = tmp_path / "made"
    torch.save(wrap(Evil(target)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"net.pth' holds posix.mkdir, .*is not unpickled, since that can run code") as caught:
        read_weights(path)
    assert not target.exists() and "weights_only" not in str(caught.value)                 # torch advises to switch it off
    torch.load(path, weights_only=False)
    assert target.exists(), "the file would have run it"


class Note:
    """A foreign object beside the weights, as mmengine's Runner saves its log."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return shutil.copy, (__file__, str(self.target))


def test_what_a_file_holds_beside_the_weights_is_left_out_and_does_not_run(path, tmp_path):
    target, network, safe = tmp_path / "made", model(), set(torch.serialization.get_safe_globals())
    beside = {"queue": deque([1, 2], maxlen=3), "lists": defaultdict(list, a=[1]), "log": Note(target), "model": "net"}
    torch.save({"state_dict": network.state_dict(), "meta": beside, "log": [Note(target)]}, path)
    state, meta = read_weights(path)
    assert same(state, network) and meta["model"] == "net" and meta["queue"] == [1, 2] and meta["lists"] == {"a": [1]}
    other = model()
    load_weights(other, path)
    assert same(other.state_dict(), network) and not target.exists()
    assert set(torch.serialization.get_safe_globals()) == safe
    for content in ({"state_dict": {"weight": Note(target)}}, {"weight": torch.ones(1), "more": Note(target)}, Note(target)):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"net.pth' holds shutil.copy, which is no plain weight"):
            read_weights(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the file would have run it"


def test_a_whole_model_is_refused_by_its_class(path):
    torch.save(model(), path)
    with pytest.raises(ValueError, match=r"holds torch.nn.modules.container.Sequential.*save its state_dict"):
        read_weights(path)


@pytest.mark.parametrize("content", [
    b"", b"\x89PNG\r\n\x1a\n" + bytes(50), b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com", b"\x93NUMPY"])
def test_a_foreign_file_is_no_checkpoint_and_its_beginning_is_shown(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"is not a checkpoint ({len(content)} bytes, begins with {content[:8]!r})")):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_was_cut_anywhere_is_an_error_that_names_it(path, zipped):
    whole = saved(model().state_dict(), _use_new_zipfile_serialization=zipped)
    for size in range(1, len(whole), 1 + len(whole) // 150):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"net.pth' (is truncated|is not a checkpoint|holds)"):
            read_weights(path)


def test_a_cut_safetensors_file_too(tmp_path):
    from safetensors.torch import save
    whole, path = save(model().state_dict()), tmp_path / "net.safetensors"
    for size in range(0, len(whole), 9):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"net.safetensors' is truncated or no safetensors file"):
            read_weights(path)


@pytest.mark.parametrize("content, kind", [
    ([torch.ones(1)], "a list"), ({}, r"a dict with the keys \[\]"), ({"epoch": 3}, r"a dict with the keys \['epoch'\]"),
    (torch.ones(1), "a Tensor"), ({"state_dict": {"weight": 1.0}}, r"a dict with the keys \['weight'\]")])
def test_a_file_without_a_state_dict_says_what_it_holds(path, content, kind):
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"holds no state_dict but {kind}"):
        read_weights(path)


def test_a_mismatch_lists_names_and_shapes_and_changes_nothing(path):
    network = model()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), *(nn.Linear(1, 1) for _ in range(3))).state_dict()
    torch.save({"state_dict": state, "meta": {"model": "kdtasks.general.models.resnet20"}}, path)
    with pytest.raises(ValueError) as caught:
        load_weights(network, path)
    message = str(caught.value)
    for part in ("net.pth' is not a checkpoint of this Sequential",
                 "missing: 1.weight, 1.bias, 1.running_mean, 1.running_var (+1 more)",
                 "unexpected: 2.weight, 2.bias, 3.weight, 3.bias (+2 more)", "0.weight (5, 3) instead of (4, 3)",
                 "0.bias (5,) instead of (4,)", "It says it is kdtasks.general.models.resnet20"):
        assert part in message, message
    assert same(before, network)


@pytest.mark.parametrize("state, message", [
    ({"weight": torch.ones(2, 2), "bias": torch.ones(1)}, r"Linear: other shape: weight \(2, 2\) instead of \(1, 2\)$"),
    ({"weight": torch.ones(1, 2)}, r"Linear: missing: bias$"),
    ({"weight": torch.ones(1, 2), "bias": torch.ones(1), "more": torch.ones(1)}, r"Linear: unexpected: more$")])
def test_each_kind_of_mismatch_is_one(path, state, message):
    torch.save(state, path)
    with pytest.raises(ValueError, match=message):
        load_weights(nn.Linear(2, 1), path)


def test_a_missing_file_names_its_neighbours(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint lies in"):
        read_weights(tmp_path / "best.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint lies in"):
        read_weights(tmp_path / "nowhere" / "best.pth")
    for name in ("best.pth", "last.pth", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"best.pht'; did you mean 'best.pth'"):
        read_weights(tmp_path / "best.pht")
    with pytest.raises(FileNotFoundError, match=r"there are 'best.pth', 'last.pth'$"):
        read_weights(tmp_path / "xyz")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path)                                                             # a folder


class Rows(nn.Linear):
    """A layer that may have more rows than in its file."""

    def complete_state(self, state, prefix):
        state[f"{prefix}weight"] = torch.cat([state[f"{prefix}weight"], self.weight.detach()[len(state[f"{prefix}weight"]):]])


@pytest.mark.parametrize("prefix, wrap", [("", lambda layer: layer), ("0.", nn.Sequential)])
def test_a_module_that_has_grown_completes_what_a_file_has_on_request(path, prefix, wrap):
    torch.save({"state_dict": {f"{prefix}weight": torch.ones(2, 3)}, "meta": {"seed": 1}}, path)
    layer = Rows(3, 5, bias=False)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"other shape: .*weight \(2, 3\) instead of \(5, 3\)"):
        load_weights(wrap(layer), path)
    assert torch.equal(layer.weight, before)
    assert load_weights(wrap(layer), path, grown=True) == {"seed": 1}
    assert torch.equal(layer.weight, torch.cat([torch.ones(2, 3), before[2:]]))
