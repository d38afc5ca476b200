"""FeatureRecorder: each value as its submodule returned it, and nothing left behind; compiled or not."""

import copy
import gc
import weakref
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torchvision.models import resnet18

from kdtasks.core import FeatureRecorder
from kdtasks.core.recorder import module_paths

Pair = namedtuple("Pair", "first second")


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch._dynamo.reset()


class Block(nn.Module):
    """What makes recording hard: an in-place ReLU after ``norm``, and ``x += y`` on the output of
    ``conv2``.
    """

    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, channels, 3, padding=1)

    def forward(self, x):
        out = self.conv2(self.relu(self.norm(self.conv1(x))))
        out += x
        return out


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            OrderedDict(
                block1=Block(),
                block2=Block(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(3, 5),
            )
        )


PATHS = ["block1.norm", "block1.conv2", "block2.conv2", "block2", "fc"]


def image(rows=2, size=6):
    return torch.randn(rows, 3, size, size)


def hooked(model, paths, x):
    """The oracle: forward hooks that clone at once."""
    seen = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda m, a, out, path=path: seen.update({path: out.clone()})
        )
        for path in paths
    ]
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, seen


def untouched(model):
    return not any(
        "forward" in module.__dict__ or module._forward_hooks for module in model.modules()
    )


def test_values_of_resnet18_are_those_before_its_in_place_relu_and_addition():
    model, x = resnet18(num_classes=3), torch.randn(2, 3, 32, 32)
    paths = ["bn1", "layer1.0.bn2", "layer2.0.downsample", "layer3", "fc"]
    for training in (False, True, True, False):
        model.train(training)
        output, values = FeatureRecorder(model, paths)(x)
        again = copy.deepcopy(model)
        expected, oracle = hooked(model.eval() if not training else model, paths, x)
        assert list(values) == paths and untouched(again)
        # in training the statistics moved in between, not the values
        if not training:
            assert torch.equal(output, expected)
        for path in paths:
            assert torch.equal(values[path], oracle[path]), path
        assert (
            values["bn1"].min() < 0
            and values["layer1.0.bn2"].min() < 0
            and values["layer3"].min() == 0
        )


@pytest.mark.parametrize("training", [True, False])
def test_every_run_gives_the_values_and_the_gradients_of_cloning_hooks(training):
    model = Net().train(training)
    other, recorder = copy.deepcopy(model), FeatureRecorder(model, PATHS)
    # the first run probes, the others know what to copy
    for rows in (2, 2, 3):
        x = image(rows)
        output, values = recorder(x)
        expected, oracle = hooked(other, PATHS, x)
        assert torch.equal(output, expected)
        for path in PATHS:
            assert torch.equal(values[path], oracle[path]), path
            options = {"retain_graph": True, "allow_unused": True}
            mine = torch.autograd.grad(
                values[path].square().sum(), list(model.parameters()), **options
            )
            theirs = torch.autograd.grad(
                oracle[path].square().sum(), list(other.parameters()), **options
            )
            for a, b in zip(mine, theirs):
                assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), path


def test_only_what_the_model_changes_is_copied_after_the_first_run():
    recorder = FeatureRecorder(Net(), ["block1.conv2", "fc"])
    outputs = [recorder(image()) for _ in range(2)]
    assert outputs[1][1]["fc"] is outputs[1][0]  # no copy
    assert recorder._changed[True] == {"block1.conv2"}


