# GFL R-50 taught by R-101 inside MMDetection 3: CrossKD (arXiv 2306.11369); for a GPU.
# Run:     python MMDET/tools/train.py configs/detection/mmdet/crosskd_gfl_r50_r101_coco.py
# Expect:  (not run here: it needs a GPU and COCO; published: 40.2 alone, 43.7 taught)
#
# MMDET is a checkout of MMDetection, or mmdet/.mim in the site-packages. Data, schedule and hooks
# are those of the base; only the model is ours. Behind the third of four convolutions the teacher's
# head goes on from the student's features.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kdtasks.detection.plugin.DistillDetector',
    student={{_base_.model}},
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    # of mmdet's model zoo: mim download mmdet --config gfl_r101_fpn_ms-2x_coco --dest checkpoints
    teacher_checkpoint='checkpoints/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    cross_after=3,
    losses=dict(
        loss_cross_cls=dict(
            type='kdtasks.detection.QualityFocalLoss',
            of=('cross.teacher.cls_logits', 'teacher.cls_logits', 'anchors.valid', 'anchors.count'),
            weight=1.0,
        ),
        loss_cross_box=dict(
            type='kdtasks.detection.CrossBoxLoss',
            kind='edges',
            of=(
                'cross.teacher.box_deltas',
                'teacher.box_deltas',
                'teacher.cls_logits',
                'anchors.valid',
            ),
            weight=4.0,
        ),
    ),
)
