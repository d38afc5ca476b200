# Handwritten digits, two new classes at a time, a memory of 40: DER++ (arXiv 2004.07211) against the
# same without the stored logits, which is replay of as many. No download.
# Run:     python tools/train.py configs/incremental/derpp_digits_5x2.py
# Expect:  3 seeds, class-IL: replay 71.5 ± 6.0 %, DER++ 73.3 ± 8.7: no difference is shown; task-IL:
#          98.1, 98.3
_base_ = ['../_base_/digits_5x2.py', '../_base_/derpp.py']
task = 'kdtasks.incremental.trainer'

student = dict(
    type='kdtasks.incremental.models.growing',
    sizes=(2,) * 5,
    network=dict(type='kdtasks.classification.models.digits_cnn', width=16),
)
distiller = dict(size=40)
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)
schedule = dict(type='CosineAnnealingLR')
length = 10
val_interval = 10
threads = 1
