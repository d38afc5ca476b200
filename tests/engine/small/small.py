# A whole run in a second: teacher, alone, distilled on a few digits.
task = "kdtasks.classification.trainer"
student = dict(type="small_parts.Net", width=4)
teacher = dict(type="small_parts.Net", width=8)
losses = dict(
    loss_cls=dict(type="torch.nn.CrossEntropyLoss", of=("student", "target"), weight=0.1),
    loss_kd=dict(
        type="kdtasks.general.KDLoss", temperature=4.0, of=("student", "teacher"), weight=0.9
    ),
)
data = dict(
    train=dict(type="small_parts.Digits", first=0, count=200, noise=0.1),
    test=dict(type="small_parts.Digits", first=1000, count=200),
    batch_size=32,
)
optimizer = dict(type="torch.optim.SGD", lr=0.1, momentum=0.9)
schedule = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=4),
    dict(type="MultiStepLR", milestones=[1, 2], gamma=0.5),
]
length = 3
checkpoint_interval = dict(iterations=3)
log_interval = 4
threads = 1
# measured where a test is of it: each run would take longer
deployment = False
