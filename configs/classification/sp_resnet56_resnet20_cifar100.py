# ResNet-20 taught by ResNet-56 on CIFAR-100: similarity preserving (arXiv 1907.09682), at full
# length for a GPU.
# Run:     python tools/train.py configs/classification/sp_resnet56_resnet20_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 69.67 % taught,
#          69.06 % alone
_base_ = ['../_base_/resnet56_resnet20_cifar100.py', '../_base_/sp.py']
