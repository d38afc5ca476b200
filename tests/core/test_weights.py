"""Weights from files: plain ones are read, foreign and broken ones are named, and none runs code."""

import copy
import io
import json
import os
import re
import shutil
import warnings
from collections import defaultdict, deque

import pytest
import torch
from torch import nn

from kdtasks.core.weight_files import checksum, read_weights
from kdtasks.core.weights import load_weights


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.pth"


def same(state, network):
    own = network.state_dict()
    return list(state) == list(own) and all(
        torch.equal(state[name], value) for name, value in own.items()
    )


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "meta": {"model": "net"}, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state, "epoch": 3, "meta": {"model": "net"}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {
            "meta": {"model": "net"},
            "state_dict": {f"module.{name}": value for name, value in state.items()},
        },
        lambda state: {"model": "resnet20", "meta": None, "state_dict": state},
    ],
)
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


# --------------------------------------------------------------------------------- averaged weights
def moved(network, by):
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by)
    return other


def averaged_model(network):
    """As torchvision's ExponentialMovingAverage: n_averaged beside names that begin with module."""
    return torch.optim.swa_utils.AveragedModel(network).state_dict()


def mmengine_file(raw, average):
    """What EMAHook itself writes."""
    from mmengine.hooks import EMAHook
    from mmengine.model import ExponentialMovingAverage

    hook = EMAHook()
    hook.src_model, hook.ema_model = raw, ExponentialMovingAverage(average)
    content = {"meta": {}, "state_dict": dict(raw.state_dict())}
    hook.before_save_checkpoint(None, content)
    assert "steps" in content["ema_state_dict"]
    return content


AVERAGED = {
    "timm": lambda raw, average: {
        "arch": "net",
        "state_dict": raw.state_dict(),
        "state_dict_ema": average.state_dict(),
        "epoch": 3,
    },
    "torchvision": lambda raw, average: {
        "model": raw.state_dict(),
        "model_ema": averaged_model(average),
        "epoch": 3,
    },
    "mmengine": mmengine_file,
    "lightning": lambda raw, average: {
        "state_dict": average.state_dict(),
        "current_model_state": raw.state_dict(),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    },
    "basicsr": lambda raw, average: {
        "params": raw.state_dict(),
        "params_ema": average.state_dict(),
    },
    "others": lambda raw, average: {
        "state_dict": raw.state_dict(),
        "ema_state_dict": average.state_dict(),
    },
    "yolo": lambda raw, average: {
        "model": raw.state_dict(),
        "ema": {"module": average.state_dict(), "updates": 7},
    },
}
TAKEN = {
    "timm": "state_dict_ema",
    "torchvision": "model_ema",
    "mmengine": "state_dict",
    "lightning": "state_dict",
    "basicsr": "params_ema",
    "others": "ema_state_dict",
    "yolo": "ema",
}


@pytest.mark.parametrize("kind", AVERAGED)
def test_averaged_weights_are_taken_and_it_is_said_which(path, kind):
    raw = model()
    average, found = moved(raw, 1.0), model()
    torch.save(AVERAGED[kind](raw, average), path)
    with pytest.warns(UserWarning, match=rf"net.pth'.*under '{TAKEN[kind]}'.*") as caught:
        load_weights(found, path)
    assert (
        same(found.state_dict(), average) and len(caught) == 1 and "(EMA)" in str(caught[0].message)
    )


