# DKD as released for CIFAR-100, with a warm-up of 20 of 240 epochs. Its beta is of the pair. Its
# table has each run's best epoch.
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_dkd=dict(
        type='kdtasks.general.DKDLoss',
        temperature=4.0,
        alpha=1.0,
        beta=8.0,
        of=('student', 'teacher', 'target'),
        weight=dict(type='kdtasks.core.Linear', start=0.0, end=1.0, until=1 / 12),
    ),
)
