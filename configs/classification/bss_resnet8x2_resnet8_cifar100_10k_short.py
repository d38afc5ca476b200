# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100 and on images moved to its
# boundary: BSS (arXiv 1805.05532).
# Run:     python tools/train.py configs/classification/bss_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 21.8 ± 0.6 % over 5 seeds, teacher 28.9 %; its training takes
#          146 s of one CPU core
_base_ = ['../_base_/cifar100_10k_short.py', '../_base_/bss.py']

teacher = dict(type='kdtasks.classification.models.resnet8', width=32, num_classes=100)
teacher_training = dict(length=16)

distiller = dict(
    count=16,  # of 128 images a step, for the time it takes; the paper's code has 64 of 256
    mean=(0.5071, 0.4867, 0.4408),  # of CIFAR-100's normalisation: samples stay images
    std=(0.2675, 0.2565, 0.2761),
)
