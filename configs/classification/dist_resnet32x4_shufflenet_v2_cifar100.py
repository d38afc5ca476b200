# ShuffleNet V2 taught by ResNet-32x4 on CIFAR-100: DIST (arXiv 2205.10536), at full length for a
# GPU.
# Run:     python tools/train.py configs/classification/dist_resnet32x4_shufflenet_v2_cifar100.py
# Expect:  not measured here yet at full length. DIST_KD's README reports 77.35 ± 0.25 % taught,
#          71.82 % alone
_base_ = ['../_base_/resnet32x4_shufflenet_v2_cifar100.py', '../_base_/dist.py']
