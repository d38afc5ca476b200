# Ten new classes at a time, without the old images: LwF in its class-incremental form (arXiv
# 1606.09282), and joint training.
# Run:     python tools/train.py configs/incremental/lwf_resnet8_cifar100_5x10_short.py
# Expect:  5 seeds, class-IL: fine-tuning 15.5 ± 0.8 %, taught 18.0 ± 1.0; task-IL: 38.7 ± 1.3, 51.5
#          ± 1.2; joint 34.1, 60.3
_base_ = ['../_base_/cifar100_5x10.py', '../_base_/resnet8_4e.py']

# as beside it, so they share their control
distiller = dict(type='kdtasks.incremental.LwMDistiller', attention='layer3')
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student.new', 'target.new')),
    loss_lwf=dict(
        type='kdtasks.incremental.lwf_loss', temperature=2.0, of=('student.old', 'teacher')
    ),
)
stages = dict(type='kdtasks.incremental.stages.class_incremental_stages')
