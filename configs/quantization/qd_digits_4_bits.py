# A small network in 4 bits, taught by a larger one in full precision, on handwritten digits:
# quantized distillation and learned levels (arXiv 1802.05668). No download.
# Run:     python tools/train.py configs/quantization/qd_digits_4_bits.py
# Expect:  in these bits alone 80.0 ± 2.3 %, taught 98.2 ± 0.3 % over 5 seeds (in full precision
#          97.9 ± 0.4), teacher 98.0 %; two minutes on a CPU core
_base_ = ['default.py']
student = dict(bits=4)
