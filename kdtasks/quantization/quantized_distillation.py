r"""Model compression via distillation and quantization (Polino, Pascanu and Alistarh, ICLR 2018,
arXiv 1802.05668).

**Quantized distillation.** A student whose weights are rounded wherever it computes
(:mod:`kdtasks.quantization.quantizer`) learns from a teacher in full precision: forward, backward
at Q(W), the step on W, and Q(W) at the end. With any loss of the library, in any task,
that is a student,

    student = dict(type='kdtasks.quantization.quantized', model=dict(…), bits=4)

and no trainer of its own. "Alone" is then quantization-aware training without a teacher.

**Differentiable quantization.** The weights of the student in full precision stay, and the points
that they are rounded to are learned (:mod:`kdtasks.quantization.levels`): a stage in which these
alone train.

:func:`stages` writes both into one list, with what they have to be compared with:

=============  =====================================================================================
``full``       the student in full precision, taught
``rounded``    that one, rounded, without another step; not with ``activations``, whose steps
               would not have started
``levels``     that one, at learned levels: differentiable quantization
``alone``      quantization-aware training, no teacher: the control
``distilled``  quantized distillation
=============  =====================================================================================

The released code adds 0.7 of KD (T = 2, its mean over classes too: ``0.7 / C`` of ours) to 0.3 of
cross-entropy. Differentiable quantization has the network in full precision itself as its teacher
there; here all arms have the config's.
"""

from collections.abc import Mapping

from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.general.chains import teacher_source, teacher_stages
from kdtasks.quantization.students import check_student, full_stages

# what differentiable quantization trains
LEVELS = ("student.*.levels",)


def stages(config: Mapping, levels: Mapping | None = None, full: bool = True) -> list[dict]:
    """The stages above, for a config:
    ``stages=dict(type='kdtasks.quantization.quantized_distillation.stages', …)``.

    Args:
        config: given by the engine; its student is a ``kdtasks.quantization.quantized``.
        levels: ``optimizer``, ``schedule``, ``length``, ``data`` of the stage ``levels``, where
            they differ from the config's; None: no such stage.
        full: the stages ``full`` and ``rounded``, and ``levels`` where it is asked for.

    Raises:
        ValueError: a student that is not quantized; there is no teacher; ``levels`` without
            ``full``, or with ``activations``.
    """
    check_student(config, "quantized")
    in_bits = config["student"].get("activations") is not None
    if levels is not None and in_bits:
        raise ValueError("levels alone train in their stage: expected no activations, got both")
    if levels is not None and not full:
        raise ValueError("levels are those of the student in full precision: expected full=True")
    teaching = {"teachers": {"teacher": teacher_source(config)}}
    preparation = full_stages(config) if full else teacher_stages(config)
    if full and not in_bits:
        still = {"length": {"iterations": 0}, "schedule": []}
        preparation.append({"name": "rounded", "role": "joint", "student": "full", **still})
    if levels is not None:
        learned = {"student": "full", "arguments": {"kind": "levels"}, "train": LEVELS}
        preparation.append({"name": "levels", "role": "joint", **learned, **teaching, **levels})
    return [
        *preparation,
        {"name": ALONE, "role": "control"},
        {"name": DISTILLED, "role": "taught", **teaching},
    ]
