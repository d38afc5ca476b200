# RetinaNet R-18 taught by R-50 to find blood cells at 640x480: ADL (arXiv 1901.00366); for a GPU.
# Run:     python tools/train.py configs/detection/adl_retinanet_r50_r18_bccd.py
# Expect:  (not run here: it wants a GPU)
_base_ = ['../_base_/bccd_full.py', '../_base_/adl.py', '../_base_/sgd_36e.py']
task = 'kdtasks.detection.trainer'
distiller = dict(type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller')

_detector = dict(
    type='kdtasks.detection.models.retinanet',
    num_classes=4,
    weights='DEFAULT',
    min_size=480,
    max_size=640,
)
student = dict(_detector, backbone='resnet18')
teacher = dict(_detector, backbone='resnet50')
