# Ten new classes at a time, without the old images: LwM (arXiv 1811.08051).
# Run:     python tools/train.py configs/incremental/lwm_resnet8_cifar100_5x10_short.py
# Expect:  5 seeds, class-IL: fine-tuning 15.5 ± 0.8 %, taught 18.1 ± 1.1; task-IL: 38.7 ± 1.3, 50.4
#          ± 2.4; joint 34.1, 60.3
_base_ = ['./lwf_resnet8_cifar100_5x10_short.py']

losses = dict(
    loss_lwf=dict(
        _delete_=True, type='kdtasks.incremental.lwm_distill_bce', of=('student.old', 'teacher')
    ),
    loss_attention=dict(
        type='kdtasks.incremental.lwm_attention_loss', of=('student.attention', 'teacher.attention')
    ),
)
