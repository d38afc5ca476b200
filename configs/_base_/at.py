# Attention transfer as RepDistiller has it: three stages, each at 1000.
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    **{
        f'loss_at{k}': dict(
            type='kdtasks.general.attention_transfer_loss',
            of=(f'student.layer{k}', f'teacher.layer{k}'),
            weight=1000.0,
        )
        for k in (1, 2, 3)
    },
)
