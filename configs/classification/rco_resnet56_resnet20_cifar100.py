# ResNet-20 taught by four checkpoints of ResNet-56, one after the other, on CIFAR-100, at full
# length for a GPU: RCO (arXiv 1904.09149).
# Run:     python tools/train.py configs/classification/rco_resnet56_resnet20_cifar100.py
# Expect:  not measured here at full length: it needs a GPU. The paper's pair is ResNet-50 and
#          MobileNetV2
_base_ = ['kd_resnet56_resnet20_cifar100.py']

# in one schedule, 60 epochs of the student each: the teacher's epochs are quoted from the paper
stages = dict(type='kdtasks.general.rco.stages', epochs=[10, 40, 120])
