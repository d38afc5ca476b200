# WRN-16-2 taught by WRN-40-2 on CIFAR-100: attention transfer (arXiv 1612.03928), at full length
# for a GPU.
# Run:     python tools/train.py configs/classification/at_wrn_40_2_wrn_16_2_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 74.08 % taught,
#          73.26 % alone
_base_ = ['../_base_/wrn_40_2_wrn_16_2_cifar100.py', '../_base_/at.py']
