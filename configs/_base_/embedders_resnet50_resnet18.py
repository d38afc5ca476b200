# RKD's authors' embedders and training (arXiv 1904.05068; github.com/lenscloth/RKD): ImageNet's
# first weights, Adam, a teacher of 40 epochs, a student of 80. Embeddings are normalised, but not
# those of a student taught by RKD. The miner is pytorch-metric-learning's, which draws no negative
# for an anchor whose distances have hardly any weight beside the others'; theirs draws one for
# every anchor.
task = 'kdtasks.metric_learning.trainer'

student = dict(
    type='kdtasks.metric_learning.models.embedder',
    backbone='torchvision:resnet18',
    dim=128,
    normalize=False,
    weights='IMAGENET1K_V1',
)
control = dict(normalize=True)
teacher = dict(
    type='kdtasks.metric_learning.models.embedder',
    backbone='torchvision:resnet50',
    dim=512,
    weights='IMAGENET1K_V1',
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

optimizer = dict(type='torch.optim.Adam', lr=1e-4, weight_decay=1e-5)
schedule = dict(type='MultiStepLR', milestones=[40, 60], gamma=0.1)
length = 80
teacher_training = dict(
    length=40, schedule=dict(type='MultiStepLR', milestones=[25, 30, 35], gamma=0.5)
)
val_interval = 10
