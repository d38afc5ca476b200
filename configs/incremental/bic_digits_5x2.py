# Handwritten digits, two new classes at a time, 40 exemplars in all: BiC (arXiv 1905.13260), the
# logits of new classes corrected by two numbers after each experience. Its control is replay of the
# same exemplars. No download.
# Run:     python tools/train.py configs/incremental/bic_digits_5x2.py
_base_ = ['./wa_digits_5x2.py']

data = dict(train=dict(held_out=0.1))
student = dict(bias_correction=True)
stages = dict(finish='kdtasks.incremental.finish.correct_bias')
