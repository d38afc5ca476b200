# bss_digits.py (arXiv 1805.05532) without its boundary samples: what those bring is the difference.
# Run:     python tools/train.py configs/classification/bss_weight0_digits.py
# Expect:  student alone 58.1 ± 3.5 %, taught 94.1 ± 1.1 % over 5 seeds, teacher 98.0 %; ten seconds
_base_ = ['bss_digits.py']
losses = dict(loss_bss=dict(weight=0))
