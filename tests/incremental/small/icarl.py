# The same three experiences by iCaRL, with 9 exemplars that the networks choose.
_base_ = ["./lwf.py"]
data = dict(train=dict(memory=9, exemplars="herding"))
losses = dict(
    _delete_=True,
    loss_mc=dict(type="kdtasks.incremental.lwf_mc_loss", of=("student", "teacher", "target")),
    loss_bce=dict(
        type="kdtasks.incremental.one_hot_bce", of=("student", "target"), weight=0, alone=1
    ),
)
stages = dict(joint=False)
length = 1
val_interval = 1
