# ResNet-50, 512 numbers, teaches ResNet-18, 128 numbers, to embed Cars-196: RKD's recipe (arXiv
# 1904.05068).
# Run:     python tools/train.py configs/metric_learning/rkd_resnet50_resnet18_cars196.py
# Expect:  not measured here: it wants a GPU and ImageNet weights
_base_ = ['../_base_/cars196.py', '../_base_/embedders_resnet50_resnet18.py']

losses = dict(
    # alone: weight 1
    loss_triplet=dict(weight=0),
    loss_rkd=dict(
        type='kdtasks.general.RKDLoss',
        distance_weight=1.0,
        angle_weight=2.0,
        of=('student', 'teacher'),
    ),
)
