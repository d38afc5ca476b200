# VGG-8 taught by VGG-13 on CIFAR-100: KD (arXiv 1503.02531), at full length for a GPU.
# Run:     python tools/train.py configs/classification/kd_vgg13_vgg8_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 72.98 % taught,
#          70.36 % alone
_base_ = ['../_base_/vgg13_vgg8_cifar100.py', '../_base_/kd.py']
