# A ResNet-8 embedder on unseen classes of CIFAR-100, its backbone first taught without labels by
# EfficientNet-Lite0 (FitNets, arXiv 1412.6550), against one from random weights; both by triplets.
# Run:     python tools/train.py configs/metric_learning/taught_backbone_resnet8_cifar100_short.py
# Expect:  Recall@1 alone 34.2 ± 0.9, taught 42.5 ± 1.2 over 5 seeds; four minutes a student on one CPU
#          core; first run configs/representation/feature_lite0_resnet8_cifar100_80_classes.py
_base_ = ['../_base_/cifar100_unseen.py', '../_base_/embedders_cifar100_short.py']
student = dict(normalize=True)
teacher = None  # that of the backbone has taught already
teacher_training = dict(_delete_=True)
stages = [
    dict(name='alone', role='control'),
    dict(
        name='taught_backbone',
        role='taught',
        student='work_dirs/representation_feature_lite0_resnet8_cifar100_80_classes/seed0/'
        'student.pth',
    ),
]
