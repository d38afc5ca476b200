# VGG-8 and its teacher VGG-13 on CIFAR-100, by the schedule of RepDistiller's table, whose README
# reports 70.36 % for the student alone and 74.64 % for the teacher. Its teacher's weights may be
# given: --cfg-options teacher.checkpoint=…
_base_ = ['./cifar100.py', './sgd_240e.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.vgg8', num_classes=100)
teacher = dict(type='kdtasks.classification.models.vgg13', num_classes=100)