def test_a_value_that_is_changed_in_place_only_later_is_an_error_not_a_wrong_value():
    class Sometimes(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            return x.relu_() if self.late else x

    model = Sometimes(nn.Linear(2, 2))
    model.late = False
    recorder = FeatureRecorder(model, ["0"])
    recorder(torch.randn(1, 2))
    model.late = True
    with pytest.raises(ValueError, match=r"'0'.*in place"):
        recorder(torch.randn(1, 2))


def test_a_first_run_in_inference_mode_decides_nothing():
    model, x = Net().eval(), image()
    recorder = FeatureRecorder(model, PATHS)
    with torch.inference_mode():
        _, first = recorder(x)
    _, second = recorder(x)
    with torch.inference_mode():
        _, third = recorder(x)
    _, oracle = hooked(model, PATHS, x)
    for path in PATHS:
        assert all(torch.equal(values[path], oracle[path]) for values in (first, second, third)), (
            path
        )


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.unused, self.alias = nn.Linear(4, 4), nn.Linear(4, 4), None

    def forward(self, x):
        return self.fc(self.fc(x) + 1)


def test_a_module_that_runs_twice_needs_the_number_of_the_call():
    model, x = Twice(), torch.randn(2, 4)
    first = model.fc(x)
    last = model.fc(first + 1)
    _, values = FeatureRecorder(model, ["fc@0", "fc@1", "fc@-1", "fc@-2"])(x)
    assert [
        torch.equal(values[f"fc@{k}"], v)
        for k, v in ((0, first), (1, last), (-1, last), (-2, first))
    ] == [True] * 4
    with pytest.raises(ValueError, match=r"'fc' ran 2 times.*'fc@0' to 'fc@1'.*'fc@-1'"):
        FeatureRecorder(model, ["fc"])(x)
    with pytest.raises(ValueError, match=r"'fc@2'.*2 times.*no call 2"):
        FeatureRecorder(model, ["fc@2"])(x)
    with pytest.raises(ValueError, match=r"after '@' comes the number"):
        FeatureRecorder(model, ["fc@last"])
    assert untouched(model)


def test_one_module_under_two_paths_counts_all_its_runs_under_each():
    model, x = Twice(), torch.randn(2, 4)
    model.alias = model.fc
    recorder = FeatureRecorder(model, ["fc@0", "alias@1"])
    for _ in range(2):
        output, values = recorder(x)
        assert torch.equal(values["fc@0"], model.fc(x)) and torch.equal(values["alias@1"], output)
    assert untouched(model) and {"fc", "alias"} <= set(module_paths(model))


def test_a_module_that_does_not_run_is_an_error():
    with pytest.raises(ValueError, match=r"'unused' gave no value.*Twice"):
        FeatureRecorder(Twice(), ["unused"])(torch.randn(2, 4))


def test_an_unknown_path_is_an_error_at_once_with_the_nearest():
    with pytest.raises(ValueError, match=r"no submodule 'block1.nrom'; did you mean 'block1.norm'"):
        FeatureRecorder(Net(), ["block1.nrom"])
    with pytest.raises(ValueError, match=r"no submodule"):
        FeatureRecorder(resnet18(), ["layer1.0.downsample"])  # registered, but None


def test_nested_outputs_keep_their_structure_and_their_values():
    class Heads(nn.Module):
        def forward(self, x):
            return OrderedDict(a=(x * 1, [x * 2]), b=Pair(x * 3, "text"), c=None)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = Heads()

        def forward(self, x):
            out = self.heads(x)
            for tensor in (out["a"][0], out["a"][1][0], out["b"].first):
                tensor.zero_()
            return out["b"].first

    x = torch.randn(3)
    recorder = FeatureRecorder(Model(), ["heads"])
    for _ in range(2):
        output, values = recorder(x)
        found = values["heads"]
        assert output.eq(0).all() and type(found) is OrderedDict and type(found["b"]) is Pair
        assert (
            torch.equal(found["a"][0], x)
            and torch.equal(found["a"][1][0], 2 * x)
            and torch.equal(found["b"].first, 3 * x)
        )
        assert (
            found["b"].second == "text" and found["c"] is None and isinstance(found["a"][1], list)
        )


def test_an_exception_in_the_model_leaves_nothing_behind():
    model = Net()
    recorder = FeatureRecorder(model, PATHS)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            recorder(torch.randn(2, 7, 6, 6))  # wrong channels
        assert untouched(model) and not recorder._seen
        recorder(image())


def test_a_forward_of_the_users_own_is_called_and_put_back():
    model, x = Net(), image()
    recorder = FeatureRecorder(model, ["fc"])
    recorder(x)
    # after the first run
    own = model.fc.forward = lambda value: value.new_ones(len(value), 5)
    assert torch.equal(recorder(x)[1]["fc"], torch.ones(2, 5)) and model.fc.forward is own
    del model.fc.forward
    output, values = recorder(x)
    assert torch.equal(values["fc"], output) and not torch.equal(output, torch.ones(2, 5))


def test_a_head_that_was_replaced_after_construction_is_the_one_that_is_read():
    model, x = Net(), image()
    recorder = FeatureRecorder(model, ["fc", "block1.conv2"])
    recorder(x)
    model.fc = nn.Linear(3, 9)
    output, values = recorder(x)
    assert values["fc"].shape == (2, 9) and torch.equal(values["fc"], output)
    # its output is its input, which nobody changes
    model.fc = nn.Identity()
    assert recorder(x)[1]["fc"].shape == (2, 3)
    del model.fc
    with pytest.raises(ValueError, match=r"no submodule 'fc'"):
        recorder(x)


def test_a_copy_carries_nothing_and_reads_its_own_model():
    model, x = Net(), image()
    recorder = FeatureRecorder(model, PATHS)
    recorder(x)
    clone, other = copy.deepcopy(model), copy.deepcopy(recorder)
    assert untouched(clone) and other.model is not model
    with torch.no_grad():
        other.model.fc.weight.zero_()
        other.model.fc.bias.zero_()
    assert other(x)[1]["fc"].eq(0).all() and not recorder(x)[1]["fc"].eq(0).any()


def test_nothing_keeps_a_value_alive_after_its_step():
    recorder = FeatureRecorder(Net(), PATHS)
    gc.disable()
    try:
        for _ in range(2):
            output, values = recorder(image())
            alive = [weakref.ref(value) for value in (output, *values.values())]
            del output, values
            assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_the_wrapper_is_called_and_the_model_is_read():
    model, x = Net(), image()
    output, values = FeatureRecorder(model, ["fc"], call=lambda x: (model(x * 2), "more"))(x)
    assert output[1] == "more" and torch.equal(values["fc"], output[0])


# ----------------------------------------------------------------------------------------- compiled
def compare(recorder, reference, x, paths=PATHS):
    (output, values), (expected, oracle) = recorder(x), reference(x)
    torch.testing.assert_close(output, expected)
    assert list(values) == list(oracle) == paths
    for path in paths:
        torch.testing.assert_close(values[path], oracle[path])
    total, wanted = (sum(v.square().sum() for v in found.values()) for found in (values, oracle))
    parameters = [list(t.model.parameters()) for t in (recorder, reference)]
    if total.requires_grad:
        for a, b in zip(
            torch.autograd.grad(total, parameters[0]), torch.autograd.grad(wanted, parameters[1])
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "before", ["nothing", "torch.compile", "Module.compile", "Module.compile of a part"]
)
def test_compiled_taps_equal_the_eager_ones_validation_first_other_batch_sizes_and_plain_compile_before(
    before,
):
    model, counter = Net(), CompileCounter()
    reference = FeatureRecorder(copy.deepcopy(model), PATHS)
    plain = torch.compile(model, backend="eager") if before == "torch.compile" else model
    if before == "Module.compile":
        model.compile(backend="eager")
    if before == "Module.compile of a part":
        model.block1.compile(backend="eager")
    plain.eval()(image())
    reference.model.load_state_dict(model.state_dict())
    recorder = FeatureRecorder(model, PATHS, compile={"backend": counter})
    for training in (False, True, False, True):
        model.train(training), reference.model.train(training)
        for rows in (2, 2, 3, 5, 2):
            with torch.set_grad_enabled(training):
                compare(recorder, reference, image(rows))
        assert untouched(model)
    assert counter.frame_count > 0 or before.startswith("Module.compile")
    seen = counter.frame_count
    for rows in (2, 3, 4, 5, 7):
        compare(recorder, reference, image(rows))
    # nothing is compiled again and again
    assert counter.frame_count == seen
    # and the plain model is still itself
    x = image()
    torch.testing.assert_close(plain.eval()(x), reference.model.eval()(x))
    torch.testing.assert_close(plain.train()(x), reference.model.train()(x))


def test_taps_on_a_model_that_was_compiled_before_are_not_dropped_without_compile_either():
    for compile_it in (
        lambda m: torch.compile(m, backend="eager"),
        lambda m: m.compile(backend="eager") or m,
    ):
        model = Net()
        reference = FeatureRecorder(copy.deepcopy(model), PATHS)
        compiled = compile_it(model)
        for _ in range(2):
            compiled(image())
        reference.model.load_state_dict(model.state_dict())
        recorder = FeatureRecorder(model, PATHS)
        for rows in (2, 3):
            compare(recorder, reference, image(rows))


def test_compiled_models_of_one_class_do_not_share_their_taps():
    for paths in ([["fc"], ["block2", "fc"], []], [[], ["block1.norm"], ["block1.conv2"]]):
        for k, mine in enumerate(paths):
            model = Net()
            reference = FeatureRecorder(copy.deepcopy(model), mine)
            recorder = FeatureRecorder(model, mine, compile={"backend": "eager"})
            for _ in range(3):
                x = image()
                (output, values), (expected, oracle) = recorder(x), reference(x)
                assert torch.equal(output, expected) and list(values) == mine, k
                assert all(torch.equal(values[path], oracle[path]) for path in mine)


def test_more_units_than_torch_compiles_versions_of_a_function_are_all_compiled():
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        counter, x = CompileCounter(), torch.randn(2, 3)
        recorder = FeatureRecorder(
            nn.Sequential(nn.Linear(3, 3)), ["0"], compile={"backend": counter}
        )
        for _ in range(2):
            output, values = recorder(x)
            assert torch.equal(values["0"], output)
        assert counter.frame_count == 1


def test_two_compiled_sets_of_taps_on_one_model_do_not_disturb_each_other():
    model = Net()
    reference = copy.deepcopy(model)
    first, second = (
        FeatureRecorder(model, paths, compile={"backend": "eager"})
        for paths in (["fc"], ["block1.norm", "fc"])
    )
    for _ in range(3):
        for recorder in (first, second):
            x = image()
            _, oracle = hooked(reference, list(recorder.paths), x)
            _, values = recorder(x)
            assert all(torch.equal(values[path], oracle[path]) for path in recorder.paths)


def test_compiled_taps_read_a_replaced_head():
    model, x = Net(), image()
    recorder = FeatureRecorder(model, ["fc"], compile={"backend": "eager"})
    for _ in range(3):
        recorder(x)
    model.fc = nn.Linear(3, 9)
    for _ in range(2):
        output, values = recorder(x)
        assert values["fc"].shape == (2, 9) and torch.equal(values["fc"], output)


def test_compiled_calls_by_number_and_errors():
    model, x = Twice(), torch.randn(2, 4)
    recorder = FeatureRecorder(model, ["fc@0", "fc@-1"], compile={"backend": "eager"})
    for _ in range(3):
        output, values = recorder(x)
        assert torch.equal(values["fc@0"], model.fc(x)) and torch.equal(values["fc@-1"], output)
    with pytest.raises(ValueError, match=r"'fc' ran 2 times"):
        FeatureRecorder(model, ["fc"], compile={"backend": "eager"})(x)


def test_a_graph_break_in_the_model_costs_speed_not_values():
    class Broken(Net):
        def forward(self, x):
            x = self.block1(x)
            torch._dynamo.graph_break()
            x = self.block2(x)
            return self.fc(self.flatten(self.pool(x)))

    model = Broken()
    reference = FeatureRecorder(copy.deepcopy(model), PATHS)
    recorder = FeatureRecorder(model, PATHS, compile={"backend": "eager"})
    for rows in (2, 2, 3, 2):
        compare(recorder, reference, image(rows))
    assert untouched(model)


def test_nothing_compiled_keeps_a_value_alive():
    recorder = FeatureRecorder(Net(), PATHS, compile={"backend": "eager"})
    for _ in range(3):
        recorder(image())
    output, values = recorder(image())
    alive = [weakref.ref(value) for value in (output, *values.values())]
    del output, values
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_inductor_gives_the_eager_values_and_gradients():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=True), nn.Linear(8, 5)).double()
    reference = FeatureRecorder(copy.deepcopy(model), ["0", "2"])
    recorder = FeatureRecorder(model, ["0", "2"], compile=True)
    for training in (False, True):  # validate first
        model.train(training)
        for rows in (2, 2):
            with torch.set_grad_enabled(training):
                compare(recorder, reference, torch.randn(rows, 3, dtype=torch.float64), ["0", "2"])


