# ShuffleNet V2 taught by ResNet-32x4 on CIFAR-100: similarity preserving (arXiv 1907.09682), at
# full length for a GPU.
# Run:     python tools/train.py configs/classification/sp_resnet32x4_shufflenet_v2_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 74.56 % taught,
#          71.82 % alone
_base_ = ['../_base_/resnet32x4_shufflenet_v2_cifar100.py', '../_base_/sp.py']
