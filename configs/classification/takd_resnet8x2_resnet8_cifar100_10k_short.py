# ResNet-8 taught by a middle one that a wider one has taught, on 10,000 images of CIFAR-100: TAKD
# (arXiv 1902.03393).
# Run:     python tools/train.py configs/classification/takd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 20.9 ± 0.4 % over 5 seeds, teacher 28.9 %; its training takes
#          145 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

models = dict(
    assistant1=dict(type='kdtasks.classification.models.resnet8', width=24, num_classes=100)
)
# beside the chain: the student alone for as long as the chain ("whole_budget")
stages = dict(type='kdtasks.general.takd.stages', assistants=dict(assistant1=dict()), direct=False)
