r"""QAD, quantization-aware distillation (NVIDIA, arXiv 2601.20088): a student in 8 bits learns to
say what it said in full precision.

.. math:: L = \mathrm{KL}\big(p_\mathrm{full}(x) \,\|\, p_\mathrm{quantized}(x)\big)

at temperature 1, no labels: :func:`kdtasks.general.kd_loss`. The student starts as its own
calibrated copy, the teacher is the same network in full precision. :func:`stages` writes the list:

=============  =====================================================================================
``alone``      the student in full precision, by the config's losses without a teacher: the control
``distilled``  the same taught by the config's ``teacher``, where there is one; the next go on with
               it instead
``ptq``        post-training quantization: the ranges of activations and weights are calibrated, no
               weight moves (learning rate 0)
``qat``        from there, quantization-aware training on the labels, without a teacher
``qad``        from there, as many steps, from itself in full precision: the final student
=============  =====================================================================================

So ``qad`` is to be compared with ``qat``, which has its budget, and both with ``ptq``, which costs
nothing; ``alone`` says what 8 bits cost, and has the fewest steps of these.

BatchNorm statistics are frozen in all three and the ranges after ``ptq`` (our choices; the paper's
models have no BatchNorm, its scales are frozen or learned). The paper is about language models in
four bits after several post-training stages, whose training data is lost or closed; what it brings
to images in eight bits is measured in configs/quantization. Near the teacher the KL is a small
difference of large logits, so all is in float32.

In several processes ranges are those of the first one's batches.
"""

from collections.abc import Mapping

from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.general.chains import teacher_source, teacher_stages

FULL = {"quantize": False}
# what QAD learns from, where the output is logits
KL = {"type": "kdtasks.general.KDLoss", "temperature": 1.0, "of": ("student", "teacher")}


def stages(
    config: Mapping, losses: Mapping[str, Mapping] | None = None, training: Mapping | None = None
) -> list[dict]:
    """The stages above, for a config: ``stages=dict(type='kdtasks.quantization.qad.stages', …)``.

    Args:
        config: given by the engine; its ``student`` is a
            ``dict(type='kdtasks.quantization.fake_quantized', model=dict(…))``, its ``losses`` are
            those of the student in full precision and of ``qat``.
        losses: of ``qad``, entries as in a config whose ``'teacher'`` is the student in full
            precision; None: the KL above. A student whose output is no logits needs others:
            ``dict(loss_qad=dict(type='torch.nn.L1Loss', of=('student', 'teacher')))``.
        training: ``length``, ``optimizer``, ``schedule`` of ``qat`` and ``qad`` alike, where they
            differ from the config's.

    Raises:
        ValueError: the config's student is no ``fake_quantized``, or ``amp`` is on.
    """
    kind = config["student"].get("type")
    if getattr(kind, "__name__", str(kind).rpartition(".")[2]) != "fake_quantized":
        raise ValueError(
            "expected student=dict(type='kdtasks.quantization.fake_quantized', model=dict(…)), got "
            f"type={kind!r}"
        )
    if config.get("amp"):
        raise ValueError(
            "QAD's loss is a small difference of large logits, which half precision loses: "
            f"expected amp=None, got {config['amp']!r}"
        )
    full = _full_precision(config)
    source = full[-1]["name"]
    training = training or {}
    calibration = {
        "student": source,
        "optimizer": {"type": "torch.optim.SGD", "lr": 0.0},
        "schedule": [],
        "length": {"iterations": config["student"].get("calibrate", 32)},
    }
    taught = {"teachers": {"teacher": source}, "losses": dict(losses or {"loss_qad": KL})}
    return [
        *full,
        {"name": "ptq", "role": "joint", **calibration},
        {"name": "qat", "role": "joint", "student": "ptq", **training},
        {"name": "qad", "role": "taught", "student": "ptq", **taught, **training},
    ]


def _full_precision(config: Mapping) -> list[dict]:
    """Until the student that is to be quantized, which is the last."""
    alone = {"name": ALONE, "role": "control", "arguments": FULL}
    if not config["teachers"]:
        return [alone]
    taught = {"teachers": {"teacher": teacher_source(config)}, "losses": dict(config["losses"])}
    distilled = {"name": DISTILLED, "role": "taught", "arguments": FULL, **taught}
    return [*teacher_stages(config), alone, distilled]
