# RetinaNet R-50 taught by FCOS X-101, a detector of another family, inside MMDetection 3: PKD (arXiv
# 2207.02039); for a GPU.
# Run:     python MMDET/tools/train.py configs/detection/mmdet/pkd_retinanet_r50_fcos_x101_coco.py
# Expect:  (not run here: it needs a GPU and COCO; mmrazor reports 36.5 alone, 40.3 taught)
#
# MMDET is a checkout of MMDetection, or mmdet/.mim in the site-packages. Data, schedule and hooks
# are those of the base; only the model is ours. Four of the pyramid's five levels at weight 10, as
# released.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kdtasks.detection.plugin.DistillDetector',
    student={{_base_.model}},
    teacher='mmdet::fcos/fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco.py',
    # of mmdet's model zoo: mim download mmdet --dest checkpoints
    # --config fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco
    teacher_checkpoint=(
        'checkpoints/fcos_x101_64x4d_fpn_gn-head_mstrain_640-800_2x_coco-ede514a8.pth'
    ),
    losses={
        f'loss_pkd_{level}': dict(
            type='kdtasks.detection.PKDLoss',
            of=(f'features.student.{level}', f'features.teacher.{level}'),
            weight=10.0,
        )
        for level in range(4)
    },
)
