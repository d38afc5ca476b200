# RKD's authors' embedders and training (arXiv 1904.05068; github.com/lenscloth/RKD): ImageNet's first weights, Adam, a teacher
# of 40 epochs, a student of 80. The teacher's embeddings are normalised, the student's are not; the triplets from which it
# learns alone are of normalised ones.
task = 'kdtasks.metric_learning.trainer'

student = dict(type='kdtasks.metric_learning.models.embedder', backbone='resnet18', dim=128, normalize=False,
               pretrained='IMAGENET1K_V1')
teacher = dict(type='kdtasks.metric_learning.models.embedder', backbone='resnet50', dim=512, pretrained='IMAGENET1K_V1')

losses = dict(
    loss_triplet=dict(type='kdtasks.metric_learning.plugin.PMLLoss', of=('student', 'target'),
                      loss=dict(type='pytorch_metric_learning.losses.TripletMarginLoss', margin=0.2),
                      miner=dict(type='pytorch_metric_learning.miners.DistanceWeightedMiner')),
)

optimizer = dict(type='torch.optim.Adam', lr=1e-4, weight_decay=1e-5)
schedule = dict(type='MultiStepLR', milestones=[40, 60], gamma=0.1)
length = 80
teacher_training = dict(length=40, schedule=dict(type='MultiStepLR', milestones=[25, 30, 35], gamma=0.5))
val_interval = 10
