# Handwritten digits, two new classes at a time, 40 exemplars: BiC (arXiv 1905.13260) against replay
# of those that are not held out. No download.
# Run:     python tools/train.py configs/incremental/bic_digits_5x2.py
# Expect:  not measured yet
_base_ = ['./wa_digits_5x2.py']

data = dict(train=dict(held_out=0.1))
student = dict(bias_correction=True)
stages = dict(finish='kdtasks.incremental.finish.correct_bias')
