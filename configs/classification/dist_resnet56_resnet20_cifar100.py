# ResNet-20 taught by ResNet-56 on CIFAR-100: DIST (arXiv 2205.10536), at full length for a GPU.
# Run:     python tools/train.py configs/classification/dist_resnet56_resnet20_cifar100.py
# Expect:  not measured here yet at full length. DIST_KD's README reports 71.75 ± 0.30 % taught,
#          69.06 % alone
_base_ = ['../_base_/resnet56_resnet20_cifar100.py', '../_base_/dist.py']
