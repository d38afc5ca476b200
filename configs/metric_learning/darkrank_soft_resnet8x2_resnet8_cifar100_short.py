# ResNet-8 taught by a wider one to embed CIFAR-100, tested on unseen classes: DarkRank, soft (arXiv
# 1707.01220).
# Run:     python tools/train.py configs/metric_learning/darkrank_soft_resnet8x2_resnet8_cifar100_short.py
# Expect:  Recall@1: student alone 34.87 ± 1.03 %, taught 31.40 ± 0.40 % over 5 seeds, teacher 43.80
#          %; 3 minutes a run
_base_ = ['../_base_/cifar100_unseen.py', '../_base_/embedders_cifar100_short.py']

student = dict(normalize=True)
losses = dict(
    loss_darkrank=dict(
        type='kdtasks.metric_learning.DarkRankLoss', kind='soft', of=('student', 'teacher')
    )
)
