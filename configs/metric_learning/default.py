# A small embedder of digits taught by a larger one, tested on digits never seen: RKD (arXiv
# 1904.05068). No download.
# Run:     python tools/train.py configs/metric_learning/default.py
# Expect:  Recall@1: student alone 73.08 ± 4.01 %, taught 83.33 ± 3.15 % over 5 seeds, teacher 85.99
#          %; a minute on one CPU core
_base_ = ['../_base_/digits_unseen.py']
task = 'kdtasks.metric_learning.trainer'

student = dict(
    type='kdtasks.metric_learning.models.embedder',
    backbone='kdtasks.classification.models.digits_cnn',
    in_channels=1,
    width=4,
    dim=16,
    normalize=False,
)
# alone, as triplets want it; taught by RKD it is free, as in RKD's release
control = dict(normalize=True)
teacher = dict(
    type='kdtasks.metric_learning.models.embedder',
    backbone='kdtasks.classification.models.resnet8',
    in_channels=1,
    width=16,
    dim=64,
)

losses = dict(
    # alone: weight 1
    loss_triplet=dict(
        type='kdtasks.metric_learning.plugin.PMLLoss',
        of=('student', 'target'),
        weight=0,
        loss=dict(type='pytorch_metric_learning.losses.TripletMarginLoss', margin=0.2),
    ),
    loss_rkd=dict(
        type='kdtasks.general.RKDLoss',
        distance_weight=1.0,
        angle_weight=2.0,
        of=('student', 'teacher'),
    ),
)

optimizer = dict(type='torch.optim.Adam', lr=3e-3, weight_decay=1e-5)
schedule = dict(type='CosineAnnealingLR')
length = 30  # epochs of 18 steps
val_interval = 5
log_interval = 18
threads = 1  # such small layers run faster on one
