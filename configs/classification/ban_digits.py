# Three generations of a very small network on handwritten digits, each taught by the one before:
# BAN+L (arXiv 1805.04770). No download.
# Run:     python tools/train.py configs/classification/ban_digits.py
# Expect:  student alone 58.1 ± 3.5 %, third generation 68.4 ± 1.2 % over 5 seeds; a minute on a CPU
#          core. Generations from 1 on also see 100 unlabelled images a step, generation 0 and the
#          student alone do not: the gain includes what these bring
_base_ = ['../_base_/digits_small_student.py']

_network = dict(type='kdtasks.classification.models.digits_cnn', width=4, num_classes=10)
teacher = _network
teacher_training = dict(_delete_=True)  # generation 0 has the student's images and labels
models = dict(
    generation1=_network,
    generation2=_network,
    second=_network,
    # the mean of what three of them say: tested when the run has finished, as ensemble_accuracy and
    # as label_ensemble_accuracy of "distilled", and written as ensemble.pth and label_ensemble.pth.
    # tools/test.py <this file> <work_dir>/ensemble.pth --model ensemble;
    # tools/export.py <work_dir> --model ensemble --format onnx
    ensemble=dict(
        type='kdtasks.general.Ensemble',
        members=[_network] * 3,
        parts={'members.0': 'generation1', 'members.1': 'generation2', 'members.2': 'distilled'},
    ),
    # what it is to be compared with: three that no teacher has taught
    label_ensemble=dict(
        type='kdtasks.general.Ensemble',
        members=[_network] * 3,
        parts={'members.0': 'teacher', 'members.1': 'second', 'members.2': 'alone'},
    ),
)

losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_ban=dict(type='kdtasks.general.KDLoss', temperature=1.0, of=('student', 'teacher')),
)
# "second" learns from the labels alone, as "alone" does, from other weights
stages = dict(
    type='kdtasks.general.ban.stages',
    generations=['generation1', 'generation2'],
    seed_noise='second',
)
