# BSS, a and b of the released code: from 4 to 1, and from 2 to 0 at three quarters; by 9, as our
# losses have T² = 9.
distiller = dict(type='kdtasks.general.BSSDistiller')
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_kd=dict(
        type='kdtasks.general.KDLoss',
        temperature=3.0,
        of=('student', 'teacher'),
        weight=dict(type='kdtasks.core.Linear', start=4 / 9, end=1 / 9),
    ),
    loss_bss=dict(
        type='kdtasks.general.BSSLoss',
        temperature=3.0,
        of=('student.boundary', 'teacher.boundary', 'student.boundary_valid'),
        weight=dict(type='kdtasks.core.Linear', start=2 / 9, end=0, until=0.75),
    ),
)
