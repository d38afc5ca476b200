# A small new embedder whose queries search the gallery of an old, larger one, on digits that nobody
# was trained on: BCT's influence loss (arXiv 2003.11942) beside triplets. No download.
# Run:     python tools/train.py configs/metric_learning/bct_digits.py
# Expect:  see README.md, "Backward-compatible embeddings"
_base_ = ['../_base_/digits_unseen.py']
task = 'kdtasks.metric_learning.trainer'

student = dict(
    type='kdtasks.metric_learning.models.embedder',
    backbone='kdtasks.classification.models.digits_cnn',
    in_channels=1,
    width=4,
    dim=64,  # as wide as the teacher's: one gallery for both
)
teacher = dict(
    type='kdtasks.metric_learning.models.embedder',
    backbone='kdtasks.classification.models.resnet8',
    in_channels=1,
    width=16,
    dim=64,
)

losses = dict(
    loss_triplet=dict(
        type='kdtasks.metric_learning.plugin.PMLLoss',
        of=('student', 'target'),
        loss=dict(type='pytorch_metric_learning.losses.TripletMarginLoss', margin=0.2),
    ),
    loss_bct=dict(
        type='kdtasks.metric_learning.InfluenceLoss',
        classes=6,
        dim=64,
        of=('student', 'teacher', 'target'),
        weight=1.0,  # openBCT's
    ),
)

optimizer = dict(type='torch.optim.Adam', lr=3e-3, weight_decay=1e-5)
schedule = dict(type='CosineAnnealingLR')
length = 30  # epochs of 18 steps
val_interval = 5
log_interval = 18
threads = 1  # such small layers run faster on one
