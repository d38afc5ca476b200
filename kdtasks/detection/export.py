"""torchvision's detectors as ONNX: one image of any size in, its boxes, labels and scores out,
resizing included.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtasks.detection.detectors import kind_of, replaced
from kdtasks.engine.export_form import Differs, OnnxForm

OUTPUTS = ("boxes", "labels", "scores")
# shares of the height and width of the first test images
OTHER_SIZES = ((0.75, 1.3), (1.4, 0.6), (0.5, 0.5))
# of weights and image: some ten times what float32 rounds
JITTER, DRAWS = 1e-6, 3


def onnx_form(student: nn.Module, images: Sequence[Tensor]) -> OnnxForm:
    """One image (3,H,W) in [0,1], height and width open -> ``boxes`` (n,4) in its pixels,
    ``labels`` (n,), ``scores`` (n,).

    The detector's resizing, its normalisation, its score threshold and its suppression of overlaps
    are in the file. It is compared on the test images, and on some of them at other sizes; see
    :func:`compare_detections`.

    Raises:
        ValueError: the student is none of torchvision's detectors, or gives masks or keypoints,
            which the file could not hold.
    """
    kind_of(student, "the student")
    parts = [
        part
        for part in ("mask", "keypoint")
        if hasattr(student, "roi_heads") and getattr(student.roi_heads, f"has_{part}")()
    ]
    if parts:
        raise ValueError(
            f"a {type(student).__name__} also gives {parts[0]}s, which cannot be exported to ONNX "
            "here; expected a detector of boxes alone; --format safetensors keeps all"
        )
    images = [image.cpu().float() for image in images]
    sizes = [
        [max(1, round(share * side)) for share, side in zip(shares, image.shape[-2:])]
        for shares, image in zip(OTHER_SIZES, images)
    ]
    images += [
        F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        for image, size in zip(images, sizes)
    ]
    model = OneImage(student)
    model.eval()

    def compare(expected: Sequence, outputs: Sequence, tolerance: float) -> tuple[float, float]:
        return compare_detections(model, images, expected, outputs, tolerance)

    dynamic = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in OUTPUTS}}
    return OnnxForm(
        model,
        [(image,) for image in images],
        ["image"],
        OUTPUTS,
        dynamic,
        traced=True,
        compare=compare,
    )


class OneImage(nn.Module):
    """A detector of one image (3,H,W), which gives a tuple of boxes (n,4), labels (n,) and scores
    (n,).
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of a label above 0; while traced, resized by operations that a trace keeps."""
        transform = self.detector.transform
        if not torch.jit.is_tracing() or transform.fixed_size is not None:
            answer = self.detector([image])[0]
        else:
            with replaced(
                transform, "resize", lambda image, target: (_resized(transform, image), target)
            ):
                answer = self.detector([image])[0]
        # 0 is no class, as when it is evaluated
        has_class = answer["labels"] > 0
        return tuple(answer[name][has_class] for name in OUTPUTS)


def _resized(transform: nn.Module, image: Tensor) -> Tensor:
    """As torchvision's in eval, whose graph computes the new size in float32: for one size in ten
    it is then a pixel off.
    """
    size = torch._shape_as_tensor(image)[-2:].double()
    limits = torch.tensor([transform.min_size[-1], transform.max_size], dtype=torch.float64)
    # (2,): the exporter makes a float of a double number ()
    sides = torch.stack([size.min(), size.max()])
    scale = (limits / sides).amin(0, keepdim=True)
    height, width = (size * scale).floor().long().unbind()
    return F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]


# Comparison ---------------------------------------------------------------------------------------
def compare_detections(
    model: nn.Module,
    images: Sequence[Tensor],
    expected: Sequence[Sequence[Tensor]],
    outputs: Sequence[Sequence[Tensor]],
    tolerance: float,
) -> tuple[float, float]:
    """``(difference, allowed)`` of the box side or the score that comes nearest to its limit.

    Detections are paired within an image: the same label, scores within ``tolerance``, boxes within
    ``tolerance`` times the image's longer side. Where two scores, or an overlap and its threshold,
    differ by less than floats are rounded by, that rounding decides which detection is kept and in
    what order: a near-tie. So what must be found in ``outputs`` is what the student also gives in
    float64 with a noise of 1e-6 on its weights and the image; beyond that ``outputs`` may have no
    more detections than there are near-ties.

    Args:
        model: gives what is expected.
        images: (3,H,W), what ``expected`` and ``outputs`` are of.
        expected, outputs: of each image boxes (n,4), labels (n,), scores (n,).
        tolerance: of scores, and of boxes as a share of the image's longer side.

    Raises:
        Differs: a detection is missing, or there are others; or there is nothing to compare: no
            detections, or most of them are near-ties.
    """
    draws, pairs, count, stable_count = _with_noise(model, images), [(0.0, tolerance)], 0, 0
    for number, (image, reference, output) in enumerate(zip(images, expected, outputs)):
        if len(output) != len(OUTPUTS):
            raise Differs(f"it gives {len(output)} outputs, expected {list(OUTPUTS)}")
        reference, output = (
            [part.detach().cpu() for part in parts] for parts in (reference, output)
        )
        limit = tolerance * max(image.shape[-2:])
        answers = [draw[number] for draw in draws]
        stable = torch.stack(
            [_partners(reference, answer, tolerance, limit) >= 0 for answer in answers]
        ).all(0)
        counts = [len(answer[1]) for answer in (reference, *answers)]
        near_ties = max(counts) - int(stable.sum())
        partner = _partners(reference, output, tolerance, limit)
        place = f"in test image {number} of {tuple(image.shape[-2:])} pixels"
        _check_none_missing(place, reference, stable & (partner < 0))
        is_paired = partner >= 0
        extra = len(output[1]) - int(is_paired.sum())
        if extra > near_ties:
            raise Differs(f"{place} it gives {extra} detections that the student does not give")
        for part, allowed in ((0, limit), (2, tolerance)):  # boxes, scores
            differences = (
                (reference[part][is_paired] - output[part][partner[is_paired]]).abs().flatten()
            )
            pairs += [(float(difference), allowed) for difference in differences]
        count, stable_count = count + len(stable), stable_count + int(stable.sum())
    _check_enough(count, stable_count)
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def _check_none_missing(place: str, reference: Sequence[Tensor], missing: Tensor) -> None:
    if missing.any():
        first = int(missing.nonzero()[0])
        box = [round(x, 2) for x in reference[0][first].tolist()]
        raise Differs(
            f"{place} {int(missing.sum())} of the student's {len(missing)} detections are missing, "
            f"the first {box}, label {int(reference[1][first])}, score "
            f"{float(reference[2][first]):.4f}"
        )


def _check_enough(count: int, stable: int) -> None:
    if 2 * stable > count:
        return
    reason = (
        f"of the student's {count} detections in the test images only {stable} do not hang on "
        "rounding: their scores are all but equal, as before training"
    )
    if not count:
        reason = (
            "the student finds nothing in the test images: train longer, or lower its score "
            "threshold (--cfg-options student.score_thresh=0.01, of two-stage detectors "
            "student.box_score_thresh)"
        )
    raise Differs(f"there is too little to compare: {reason}")


@torch.no_grad()
def _with_noise(model: nn.Module, images: Sequence[Tensor]) -> list[list[tuple[Tensor, ...]]]:
    """What it gives of each image in each of a few draws of noise on its weights and the image; in
    float64, where scores that float32 rounds to 1 still differ.
    """
    generator, draws = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        noisy = copy.deepcopy(model).double()
        for parameter in noisy.parameters():
            parameter *= 1 + JITTER * torch.randn(parameter.shape, generator=generator)
        draws.append(
            [
                noisy(image.double() * (1 + JITTER * torch.randn(image.shape, generator=generator)))
                for image in images
            ]
        )
    return draws


def _partners(
    reference: Sequence[Tensor], output: Sequence[Tensor], tolerance: float, limit: float
) -> Tensor:
    """For each detection the place of its like among the others, or -1, (n,); in their order, the
    nearest free one.
    """
    distance = torch.maximum(
        (reference[0][:, None].double() - output[0][None].double()).abs().amax(2) / limit,
        # (n,m)
        (reference[2][:, None].double() - output[2][None].double()).abs() / tolerance,
    )
    distance = distance.masked_fill(
        (reference[1][:, None] != output[1][None]) | ~(distance <= 1), torch.inf
    )
    partner = torch.full((len(reference[1]),), -1)
    for n in range(len(partner)):
        if distance.shape[1] and distance[n].min() < torch.inf:
            partner[n] = distance[n].argmin()
            distance[:, partner[n]] = torch.inf
    return partner
