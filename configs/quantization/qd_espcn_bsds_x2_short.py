# A small ESPCN in 8 bits, taught by a larger one in full precision to enlarge by 2, BSDS to B100:
# quantized distillation (arXiv 1802.05668), half L1 to the target and half to its output.
# Run:     python tools/train.py configs/quantization/qd_espcn_bsds_x2_short.py
# Expect:  not measured here yet
_base_ = ['../super_resolution/output_espcn_bsds_x2_short.py']

student = dict(
    _delete_=True,
    type='kdtasks.quantization.quantized',
    model={{_base_.student}},
    bits=8,
    bucket_size=256,
)
stages = dict(type='kdtasks.quantization.quantized_distillation.stages')
packed = True
