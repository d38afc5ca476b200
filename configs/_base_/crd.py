# CRD as RepDistiller has it: 16,384 negatives, without KD beside it.
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_crd=dict(
        type='kdtasks.general.CRDLoss',
        samples=50_000,
        of=('student.flatten', 'teacher.flatten', 'index', 'target'),
        weight=0.8,
    ),
)
