# CIFAR-100, ten new classes at a time, 2,000 exemplars, a tenth of them held out: BiC (arXiv
# 1905.13260), with the schedule of mammoth's code.
# Run:     python tools/train.py configs/incremental/bic_resnet32_cifar100_10x10.py
# Expect:  not run here to its end: it wants a GPU. PyCIL, after the last experience: 51, read off
#          its plot
_base_ = ['./lwf_resnet32_cifar100_10x10.py']

data = dict(train=dict(memory=2000, exemplars='herding', held_out=0.1))
student = dict(bias_correction=True)
distiller = dict(_delete_=True, type='kdtasks.incremental.IncrementalDistiller')
losses = dict(loss_cls=dict(of=('student', 'target')))
stages = dict(balance=True, finish='kdtasks.incremental.finish.correct_bias')
optimizer = dict(weight_decay=2e-4)
schedule = dict(_delete_=True, type='MultiStepLR', milestones=[100, 150, 200], gamma=0.1)
length = 250
val_interval = 250
