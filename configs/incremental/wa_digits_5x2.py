# Handwritten digits, two new classes at a time, 40 exemplars: WA (arXiv 1911.07053) against replay
# of as many. No download.
# Run:     python tools/train.py configs/incremental/wa_digits_5x2.py
# Expect:  3 seeds, class-IL: replay 27.0 ± 1.9 %, WA 22.7 ± 2.6: nothing is gained; task-IL: 88.1,
#          98.5
_base_ = ['./default.py']

data = dict(train=dict(memory=40, exemplars='herding'))
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_lwf=dict(
        type='kdtasks.incremental.lwf_loss', temperature=2.0, of=('student.old', 'teacher')
    ),
)
stages = dict(joint=False, balance=True, finish='kdtasks.incremental.finish.align_weights')
optimizer = dict(lr=0.1)
