# Faster R-CNN R-18 taught by R-101 on COCO: Chen et al. (NIPS 2017; no arXiv id), the whole
# objective.
# Run:     python tools/train.py configs/detection/chen2017_faster_rcnn_r101_r18_coco.py
# Expect:  (not run here: it wants several GPUs and COCO)
_base_ = ['../_base_/coco.py', '../_base_/chen2017.py', '../_base_/sgd_90k.py']
task = 'kdtasks.detection.trainer'
distiller = dict(type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller')

_detector = dict(
    type='kdtasks.detection.models.faster_rcnn',
    num_classes=81,
    weights='DEFAULT',
    min_size=800,
    max_size=1333,
)
student = dict(_detector, backbone='resnet18')
teacher = dict(_detector, backbone='resnet101')
optimizer = dict(lr=0.02)
