"""Backbones without their heads, what of an output is the representation, and the Distiller that
names it.
"""

import pytest
import torch
from torch import nn

from kdtasks.classification.models import resnet8
from kdtasks.core import Teacher
from kdtasks.core.weights import load_weights
from kdtasks.detection.models import small_resnet
from kdtasks.general import FeatureLoss
from kdtasks.representation.distiller import RepresentationDistiller
from kdtasks.representation.models import NoHead, backbone, embedding_of, map_of, network_map

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """A transformer as far as its outputs go: a class token and a grid of 4 x 4 places."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        places = self.patch(x).flatten(2).mT
        return self.head(self.norm(torch.cat([places.mean(1, keepdim=True), places], 1))[:, 0])


def test_a_backbone_is_the_network_up_to_its_head_under_its_own_names(tmp_path):
    whole = resnet8(num_classes=7).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    own = backbone(resnet8, num_classes=5).eval()
    assert own.state_dict().keys() == whole.state_dict().keys() - {"fc.weight", "fc.bias"}
    load_weights(own, tmp_path / "whole.pth")
    torch.testing.assert_close(whole.fc(own(IMAGES)), whole(IMAGES))
    # a file without the head loads as well, and one of another network does not
    torch.save(own.state_dict(), tmp_path / "own.pth")
    load_weights(own, tmp_path / "own.pth")
    torch.save(resnet8(width=8).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other shape"):
        load_weights(own, tmp_path / "other.pth")


def test_where_no_head_is_none_is_taken():
    network = small_resnet(4)
    assert backbone(network) is network
    assert not any(isinstance(part, NoHead) for part in network.modules())
    assert isinstance(backbone(resnet8(), head="layer3").layer3, NoHead)
    with pytest.raises(ValueError, match="no 'layer4'"):
        backbone(resnet8(), head="layer4")
    with pytest.raises(ValueError, match="made already"):
        backbone(resnet8(), width=8)


def test_the_representation_of_every_kind_of_output():
    rows, maps, tokens = torch.randn(2, 5), torch.randn(2, 5, 3, 3), torch.randn(2, 10, 5)
    assert embedding_of(rows) is rows
    torch.testing.assert_close(embedding_of(maps), maps.flatten(2).mean(2))
    torch.testing.assert_close(
        embedding_of({"0": rows[:, :, None, None], "1": maps}), maps.mean((2, 3))
    )
    torch.testing.assert_close(embedding_of(tokens), tokens[:, 0])
    torch.testing.assert_close(
        embedding_of({"last_hidden_state": tokens, "pooler_output": rows}), rows
    )
    with pytest.raises(TypeError, match="got str"):
        embedding_of("rows")
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        embedding_of(torch.ones(4))
    torch.testing.assert_close(map_of(maps.permute(0, 2, 3, 1), 5), maps)
    torch.testing.assert_close(map_of(tokens, 5), tokens[:, 1:].mT.unflatten(2, (3, 3)))
    with pytest.raises(ValueError, match="10 tokens, 0 of them .* no map of an image of 1 x 1"):
        map_of(tokens, 5, prefix_tokens=0)


@pytest.mark.parametrize(
    ("size", "patch", "prefix", "grid"),
    [
        ((36, 64), 4, 1, (9, 16)),  # 144 places, which are 12 x 12 too
        ((64, 36), 4, None, (16, 9)),
        ((45, 60), 4, 5, (11, 15)),  # what is left over is cut off
        ((45, 60), 4, None, (12, 15)),  # or filled up
        ((60, 60), 4, None, (15, 15)),
    ],
)
def test_tokens_have_the_proportions_of_their_image(size, patch, prefix, grid):
    maps = torch.randn(1, 3, *grid)
    first = torch.zeros(1, 1 if prefix is None else prefix, 3)
    tokens = torch.cat([first, maps.flatten(2).mT], 1)
    assert torch.equal(map_of(tokens, 3, prefix, size), maps)


def test_a_teacher_s_map_has_the_proportions_of_what_it_is_resized_to():
    tokens = Tokens()
    teacher = Teacher(tokens, input_size=(8, 32))  # 2 x 8 places, which are 4 x 4 too
    found = network_map(teacher, IMAGES)
    assert found.shape == (2, 6, 2, 8)
    losses = {"loss": (FeatureLoss("cosine"), ("student.map", "teacher.map"))}
    distiller = RepresentationDistiller(backbone(resnet8()), {"teacher": teacher}, losses)
    distiller.build(IMAGES)
    torch.testing.assert_close(distiller.tensors(IMAGES)["teacher.map"], found)


def test_the_distiller_names_embedding_and_map_of_whatever_network():
    torch.manual_seed(0)
    student, maps, tokens = backbone(resnet8()), small_resnet(4).eval(), Tokens().eval()
    teachers = {"teacher": maps, "vit": backbone(tokens)}
    losses = {
        "loss_rows": (FeatureLoss("cosine"), ("student.embedding", "teacher.embedding")),
        "loss_places": (FeatureLoss("cosine"), ("student.map", "vit.map")),
    }
    distiller = RepresentationDistiller(student, teachers, losses)
    shapes = distiller.build(IMAGES)
    assert shapes["student.embedding"] == (2, 64) and shapes["student.map"] == (2, 64, 4, 4)
    assert shapes["teacher.embedding"] == (2, 32) and shapes["vit.map"] == (2, 6, 4, 4)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = distiller.tensors(IMAGES)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    torch.testing.assert_close(found["teacher.embedding"], maps(IMAGES)["3"].mean((2, 3)))
    torch.testing.assert_close(
        found["vit.map"][0, :, 0, 1], tokens.norm(tokens.patch(IMAGES)[0, :, 0, 1])
    )
    student.eval()
    torch.testing.assert_close(found["student.map"].mean((2, 3)), student(IMAGES))
    sum(distiller(IMAGES).values()).backward()
    assert student.conv1.weight.grad.abs().sum() > 0


def test_a_network_without_a_map_is_an_error_of_its_loss():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))
    losses = {"loss": (FeatureLoss(), ("student.map", "teacher.map"))}
    distiller = RepresentationDistiller(backbone(resnet8()), {"teacher": flat}, losses)
    with pytest.raises(ValueError, match="teacher.map: no module of Sequential gives a map"):
        distiller.build(IMAGES)
