# The plain way to search an old gallery: each new embedding is drawn to the old one of its image
# (arXiv 1904.03624, absolute teacher), beside triplets; compare bct_digits.py. No download.
# Run:     python tools/train.py configs/metric_learning/absolute_digits.py
# Expect:  see README.md, "Backward-compatible embeddings"
_base_ = ['./bct_digits.py']

losses = dict(
    loss_bct=dict(
        _delete_=True,
        type='kdtasks.metric_learning.AbsoluteTeacherLoss',
        of=('student', 'teacher'),
        weight=1.0,  # the release's for CUB-200
    )
)
