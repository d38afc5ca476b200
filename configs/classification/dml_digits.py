# Two very small networks that teach each other on handwritten digits, five labels a class: DML
# (arXiv 1706.00384). No download.
# Run:     python tools/train.py configs/classification/dml_digits.py
# Expect:  student alone 58.1 ± 3.5 %, with a peer 70.6 ± 1.8 % over 5 seeds; half a minute on a CPU
#          core
_base_ = ['../_base_/digits_small_student.py']

peers = [dict(type='kdtasks.classification.models.digits_cnn', width=4, num_classes=10)]

losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0),  # alone: 1
    # a loss of 'target' sees the labelled images only, the divergence sees all
    loss_ce=dict(type='kdtasks.general.peer_cross_entropies', of=('peers', 'target')),
    loss_dml=dict(type='kdtasks.general.mutual_divergences', of=('peers',)),
    agreement=dict(type='kdtasks.general.peer_agreement', of=('peers',)),
)
