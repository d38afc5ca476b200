# RetinaNets for 240x180 blood smears: 0.11 M parameters and 1.49 M. Anchors for cells of 14 to 100
# pixels, which are round.
task = 'kdtasks.detection.trainer'
distiller = dict(type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller')

_detector = dict(
    type='kdtasks.detection.models.retinanet',
    num_classes=4,
    extra=None,
    anchor_sizes=[14, 36, 70],
    scales=2,
    aspect_ratios=[1.0],
    groups=8,
    min_size=180,
    max_size=240,
    image_mean=[0.66, 0.64, 0.72],
    image_std=[0.14, 0.18, 0.10],
)
student = dict(
    _detector, backbone=dict(type='kdtasks.detection.models.small_resnet', width=8), channels=16
)
teacher = dict(
    _detector, backbone=dict(type='kdtasks.detection.models.small_resnet', width=32), channels=48
)
