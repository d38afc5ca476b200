# ResNet-20 and its teacher ResNet-56 on CIFAR-100, by the schedule of RepDistiller's table, whose
# README reports 69.06 % for the student alone and 72.34 % for the teacher. Its teacher's weights
# may be given: --cfg-options teacher.checkpoint=…
_base_ = ['./cifar100.py', './sgd_240e.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.resnet20', num_classes=100)
teacher = dict(type='kdtasks.classification.models.resnet56', num_classes=100)
