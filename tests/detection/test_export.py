"""Detectors as ONNX: the same boxes, labels and scores at any size; a file that differs is found."""

import pytest
import torch
from small_detectors import batch, faster_rcnn, fcos, mask_rcnn, retinanet
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from kdtasks.detection import models
from kdtasks.detection.export import OUTPUTS, OneImage, compare_detections, onnx_form
from kdtasks.engine.export_form import Differs
from kdtasks.engine.export_formats import FORMATS

# Of the first two: torchvision's own graph, whose sizes are float32, resizes them to 95 or 96
# columns where the model has 96 or 95.
SIZES = [(20, 188), (20, 335), (64, 96), (37, 90), (133, 61)]


def ssd():
    """torchvision's SSD, on a small network."""
    body = models.small_resnet(4)
    body.out_channels = body.channels
    return SSD(body, DefaultBoxGenerator([[2]] * 4), (64, 64), 4, score_thresh=0.0)


DETECTORS = {
    "retinanet": lambda: retinanet(score_thresh=0.0),
    "fcos": lambda: fcos(score_thresh=0.0),
    "faster_rcnn": lambda: faster_rcnn(box_score_thresh=0.0),
    "ssd": ssd,
}


def lively(model):
    """With weights that make detections differ, as after training: a new head gives next to the
    same score everywhere.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ("head" in name or "rpn" in name) and value.ndim > 1:
                value += 2 * value.std() * torch.randn(value.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", DETECTORS)
def test_onnx_gives_the_detectors_answers_at_any_size(name, tmp_path):
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="needs onnxruntime: pip install 'kdtasks[export]'"
    )
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    model = lively(DETECTORS[name]())
    form = onnx_form(model, batch(1)["input"])
    FORMATS["onnx"].write(form, {"classes": ["a", "b", "c"]}, tmp_path / "s.onnx", None)
    assert not model.training and "resize" not in model.transform.__dict__
    session = onnxruntime.InferenceSession(
        str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [one.name for one in session.get_outputs()] == list(OUTPUTS)
    assert session.get_inputs()[0].shape == [3, "height", "width"]
    images = [
        torch.rand(3, *size, generator=torch.Generator().manual_seed(size[1])) for size in SIZES
    ]
    with torch.no_grad():
        answers = [model([image])[0] for image in images]
    expected = [[answer[key][answer["labels"] > 0] for key in OUTPUTS] for answer in answers]
    outputs = [
        [torch.from_numpy(value) for value in session.run(None, {"image": image.numpy()})]
        for image in images
    ]
    assert sum(len(boxes) for boxes, *_ in expected) >= 50 * len(images)
    difference, allowed = compare_detections(form.model, images, expected, outputs, 1e-4)
    assert difference <= allowed


def test_an_image_in_which_nothing_is_found(tmp_path):
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="needs onnxruntime: pip install 'kdtasks[export]'"
    )
    form = onnx_form(lively(faster_rcnn(box_score_thresh=0.999)), batch(1)["input"])
    FORMATS["onnx"].write(form, {}, tmp_path / "s.onnx", None)
    found = onnxruntime.InferenceSession(str(tmp_path / "s.onnx")).run(
        None, {"image": batch(1)["input"][0].numpy()}
    )
    assert [value.shape for value in found] == [(0, 4), (0,), (0,)]


# What differs -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def found():
    """(model, images, what it gives)."""
    torch.manual_seed(0)
    model, images = OneImage(lively(faster_rcnn(box_score_thresh=0.0))).eval(), batch(2)["input"]
    with torch.no_grad():
        return model, images, [[part.clone() for part in model(image)] for image in images]


def changed(found, image, change):
    outputs = [[part.clone() for part in parts] for parts in found]
    outputs[image] = change(*outputs[image])
    return outputs


def moved(boxes, labels, scores):
    boxes[7, 2] += 0.5
    return [boxes, labels, scores]


def other_label(boxes, labels, scores):
    labels[3] = labels[3] % 3 + 1
    return [boxes, labels, scores]


def less_sure(boxes, labels, scores):
    return [boxes, labels, scores - 3e-4]


def one_less(boxes, labels, scores):
    return [boxes[1:], labels[1:], scores[1:]]


def one_more(boxes, labels, scores):
    return [
        torch.cat([boxes, boxes[:1]]),
        torch.cat([labels, labels[:1]]),
        torch.cat([scores, scores[:1]]),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            moved,
            r"in test image 1 of \(64, 96\) pixels 1 of the student's 100 detections are "
            r"missing",
        ),
        (other_label, "are missing"),
        (less_sure, "100 of the student's 100 detections are missing"),
        (one_less, "are missing"),
        (one_more, "it gives 1 detections that the student does not give"),
    ],
)
def test_a_wrong_detection_is_found(found, change, message):
    model, images, expected = found
    assert compare_detections(model, images, expected, expected, 1e-4)[0] == 0
    with pytest.raises(Differs, match=message):
        compare_detections(model, images, expected, changed(expected, 1, change), 1e-4)


def test_the_order_of_near_ties_is_free_and_nothing_to_compare_is_no_success(found):
    model, images, expected = found
    turned = [[part.flip(0) for part in parts] for parts in expected]
    assert compare_detections(model, images, expected, turned, 1e-4)[0] == 0
    nothing = [[part[:0] for part in parts] for parts in expected]
    with pytest.raises(Differs, match="too little to compare: the student finds nothing"):
        compare_detections(
            OneImage(lively(faster_rcnn(box_score_thresh=0.999))).eval(),
            images,
            nothing,
            nothing,
            1e-4,
        )
    torch.manual_seed(0)
    flat = OneImage(retinanet(score_thresh=0.0)).eval()
    torch.nn.init.zeros_(flat.detector.head.classification_head.cls_logits.weight)
    with torch.no_grad():
        ties = [list(flat(image)) for image in images]
    with pytest.raises(Differs, match="their scores are all but equal"):
        compare_detections(flat, images, ties, ties, 1e-4)


def test_what_the_file_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="MaskRCNN also gives masks"):
        onnx_form(mask_rcnn(), batch(1)["input"])
    with pytest.raises(
        ValueError, match="the student is a Linear; expected one of torchvision's detectors"
    ):
        onnx_form(torch.nn.Linear(1, 1), batch(1)["input"])
