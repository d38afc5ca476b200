# ResNet-20 taught by ResNet-56 on CIFAR-100: KD (arXiv 1503.02531), at full length for a GPU.
# Run:     python tools/train.py configs/classification/kd_resnet56_resnet20_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 70.66 % taught,
#          69.06 % alone
_base_ = ['../_base_/resnet56_resnet20_cifar100.py', '../_base_/kd.py']
