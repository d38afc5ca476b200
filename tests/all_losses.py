"""Every public loss with small arguments, found by walking what the tasks export: for tests of what
all losses have in common.

A name that a task exports is a loss here unless it is in ``OTHER``; one without an entry in
``CALLS`` fails every test that goes through :func:`cases`.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kdtasks.core import Distiller

PACKAGE = Path(__file__).parents[1] / "kdtasks"
TASKS = [
    path.parent.name
    for path in sorted(PACKAGE.glob("*/__init__.py"))
    if path.parent.name not in ("core", "engine")
]
# metrics, images, choices: no loss, nor a part of one; distillers need no entry
OTHER = {
    "LSQ",  # of activations: has a state
    "PACT",
    "assign_levels",
    "compression",
    "dequantized",
    "initial_levels",
    "load_packed",
    "lsq_init",
    "pack",
    "quantized",
    "quantized_inputs",
    "read_packed",
    "share_levels",
    "BiasCorrection",
    "CRDLoss",  # has a memory, and draws
    "Ensemble",
    "FeatureQueue",
    "GreedyRoute",
    "InfluenceLoss",  # has class means of what it has seen
    "FakeQuantized",
    "QueueKLLoss",  # has a queue
    "ReservoirBuffer",
    "Standardization",
    "ab_losses",
    "activation_disagreement",
    "all_paths",
    "anchor_hardness",
    "average_accuracy",
    "average_incremental_accuracy",
    "base_samples",
    "boundary_samples",
    "channel_bounds",
    "class_means",
    "confident_indices",
    "coreset_indices",
    "equal_interval_anchors",
    "expose_pre_relu",
    "fake_quantized",
    "forgetting",
    "forgetting_diag",
    "forgetting_gd",
    "greedy_route",
    "herding",
    "imresize",
    "lwf_losses",
    "mixup",
    "nearest_mean",
    "next_anchor",
    "peer_agreement",
    "perturbation_similarity",
    "phi_standardize",
    "pre_relu_paths",
    "psnr_y",
    "sample_external",
    "sequential_step",
    "ssim_y",
    "target_classes",
    "weight_alignment",
    "weighted_knn",
}


@dataclass
class Case:
    """A loss with its settings, and the float64 tensors that it is called with: the student's
    first, unless it has none.

    ``rest`` are the arguments after them; ``unread[k]`` the rows of the k-th tensor that the loss
    does not look at.
    """

    name: str
    loss: Callable
    tensors: tuple[Tensor, ...]
    rest: tuple = ()
    unread: dict[int, slice] = field(default_factory=dict)

    def read(self, k: int) -> list[int]:
        """Some places in the k-th tensor, flattened, that are read: the first, the last, and two
        between.
        """
        mask = torch.ones_like(self.tensors[k], dtype=torch.bool)
        mask[self.unread.get(k, slice(0, 0))] = False
        places = mask.flatten().nonzero().squeeze(1).tolist()
        return sorted({places[len(places) * i // 3 - (i == 3)] for i in range(4)}) if places else []

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The sum of all that the loss returns, of these tensors in the place of its own."""
        return total(self.loss(*tensors, *self.rest))

    def __str__(self) -> str:
        return self.name


def total(value) -> Tensor:
    entries = (
        list(value.values())
        if isinstance(value, dict)
        else list(value)
        if isinstance(value, list | tuple)
        else [value]
    )
    # a sum in half precision may be beyond it where no entry is
    return sum((e if e.dtype == torch.float64 else e.float()).sum() for e in entries)


def _normal(*shape: int) -> Tensor:
    return 1.5 * torch.randn(*shape, dtype=torch.float64)


