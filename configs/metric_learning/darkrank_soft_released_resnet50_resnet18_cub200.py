# ResNet-50 teaches ResNet-18 to embed CUB-200: DarkRank, soft, scores, weight and schedule of its
# release (arXiv 1707.01220).
# Run:     python tools/train.py configs/metric_learning/darkrank_soft_released_resnet50_resnet18_cub200.py
# Expect:  not measured here: it wants a GPU and ImageNet weights
_base_ = ['../_base_/cub200.py', '../_base_/embedders_resnet50_resnet18.py']

# The release is for persons (Market-1501), with large-margin softmax and a verification loss of
# pairs beside DarkRank: here triplets take their place. Its queries are half of the batch, pairs of
# one identity; here all rows are queries.
student = dict(normalize=True)
losses = dict(
    loss_darkrank=dict(
        type='kdtasks.metric_learning.DarkRankLoss',
        kind='soft',
        preset='released',
        of=('student', 'teacher'),
        weight=16.0,
    )
)

data = dict(batch_size=8, per_class=2, iterations_per_epoch=None)
optimizer = dict(_delete_=True, type='torch.optim.SGD', lr=5e-4, momentum=0.9, weight_decay=1e-4)
schedule = dict(milestones=[50, 75])
clip_grad = 10.0
length = 100
teacher_training = dict(
    data=dict(batch_size=120, per_class=5, iterations_per_epoch=100),
    optimizer=dict(type='torch.optim.Adam', lr=1e-4, weight_decay=1e-5),
)
