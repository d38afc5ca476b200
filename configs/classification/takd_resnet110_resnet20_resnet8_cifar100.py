# ResNet-8 taught by ResNet-20 that ResNet-110 has taught, on CIFAR-100, at full length for a GPU:
# TAKD (arXiv 1902.03393).
# Run:     python tools/train.py configs/classification/takd_resnet110_resnet20_resnet8_cifar100.py
# Expect:  not measured here at full length: it needs a GPU.
_base_ = ['../_base_/cifar100.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.resnet8', num_classes=100)
teacher = dict(type='kdtasks.classification.models.resnet110', num_classes=100)
models = dict(assistant1=dict(type='kdtasks.classification.models.resnet20', num_classes=100))

# the paper searches weight and temperature for each hop; these are those of the other configs
losses = dict(
    # the control trains it with weight 1 (key `alone`)
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0.1),
    loss_kd=dict(
        type='kdtasks.general.KDLoss', temperature=4.0, of=('student', 'teacher'), weight=0.9
    ),
)
# beside the chain: plain KD ("direct"), and the student alone for as long as the chain
# ("whole_budget")
stages = dict(type='kdtasks.general.takd.stages', assistants=dict(assistant1=dict()))

# 160 epochs and batches of 128 as released; its rates are not what it means to have (0.1 is never
# reached), so the fall of the rate is ours
data = dict(batch_size=128)
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
schedule = dict(type='MultiStepLR', milestones=[80, 120], gamma=0.1)
length = 160
val_interval = 10
checkpoint_interval = 10
log_interval = 100
