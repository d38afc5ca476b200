# A small network with weights and activations in 2 bits of learned steps (LSQ, arXiv 1902.08153),
# taught by a larger one in full precision, on handwritten digits. No download.
# Run:     python tools/train.py configs/quantization/lsq_digits_2_bits.py
# Expect:  in these bits alone 61.6 ± 4.6 %, taught 94.9 ± 0.8 % over 5 seeds (in full precision
#          97.9 ± 0.4), teacher 98.0 %; two minutes on a CPU core
_base_ = ['default.py']
student = dict(kind='lsq', bucket_size=None, bits=2, activations=2)
stages = dict(levels=None)
