"""What the lists of stages for quantized students share: the check of the config's student, and its
stages in full precision.
"""

from collections.abc import Mapping

from kdtasks.general.chains import teacher_source, teacher_stages

# arguments of a stage whose student is not quantized yet, for ``quantized`` and ``fake_quantized``
FULL = {"quantize": False}


def check_student(config: Mapping, function: str) -> None:
    """Raise ValueError if the config's student is not made by this function of the package."""
    kind = config["student"].get("type")
    name = getattr(kind, "__name__", str(kind).rpartition(".")[2])
    if name != function:
        raise ValueError(
            f"expected student=dict(type='kdtasks.quantization.{function}', model=dict(…)), got "
            f"type={kind!r}"
        )


def full_stages(config: Mapping) -> list[dict]:
    """The teachers that have no checkpoint, and ``full``: the student in full precision, taught by
    the config's ``teacher``, or where there is none by the losses that need none.
    """
    full = {"name": "full", "role": "joint", "arguments": FULL}
    if not config["teachers"]:
        return [full]
    return [*teacher_stages(config), {**full, "teachers": {"teacher": teacher_source(config)}}]
