# Ten new classes at a time, without the old images: LwF as published (arXiv 1606.09282), one softmax for each experience.
# Run:     python tools/train.py configs/incremental/lwf_heads_resnet8_cifar100_5x10_short.py
# Expect:  not measured; its neighbour with one softmax: class-IL 18.0 ± 1.0 %, task-IL 51.5 ± 1.2
_base_ = ['./lwf_resnet8_cifar100_5x10_short.py']

losses = dict(loss_lwf=dict(_delete_=True, type='kdtasks.incremental.LwFLoss', temperature=2.0,
                            of=('student.old_heads', 'teacher.heads')))
