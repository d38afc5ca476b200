# VGG-8 taught by VGG-13 on CIFAR-100: CRD (arXiv 1910.10699), at full length for a GPU.
# Run:     python tools/train.py configs/classification/crd_vgg13_vgg8_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 73.94 % taught,
#          70.36 % alone
_base_ = ['../_base_/vgg13_vgg8_cifar100.py', '../_base_/crd.py']
