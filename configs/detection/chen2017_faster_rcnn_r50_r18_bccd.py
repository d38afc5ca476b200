# Faster R-CNN R-18 taught by R-50 to find blood cells at 640x480: Chen et al. (NIPS 2017; no arXiv
# id); for a GPU.
# Run:     python tools/train.py configs/detection/chen2017_faster_rcnn_r50_r18_bccd.py
# Expect:  (not run here: it wants a GPU)
_base_ = ['../_base_/bccd_full.py', '../_base_/chen2017.py', '../_base_/sgd_36e.py']
task = 'kdtasks.detection.trainer'
distiller = dict(type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller')

_detector = dict(
    type='kdtasks.detection.models.faster_rcnn',
    num_classes=4,
    weights='DEFAULT',
    min_size=480,
    max_size=640,
)
student = dict(_detector, backbone='resnet18')
teacher = dict(_detector, backbone='resnet50')
