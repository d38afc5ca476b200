# WRN-16-2 taught by WRN-40-2 on CIFAR-100: KD (arXiv 1503.02531), at full length for a GPU.
# Run:     python tools/train.py configs/classification/kd_wrn_40_2_wrn_16_2_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 74.92 % taught,
#          73.26 % alone
_base_ = ['../_base_/wrn_40_2_wrn_16_2_cifar100.py', '../_base_/kd.py']
