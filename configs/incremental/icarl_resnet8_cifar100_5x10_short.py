# Ten new classes at a time, 1,000 exemplars: iCaRL (arXiv 1611.07725) against replay of as many
# without a teacher.
# Run:     python tools/train.py configs/incremental/icarl_resnet8_cifar100_5x10_short.py
# Expect:  not run here to its end: ten minutes on one CPU core
_base_ = ['./lwf_mc_resnet8_cifar100_5x10_short.py']

data = dict(train=dict(memory=1000, exemplars='herding'))
