# RetinaNet R-50 taught by R-101 on COCO and its unlabelled images: semi-supervised ADL (arXiv
# 1901.00366).
# Run:     python tools/train.py configs/detection/adl_retinanet_r101_r50_coco_unlabelled.py
# Expect:  (not run here: it wants several GPUs and COCO; the release reports 34.3 alone and 36.5
#          taught, see README.md)
_base_ = ['../_base_/coco.py', '../_base_/sgd_90k.py']
task = 'kdtasks.detection.trainer'
distiller = dict(
    type='kdtasks.detection.torchvision_distiller.TorchvisionDistiller',
    unlabelled='soft+pseudo',
    pseudo_score=0.5,
)

_detector = dict(
    type='kdtasks.detection.models.retinanet',
    num_classes=81,
    weights='DEFAULT',
    min_size=600,
    max_size=1000,
)
student = dict(_detector, backbone='resnet50')
teacher = dict(_detector, backbone='resnet101')

losses = dict(
    loss_adl=dict(
        type='kdtasks.detection.ADLLoss',
        preset='released',
        of=('student.cls_logits', 'teacher.cls_logits', 'anchors.valid'),
        weight=1.0,
    )
)

data = dict(
    train=dict(
        _delete_=True,
        type='kdtasks.detection.data.with_unlabelled',
        dataset=dict(type='kdtasks.detection.data.coco2017', train=True, keep_empty=False),
        unlabelled=dict(
            type='kdtasks.detection.data.unlabelled',
            folder='coco/unlabeled2017',
            classes=['object'],
        ),
    ),
    # a quarter: the release alternates labelled and mixed batches
    batch_size=12,
    unlabelled_per_batch=4,
)
teacher_training = dict(  # on labelled images, for Detectron's 1x schedule
    length=dict(iterations=90000),
    data=dict(batch_size=16),
    schedule=[
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=1000),
        dict(type='MultiStepLR', by_epoch=False, milestones=[60000, 80000], gamma=0.1),
    ],
)
schedule = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=1000),
    dict(type='MultiStepLR', by_epoch=False, milestones=[180000, 240000], gamma=0.1),
]
length = dict(iterations=270000)
