# Faster R-CNNs for 240x180 blood smears. Anchors for cells of 16 to 84 pixels, which are round.
task = 'kdtasks.detection.trainer'
distiller = dict(type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller')

_detector = dict(
    type='kdtasks.detection.models.faster_rcnn',
    num_classes=4,
    first=1,
    extra=None,
    anchor_sizes=[16, 38, 84],
    aspect_ratios=[1.0],
    min_size=180,
    max_size=240,
    image_mean=[0.66, 0.64, 0.72],
    image_std=[0.14, 0.18, 0.10],
    rpn_batch_size_per_image=64,
    box_batch_size_per_image=64,
    rpn_pre_nms_top_n_train=300,
    rpn_post_nms_top_n_train=150,
    rpn_pre_nms_top_n_test=300,
    rpn_post_nms_top_n_test=100,
)
student = dict(
    _detector,
    backbone=dict(type='kdtasks.detection.models.small_resnet', width=8),
    channels=16,
    representation=64,
)
teacher = dict(
    _detector,
    backbone=dict(type='kdtasks.detection.models.small_resnet', width=32),
    channels=48,
    representation=256,
)
