# ResNet-8 that learns a wider one's signs, then is taught by it to classify 10,000 images of
# CIFAR-100: AB (arXiv 1811.03233).
# Run:     python tools/train.py configs/classification/ab_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.3 ± 0.4 %, taught 22.7 ± 0.2 % over 5 seeds, teacher 28.9 %; its training takes
#          67 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# the weight is the authors' for CIFAR, the default; 3 epochs of signs and 5 of KD: the 8 that plain
# KD has
stages = dict(
    type='kdtasks.general.ab.stages',
    student=['layer1.0.add', 'layer2.0.add', 'layer3.0.add'],
    teacher=['layer1.0.add', 'layer2.0.add', 'layer3.0.add'],
    first=dict(length=3),
)
length = 5
teacher_training = dict(length=16)
