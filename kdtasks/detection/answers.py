"""What detectors supply to losses, name by name, of one forward."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.detection.class_map import pick_classes
from kdtasks.detection.forward import Forward, Samples, Seen

if TYPE_CHECKING:
    from kdtasks.detection.distiller import DetectionDistiller


class Answers:
    """One role's forward, its rows those of the student, its classes and units the student's."""

    def __init__(self, distiller: "DetectionDistiller", role: str, forward: Forward, seen: Seen):
        self.distiller, self.role, self.forward, self.seen = distiller, role, forward, seen

    def samples(self, part: str) -> Samples:
        """The rows that the student's losses of a part use."""
        return self.seen.samples(part)

    def logits(self, part: str) -> Tensor:
        """Of a part, in the student's classes."""
        logits = self.forward.logits(part)
        if self.role == "student" or part == "rpn":
            return logits
        return pick_classes(logits, self.distiller.class_map, self.forward.background(part))

    def deltas(self, part: str, choose: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Of a part, or what ``choose`` takes of them, in the student's units."""
        deltas = self.forward.deltas(part)
        if choose is not None:
            deltas = choose(deltas)
        factor = None if self.role == "student" else self.distiller.units(self.role, part)
        return deltas if factor is None else deltas * factor

    def positive_deltas(self, part: str) -> Tensor:
        """Of each positive row, (P, 4)."""
        rows = self.samples(part).positive
        return self.deltas(part, lambda deltas: deltas.reshape(-1, deltas.shape[-1])[rows])

    def positive_logits(self) -> Tensor:
        """Of each matched anchor, (P, K)."""
        return self.logits("anchors").flatten(0, 1)[self.samples("anchors").positive]

    def edges(self) -> Tensor:
        """Of each matched anchor the bins of its four edges, (P, 4, reg_max + 1)."""
        deltas = self.positive_deltas("anchors")
        numbers = deltas.shape[1]
        if numbers == 4 or numbers % 4:
            head = getattr(self.distiller.model(self.role), self.distiller.HEADS["anchors"])
            raise ValueError(
                f"anchors: the {type(head).__name__} of {self.role} gives {numbers} numbers for a "
                "box, expected 4·(reg_max + 1), the bins of its edges, as MMDetection's GFL does"
            )
        return deltas.unflatten(1, (4, -1))

    def class_deltas(self) -> Tensor:
        """Of each positive RoI the box of its true class, (P, 4)."""
        rows, classes = self.samples("rois").positive, self.samples("rois").classes
        if self.role != "student" and self.distiller.class_map is not None:
            classes = self.distiller.class_map[classes]
        return self.deltas(
            "rois", lambda deltas: deltas[rows, classes if deltas.shape[1] > 1 else 0]
        )

    def mask(self, rows: Tensor) -> Tensor:
        """bool (B, A) of rows of an RPN."""
        mask = rows.new_zeros(len(self.forward.logits("rpn")), dtype=torch.bool)
        mask[rows] = True
        return mask.view(self.seen.batch_size, -1)


# ``t`` stands for a role: 'student', or a teacher's name
OF_BOTH: dict[str, Callable[[Answers], object]] = {
    "t.cls_logits": lambda answers: answers.logits("anchors"),
    "t.box_deltas": lambda answers: answers.deltas("anchors"),
    "anchors.t.logits": lambda answers: answers.positive_logits(),
    "anchors.t.deltas": lambda answers: answers.positive_deltas("anchors"),
    "anchors.t.edges": lambda answers: answers.edges(),
    "rpn.t.logits": lambda answers: answers.logits("rpn")[answers.samples("rpn").sampled],
    "rpn.t.deltas": lambda answers: answers.positive_deltas("rpn"),
    "rois.t.logits": lambda answers: answers.logits("rois"),
    "rois.t.deltas": lambda answers: answers.class_deltas(),
}
OF_TEACHER: dict[str, Callable[[Answers], object]] = {
    "cross.t.cls_logits": lambda answers: answers.logits("anchors"),
    "cross.t.box_deltas": lambda answers: answers.deltas("anchors"),
}
OF_STUDENT: dict[str, Callable[[Answers], object]] = {
    "anchors.valid": lambda answers: answers.seen.valid(),
    "anchors.target": lambda answers: answers.samples("anchors").target,
    "anchors.count": lambda answers: answers.samples("anchors").count,
    "rpn.target": lambda answers: answers.samples("rpn").target,
    "rpn.count": lambda answers: answers.samples("rpn").count,
    "rpn.sampled": lambda answers: answers.mask(answers.samples("rpn").sampled),
    "rpn.positive": lambda answers: answers.mask(answers.samples("rpn").positive),
    "rois.target": lambda answers: answers.samples("rois").target,
    "rois.count": lambda answers: answers.samples("rois").count,
    "rois.boxes": lambda answers: answers.samples("rois").boxes,
    "rois.label": lambda answers: answers.samples("rois").label,
}


def part_of(name: str) -> str:
    """The head that a name of the tables is of."""
    return "anchors" if name.startswith(("t.", "cross.")) else name.partition(".")[0]


def name_of(name: str, role: str) -> str:
    """A name of the tables for one role."""
    return ".".join(role if word == "t" else word for word in name.split("."))
