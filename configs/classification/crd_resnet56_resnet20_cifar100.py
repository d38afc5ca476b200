# ResNet-20 taught by ResNet-56 on CIFAR-100: CRD (arXiv 1910.10699), at full length for a GPU.
# Run:     python tools/train.py configs/classification/crd_resnet56_resnet20_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 71.16 % taught,
#          69.06 % alone
_base_ = ['../_base_/resnet56_resnet20_cifar100.py', '../_base_/crd.py']
