# A very small network taught by a ResNet-8 on handwritten digits and on images moved to its
# boundary: BSS (arXiv 1805.05532). No download.
# Run:     python tools/train.py configs/classification/bss_digits.py
# Expect:  student alone 58.1 ± 3.5 %, taught 94.5 ± 0.7 % over 5 seeds (without boundary samples
#          94.1 ± 1.1), teacher 98.0 %; a minute on a CPU core
_base_ = ['../_base_/digits_small_student.py', '../_base_/bss.py']

teacher = dict(
    type='kdtasks.classification.models.resnet8', width=16, in_channels=1, num_classes=10
)

distiller = dict(
    count=16,  # of 50 labelled images a step; the paper's code has 64 of 256
    mean=(0.3053,),  # of the digits' normalisation: samples stay images
    std=(0.3760,),
)
