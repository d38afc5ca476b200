# An embedder in 8 bits, taught by a larger one in full precision, on digits never seen: quantized
# distillation (arXiv 1802.05668) with the loss of an embedder, RKD (arXiv 1904.05068). No download.
# Run:     python tools/train.py configs/quantization/qd_embedder_digits.py
# Expect:  not measured here yet
_base_ = ['../metric_learning/default.py']

student = dict(
    _delete_=True,
    type='kdtasks.quantization.quantized',
    model={{_base_.student}},
    bits=8,
    bucket_size=256,
)
# alone the embedder is normalised, as there
control = dict(
    _delete_=True,
    model=dict(
        type='kdtasks.metric_learning.models.embedder',
        backbone='kdtasks.classification.models.digits_cnn',
        in_channels=1,
        width=4,
        dim=16,
        normalize=True,
    ),
)
stages = dict(type='kdtasks.quantization.quantized_distillation.stages')
packed = True
