# rco_digits.py with the anchors chosen on the way, by the greedy search: RCO (arXiv 1904.09149).
# Run:     python tools/train.py configs/classification/rco_greedy_digits.py
# Expect:  student alone 57.3 ± 2.9 %, taught 95.9 ± 0.4 % over 3 seeds (all four
#          anchors: 96.7 ± 0.5); the search leaves out epoch 20 in each; a minute on a CPU core
_base_ = ['rco_digits.py']
# of 2, 7, 20 and the last of the teacher's 40 epochs, after each quarter of the student's: the
# furthest that is at most so many times as hard for it as the one that has just taught it. The
# threshold is ours, no one's verified value. The images are the teacher's: the student sees none
stages = dict(
    greedy=dict(
        threshold=1.5,
        held_out=dict(type='kdtasks.classification.data.digits', train=True, part='teacher'),
    )
)
