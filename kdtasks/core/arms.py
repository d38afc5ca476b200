"""The arms of a list of stages: what counts and what is compared, by the role of each stage."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import ALONE, ROLES, Stage, anchors_of, source_of, stage_reference


@dataclass(frozen=True)
class Arms:
    """What a list of stages compares, by role.

    Attributes:
        control: the student without a teacher; None: there is none.
        final: the stage that a run is about, whose student is exported, compared with the control
            and reported: the last ``taught`` one; without any, the last one of the student but the
            control.
        teachers, taught, joint, steps: the stages of these roles, in their order.
    """

    control: Stage | None
    final: Stage | None
    teachers: tuple[Stage, ...]
    taught: tuple[Stage, ...]
    joint: tuple[Stage, ...]
    steps: tuple[Stage, ...]

    @property
    def pair(self) -> tuple[Stage, ...]:
        """Control and final student, as far as they are there."""
        return tuple(stage for stage in (self.control, self.final) if stage is not None)

    @property
    def compared(self) -> tuple[Stage, ...]:
        """The students whose difference to the control means something."""
        return self.taught + self.joint


def arms(stages: Sequence[Stage]) -> Arms:
    """The arms of stages that have their roles: of a whole run, or of its finished ones.

    Everything that asks which stage counts, which are compared, or which are drawn asks this.
    """

    def of_role(role: str) -> tuple[Stage, ...]:
        return tuple(stage for stage in stages if stage.role == role)

    control, taught = of_role("control"), of_role("taught")
    students = [stage for stage in stages if stage.model == "student" and stage not in control]
    return Arms(
        control=next(iter(control), None),
        final=next(reversed(taught or students), None),
        teachers=of_role("teacher"),
        taught=taught,
        joint=of_role("joint"),
        steps=of_role("step"),
    )


def with_roles(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each with a role; one that a stage has already stays.

    The control says that it is one: another student without a teacher may have another budget. A
    model other than the student is a teacher, or a step if some teacher has pulled on it. Of the
    student, the last stage that some teacher has pulled on is ``taught``. Any other is a step if a
    later stage goes on with it or learns from it; else ``taught`` or ``joint``, as a teacher has
    pulled on it or not.

    Raises:
        ValueError: no such role; two controls; a control that is not the student's; a stage with
            the name of the control that is made where there is none, and with no role.
    """
    for stage in stages:
        if stage.role is not None and stage.role not in ROLES:
            raise ValueError(
                f"stage {stage.name!r}: there is no role {stage.role!r}; "
                f"{did_you_mean(stage.role, ROLES)}"
            )
        if stage.role is None and stage.name == ALONE:
            raise ValueError(
                f"the stage {ALONE!r} says no role: expected role='control', if the taught student "
                "is compared with it; else another name, for the control that is made"
            )
    final, led, used = _usual_final(stages), led_by_teachers(stages), _used(stages)
    filled = [
        replace(stage, role=stage.role or _usual_role(stage, stage is final, led, used))
        for stage in stages
    ]
    controls = [stage for stage in filled if stage.role == "control"]
    if len(controls) > 1:
        names = " and ".join(repr(stage.name) for stage in controls)
        raise ValueError(f"expected one stage of the role 'control', got {names}")
    if controls and controls[0].model != "student":
        raise ValueError(
            f"the control {controls[0].name!r} trains {controls[0].model!r}: expected 'student'"
        )
    return filled


def _usual_role(stage: Stage, is_final: bool, led: Container[str], used: Container[str]) -> str:
    """The role of a stage that says none."""
    if stage.model != "student":
        return "step" if stage.name in led else "teacher"
    if stage.name in used and not (is_final and stage.name in led):
        return "step"
    return "taught" if stage.name in led else "joint"


def _usual_final(stages: Sequence[Stage]) -> Stage | None:
    """The student that counts where no role says it."""
    students = [s for s in stages if s.model == "student" and s.role in (None, "taught")]
    led = led_by_teachers(stages)
    ends = [stage for stage in students if stage.name in led] or students
    return ends[-1] if ends else None


def _used(stages: Sequence[Stage]) -> set[str]:
    """The names of the stages that later ones go on with or learn from."""
    used: set[str] = set()
    for place, stage in enumerate(stages):
        before = stages[:place]
        names = [earlier.name for earlier in before]
        source = source_of(stage, before)
        used.update([source] if source else [])
        references = (stage_reference(source, names) for source in anchors_of(stage))
        used.update(reference[0] for reference in references if reference)
    return used


def led_by_teachers(stages: Sequence[Stage]) -> set[str]:
    """The stages whose student some teacher has pulled on, in them or in those that they go on
    with.
    """
    led: set[str] = set()
    for place, stage in enumerate(stages):
        if stage.taught or source_of(stage, stages[:place]) in led:
            led.add(stage.name)
    return led
