# Handwritten digits, two new classes at a time, without the old images: LwF (arXiv 1606.09282). No
# download.
# Run:     python tools/train.py configs/incremental/default.py
# Expect:  over 10 seeds, class-IL: fine-tuning 37.3 ± 7.6 %, taught 43.5 ± 6.4, joint 96.9;
#          task-IL: 86.2 ± 9.0, 97.4 ± 1.3
_base_ = ['../_base_/digits_5x2.py']
task = 'kdtasks.incremental.trainer'

student = dict(
    type='kdtasks.incremental.models.growing',
    sizes=(2,) * 5,
    network=dict(type='kdtasks.classification.models.digits_cnn', width=16),
)
distiller = dict(type='kdtasks.incremental.IncrementalDistiller')
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student.new', 'target.new')),
    # the paper leaves T² out
    loss_lwf=dict(
        type='kdtasks.incremental.LwFLoss',
        temperature=2.0,
        scale_t2=True,
        of=('student.old_heads', 'teacher.heads'),
    ),
)
stages = dict(type='kdtasks.incremental.stages.class_incremental_stages')

optimizer = dict(type='torch.optim.SGD', lr=0.02, momentum=0.9, weight_decay=5e-4)
schedule = dict(type='CosineAnnealingLR')
length = 10
val_interval = 10
threads = 1  # such small layers run faster on one
