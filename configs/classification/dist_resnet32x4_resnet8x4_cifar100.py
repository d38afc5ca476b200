# ResNet-8x4 taught by ResNet-32x4 on CIFAR-100: DIST (arXiv 2205.10536), at full length for a GPU.
# Run:     python tools/train.py configs/classification/dist_resnet32x4_resnet8x4_cifar100.py
# Expect:  not measured here yet at full length. DIST_KD's README reports 76.31 ± 0.19 % taught,
#          72.50 % alone
_base_ = ['../_base_/resnet32x4_resnet8x4_cifar100.py', '../_base_/dist.py']
