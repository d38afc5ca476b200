# A very small network taught by a middle one that a ResNet-8 has taught, on handwritten digits:
# TAKD (arXiv 1902.03393). No download.
# Run:     python tools/train.py configs/classification/takd_digits.py
# Expect:  student alone 58.1 ± 3.5 %, taught 96.4 ± 0.5 % over 5 seeds (plain KD 95.9 ± 1.3),
#          teacher 98.0 %; a minute on a CPU core
_base_ = ['../_base_/digits_small_student.py']

teacher = dict(
    type='kdtasks.classification.models.resnet8', width=16, in_channels=1, num_classes=10
)
models = dict(
    assistant1=dict(type='kdtasks.classification.models.digits_cnn', width=16, num_classes=10)
)

losses = dict(
    # the control trains it with weight 1 (key `alone`)
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0.1),
    loss_kd=dict(
        type='kdtasks.general.KDLoss', temperature=4.0, of=('student', 'teacher'), weight=0.9
    ),
)

# beside the chain: plain KD ("direct"), and the student alone for as long as the chain
# ("whole_budget")
stages = dict(type='kdtasks.general.takd.stages', assistants=dict(assistant1=dict()))
