# ResNet-8x4 and its teacher ResNet-32x4 on CIFAR-100, by the schedule of RepDistiller's table,
# whose README reports 72.50 % for the student alone and 79.42 % for the teacher. Its teacher's
# weights may be given: --cfg-options teacher.checkpoint=…
_base_ = ['./cifar100.py', './sgd_240e.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.resnet8x4', num_classes=100)
teacher = dict(type='kdtasks.classification.models.resnet32x4', num_classes=100)
