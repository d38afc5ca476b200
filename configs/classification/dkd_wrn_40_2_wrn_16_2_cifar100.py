# WRN-16-2 taught by WRN-40-2 on CIFAR-100: DKD (arXiv 2203.08679), at full length for a GPU.
# Run:     python tools/train.py configs/classification/dkd_wrn_40_2_wrn_16_2_cifar100.py
# Expect:  not measured here yet at full length. mdistiller's README reports 76.23 % taught, 73.26
#          % alone
_base_ = ['../_base_/wrn_40_2_wrn_16_2_cifar100.py', '../_base_/dkd.py']

losses = dict(loss_dkd=dict(beta=6.0))