def _image(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def _logits() -> tuple:
    return _normal(6, 5), _normal(6, 5)


def _rows() -> tuple:
    return _normal(7, 4), _normal(7, 3)


def _boxes() -> tuple:
    """The first three are better than the teacher's, and cost nothing."""
    target = _normal(6, 4)
    error = _normal(6, 4)
    return (
        target + error * torch.tensor([0.1, 0.1, 0.1, 3, 3, 3], dtype=torch.float64)[:, None],
        target + error,
        target,
    )


def _built(module, *tensors: Tensor):
    module.double()
    if hasattr(module, "build"):
        module.build(*tensors)
    return module


# all classes, and two rows of none
TARGET = torch.tensor([0, 1, 2, 3, 4, 3, -100, -100])
COUNTS = torch.tensor([20, 30, 5, 8, 90])
# of the four classes that are not the greatest, in each row
ORDERS = torch.tensor([[1, 0, 3, 2], [3, 2, 1, 0], [0, 1, 2, 3]] * 2)


def _plain(
    tensors: Callable[[], tuple],
    *settings: dict,
    rest: tuple = (),
    unread: dict[int, slice] | None = None,
):
    """A function with its arguments, or a module with its settings, called with ``tensors`` and
    ``rest``.
    """

    def made(thing) -> Iterable[Case]:
        for setting in settings or ({},):
            given, name = tensors(), ", ".join(f"{key}={value}" for key, value in setting.items())
            called = (
                _built(thing(**setting), *given, *rest)
                if isinstance(thing, type)
                else partial(thing, **setting)
            )
            yield Case(name, called, given, rest, unread or {})

    return made


def _peers(*rest):
    """A loss of a list of logits, with two of three peers to be changed."""

    def made(thing):
        for count in (2, 3):
            others = [_normal(6, 5) for _ in range(count - 2)]
            yield Case(
                f"{count} peers", lambda s, t, more=others: thing([s, t, *more], *rest), _logits()
            )

    return made


def _gd_tensors() -> tuple:
    return _normal(8, 5), _normal(8, 3), _normal(8, 2)


def _gd_module(thing):
    for balanced, terms in ((False, "PCQ"), (True, "PCQ"), (False, "PC")):
        counted = (TARGET, COUNTS.double() if balanced else None)
        yield Case(
            f"balanced={balanced}, terms={terms}",
            thing(balanced=balanced, terms=terms),
            _gd_tensors(),
            counted,
        )
    yield Case("terms=Q", thing(terms="Q"), _gd_tensors()[:2], (None, TARGET), {1: slice(0, 6)})


def _gd_function(thing):
    labelled = TARGET >= 0
    yield Case("", thing, _gd_tensors(), (TARGET, labelled))
    yield Case(
        "class_weight",
        lambda s, p, c, weight: thing(s, p, c, TARGET, labelled, class_weight=weight),
        (*_gd_tensors(), 1 + _image(5)),
    )


def _with_counts(thing):
    for balanced in (False, True):
        yield Case(
            f"balanced={balanced}",
            thing(balanced=balanced),
            (_normal(8, 5),),
            (TARGET, COUNTS),
            {0: slice(6, 8)},
        )


def _ail(thing):
    # the student is not looked at
    unread = {0: slice(0, 2)} if thing.__name__ == "Importance" else {}
    for count, setting in (
        (3, dict(round=0)),
        (4, dict(round=2, normalize=True)),
        (4, dict(round=1, channels="max", base="l1")),
        (5, dict(round=2, monotone=True, reduction="mean")),
        (2, dict(round=1, variant="uniform")),
    ):
        # a weight of 1 is of nothing
        if not (unread and count == 2):
            yield Case(
                str(setting),
                thing(**setting),
                tuple(_image(2, 3, 4, 4) for _ in range(count)),
                (),
                unread,
            )


def _heads(thing):
    yield Case("", thing(), _logits())
    loss = thing(scale_t2=True)
    yield Case("heads", lambda s, t: loss(s.split([2, 3], 1), t.split([2, 3], 1)), _logits())


def _soft_cross_entropy(thing):
    yield Case("", thing, (*_logits(), 1 + _image(5)))
    yield Case("sigmoid", thing, (_normal(6, 1), _normal(6, 1), 1 + _image(2)))


_IMAGES = lambda: (_image(2, 3, 4, 4), _image(2, 3, 4, 4))  # noqa: E731
_FEATURES = lambda: (_normal(2, 3, 4, 5), _normal(2, 4, 4, 5))  # noqa: E731
_SAME_FEATURES = lambda: (_normal(2, 3, 4, 5), _normal(2, 3, 4, 5))  # noqa: E731
_QUEUE = torch.linspace(-1, 1, 35, dtype=torch.float64).sin().view(7, 5)
_EDGES = lambda: (_normal(3, 4, 5), _normal(3, 4, 5))  # noqa: E731
_MAPS = lambda: (_image(3, 2, 4), _image(3, 2, 4))  # noqa: E731
CALLS = {
    "uniform_quantize": _plain(lambda: (_normal(6, 5),), rest=(3, 8, False, "scale")),
    "level_quantize": _plain(lambda: (_normal(6, 5),), rest=(_image(4), 8)),
    "lsq_quantize": _plain(lambda: (_normal(6, 5),), rest=(torch.tensor(0.3), 3)),
    "pact": _plain(lambda: (_normal(6, 5),), rest=(torch.tensor(2.0), 3)),
    "ABLoss": _plain(_FEATURES, {}, {"reduction": "mean"}),
    "ab_loss": _plain(_logits, {}, {"margin": 0.5}),
    "attention_transfer_loss": _plain(_FEATURES, {}, {"p": 1}),
    "DISTLoss": _plain(_logits),
    "dist_loss": _plain(_logits, {}, {"temperature": 4.0}),
    "DKDLoss": _plain(_logits, rest=(TARGET[:6],)),
    "dkd_loss": _plain(_logits, {}, {"temperature": 1.0, "beta": 2.0}, rest=(TARGET[:6],)),
    "ClassifierLoss": _plain(
        lambda: (_normal(8, 5),), {"num_classes": 5}, rest=(TARGET,), unread={0: slice(6, 8)}
    ),
    "queue_kl_loss": _plain(
        _logits,
        {"temperature": 0.5},
        {"temperature": 0.5, "student_temperature": 1.0, "own": True},
        rest=(_QUEUE,),
    ),
    "FeatureLoss": _plain(_FEATURES, {}, {"kind": "cosine"}),
    "feature_loss": _plain(_logits, *({"kind": kind} for kind in ("mse", "cosine", "smooth_l1"))),
    "SRDLoss": _plain(_rows, {}, {"kind": "correlation"}),
    "srd_loss": _plain(_logits, {}, {"kind": "correlation"}),
    "StandardizedKDLoss": _plain(_logits),
    "standardized_kd_loss": _plain(_logits),
    "similarity_preserving_loss": _plain(_rows),
    "BSSLoss": _plain(_logits),
    "bss_loss": _plain(_logits),
    "CWTMLoss": _plain(_logits, rest=(TARGET[:6],)),
    "cwtm_loss": _plain(_logits, rest=(TARGET[:6],)),
    # of two classes: a permutation of one is always the same
    "DKPPLoss": _plain(lambda: (_normal(6, 2), _normal(6, 2))),
    "dkpp_loss": _plain(_logits, rest=(ORDERS,)),
    "mutual_losses": _peers(TARGET[:6]),
    "mean_posterior_losses": _peers(TARGET[:6]),
    "mutual_divergences": _peers(),
    "hierarchical_context_loss": _plain(_IMAGES),
    "ReviewKDLoss": _plain(_FEATURES),
    "mixed_cross_entropy": _plain(
        lambda: (_normal(6, 5),), rest=(TARGET[:6], TARGET[:6].roll(1), torch.tensor(0.7))
    ),
    "peer_cross_entropies": _peers(TARGET[:6]),
    "KDLoss": _plain(_logits),
    "kd_loss": _plain(_logits, {}, {"temperature": 1.0}),
    "BinaryKDLoss": _plain(_logits),
    "binary_kd_loss": _plain(_logits, {}, {"temperature": 3.0}),
    "RKDLoss": _plain(_rows),
    "rkd_distance_loss": _plain(_rows),
    "rkd_angle_loss": _plain(_rows, {}, {"divisor": "triplets"}),
    "ADLLoss": _plain(_logits, {}, {"preset": "released"}),
    "adl_loss": _plain(_logits, {}, {"gamma": 0.0}, {"gamma": 0.5, "base": "ce"}),
    "BoundedRegressionLoss": _plain(_boxes),
    "bounded_regression_loss": _plain(_boxes, {}, {"margin": 0.3}),
    "CrossBoxLoss": _plain(lambda: (_normal(6, 4), _normal(6, 4), _normal(6, 3))),
    "box_distances": _plain(
        lambda: (_normal(6, 4), _normal(6, 4)), {}, {"stds": (0.1, 0.1, 0.2, 0.2)}
    ),
    "QualityFocalLoss": _plain(_logits, {}, {"beta": 2.0}),
    "quality_focal_loss": _plain(_logits, {}, {"beta": 0.0}),
    "CWDLoss": _plain(_FEATURES),
    "cwd_loss": _plain(_SAME_FEATURES, {}, {"temperature": 4.0}),
    "HintLoss": _plain(_FEATURES),
    "hint_loss": _plain(_logits, {}, {"p": 1}),
    "LDLoss": _plain(lambda: (*_EDGES(), _normal(3, 2)), {}, {"normalize": True}),
    "ld_loss": _plain(_EDGES, {}, {"temperature": 1.0}),
    "PKDLoss": _plain(_FEATURES),
    "pkd_loss": _plain(_SAME_FEATURES),
    "WeightedSoftCrossEntropyLoss": _plain(_logits),
    "weighted_soft_cross_entropy": _soft_cross_entropy,
    "AbsoluteTeacherLoss": _plain(_rows),
    "absolute_teacher_loss": _plain(_logits),
    "RelativeTeacherLoss": _plain(_rows),
    "relative_teacher_loss": _plain(_rows, {}, {"form": "pairs"}),
    "DarkRankLoss": _plain(
        _rows, {}, {"kind": "soft", "preset": "released"}, {"list_length": None, "places": 2}
    ),
    "darkrank_hard_loss": _plain(_rows, {}, {"list_length": None, "normalize": False}),
    "darkrank_soft_loss": _plain(_rows, {}, {"alpha": 1.0, "beta": 1.0}),
    "influence_loss": _plain(lambda: (_normal(6, 5), _normal(9, 5)), rest=(TARGET[:6],)),
    "SimilarityKLLoss": _plain(_rows),
    "similarity_kl_loss": _plain(_rows, {}, {"include_self": False}),
    "PKTLoss": _plain(_rows),
    "pkt_loss": _plain(_rows),
    "AILLoss": _ail,
    "Importance": _ail,
    "AffinityLoss": _plain(_FEATURES, {}, {"pool": 2}),
    "affinity_loss": _plain(_FEATURES),
    "importance_loss": _plain(lambda: (*_IMAGES(), _image(2, 1, 4, 4)), {}, {"power": 1}),
    "teacher_importance": _plain(_IMAGES),
    "importance": _plain(lambda: (*_IMAGES(), _image(2, 3, 4, 4)), rest=(2,)),
    "BalancedCrossEntropyLoss": _with_counts,
    "CurrentTeacherLoss": _plain(lambda: (_normal(8, 5),), rest=(TARGET,)),
    "GlobalDistillationLoss": _gd_module,
    "global_distillation_losses": _gd_function,
    "class_balance_weights": _plain(lambda: (COUNTS.double(),)),
    "confidence_loss": _plain(lambda: (_normal(6, 5),)),
    "ensemble_probabilities": _plain(_logits),
    "der_loss": _plain(_logits),
    "replay_cross_entropy": _plain(lambda: (_normal(6, 5),), rest=(TARGET[:6],)),
    "LwFLoss": _heads,
    "lwf_loss": _plain(_logits),
    "lwf_mc_loss": _plain(lambda: (_normal(6, 5), _normal(6, 3)), rest=(TARGET[:6],)),
    "one_hot_bce": _plain(lambda: (_normal(6, 5),), rest=(TARGET[:6],)),
    "lwm_attention_loss": _plain(_MAPS),
    "lwm_distill": _plain(_logits),
    "lwm_distill_bce": _plain(_logits, {}, {"reduction": "mean"}),
    "grad_cam": _plain(lambda: (_image(2, 3, 4, 4), _image(2, 3, 4, 4))),
}


def public_losses() -> dict[str, Callable]:
    """``{name: loss}`` of all tasks."""
    modules = [importlib.import_module(f"kdtasks.{task}") for task in TASKS]
    exported = {
        name: getattr(module, name) for module in modules for name in getattr(module, "__all__", ())
    }
    return {
        name: thing
        for name, thing in exported.items()
        if name not in OTHER and not _is_distiller(thing)
    }


def _is_distiller(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Distiller)


def arguments_of(name: str, loss: Callable) -> list[Case]:
    """As CALLS has them."""
    assert name in CALLS, (
        f"tests/all_losses.py has no arguments for {name}: add them to CALLS, or to OTHER what is "
        "no loss"
    )
    return CALLS[name](loss)


def cases() -> list[Case]:
    """Each public loss with each of its arguments; the same ones at each call."""
    losses, made = public_losses(), []
    with torch.random.fork_rng(devices=[]):
        for seed, (name, loss) in enumerate(losses.items()):
            torch.manual_seed(seed)
            made += [
                replace(case, name=f"{name}({case.name})") for case in arguments_of(name, loss)
            ]
    return made
