# ADL on the class logits of a dense head; the student's own focal and box loss stay, with weight 1
# each.
losses = dict(
    loss_adl=dict(
        type='kdtasks.detection.ADLLoss',
        preset='paper',
        of=('student.cls_logits', 'teacher.cls_logits', 'anchors.valid'),
        weight=1.0,
    )
)
