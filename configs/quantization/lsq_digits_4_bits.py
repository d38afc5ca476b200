# A small network with weights and activations in 4 bits of learned steps (LSQ, arXiv 1902.08153),
# taught by a larger one in full precision, on handwritten digits. No download.
# Run:     python tools/train.py configs/quantization/lsq_digits_4_bits.py
# Expect:  in these bits alone 77.1 ± 2.6 %, taught 98.0 ± 0.3 % over 5 seeds (in full precision
#          97.9 ± 0.4), teacher 98.0 %; two minutes on a CPU core
_base_ = ['default.py']
student = dict(kind='lsq', bucket_size=None, bits=4, activations=4)
stages = dict(levels=None)