@pytest.mark.parametrize(
    "wrap",
    [
        averaged_model,
        lambda network: {"model_state_dict": network.state_dict()},
        lambda network: {
            "state_dict": network.state_dict(),
            "ema_state_dict": {},
            "model_ema": None,
        },
        lambda network: {"model": network.state_dict(), "ema": 0.9},
    ],
)
def test_files_without_two_sets_are_read_without_a_word(path, wrap):
    network, found = model(), model()
    torch.save(wrap(network), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(found, path)
    assert same(found.state_dict(), network)


# ------------------------------------------------------------------------- other names, older files
@pytest.mark.parametrize(
    "rename, said",
    [
        (lambda n: f"_orig_mod.{n}", "_orig_mod"),
        (lambda n: f"module._orig_mod.{n}", "_orig_mod"),
        (lambda n: f"_orig_mod.module.{n}", "'module.'"),
        (lambda n: n.replace(".", "._orig_mod.", 1), "_orig_mod"),
        (lambda n: f"model.{n}", "'model.'"),
        (lambda n: f"student.{n}", "'student.'"),
        (lambda n: f"model.student._orig_mod.{n}", "'model.student.'"),
        (lambda n: f"encoder.net.{n}", "'encoder.net.'"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_prefix_that_hides_every_name_is_taken_off_and_said(path, rename, said, old):
    network, found = model(), model()
    state = {
        rename(name): value
        for name, value in network.state_dict().items()
        if not old or "num_batches" not in name
    }
    torch.save({"state_dict": state}, path)
    with pytest.warns(UserWarning, match=rf"net.pth'.*{said}"):
        load_weights(found, path)
    assert same(found.state_dict(), network)


def test_a_compiled_model_takes_a_plain_file_and_the_other_way_round(path):
    network, found = torch.compile(model()), model()
    torch.save(network.state_dict(), path)
    with pytest.warns(UserWarning, match="_orig_mod"):
        load_weights(found, path)
    torch.save(found.state_dict(), path)
    other = torch.compile(model())
    with pytest.warns(UserWarning, match="_orig_mod"):
        load_weights(other, path)
    assert same(other._orig_mod.state_dict(), found)


def test_the_part_of_a_trainer_is_read_and_what_is_left_out_is_said(path):
    network, found, wide = model(), model(), nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9))
    whole = {f"student.{n}": v for n, v in network.state_dict().items()} | {
        f"teacher.{n}": v for n, v in wide.state_dict().items()
    }
    torch.save(
        {"state_dict": whole | {"criterion.weight": torch.ones(3)}, "hyper_parameters": {}}, path
    )
    with pytest.warns(
        UserWarning,
        match=r"the part 'student.' was read, 8 other tensors were left "
        r"out",
    ):
        load_weights(found, path)
    assert same(found.state_dict(), network)
    with pytest.warns(UserWarning, match=r"the part 'teacher.'"):
        load_weights(wide, path)
    before = copy.deepcopy(found)
    torch.save(
        {
            f"{role}.{n}": v
            for role in ("student", "teacher")
            for n, v in model().state_dict().items()
        },
        path,
    )
    with pytest.raises(
        ValueError,
        match=r"several sets of weights for this "
        r"Sequential.*'student.'.*'teacher.'",
    ):
        load_weights(found, path)
    torch.save(
        {f"layer4.{n}": v for n, v in model().state_dict().items()} | {"fc.weight": torch.ones(1)},
        path,
    )
    with pytest.raises(
        ValueError,
        match=r"is not a checkpoint.*missing: 0.weight.*unexpected: "
        r"layer4.0.weight",
    ):
        # a piece of some network is no file of this one
        load_weights(found, path)
    assert same(before.state_dict(), found)


class Formerly(nn.Module):
    """A user's module that reads the files of its former version."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state_dict, prefix, metadata, *args):
        if (metadata.get("version") or 1) < 2:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}old_weight")
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_modules_that_upgrade_old_files_do_so(path, prefix):
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), Formerly())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = copy.deepcopy(plain)
        torch.nn.utils.weight_norm(old[0])
    new = copy.deepcopy(plain)
    torch.nn.utils.parametrizations.weight_norm(new[0])
    state = old.state_dict()
    state["2.old_weight"] = state.pop("2.weight") + 3
    del state["1.num_batches_tracked"], state._metadata
    torch.save({f"{prefix}{name}": value for name, value in state.items()}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_weights(new, path)
    assert new[2].weight.tolist() == [3, 3]
    torch.testing.assert_close(new[0].weight, plain[0].weight)
    current = {f"{prefix}{name}": value for name, value in new.state_dict().items()}
    torch.save(current, path)
    with pytest.raises(ValueError, match="is not a checkpoint of this Sequential"):
        load_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(1, 1)), path)


def test_a_version_in_the_file_is_kept_under_a_prefix(path):
    network = nn.Sequential(Formerly())
    nn.init.constant_(network[0].weight, 7)
    for wrapped in (nn.ModuleDict({"module": network}), nn.ModuleDict({"model": network})):
        torch.save(wrapped.state_dict(), path)
        new = nn.Sequential(Formerly())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # version 2 has no old_weight to look for
            load_weights(new, path)
        assert new[0].weight.tolist() == [7, 7]


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:Please use quant_min"
)
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_observers_of_quantization_aware_training_take_the_sizes_of_the_file(path, backend):
    from torch.ao import quantization

    def prepared():
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        network.qconfig = quantization.get_default_qat_qconfig(backend)
        return quantization.prepare_qat(network.train())

    network, found, x = prepared(), prepared(), torch.randn(2, 1, 6, 6)
    network(x)
    torch.save(network.state_dict(), path)
    load_weights(found, path)
    network.eval(), found.eval()
    assert torch.equal(network(x), found(x)) and any(
        v.shape == (2,) for n, v in found.state_dict().items() if "min_val" in n
    ) == (backend == "fbgemm")
    fresh = prepared()
    before = str(fresh.state_dict())
    torch.save({n: v for n, v in network.state_dict().items() if n != "0.bias"}, path)
    with pytest.raises(ValueError, match="missing: 0.bias"):
        load_weights(fresh, path)
    assert str(fresh.state_dict()) == before


def test_what_fails_half_way_leaves_the_model_as_it_was(path):
    class Stubborn(nn.Linear):
        def _load_from_state_dict(self, *args):
            raise KeyError("old")

    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Stubborn(2, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: value + 1 for name, value in before.items() if "num_batches" not in name}
    torch.save(state, path)
    with pytest.raises(
        ValueError,
        match="net.pth' is not a checkpoint of this Sequential: missing: 1.num_batches_tracked",
    ):
        load_weights(network, path)
    assert same(before, network)


def test_a_torchscript_file_is_named_as_such(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model().eval(), torch.ones(2, 3)), path)
    for read in (read_weights, lambda file: load_weights(model(), file)):
        with pytest.raises(
            ValueError,
            match=r"net.pth' is a TorchScript "
            r"file.*torch.jit.load\(path\).state_dict\(\)",
        ):
            read(path)


def test_safetensors_with_their_metadata(tmp_path):
    from safetensors.torch import save_file

    network = model()
    save_file(network.state_dict(), tmp_path / "net.safetensors", {"model": "net"})
    state, meta = read_weights(tmp_path / "net.safetensors")
    assert {name: value.tolist() for name, value in state.items()} == {
        n: v.tolist() for n, v in network.state_dict().items()
    }
    assert meta == {"model": "net"} and load_weights(model(), tmp_path / "net.safetensors") == meta


def test_plain_weights_have_their_meta_in_the_json_beside_them(path):
    torch.save(model().state_dict(), path)
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps({"kdtasks": "0.1.0", "seed": 3, "sha256": checksum(path)}))
    assert read_weights(path)[1] == load_weights(model(), path) == {"kdtasks": "0.1.0", "seed": 3}
    # other weights beside the same json
    torch.save(model().state_dict(), path)
    for read in (read_weights, lambda file: load_weights(model(), file)):
        with pytest.raises(
            ValueError,
            match=r"net.json' is about other weights than 'net.pth' "
            r"beside it.*--resume.*remove 'net.json'",
        ):
            read(path)
    # a file that brings its own
    torch.save({"state_dict": model().state_dict(), "meta": {"seed": 5}}, path)
    assert read_weights(path)[1] == {"seed": 5}


@pytest.mark.parametrize(
    "text",
    [
        '{"seed": 3}',
        '{"classes": ["kdtasks"]}',
        "[1, 2]",
        "",
        "no json",
        '{"a": 1}\n{"a": 2}',
        "\xff",
    ],
)
def test_a_json_of_somebody_else_beside_weights_is_left_alone(path, text):
    torch.save(model().state_dict(), path)
    path.with_suffix(".json").write_bytes(text.encode("latin-1"))
    assert read_weights(path)[1] == {}


@pytest.mark.parametrize("text", ['{"kdtasks": "0.1.0", "seed": 3}', '{"kdtasks": "0.1.0", "sha2'])
def test_a_json_of_a_run_that_is_damaged_is_an_error(path, text):
    torch.save(model().state_dict(), path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(
        ValueError,
        match=r"net.json' is damaged; it says what 'net.pth' beside it "
        r"is",
    ):
        read_weights(path)


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"weight": x},
        lambda x: {"state_dict": {"weight": torch.ones(1)}, "more": [x]},
    ],
)
def test_a_file_with_code_is_refused_and_the_code_does_not_run(path, tmp_path, wrap, zipped):
    target = tmp_path / "made"
    torch.save(wrap(Evil(target)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError,
        match=r"net.pth' holds posix.mkdir, .*is not unpickled, since "
        r"that can run code",
    ) as caught:
        read_weights(path)
    # torch advises to switch it off
    assert not target.exists() and "weights_only" not in str(caught.value)
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
    beside = {
        "queue": deque([1, 2], maxlen=3),
        "lists": defaultdict(list, a=[1]),
        "log": Note(target),
        "model": "net",
    }
    torch.save({"state_dict": network.state_dict(), "meta": beside, "log": [Note(target)]}, path)
    state, meta = read_weights(path)
    assert (
        same(state, network)
        and meta["model"] == "net"
        and meta["queue"] == [1, 2]
        and meta["lists"] == {"a": [1]}
    )
    other = model()
    load_weights(other, path)
    assert same(other.state_dict(), network) and not target.exists()
    assert set(torch.serialization.get_safe_globals()) == safe
    for content in (
        {"state_dict": {"weight": Note(target)}},
        {"weight": torch.ones(1), "more": Note(target)},
        Note(target),
    ):
        torch.save(content, path)
        with pytest.raises(
            ValueError,
            match=r"net.pth' holds shutil.copy, which is no plain "
            r"weight",
        ):
            read_weights(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the file would have run it"


def test_a_whole_model_is_refused_by_its_class(path):
    torch.save(model(), path)
    with pytest.raises(
        ValueError,
        match=r"holds torch.nn.modules.container.Sequential.*save its "
        r"state_dict",
    ):
        read_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com",
        b"\x93NUMPY",
    ],
)
def test_a_foreign_file_is_no_checkpoint_and_its_beginning_is_shown(path, content):
    path.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=re.escape(f"is not a checkpoint ({len(content)} bytes, begins with {content[:8]!r})"),
    ):
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
        with pytest.raises(
            ValueError,
            match=r"net.safetensors' is truncated or no safetensors "
            r"file",
        ):
            read_weights(path)


@pytest.mark.parametrize(
    "content, kind",
    [
        ([torch.ones(1)], "a list"),
        ({}, r"a dict with the keys \[\]"),
        (
            {"epoch": 3},
            r"a dict with "
            r"the keys "
            r"\['epoch'\]",
        ),
        (torch.ones(1), "a Tensor"),
        (
            {"state_dict": {"weight": 1.0}},
            r"a dict with the keys "
            r"\['weight'\]",
        ),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(path, content, kind):
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"holds no state_dict but {kind}"):
        read_weights(path)


def test_a_mismatch_lists_names_and_shapes_and_changes_nothing(path):
    network = model()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), *(nn.Linear(1, 1) for _ in range(3))
    ).state_dict()
    torch.save(
        {"state_dict": state, "meta": {"model": "kdtasks.classification.models.resnet20"}}, path
    )
    with pytest.raises(ValueError) as caught:
        load_weights(network, path)
    message = str(caught.value)
    for part in (
        "net.pth' is not a checkpoint of this Sequential",
        "missing: 1.weight, 1.bias, 1.running_mean, 1.running_var (+1 more)",
        "unexpected: 2.weight, 2.bias, 3.weight, 3.bias (+2 more)",
        "0.weight (5, 3) instead of (4, 3)",
        "0.bias (5,) instead of (4,)",
        "It says it is kdtasks.classification.models.resnet20",
    ):
        assert part in message, message
    assert same(before, network)


@pytest.mark.parametrize(
    "state, message",
    [
        (
            {"weight": torch.ones(2, 2), "bias": torch.ones(1)},
            r"Linear: other shape: weight \(2, 2\) "
            r"instead of \(1, 2\)$",
        ),
        ({"weight": torch.ones(1, 2)}, r"Linear: missing: bias$"),
        (
            {"weight": torch.ones(1, 2), "bias": torch.ones(1), "more": torch.ones(1)},
            r"Linear: "
            r"unexpected: "
            r"more$",
        ),
    ],
)
def test_each_kind_of_mismatch_is_one(path, state, message):
    torch.save(state, path)
    with pytest.raises(ValueError, match=message):
        load_weights(nn.Linear(2, 1), path)


def test_a_missing_file_names_its_neighbours(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint lies in"):
        read_weights(tmp_path / "best.pth")
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'"):
        read_weights(tmp_path / "nowhere" / "best.pth")
    for name in ("best.pth", "last.pth", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"best.pht'; did you mean 'best.pth'"):
        read_weights(tmp_path / "best.pht")
    with pytest.raises(FileNotFoundError, match=r"there are 'best.pth', 'last.pth'$"):
        read_weights(tmp_path / "xyz")
    with pytest.raises(FileNotFoundError):
        # a folder
        read_weights(tmp_path)


class Rows(nn.Linear):
    """A layer that may have more rows than in its file."""

    def complete_state(self, state, prefix):
        state[f"{prefix}weight"] = torch.cat(
            [state[f"{prefix}weight"], self.weight.detach()[len(state[f"{prefix}weight"]) :]]
        )


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
