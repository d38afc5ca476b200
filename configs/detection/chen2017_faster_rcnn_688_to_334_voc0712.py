# Faster R-CNN at 334 pixels taught by itself at 688, Pascal VOC: the second setting of Chen et al.
# (NIPS 2017; no arXiv id).
# Run:     python tools/train.py configs/detection/chen2017_faster_rcnn_688_to_334_voc0712.py
# Expect:  (not run here: it wants a GPU and VOC)
_base_ = ['../_base_/voc0712.py']
task = 'kdtasks.detection.trainer'
distiller = dict(
    type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller', resolution='own'
)

_detector = dict(
    type='kdtasks.detection.models.faster_rcnn',
    backbone='resnet50',
    num_classes=21,
    weights='DEFAULT',
)
student = dict(_detector, min_size=334, max_size=557)
teacher = dict(_detector, min_size=688, max_size=1147)

# of the RoI head and the features; anchors at two sizes do not correspond
losses = dict(
    loss_rois_hard=dict(of='student.loss_classifier', weight=0.5),
    loss_rois_soft=dict(
        type='kdtasks.detection.WeightedSoftCrossEntropyLoss',
        background_weight=1.5,
        of=('rois.student.logits', 'rois.teacher.logits'),
        weight=0.5,
    ),
    loss_rois_bounded=dict(
        type='kdtasks.detection.BoundedRegressionLoss',
        margin=0.0,
        of=('rois.student.deltas', 'rois.teacher.deltas', 'rois.target', 'rois.count'),
        weight=0.5,
    ),
    loss_hint=dict(
        type='kdtasks.detection.HintLoss',
        of=('features.student.3', 'features.teacher.3'),
        weight=0.5,
    ),
)

optimizer = dict(type='torch.optim.SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
schedule = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),
    dict(type='MultiStepLR', milestones=[9, 11], gamma=0.1),
]
length = 12
log_interval = 50
