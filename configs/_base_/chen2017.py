# The whole objective of Chen et al. on Faster R-CNN. mu weighs the hard and 1 - mu the soft
# classification of both heads; its value is not published, 0.5 is ours. nu = 0.5 and gamma = 0.5
# are the paper's; the student's own box losses stay at weight 1. Where it trains without the
# teacher, the hard classification has weight 1 again.
_mu, _nu, _gamma = 0.5, 0.5, 0.5
losses = dict(
    loss_rpn_hard=dict(of='student.loss_objectness', weight=_mu),
    loss_rpn_soft=dict(
        type='kdtasks.detection.WeightedSoftCrossEntropyLoss',
        background_weight=1.5,
        of=('rpn.student.logits', 'rpn.teacher.logits'),
        weight=1 - _mu,
    ),
    loss_rpn_bounded=dict(
        type='kdtasks.detection.BoundedRegressionLoss',
        margin=0.0,
        of=('rpn.student.deltas', 'rpn.teacher.deltas', 'rpn.target', 'rpn.count'),
        weight=_nu,
    ),
    loss_rois_hard=dict(of='student.loss_classifier', weight=_mu),
    loss_rois_soft=dict(
        type='kdtasks.detection.WeightedSoftCrossEntropyLoss',
        background_weight=1.5,
        of=('rois.student.logits', 'rois.teacher.logits'),
        weight=1 - _mu,
    ),
    loss_rois_bounded=dict(
        type='kdtasks.detection.BoundedRegressionLoss',
        margin=0.0,
        of=('rois.student.deltas', 'rois.teacher.deltas', 'rois.target', 'rois.count'),
        weight=_nu,
    ),
    loss_hint=dict(
        type='kdtasks.detection.HintLoss',
        of=('features.student.3', 'features.teacher.3'),
        weight=_gamma,
    ),
)
