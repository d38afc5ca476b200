# Two generations of a WRN-28-2 on CIFAR-100, the second taught by the first, at full length for a
# GPU: BAN (arXiv 1805.04770).
# Run:     python tools/train.py configs/classification/ban_wrn_28_2_cifar100.py
# Expect:  not measured here at full length: it needs a GPU. The paper reports errors of 25.32 and
#          24.38 %
_base_ = ['../_base_/cifar100.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.wrn', depth=28, width=2, num_classes=100)
teacher = dict(type='kdtasks.classification.models.wrn', depth=28, width=2, num_classes=100)
models = dict(
    second=dict(type='kdtasks.classification.models.wrn', depth=28, width=2, num_classes=100)
)

losses = dict(
    # what the paper finds best on CIFAR: no labels; the control trains it with weight 1
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0),
    loss_ban=dict(type='kdtasks.general.KDLoss', temperature=1.0, of=('student', 'teacher')),
)
# "second" learns from the labels alone, as "alone" does, from other weights
stages = dict(type='kdtasks.general.ban.stages', seed_noise='second')

# the paper names the recipe of wide ResNets; these numbers are recalled of it, not verified
data = dict(batch_size=128)
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = dict(type='MultiStepLR', milestones=[60, 120, 160], gamma=0.2)
length = 200
val_interval = 10
checkpoint_interval = 10
log_interval = 100
