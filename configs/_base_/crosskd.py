# CrossKD with the losses and weights released for RetinaNet; behind the third convolution of each
# stack the teacher's head goes on (distiller=dict(cross_after=3)).
losses = dict(
    loss_cross_cls=dict(
        type='kdtasks.detection.QualityFocalLoss',
        of=('cross.teacher.cls_logits', 'teacher.cls_logits', 'anchors.valid', 'anchors.count'),
        weight=1.0,
    ),
    loss_cross_box=dict(
        type='kdtasks.detection.CrossBoxLoss',
        kind='deltas',
        of=(
            'cross.teacher.box_deltas',
            'teacher.box_deltas',
            'teacher.cls_logits',
            'anchors.valid',
        ),
        weight=1.0,
    ),
)
