# VGG-8 taught by VGG-13 on CIFAR-100: DKD (arXiv 2203.08679), at full length for a GPU.
# Run:     python tools/train.py configs/classification/dkd_vgg13_vgg8_cifar100.py
# Expect:  not measured here yet at full length. mdistiller's README reports 74.68 % taught, 70.36
#          % alone
_base_ = ['../_base_/vgg13_vgg8_cifar100.py', '../_base_/dkd.py']

losses = dict(loss_dkd=dict(beta=6.0))
