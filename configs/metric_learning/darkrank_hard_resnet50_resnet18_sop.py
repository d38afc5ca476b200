# ResNet-50, 512 numbers, teaches ResNet-18, 64 numbers, to embed Online Products: DarkRank, hard
# (arXiv 1707.01220).
# Run:     python tools/train.py configs/metric_learning/darkrank_hard_resnet50_resnet18_sop.py
# Expect:  not measured here: it wants a GPU and ImageNet weights
_base_ = ['../_base_/sop.py', '../_base_/embedders_resnet50_resnet18.py']

student = dict(normalize=True, dim=64)
schedule = dict(milestones=[40, 80])
length = 120
teacher_training = dict(data=dict(iterations_per_epoch=1000))
losses = dict(  # as RKD's authors tuned it: alpha 3, beta 3, both weights 1
    loss_darkrank=dict(
        type='kdtasks.metric_learning.DarkRankLoss', kind='hard', of=('student', 'teacher')
    )
)
