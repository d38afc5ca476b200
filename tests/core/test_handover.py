"""A backbone of one task as the checkpoint of every other: what went in, and what did not."""

import pytest
import torch
import torchvision

from kdtasks.classification.models import resnet8
from kdtasks.core.weights import load_weights
from kdtasks.detection.models import retinanet, small_resnet
from kdtasks.engine.checkpoint import save_weights
from kdtasks.metric_learning.models import embedder
from kdtasks.representation.models import backbone
from kdtasks.super_resolution.models import VDSR

META = {"part": "backbone", "model": "kdtasks.representation.models.backbone"}


def saved(folder, model, meta=META):
    path = folder / "student.pth"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_weights(model.state_dict(), meta, path)
    return path


def account(model, path):
    """Load, and count: which of the model's tensors are the file's, and which are as before."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = torch.load(path, weights_only=True)
    with pytest.warns(UserWarning, match="backbone's") as said:
        load_weights(model, path)
    after = model.state_dict()
    moved = {n for n in after if not torch.equal(after[n], before[n])}
    values = [v for v in given.values() if v.is_floating_point() and v.dim()]
    assert all(
        any(v.shape == after[n].shape and torch.equal(v, after[n]) for v in values) for n in moved
    )
    return moved, str(said[0].message), given


@pytest.mark.parametrize(
    ("make", "prefix", "fresh"),
    [
        (lambda: resnet8(num_classes=7), "", "fc (2)"),
        (
            lambda: embedder("kdtasks.classification.models.resnet8", 5),
            "backbone.",
            "backbone.fc (2)",
        ),
    ],
)
def test_all_of_a_network_goes_in_but_for_the_head(tmp_path, make, prefix, fresh):
    path = saved(tmp_path, backbone(resnet8()))
    model = make()
    moved, said, given = account(model, path)
    learned = {n for n in given if "running" not in n and "tracked" not in n}
    assert moved == {prefix + name for name in learned}
    assert f"{sum('tracked' not in n for n in given)} tensors were put in" in said
    assert said.endswith(f"stay as made: {fresh}")


@pytest.mark.parametrize(
    ("network", "body"),
    [
        (lambda: small_resnet(4), lambda: small_resnet(4)),
        (torchvision.models.resnet18, lambda: "resnet18"),
    ],
)
def test_a_detector_takes_its_body(tmp_path, network, body):
    path = saved(tmp_path, backbone(network()))
    model = retinanet(3, backbone=body(), channels=8)
    moved, said, given = account(model, path)
    learned = [n for n in given if "running" not in n and "tracked" not in n]
    assert len(moved) == len(learned) and all(n.startswith("backbone.body.") for n in moved)
    assert "at 'backbone.body'" in said and "backbone.fpn (" in said and "head." in said


def test_a_backbone_without_what_says_so_is_refused_with_where_it_would_go(tmp_path):
    path = saved(tmp_path, backbone(small_resnet(4)))
    path.with_suffix(".json").unlink()
    model = retinanet(3, backbone=small_resnet(4), channels=8)
    where = r"keep that run's 'student.json' beside it.* were put in at 'backbone.body'"
    with pytest.raises(ValueError, match=where):
        load_weights(model, path)
    # of another shape it is none
    with pytest.raises(ValueError) as other:
        load_weights(retinanet(3, backbone=small_resnet(8), channels=8), path)
    assert "student.json" not in str(other.value)


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    path = saved(tmp_path, backbone(resnet8()))
    for model, message in (
        (VDSR(8, 3), "no place in this VDSR"),
        (retinanet(3, backbone=small_resnet(4), channels=8), "no place in this RetinaNet"),
        (resnet8(width=8), "another shape than this ResNet's: conv1.weight"),
    ):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_weights(model, path)
        assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    # without the word in student.json it is a file that lacks a head
    (tmp_path / "student.json").unlink()
    with pytest.raises(ValueError, match="missing: fc.weight"):
        load_weights(resnet8(), path)
