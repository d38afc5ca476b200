# Two ResNet-32 that teach each other on CIFAR-100, at full length for a GPU: DML (arXiv
# 1706.00384).
# Run:     python tools/train.py configs/classification/dml_resnet32_cifar100.py
# Expect:  not measured here at full length: it needs a GPU.
_base_ = ['../_base_/cifar100.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.resnet32', num_classes=100)
peers = [dict(type='kdtasks.classification.models.resnet32', num_classes=100)]

losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0),  # alone: 1
    loss_dml=dict(type='kdtasks.general.mutual_losses', of=('peers', 'target')),
    agreement=dict(type='kdtasks.general.peer_agreement', of=('peers',)),
)

# 200 epochs of batches of 64 and the fall of the rate are recalled of the paper, not verified; the
# weight decay is ours
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = dict(type='MultiStepLR', milestones=[60, 120, 180], gamma=0.1)
length = 200
val_interval = 10
checkpoint_interval = 10
log_interval = 100
