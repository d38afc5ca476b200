# Similarity preserving as RepDistiller has it: the last maps, at 3000 for batches of 64.
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_sp=dict(
        type='kdtasks.general.similarity_preserving_loss',
        of=('student.layer3', 'teacher.layer3'),
        weight=3000.0,
    ),
)
