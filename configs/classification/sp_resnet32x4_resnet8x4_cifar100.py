# ResNet-8x4 taught by ResNet-32x4 on CIFAR-100: similarity preserving (arXiv 1907.09682), at full
# length for a GPU.
# Run:     python tools/train.py configs/classification/sp_resnet32x4_resnet8x4_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 72.94 % taught,
#          72.50 % alone
_base_ = ['../_base_/resnet32x4_resnet8x4_cifar100.py', '../_base_/sp.py']
