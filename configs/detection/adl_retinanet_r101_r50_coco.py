# RetinaNet R-50 taught by R-101 on COCO at 600 pixels: ADL (arXiv 1901.00366), labelled images
# only.
# Run:     python tools/train.py configs/detection/adl_retinanet_r101_r50_coco.py
# Expect:  (not run here: it wants several GPUs and COCO; the release reports 34.3 alone and a
#          teacher of 36.0, see README.md)
_base_ = ['../_base_/coco.py', '../_base_/adl.py', '../_base_/sgd_90k.py']
task = 'kdtasks.detection.trainer'
distiller = dict(type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller')

_detector = dict(
    type='kdtasks.detection.models.retinanet',
    num_classes=81,
    weights='DEFAULT',
    min_size=600,
    max_size=1000,
)
student = dict(_detector, backbone='resnet50')
teacher = dict(_detector, backbone='resnet101')
