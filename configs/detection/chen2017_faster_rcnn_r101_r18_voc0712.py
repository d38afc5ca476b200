# Faster R-CNN R-18 taught by R-101 on Pascal VOC 2007 + 2012: Chen et al. (NIPS 2017; no arXiv id),
# the whole objective.
# Run:     python tools/train.py configs/detection/chen2017_faster_rcnn_r101_r18_voc0712.py
# Expect:  (not run here: it wants a GPU and VOC)
_base_ = ['../_base_/voc0712.py', '../_base_/chen2017.py']
task = 'kdtasks.detection.trainer'
distiller = dict(type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller')

_detector = dict(
    type='kdtasks.detection.models.faster_rcnn',
    num_classes=21,
    weights='DEFAULT',
    min_size=600,
    max_size=1000,
)
student = dict(_detector, backbone='resnet18')
teacher = dict(_detector, backbone='resnet101')

# for 16 images a step
optimizer = dict(type='torch.optim.SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
schedule = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),
    dict(type='MultiStepLR', milestones=[9, 11], gamma=0.1),
]
length = 12
log_interval = 50
