# Handwritten digits, two new classes at a time, 40 exemplars: iCaRL (arXiv 1611.07725) against
# replay of as many without a teacher. No download.
# Run:     python tools/train.py configs/incremental/icarl_digits_5x2.py
# Expect:  3 seeds, class-IL by nearest mean of exemplars (by the head): replay 71.8 ± 14.1 %
#          (37.2), iCaRL 77.7 ± 2.7 (55.4); task-IL 94.8, 98.4
_base_ = ['./default.py']

data = dict(train=dict(memory=40, exemplars='herding'))
losses = dict(
    _delete_=True,
    loss_mc=dict(type='kdtasks.incremental.lwf_mc_loss', of=('student', 'teacher', 'target')),
    # first, and alone
    loss_bce=dict(
        type='kdtasks.incremental.one_hot_bce', of=('student', 'target'), weight=0, alone=1
    ),
)
stages = dict(joint=False)
# the loss is a mean over classes
optimizer = dict(lr=1.0)
