# A small network in 8 bits, taught by a larger one in full precision, on handwritten digits:
# quantized distillation and learned levels (arXiv 1802.05668). No download.
# Run:     python tools/train.py configs/quantization/qd_digits_8_bits.py
# Expect:  in these bits alone 80.6 ± 2.0 %, taught 97.9 ± 0.5 % over 5 seeds (in full precision
#          97.9 ± 0.4), teacher 98.0 %; two minutes on a CPU core
_base_ = ['default.py']
student = dict(bits=8)
