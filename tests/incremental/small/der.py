# The same three experiences by DER++, with a memory of 9.
_base_ = ["./lwf.py"]
distiller = dict(_delete_=True, type="kdtasks.incremental.DERDistiller", size=9, draw=5)
losses = dict(
    _delete_=True,
    loss_cls=dict(type="torch.nn.CrossEntropyLoss", of=("student", "target")),
    loss_der=dict(
        type="kdtasks.incremental.der_loss",
        of=("student.first_draw", "first_draw.logits", "first_draw.columns"),
        weight=0.3,
        alone=0,
    ),
    loss_replay=dict(
        type="kdtasks.incremental.replay_cross_entropy",
        of=("student.second_draw", "second_draw.target"),
        weight=0.5,
        alone=0.5,
    ),
)
stages = dict(_delete_=True, type="kdtasks.incremental.der_stages.dark_replay_stages")
