# A small network in 8 bits, taught by a larger one in full precision, on handwritten digits:
# quantized distillation and learned levels (arXiv 1802.05668). No download.
# Run:     python tools/train.py configs/quantization/qd_digits_8_bits.py
# Expect:  in these bits alone 81.8 ± 1.3 %, taught 97.9 ± 0.6 % over 3 seeds (in full precision
#          98.1 ± 0.2), teacher 98.3 %; two minutes on a CPU core
_base_ = ['default.py']
student = dict(bits=8)
