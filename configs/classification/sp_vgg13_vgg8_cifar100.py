# VGG-8 taught by VGG-13 on CIFAR-100: similarity preserving (arXiv 1907.09682), at full length for
# a GPU.
# Run:     python tools/train.py configs/classification/sp_vgg13_vgg8_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 72.68 % taught,
#          70.36 % alone
_base_ = ['../_base_/vgg13_vgg8_cifar100.py', '../_base_/sp.py']

losses = dict(loss_sp=dict(of=('student.layer5', 'teacher.layer5')))
