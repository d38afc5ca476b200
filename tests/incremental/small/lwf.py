# Three experiences in a second: LwF on small images, two classes, two more, then three.
task = "kdtasks.incremental.trainer"
student = dict(
    type="kdtasks.incremental.models.growing",
    sizes=(2, 2, 3),
    network=dict(type="small_streams.Net"),
)
distiller = dict(type="kdtasks.incremental.IncrementalDistiller")
losses = dict(
    loss_cls=dict(type="torch.nn.CrossEntropyLoss", of=("student.new", "target.new")),
    loss_lwf=dict(
        type="kdtasks.incremental.lwf_loss",
        temperature=2.0,
        of=("student.old", "teacher"),
        weight=3.0,
    ),
)
stages = dict(type="kdtasks.incremental.stages.class_incremental_stages")
_stream = dict(
    type="kdtasks.incremental.data.class_incremental", sizes=(2, 2, 3), order=[4, 1, 5, 0, 3, 2, 6]
)
data = dict(
    train=dict(
        type="kdtasks.incremental.data.experiences",
        stream=dict(
            _stream, dataset=dict(type="small_streams.images", classes=7, augment=dict(crop=1))
        ),
    ),
    test=dict(
        type="kdtasks.incremental.data.experiences",
        test=True,
        stream=dict(
            _stream, dataset=dict(type="small_streams.images", classes=7, train=False, per_class=5)
        ),
    ),
    batch_size=6,
)
optimizer = dict(type="torch.optim.SGD", lr=0.1, momentum=0.9, weight_decay=5e-4)
schedule = dict(type="CosineAnnealingLR", by_epoch=False)
length = 2
val_interval = 2
checkpoint_interval = dict(iterations=2)
threads = 1
