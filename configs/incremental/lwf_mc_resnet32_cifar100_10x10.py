# CIFAR-100, ten new classes at a time, without the old images: LwF.MC, with iCaRL's schedule (arXiv
# 1611.07725, its code).
# Run:     python tools/train.py configs/incremental/lwf_mc_resnet32_cifar100_10x10.py
# Expect:  not run here to its end: it wants a GPU. iCaRL's table, by a digest of it: average
#          incremental 44.4
_base_ = ['./lwf_resnet32_cifar100_10x10.py']

losses = dict(
    _delete_=True,
    loss_mc=dict(type='kdtasks.incremental.lwf_mc_loss', of=('student', 'teacher', 'target')),
    # first, and alone
    loss_bce=dict(
        type='kdtasks.incremental.one_hot_bce', of=('student', 'target'), weight=0, alone=1
    ),
)
# the loss is a mean over classes
optimizer = dict(lr=2.0, weight_decay=1e-5)
schedule = dict(_delete_=True, type='MultiStepLR', milestones=[49, 63], gamma=0.2)
length = 70
val_interval = 70
checkpoint_interval = 10
