# ResNet-20 taught by ResNet-56 on CIFAR-100: DKD (arXiv 2203.08679), at full length for a GPU.
# Run:     python tools/train.py configs/classification/dkd_resnet56_resnet20_cifar100.py
# Expect:  not measured here yet at full length. mdistiller's README reports 71.97 % taught, 69.06
#          % alone
_base_ = ['../_base_/resnet56_resnet20_cifar100.py', '../_base_/dkd.py']

losses = dict(loss_dkd=dict(beta=2.0))
