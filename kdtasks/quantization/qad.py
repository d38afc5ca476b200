r"""QAD, quantization-aware distillation (NVIDIA, arXiv 2601.20088): a student in 8 bits learns to
say what it said in full precision.

.. math:: L = \mathrm{KL}\big(p_\mathrm{full}(x) \,\|\, p_\mathrm{quantized}(x)\big)

at temperature 1, no labels: :func:`kdtasks.general.kd_loss`. The student starts as its own
calibrated copy, the teacher is the same network in full precision. :func:`stages` writes the list:

=============  =====================================================================================
``full``       the student in full precision, taught by the config's ``teacher``, where there is one
``ptq``        post-training quantization: the ranges of activations and weights are calibrated, no
               weight moves (learning rate 0)
``alone``      from there, quantization-aware training (QAT) on the labels, no teacher: the control
``qad``        from there, as many steps, from itself in full precision: the final student
=============  =====================================================================================

So ``qad`` is compared with ``alone``, which has its budget, and both with ``ptq``, which costs
nothing; ``full`` says what 8 bits cost, and has the fewest steps of these. The names are those of
:mod:`kdtasks.quantization.quantized_distillation`. No teacher has a part in ``alone``: where the
config has one, it goes on from ``full_alone`` and ``ptq_alone``.

BatchNorm statistics are frozen in all three and the ranges after ``ptq`` (our choices; the paper's
models have no BatchNorm, its scales are frozen or learned). The paper is about language models in
four bits after several post-training stages, whose training data is lost or closed; what it brings
to images in eight bits is measured in configs/quantization. Near the teacher the KL is a small
difference of large logits, so all is in float32.

In several processes ranges are those of the first one's batches.
"""

from collections.abc import Mapping

from kdtasks.core.stages import ALONE
from kdtasks.quantization.students import FULL, check_student, full_stages

# what QAD learns from, where the output is logits
KL = {"type": "kdtasks.general.KDLoss", "temperature": 1.0, "of": ("student", "teacher")}


def stages(
    config: Mapping, losses: Mapping[str, Mapping] | None = None, training: Mapping | None = None
) -> list[dict]:
    """The stages above, for a config: ``stages=dict(type='kdtasks.quantization.qad.stages', …)``.

    Args:
        config: given by the engine; its ``student`` is a
            ``dict(type='kdtasks.quantization.fake_quantized', model=dict(…))``, its ``losses`` are
            those of ``full`` and of ``alone``.
        losses: of ``qad``, entries as in a config whose ``'teacher'`` is the student in full
            precision; None: the KL above. A student whose output is no logits needs others:
            ``dict(loss_qad=dict(type='torch.nn.L1Loss', of=('student', 'teacher')))``.
        training: ``length``, ``optimizer``, ``schedule`` of ``alone`` and ``qad`` alike, where they
            differ from the config's.

    Raises:
        ValueError: the config's student is no ``fake_quantized``, or ``amp`` is on.
    """
    check_student(config, "fake_quantized")
    if config.get("amp"):
        raise ValueError(
            "QAD's loss is a small difference of large logits, which half precision loses: "
            f"expected amp=None, got {config['amp']!r}"
        )
    training = training or {}
    calibration = {
        "optimizer": {"type": "torch.optim.SGD", "lr": 0.0},
        "schedule": [],
        "length": {"iterations": config["student"].get("calibrate", 32)},
    }
    teaching = {"teachers": {"teacher": "full"}, "losses": dict(losses or {"loss_qad": KL})}
    preparation = [
        *full_stages(config),
        {"name": "ptq", "role": "joint", "student": "full", **calibration},
    ]
    calibrated = "ptq"
    if config["teachers"]:
        calibrated = "ptq_alone"
        preparation += [
            {"name": "full_alone", "role": "step", "arguments": FULL},
            {"name": calibrated, "role": "step", "student": "full_alone", **calibration},
        ]
    return [
        *preparation,
        {"name": ALONE, "role": "control", "student": calibrated, **training},
        {"name": "qad", "role": "taught", "student": "ptq", **teaching, **training},
    ]
