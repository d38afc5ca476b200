"""What boundary samples (BSS) measure on test images: each model's own attack, and how alike the
moves are that bring the same images over the teacher's boundary and over a student's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.core.stages import anchors_of, stage_reference
from kdtasks.engine.builder import resolve
from kdtasks.engine.loader import Loader
from kdtasks.general import BSSDistiller, boundary_samples, perturbation_similarity

if TYPE_CHECKING:
    from kdtasks.core import Stage
    from kdtasks.engine.run import Run

# test images that are attacked; ten moves of 256 images cost a model about as much as a test on
# 8,000
IMAGES = 256
# of them at once, which training attacks too
BATCH = 64
TEACHER = "teacher"


@dataclass
class Attacked:
    """What a model's own attack made of test images; all (N, …), on the CPU.

    Args:
        index: places of the images in the data set.
        base: their classes.
        target: the classes that they are moved to.
        input: the images as models see them.
        moved: the same behind the attack.
        before, after: (N, C) probabilities that the model gives to ``input`` and ``moved``.
    """

    index: Tensor
    base: Tensor
    target: Tensor
    input: Tensor
    moved: Tensor
    before: Tensor
    after: Tensor

    @property
    def right(self) -> Tensor:
        """bool (N,): the model's answer is the image's class, in which the attack begins."""
        return self.before.argmax(1) == self.base

    @property
    def move(self) -> Tensor:
        """The perturbation."""
        return self.moved - self.input


@dataclass
class Attacks:
    """The attacks of a run on the same test images, towards the same classes: each image's most
    likely class but its own, for the teacher.

    Nothing is drawn at random.

    Args:
        distiller: whose ``attack`` and bounds all models are attacked with; its teacher chooses.
        batches: of the test images.
    """

    distiller: BSSDistiller
    batches: Sequence[Mapping[str, Tensor]]

    def of(self, model: nn.Module | None = None) -> Attacked:
        """What a model in eval makes of the images; None: the teacher."""
        parts = [self._of_batch(model, batch) for batch in self.batches]
        return Attacked(*(torch.cat(column).cpu() for column in zip(*parts)))

    def _of_batch(self, model: nn.Module | None, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        teacher = self.distiller.teachers[TEACHER].in_float32
        score, input, base = model or teacher, batch["input"], batch["target"]
        with torch.no_grad():
            target = teacher(input).scatter(1, base[:, None], -torch.inf).argmax(1)
        bounds = self.distiller.low, self.distiller.high
        moved = boundary_samples(score, input, base, target, clip=bounds, **self.distiller.attack)
        with torch.no_grad():
            before, after = score(input).float().softmax(1), score(moved).float().softmax(1)
        return batch["index"], base, target, input, moved, before, after


def attacks(run: "Run", stage: "Stage", count: int = IMAGES) -> Attacks | None:
    """The attacks on ``count`` labelled test images, spread evenly, by the teacher of a stage, or
    for an untaught one by that of the student that counts.

    None where the run's distiller shows no boundary samples, or the teacher is not trained yet.
    """
    experiment = run.experiment
    kind = resolve(experiment.config["distiller"]["type"], "distiller")
    taught = stage if stage.teachers else experiment.final
    if not (isinstance(kind, type) and issubclass(kind, BSSDistiller)) or taught is None:
        return None
    names = [each.name for each in experiment.stages]
    references = [stage_reference(source, names) for source in anchors_of(taught)]
    if TEACHER not in taught.teachers or any(r and r[0] not in run.done for r in references):
        return None
    distiller = experiment.distiller(taught, run.files, anchor=-1)
    distiller.eval()
    batches = _test_batches(run, stage, count)
    return Attacks(distiller, batches) if batches else None


def _test_batches(run: "Run", stage: "Stage", count: int) -> list[dict]:
    """Labelled test images, spread evenly."""
    data, experiment = run.experiment.test_loader(stage).dataset, run.experiment
    target = torch.as_tensor(getattr(data, "target", torch.zeros(len(data)))).cpu()
    labelled = (target >= 0).nonzero()[:, 0]
    chosen = labelled[evenly_spaced(len(labelled), count)]
    if not len(chosen):
        return []
    options = {**experiment.loader_options(experiment.setting(stage, "data")), "workers": 0}
    loader = Loader(data, BATCH, shuffle=False, labelled=chosen, **options)
    return [batch for batch in loader if len(batch["input"])]


def similarity(student: Attacked, teacher: Attacked) -> dict[str, float]:
    """``magsim`` and ``angsim`` of the two models' moves
    (:func:`~kdtasks.general.perturbation_similarity`), and ``boundary_images``, of how many: those
    that both get right. Where both have moved none there is nothing.
    """
    both = student.right & teacher.right
    magnitude, angle = perturbation_similarity(student.move[both], teacher.move[both])
    if not magnitude.isfinite():
        return {}
    figures = {"magsim": magnitude.item(), "angsim": angle.item()}
    return figures | {"boundary_images": int(both.sum())}


def similarity_of(run: "Run", stage: "Stage") -> dict[str, float]:
    """:func:`similarity` of the student of a stage that has just ended and its teacher; nothing
    where the stage is not compared, or has no boundary samples.
    """
    arms = run.experiment.arms
    if stage not in (*arms.pair, *arms.compared):
        return {}
    attacked = attacks(run, stage)
    return similarity(attacked.of(run.trained(stage.name)), attacked.of()) if attacked else {}
