# ResNet-50, 512 numbers, teaches ResNet-18, 128 numbers, to embed Cars-196: DarkRank, hard (arXiv
# 1707.01220), with triplets.
# Run:     python tools/train.py configs/metric_learning/darkrank_hard_resnet50_resnet18_cars196.py
# Expect:  not measured here: it wants a GPU and ImageNet weights
_base_ = ['../_base_/cars196.py', '../_base_/embedders_resnet50_resnet18.py']

student = dict(normalize=True)
losses = dict(  # as RKD's authors tuned it: alpha 3, beta 3, both weights 1
    loss_darkrank=dict(
        type='kdtasks.metric_learning.DarkRankLoss', kind='hard', of=('student', 'teacher')
    )
)
