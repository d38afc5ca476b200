# DER++: alpha 0.3 and beta 0.5, as released for CIFAR-10 and CIFAR-100 with 500 samples. The control
# goes without the stored logits.
distiller = dict(type='kdtasks.incremental.DERDistiller')
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_der=dict(
        type='kdtasks.incremental.der_loss',
        of=('student.first_draw', 'first_draw.logits', 'first_draw.columns'),
        weight=0.3,
        alone=0,
    ),
    loss_replay=dict(
        type='kdtasks.incremental.replay_cross_entropy',
        of=('student.second_draw', 'second_draw.target'),
        weight=0.5,
        alone=0.5,
    ),
)
stages = dict(type='kdtasks.incremental.der_stages.dark_replay_stages', joint=False)
