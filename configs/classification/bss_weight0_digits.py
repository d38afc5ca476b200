# bss_digits.py (arXiv 1805.05532) without its boundary samples: what those bring is the difference.
# Run:     python tools/train.py configs/classification/bss_weight0_digits.py
# Expect:  student alone 57.3 ± 2.9 %, taught 94.7 ± 0.8 % over 3 seeds, teacher 98.3 %; ten seconds
_base_ = ['bss_digits.py']
losses = dict(loss_bss=dict(weight=0))
