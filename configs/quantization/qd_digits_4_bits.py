# A small network in 4 bits, taught by a larger one in full precision, on handwritten digits:
# quantized distillation and learned levels (arXiv 1802.05668). No download.
# Run:     python tools/train.py configs/quantization/qd_digits_4_bits.py
# Expect:  in these bits alone 82.1 ± 2.2 %, taught 98.1 ± 0.7 % over 3 seeds (in full precision
#          98.1 ± 0.2), teacher 98.3 %; two minutes on a CPU core
_base_ = ['default.py']
student = dict(bits=4)
