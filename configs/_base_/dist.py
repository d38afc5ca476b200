# DIST as released for CIFAR-100.
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_dist=dict(
        type='kdtasks.general.DISTLoss', temperature=4.0, of=('student', 'teacher'), weight=2.0
    ),
)
