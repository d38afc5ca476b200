# WRN-16-2 that learns a WRN-22-4's signs, then is taught by it, on CIFAR-100, at full length for a
# GPU: AB (arXiv 1811.03233).
# Run:     python tools/train.py configs/classification/ab_wrn_22_4_wrn_16_2_cifar100.py
# Expect:  not measured here at full length: it needs a GPU. The authors' code is for CIFAR-10
_base_ = ['../_base_/cifar100.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.wrn_16_2', num_classes=100)
teacher = dict(type='kdtasks.classification.models.wrn', depth=22, width=4, num_classes=100)

# as released: KD alone with T = 3; by 9, as our loss has T² = 9. The control trains the labels with
# weight 1 (key `alone`)
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0),
    loss_kd=dict(
        type='kdtasks.general.KDLoss', temperature=3.0, of=('student', 'teacher'), weight=1 / 9
    ),
)

# the released CIFAR script leaves the lengths open; 60 and 40 epochs are those of its other script
stages = dict(
    type='kdtasks.general.ab.stages',
    student=['layer2.0.bn1', 'layer3.0.bn1', 'bn'],
    teacher=['layer2.0.bn1', 'layer3.0.bn1', 'bn'],
    first=dict(length=60, schedule=dict(type='ConstantLR', factor=1.0)),
)
data = dict(batch_size=128)
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = dict(type='MultiStepLR', milestones=[12, 24, 32], gamma=0.2)
length = 40
teacher_training = dict(
    length=200, schedule=dict(type='MultiStepLR', milestones=[60, 120, 160], gamma=0.2)
)
val_interval = 10
checkpoint_interval = 10
log_interval = 100
