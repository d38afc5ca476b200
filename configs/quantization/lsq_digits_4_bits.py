# A small network with weights and activations in 4 bits of learned steps (LSQ, arXiv 1902.08153),
# taught by a larger one in full precision, on handwritten digits. No download.
# Run:     python tools/train.py configs/quantization/lsq_digits_4_bits.py
# Expect:  not measured yet
_base_ = ['default.py']
student = dict(kind='lsq', bucket_size=None, bits=4, activations=4)
stages = dict(levels=None)
