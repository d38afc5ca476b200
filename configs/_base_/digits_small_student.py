# A very small student of handwritten digits, with five labels a class: what methods are compared
# on.
# A teacher learns from other images, which are all labelled.
_base_ = ['digits.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.digits_cnn', width=4, num_classes=10)

optimizer = dict(type='torch.optim.SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = dict(type='CosineAnnealingLR')
length = 40  # epochs of 20 steps
cache = dict(views=1)  # the images are not augmented, so the teacher speaks once about each
val_interval = 4
log_interval = 20
threads = 1  # such small layers run faster on one
