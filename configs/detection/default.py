# A small RetinaNet learns to find digits on photos, 200 labelled and 800 not: ADL (arXiv
# 1901.00366). No download.
# Run:     python tools/train.py configs/detection/default.py
# Expect:  mAP alone 5.8 ± 0.5, taught 17.4 ± 0.8 over 5 seeds, teacher 32.1; two to three minutes
#          on two CPU cores
_base_ = ['../_base_/digits_on_photos.py']
task = 'kdtasks.detection.trainer'
distiller = dict(type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller')

_detector = dict(
    type='kdtasks.detection.models.retinanet',
    num_classes=6,
    extra=None,
    anchor_sizes=[20, 40, 80],
    scales=2,
    aspect_ratios=[1.0],
    groups=8,
    min_size=64,
    max_size=64,
    image_mean=[0.5] * 3,
    image_std=[0.25] * 3,
)
student = dict(
    _detector, backbone=dict(type='kdtasks.detection.models.small_resnet', width=16), channels=24
)
teacher = dict(
    _detector, backbone=dict(type='kdtasks.detection.models.small_resnet', width=24), channels=48
)

# and the student's own, focal and box loss, with weight 1 each
losses = dict(
    loss_adl=dict(
        type='kdtasks.detection.ADLLoss',
        preset='paper',
        of=('student.cls_logits', 'teacher.cls_logits', 'anchors.valid'),
        weight=1.0,
    )
)

optimizer = dict(type='torch.optim.AdamW', lr=4e-3, weight_decay=0.01)
schedule = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR'),
]
clip_grad = 10.0
length = 10  # epochs of 50 steps
val_interval = 5
log_interval = 50
threads = 1  # such small layers run faster on one