# --------------------------------------------------------------------------- gradient checkpointing
class Checkpointed(nn.Module):
    """Blocks that run in gradient checkpointing, as mmdet's with_cp or torch's own helpers call it."""

    def __init__(self, how, reentrant):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5))
        self.after, self.how, self.reentrant = nn.Linear(5, 3), how, reentrant

    def forward(self, x):
        x = x.clone().requires_grad_()
        if self.how == "sequential":
            x = torch.utils.checkpoint.checkpoint_sequential(
                self.block, 3, x, use_reentrant=self.reentrant
            )
        else:
            x = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.after(x)


@pytest.mark.parametrize("how", ["one", "sequential"])
# with parameters, and without
@pytest.mark.parametrize("path", ["block.0", "block.1"])
def test_a_tap_inside_of_reentrant_checkpointing_is_an_error_that_names_it(how, path):
    model, x = Checkpointed(how, True), torch.randn(2, 4)
    for recorder in (
        FeatureRecorder(model, [path]),
        FeatureRecorder(copy.deepcopy(model), [path], compile={"backend": "eager"}),
    ):
        for _ in range(2):
            with pytest.raises(
                ValueError,
                match=rf"'{path}' is inside gradient checkpointing "
                r"\(use_reentrant=True\)",
            ):
                recorder(x)
    with torch.no_grad():
        # as a teacher's, it is right
        assert FeatureRecorder(model, [path])(x)[1][path].shape == (2, 5)
    assert FeatureRecorder(model, ["after"])(x)[1]["after"].requires_grad


