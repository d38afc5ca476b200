# ResNet-8 taught by a wider one's checkpoints, one after the other, on 10,000 images of CIFAR-100:
# RCO (arXiv 1904.09149).
# Run:     python tools/train.py configs/classification/rco_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 15.3 ± 0.2 % over 5 seeds, teacher 28.9 %; its training takes
#          62 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# in one schedule, 2 epochs of the student each: 1, 3, 8 and the last of the teacher's 16 epochs, in
# proportion to 10, 40, 120 and 240 of 240, as quoted from the paper
stages = dict(type='kdtasks.general.rco.stages', epochs=[1, 3, 8])
