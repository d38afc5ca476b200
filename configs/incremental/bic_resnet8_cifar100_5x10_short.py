# Ten new classes at a time, 1,000 exemplars, a tenth held out: BiC (arXiv 1905.13260), new logits
# corrected after each experience, against replay of the same.
# Run:     python tools/train.py configs/incremental/bic_resnet8_cifar100_5x10_short.py
# Expect:  not run here to its end: ten minutes on one CPU core
_base_ = ['./wa_resnet8_cifar100_5x10_short.py']

data = dict(train=dict(held_out=0.1))
student = dict(bias_correction=True)
stages = dict(finish='kdtasks.incremental.finish.correct_bias')