@pytest.mark.parametrize("how", ["one", "sequential"])
@pytest.mark.parametrize("path", ["block.0", "block.1"])
def test_other_checkpointing_gives_the_value_of_the_first_forward_once_and_its_gradient(how, path):
    model, x = Checkpointed(how, False), torch.randn(2, 4)
    plain = copy.deepcopy(model)
    recorder = FeatureRecorder(model, [path])
    for _ in range(3):
        torch.manual_seed(1)
        output, values = recorder(x)
        # which runs the block once more
        (output.square().sum() + values[path].square().sum()).backward()
        torch.manual_seed(1)
        first = plain.block[0](x)
        value = first if path == "block.0" else plain.block[1](first)
        expected = plain.after(plain.block[2](plain.block[1](first)))
        (expected.square().sum() + value.square().sum()).backward()
        assert torch.equal(values[path], value) and torch.equal(output, expected)
        for own, other in zip(model.parameters(), plain.parameters()):
            torch.testing.assert_close(own.grad, other.grad)
    assert "forward" not in model.block[0].__dict__


def test_timms_own_checkpointing_stays_right():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    plain, x = copy.deepcopy(model), torch.randn(1, 3, 32, 32)
    model.set_grad_checkpointing(True)
    results = []
    for network in (model, plain):
        output, values = FeatureRecorder(network, ["blocks.0", "blocks.1.mlp"])(x)
        (output.sum() + sum(value.square().mean() for value in values.values())).backward()
        results.append([output, *values.values(), *(p.grad for p in network.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_a_part_that_runs_without_gradient_must_be_frozen():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.trunk(x)
            return self.head(x)

    model, x = Held(), torch.randn(2, 4)
    with pytest.raises(
        ValueError,
        match=r"'trunk.0' runs without gradient, since the model itself "
        r"switches it off",
    ):
        FeatureRecorder(model, ["trunk.0"])(x)
    model.trunk.requires_grad_(False)
    assert set(FeatureRecorder(model, ["trunk.0", "trunk", "head"])(x)[1]) == {
        "trunk.0",
        "trunk",
        "head",
    }
