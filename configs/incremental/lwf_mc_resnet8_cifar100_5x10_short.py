# Ten new classes at a time, without the old images: LwF.MC, the baseline of iCaRL (arXiv
# 1611.07725).
# Run:     python tools/train.py configs/incremental/lwf_mc_resnet8_cifar100_5x10_short.py
# Expect:  5 seeds, class-IL: fine-tuning 11.5 ± 0.8 %, taught 18.5 ± 2.2; task-IL: 31.9 ± 5.2, 50.1
#          ± 3.4; joint 34.1, 60.3
_base_ = ['./lwf_resnet8_cifar100_5x10_short.py']

losses = dict(
    _delete_=True,
    loss_mc=dict(type='kdtasks.incremental.lwf_mc_loss', of=('student', 'teacher', 'target')),
    # first, and alone
    loss_bce=dict(
        type='kdtasks.incremental.one_hot_bce', of=('student', 'target'), weight=0, alone=1
    ),
)
stages = dict(joint=False)
# as iCaRL: the loss is a mean over classes
optimizer = dict(lr=2.0, weight_decay=1e-5)
