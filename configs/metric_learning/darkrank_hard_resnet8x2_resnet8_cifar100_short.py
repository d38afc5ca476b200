# ResNet-8 taught by a wider one to embed CIFAR-100, tested on unseen classes: DarkRank, hard (arXiv
# 1707.01220).
# Run:     python tools/train.py configs/metric_learning/darkrank_hard_resnet8x2_resnet8_cifar100_short.py
# Expect:  Recall@1: student alone 34.87 ± 1.03 %, taught 43.58 ± 0.93 % over 5 seeds, teacher 43.80
#          %; 3 minutes a run
_base_ = ['../_base_/cifar100_unseen.py', '../_base_/embedders_cifar100_short.py']

student = dict(normalize=True)
# all of the batch is ranked, the first 16 places count: 76 nats if at random
losses = dict(
    loss_darkrank=dict(
        type='kdtasks.metric_learning.DarkRankLoss',
        kind='hard',
        list_length=None,
        places=16,
        of=('student', 'teacher'),
        weight=0.05,
    )
)
