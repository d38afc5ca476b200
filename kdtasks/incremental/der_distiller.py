"""Dark experience replay in a step: what is drawn from the memory, and what goes in."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdtasks.incremental.der import ReservoirBuffer
from kdtasks.incremental.distiller import IncrementalDistiller

DRAWS = ("first_draw", "second_draw")
# what of a draw no stored logit has a part in
OWN_NAMES = tuple(f"{name}.target" for name in DRAWS)
# of replayed views, which are so no others than those of the passes over the data
_VIEWS = 2**32


class DERDistiller(IncrementalDistiller):
    """An :class:`~kdtasks.incremental.IncrementalDistiller` with a memory of samples and of the
    logits that the student gave them when they passed (:mod:`kdtasks.incremental.der`).

    In each step two independent draws come from the memory, of different samples each, and go
    through the student one after the other, behind the batch. Losses may be of these names; of a
    draw that no loss reads nothing is drawn:

    =======================  =======================================================================
    ``student.first_draw``   (R, r) logits of now for the first draw; so ``student.second_draw``
    ``first_draw.logits``    (R, l) their logits of then, float32; so ``second_draw.logits``
    ``first_draw.columns``   (R,) int64, how many of these columns each row had at its time
    ``first_draw.target``    (R,) int64, their classes
    =======================  =======================================================================

    Then the batch's labelled samples pass the reservoir, with the logits of this forward: from
    before the optimizer's step, in training mode, of the augmented view. Nothing is drawn from an
    empty memory, nor outside of training: R is 0 then.

    Args:
        student, teachers, losses, peers, compile: see :class:`~kdtasks.core.Distiller`.
        size: samples that are kept.
        draw: R, samples of a draw; None: as many as the batch has, as released.
        seed: of the memory's random numbers; in a run, the run's.

    Attributes:
        kept: the :class:`~kdtasks.incremental.ReservoirBuffer`. A run saves it with each
            checkpoint, and hands it on to the next experience.
        source: None: the memory holds images as they came, and they are replayed so. In a run,
            ``(index -> places, (places, views) -> images)``: places are kept, and images drawn in
            new views.

    Raises:
        ValueError: a size or draw below 1.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        size: int,
        draw: int | None = None,
        seed: int = 0,
        peers: Sequence[nn.Module] = (),
        compile: bool | dict = False,
    ):
        super().__init__(student, teachers, losses, peers=peers, compile=compile)
        if draw is not None and draw < 1:
            raise ValueError(f"draw must be at least 1, or None, got {draw}")
        self.draw, self.kept = draw, ReservoirBuffer(size, seed)
        self.source: tuple[Callable, Callable] | None = None

    def own_names(self, role: str) -> list[str]:
        """The names above that the student supplies, and those of old and new columns."""
        names = [f"student.{name}" for name in DRAWS] if role == "student" else []
        return [*super().own_names(role), *names]

    def prepare(self, batch: dict[str, object]) -> dict[str, object]:
        """The batch and what is drawn beside it."""
        prepared = super().prepare(batch)
        for number, name in enumerate(DRAWS):
            if f"student.{name}" in self.wanted["student"]:
                samples = self._drawn(prepared, number)
                prepared |= {f"{name}.{key}": value for key, value in samples.items()}
        return prepared

    def _drawn(self, batch: Mapping[str, object], number: int) -> dict[str, Tensor]:
        like = batch["input"]
        if not (self._learns and len(self.kept)):
            none = torch.zeros(0, dtype=torch.long, device=like.device)
            logits = torch.zeros(0, 0, device=like.device)
            return {"input": like[:0], "target": none, "logits": logits, "columns": none}
        samples = self.kept.draw(self.draw or len(like))
        if self.source is not None:
            places = samples.pop("place")
            view = torch.full_like(places, _VIEWS + len(DRAWS) * self.kept.seen + number)
            samples["input"] = self.source[1](places, view)
        samples = {
            name: value.to(like.device, non_blocking=True) for name, value in samples.items()
        }
        if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
            samples["input"] = samples["input"].contiguous(memory_format=torch.channels_last)
        return samples

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role; in training, the batch then passes the memory."""
        if role != "student":
            return super().outputs(role, batch, wanted)
        draws = [name for name in DRAWS if f"student.{name}" in wanted]
        others = [name for name in wanted if name.removeprefix("student.") not in draws]
        values = super().outputs(role, batch, list(dict.fromkeys([*others, role])))
        for name in draws:
            images = self.read(batch, f"{name}.input", role)
            # BatchNorm refuses no rows
            logits = self.run(role, images, [role])[role] if len(images) else values[role][:0]
            values[f"student.{name}"] = logits
        if draws and self._learns:
            self._keep(batch, values[role])
        return values

    @property
    def _learns(self) -> bool:
        """Whether this is a step, and no trial (:meth:`build`), which moves nothing."""
        return self.training and self.losses.training

    def _keep(self, batch: Mapping[str, object], logits: Tensor) -> None:
        logits, target = logits.detach().float(), self.read(batch, "target", "the memory")
        if self.source is None:
            samples = {"input": batch["input"]}
        else:
            samples = {"place": self.source[0](self.read(batch, "index", "the memory"))}
        samples |= {"target": target, "logits": logits}
        samples["columns"] = torch.full_like(target, logits.shape[1])
        labelled = batch.get("labelled")
        if labelled is not None:
            samples = {name: value[labelled.to(value.device)] for name, value in samples.items()}
        self.kept.add(**samples)
