# ResNet-8x4 taught by ResNet-32x4 on CIFAR-100: CRD (arXiv 1910.10699), at full length for a GPU.
# Run:     python tools/train.py configs/classification/crd_resnet32x4_resnet8x4_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 75.51 % taught,
#          72.50 % alone
_base_ = ['../_base_/resnet32x4_resnet8x4_cifar100.py', '../_base_/crd.py']
