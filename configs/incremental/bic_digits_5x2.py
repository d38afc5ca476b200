# Handwritten digits, two new classes at a time, 40 exemplars: BiC (arXiv 1905.13260) against replay
# of those that are not held out. No download.
# Run:     python tools/train.py configs/incremental/bic_digits_5x2.py
# Expect:  3 seeds, class-IL: replay 19.9 ± 0.1 %, BiC 71.6 ± 4.0; task-IL: 86.8, 98.6
_base_ = ['./wa_digits_5x2.py']

data = dict(train=dict(held_out=0.1))
student = dict(bias_correction=True)
stages = dict(finish='kdtasks.incremental.finish.correct_bias')
