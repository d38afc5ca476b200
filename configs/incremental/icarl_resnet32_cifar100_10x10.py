# CIFAR-100, ten new classes at a time, 2,000 exemplars: iCaRL with its own schedule (arXiv
# 1611.07725, its code; mammoth's numbers are of this loss).
# Run:     python tools/train.py configs/incremental/icarl_resnet32_cifar100_10x10.py
# Expect:  not run here to its end: it wants a GPU. mammoth, ResNet-18, nearest mean after the last
#          experience: 49.7
_base_ = ['./lwf_mc_resnet32_cifar100_10x10.py']

data = dict(train=dict(memory=2000, exemplars='herding'))
