# CIFAR-100, ten new classes at a time, without the old images: LwM (arXiv 1811.08051).
# Run:     python tools/train.py configs/incremental/lwm_resnet32_cifar100_10x10.py
# Expect:  not run here to its end: it wants a GPU
_base_ = ['./lwf_resnet32_cifar100_10x10.py']

losses = dict(  # the paper gives no weights; 1 and 1 are FACIL's defaults
    loss_lwf=dict(
        _delete_=True, type='kdtasks.incremental.lwm_distill_bce', of=('student.old', 'teacher')
    ),
    loss_attention=dict(
        type='kdtasks.incremental.lwm_attention_loss', of=('student.attention', 'teacher.attention')
    ),
)
