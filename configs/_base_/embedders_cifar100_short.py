# A ResNet-8 embedder and one of twice its width, trained in minutes on two CPU cores. Alone it
# learns from triplets, and its embeddings are normalised, as those of the teacher are; taught by
# RKD they are not (as in RKD's release).
task = 'kdtasks.metric_learning.trainer'

student = dict(
    type='kdtasks.metric_learning.models.embedder',
    backbone='kdtasks.classification.models.resnet8',
    dim=64,
    normalize=False,
)
control = dict(normalize=True)
teacher = dict(
    type='kdtasks.metric_learning.models.embedder',
    backbone='kdtasks.classification.models.resnet8',
    width=32,
    dim=128,
)

losses = dict(
    loss_triplet=dict(
        type='kdtasks.metric_learning.plugin.PMLLoss',
        of=('student', 'target'),
        loss=dict(
            type='pytorch_metric_learning.losses.TripletMarginLoss',
            margin=0.2,
            reducer=dict(type='pytorch_metric_learning.reducers.MeanReducer'),
        ),
        miner=dict(type='pytorch_metric_learning.miners.DistanceWeightedMiner'),
    )
)

optimizer = dict(type='torch.optim.Adam', lr=2e-3, weight_decay=1e-5)
schedule = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', begin=100, by_epoch=False),
]
length = 4  # epochs of 312 steps
teacher_training = dict(length=8)
# README.md's figures are of 'bfloat16', which takes ten times as long where a processor lacks it
amp = None
channels_last = True
val_interval = 4
