# A small network in 4 bits, taught by a larger one in full precision, on handwritten digits:
# quantized distillation and learned levels (arXiv 1802.05668). No download.
# Run:     python tools/train.py configs/quantization/qd_digits_4_bits.py
# Expect:  see README.md beside it
_base_ = ['default.py']
student = dict(bits=4)
