# A small new embedder whose queries search the gallery of an old, larger one, on unseen classes of
# CIFAR-100: BCT's influence loss (arXiv 2003.11942) beside triplets.
# Run:     python tools/train.py configs/metric_learning/bct_resnet8x2_resnet8_cifar100_short.py
# Expect:  see README.md, "Backward-compatible embeddings"
_base_ = ['../_base_/cifar100_unseen.py', '../_base_/embedders_cifar100_short.py']

# as wide as the teacher's: one gallery for both
student = dict(dim=128, normalize=True)
losses = dict(
    loss_bct=dict(
        type='kdtasks.metric_learning.InfluenceLoss',
        classes=80,
        dim=128,
        of=('student', 'teacher', 'target'),
        weight=1.0,  # openBCT's
    )
)
