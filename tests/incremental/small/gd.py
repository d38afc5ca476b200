# The same three experiences by Global Distillation, with 5 exemplars and a pool.
_base_ = ["./lwf.py"]
data = dict(
    train=dict(
        memory=5,
        pool=dict(type="small_streams.images", labelled=False, per_class=10, augment=dict(crop=1)),
    ),
    unlabelled_per_batch=3,
)
losses = dict(
    _delete_=True, loss_cls=dict(type="torch.nn.CrossEntropyLoss", of=("student", "target"))
)
stages = dict(
    _delete_=True,
    type="kdtasks.incremental.stages.global_distillation",
    current=dict(length=1),
    finetune=dict(length=1, optimizer=dict(lr=0.01)),
)
