# ShuffleNet V2 taught by ResNet-32x4 on CIFAR-100: DKD (arXiv 2203.08679), at full length for a
# GPU.
# Run:     python tools/train.py configs/classification/dkd_resnet32x4_shufflenet_v2_cifar100.py
# Expect:  not measured here yet at full length. mdistiller's README reports 77.07 % taught, 71.82
#          % alone
_base_ = ['../_base_/resnet32x4_shufflenet_v2_cifar100.py', '../_base_/dkd.py']
