# Three generations of a very small network on handwritten digits, each taught by the one before:
# BAN+L (arXiv 1805.04770). No download.
# Run:     python tools/train.py configs/classification/ban_digits.py
# Expect:  student alone 57.3 ± 2.9 %, third generation 66.4 ± 1.8 % over 3 seeds; a minute on a CPU
#          core. Generations from 1 on also see 100 unlabelled images a step, generation 0 and the
#          student alone do not: the gain includes what these bring
_base_ = ['../_base_/digits_small_student.py']

teacher = dict(type='kdtasks.classification.models.digits_cnn', width=4, num_classes=10)
teacher_training = dict(_delete_=True)  # generation 0 has the student's images and labels
models = dict(
    generation1=dict(type='kdtasks.classification.models.digits_cnn', width=4, num_classes=10),
    generation2=dict(type='kdtasks.classification.models.digits_cnn', width=4, num_classes=10),
    second=dict(type='kdtasks.classification.models.digits_cnn', width=4, num_classes=10),
    # its weights are saved by hand: Ensemble(members, checkpoints=[…]).state_dict(); then
    # tools/test.py <this file> ensemble.pth --model ensemble. The three that learn from the labels
    # alone: stages/0_teacher/last.pth, stages/3_second/last.pth and stages/4_alone/last.pth
    ensemble=dict(
        type='kdtasks.general.Ensemble',
        members=[
            dict(type='kdtasks.classification.models.digits_cnn', width=4, num_classes=10)
            for _ in range(3)
        ],
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
