# Ten new classes at a time, without the old images: LwF as published (arXiv 1606.09282), one
# softmax for each experience.
# Run:     python tools/train.py configs/incremental/lwf_heads_resnet8_cifar100_5x10_short.py
# Expect:  5 seeds, class-IL: fine-tuning 15.5 ± 0.8 %, taught 20.1 ± 1.5; task-IL: 38.7 ± 1.3, 55.0
#          ± 1.5; joint 34.1, 60.3
_base_ = ['./lwf_resnet8_cifar100_5x10_short.py']

losses = dict(
    loss_lwf=dict(
        _delete_=True,
        type='kdtasks.incremental.LwFLoss',
        temperature=2.0,
        of=('student.old_heads', 'teacher.heads'),
    )
)
