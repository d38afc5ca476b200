# A RetinaNet for blood cells in 8 bits, taught by one 14 times as large in full precision: quantized
# distillation (arXiv 1802.05668) with a detector's loss, ADL (arXiv 1901.00366); two CPU cores.
# Run:     python tools/train.py configs/quantization/qd_retinanet_bccd_small.py
# Expect:  not measured here yet
_base_ = ['../detection/adl_retinanet_bccd_small.py']

student = dict(
    _delete_=True,
    type='kdtasks.quantization.quantized',
    model={{_base_.student}},
    bits=8,
    bucket_size=256,
)
stages = dict(type='kdtasks.quantization.quantized_distillation.stages')
packed = True
