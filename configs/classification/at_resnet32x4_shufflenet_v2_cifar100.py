# ShuffleNet V2 taught by ResNet-32x4 on CIFAR-100: attention transfer (arXiv 1612.03928), at full
# length for a GPU.
# Run:     python tools/train.py configs/classification/at_resnet32x4_shufflenet_v2_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 72.73 % taught,
#          71.82 % alone
_base_ = ['../_base_/resnet32x4_shufflenet_v2_cifar100.py', '../_base_/at.py']
