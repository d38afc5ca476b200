"""How the stages of a config hang together: what counts, what goes on with what, who teaches."""

from collections.abc import Mapping
from typing import Any

from kdtasks.core import Stage
from kdtasks.core.arms import Arms, arms
from kdtasks.core.stages import anchors_of, as_route, stage_reference, start_of
from kdtasks.engine.config import jsonable
from kdtasks.engine.config_checks import iterations
from kdtasks.engine.config_keys import TEACHER_KEYS


class StagePlan:
    """The stages of a config and what it says of each; reads no data and builds no model.

    Args:
        config: a complete one.
        stages: all stages, in order, with their roles.
        specs: ``{name: description}`` of the models.
    """

    def __init__(self, config: dict, stages: list[Stage], specs: Mapping[str, Mapping]):
        self.config, self.stages, self.specs = config, stages, specs

    @property
    def arms(self) -> Arms:
        """What the stages are compared by: the control, the student that counts, teachers."""
        return arms(self.stages)

    @property
    def final(self) -> Stage | None:
        """The stage whose student counts: it is exported, compared and reported."""
        return self.arms.final

    @property
    def on_the_way(self) -> set[str]:
        """The steps whose student is not yet the network of the control: by its ``arguments`` it
        knows fewer classes, say, so that the two cannot be compared.
        """
        parts = self.arms
        if parts.control is None:
            return set()
        steps = [stage for stage in parts.steps if stage.model == "student"]
        return {stage.name for stage in steps if not self.same_network(stage, parts.control)}

    def same_network(self, stage: Stage, other: Stage) -> bool:
        """Whether two stages train networks that are described alike."""
        return self._network(stage) == self._network(other)

    def _network(self, stage: Stage) -> dict:
        """What a stage's model is, but for what the config changes of the control's."""
        spec = {**self.specs[stage.model], **stage.arguments}
        return jsonable({key: value for key, value in spec.items() if key not in TEACHER_KEYS})

    def stage(self, name: str) -> Stage:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)

    # What the config says of a stage --------------------------------------------------------------
    def setting(self, stage: Stage, key: str) -> Any:
        """A stage's ``optimizer``, ``schedule``, ``length`` or ``data``."""
        value, common = getattr(stage, key), self.config[key]
        if value is None:
            return common
        merge = key in ("data", "optimizer") and "type" not in value
        return {**common, **value} if merge else value

    def iterations(self, stage: Stage, per_epoch: int) -> int:
        """The length of a stage, of so many iterations an epoch."""
        length = self.setting(stage, "length")
        return iterations(length, per_epoch, f"{stage.name}.length", least=0)

    def schedule(self, stage: Stage) -> list[dict]:
        """The parameter schedulers of a stage."""
        schedule = self.setting(stage, "schedule") or []
        return schedule if isinstance(schedule, list) else [schedule]

    def arguments(self, stage: Stage) -> dict:
        """In what a stage's model differs from the config's: the control's, by ``control``."""
        changed = self.config["control"] if stage.role == "control" else {}
        return {**changed, **stage.arguments}

    def unlabelled(self, stage: Stage) -> int:
        """Unlabelled samples in a batch of a stage.

        Only teachers say something of them, or the stage asks for them itself.
        """
        is_asked = "unlabelled_per_batch" in (stage.data or {})
        return (
            self.setting(stage, "data")["unlabelled_per_batch"] if is_asked or stage.taught else 0
        )

    def is_cached(self, stage: Stage) -> bool:
        """Whether teacher outputs are kept; not those of a route of anchors, which change."""
        origins = stage.teachers.values()
        return bool(self.config["cache"] and origins) and all(
            isinstance(origin, str | None) for origin in origins
        )

    # Where its weights come from ------------------------------------------------------------------
    def reference(self, origin: str | None) -> tuple[str, str] | None:
        """The stage that weights are of, and which of its weights; None: they are of none."""
        return stage_reference(origin or "", [stage.name for stage in self.stages])

    def origin(self, stage: Stage) -> str | None:
        """What a stage's model starts from, a stage or a file; None: fresh weights."""
        if stage.student == "fresh":
            is_teacher = stage.model in self.config["teachers"]
            return None if is_teacher else self.specs[stage.model].get("checkpoint")
        return start_of(stage, self.stages[: self.stages.index(stage)])

    def source(self, stage: Stage) -> str | None:
        """The name of the stage whose student this one goes on with."""
        reference = self.reference(self.origin(stage))
        return reference and reference[0]

    def chain(self, stage: Stage) -> list[Stage]:
        """The stages that, one after the other, trained what this one ends with; itself last."""
        source = self.source(stage)
        return [*(self.chain(self.stage(source)) if source else []), stage]

    def leading_to(self, stage: Stage) -> list[Stage]:
        """The stages without which this one's student would not be what it is, in their order,
        itself last: those that it goes on with, and those that its teachers come from.
        """
        needed = {stage.name}
        before = self.stages[: self.stages.index(stage) + 1]
        for earlier in reversed(before):
            if earlier.name in needed:
                references = map(self.reference, anchors_of(earlier))
                needed |= {reference[0] for reference in references if reference}
                needed |= {source for source in [self.source(earlier)] if source}
        return [earlier for earlier in before if earlier.name in needed]

    # Its teachers ---------------------------------------------------------------------------------
    def source_of(self, stage: Stage, name: str) -> str | None:
        """The name of the stage that has trained a teacher of another one."""
        reference = self.reference(as_route(stage.teachers[name])[-1])
        return reference and reference[0]

    def owner_of(self, stage: Stage, name: str) -> str:
        """The name of the model that a teacher of a stage is, the student's if it is one."""
        source = self.source_of(stage, name)
        return self.stage(source).model if source else name

    def other_teachers(self, stage: Stage) -> list[str]:
        """The names of a stage's teachers that are other models than the student at an earlier
        stage.
        """
        names = []
        for name, origin in stage.teachers.items():
            reference = self.reference(as_route(origin)[0])
            if reference is None or self.stage(reference[0]).model != "student":
                names.append(name)
        return names

    def is_from_outside(self, origin: str | None) -> bool:
        """Whether a teacher has its weights from no stage of this experiment."""
        return self.reference(origin) is None
