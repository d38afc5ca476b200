# ResNet-8x4 taught by ResNet-32x4 on CIFAR-100: DKD (arXiv 2203.08679), at full length for a GPU.
# Run:     python tools/train.py configs/classification/dkd_resnet32x4_resnet8x4_cifar100.py
# Expect:  not measured here yet at full length. mdistiller's README reports 76.32 % taught, 72.50
#          % alone
_base_ = ['../_base_/resnet32x4_resnet8x4_cifar100.py', '../_base_/dkd.py']
