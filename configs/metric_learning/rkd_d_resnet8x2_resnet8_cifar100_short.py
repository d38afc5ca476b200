# ResNet-8 taught by a wider one to embed CIFAR-100, tested on unseen classes: RKD, distances only
# (arXiv 1904.05068).
# Run:     python tools/train.py configs/metric_learning/rkd_d_resnet8x2_resnet8_cifar100_short.py
# Expect:  Recall@1: student alone 34.87 ± 1.03 %, taught 37.73 ± 1.46 % over 5 seeds, teacher 43.80
#          %; 3 minutes a run
_base_ = ['../_base_/cifar100_unseen.py', '../_base_/embedders_cifar100_short.py']

losses = dict(
    # alone: weight 1
    loss_triplet=dict(weight=0),
    loss_rkd=dict(
        type='kdtasks.general.RKDLoss',
        distance_weight=1.0,
        angle_weight=0.0,
        of=('student', 'teacher'),
    ),
)
