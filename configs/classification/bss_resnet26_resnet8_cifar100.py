# ResNet-8 taught by ResNet-26 on CIFAR-100 and on images moved to its boundary, at full length for
# a GPU: BSS (arXiv 1805.05532).
# Run:     python tools/train.py configs/classification/bss_resnet26_resnet8_cifar100.py
# Expect:  not measured here at full length: it needs a GPU. The authors' code is for CIFAR-10
_base_ = ['../_base_/cifar100.py', '../_base_/bss.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.resnet8', num_classes=100)
teacher = dict(type='kdtasks.classification.models.resnet26', num_classes=100)

# 64 samples of a batch of 256, as released
distiller = dict(
    mean=(0.5071, 0.4867, 0.4408),  # of CIFAR-100's normalisation: samples stay images
    std=(0.2675, 0.2565, 0.2761),
)

# as released, but for its new optimizer at 40 and 60, whose momentum starts from 0; ours goes on
data = dict(batch_size=256)
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
schedule = dict(type='MultiStepLR', milestones=[40, 60], gamma=0.1)
length = 80
val_interval = 10
checkpoint_interval = 10
log_interval = 100
