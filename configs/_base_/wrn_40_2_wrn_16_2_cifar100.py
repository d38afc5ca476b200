# WRN-16-2 and its teacher WRN-40-2 on CIFAR-100, by the schedule of RepDistiller's table, whose
# README reports 73.26 % for the student alone and 75.61 % for the teacher. Its teacher's weights
# may be given: --cfg-options teacher.checkpoint=…
_base_ = ['./cifar100.py', './sgd_240e.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.wrn_16_2', num_classes=100)
teacher = dict(type='kdtasks.classification.models.wrn_40_2', num_classes=100)
