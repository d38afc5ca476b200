# bss_resnet8x2_resnet8_cifar100_10k_short.py (arXiv 1805.05532) without its boundary samples: what
# those bring is the difference.
# Run:     python tools/train.py configs/classification/bss_weight0_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 21.7 ± 0.4 % over 5 seeds, teacher 28.9 %; its training takes
#          62 s of one CPU core
_base_ = ['bss_resnet8x2_resnet8_cifar100_10k_short.py']
losses = dict(loss_bss=dict(weight=0))
