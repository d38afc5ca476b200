"""Teachers as a config describes them, with the input that pretrained weights expect."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from kdtasks.core import Teacher
from kdtasks.core.teacher import INTERPOLATIONS
from kdtasks.engine import data_sets
from kdtasks.engine.config_keys import MODEL_KEYS, TEACHER_KEYS
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.models import Facts, facts_of

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment

Normalization = tuple[Sequence[float], Sequence[float]]


def frozen_teacher(
    model: nn.Module,
    spec: Mapping,
    where: str,
    data: Callable[[], Normalization | None] | None = None,
    trained_here: bool = False,
    seen: Normalization | None = None,
) -> Teacher:
    """A model as a teacher that sees each batch as its weights expect it.

    A model's name brings what its weights expect (:class:`~kdtasks.engine.models.Facts`), and
    weights that a run has trained what its data was normalised with. Where the config does not say
    otherwise, inputs are converted from the data's normalisation to that.

    Args:
        model: frozen here.
        spec: its description.
        where: its name in messages.
        data: gives the data's normalisation, (mean, std), or None where the data does not say it;
            None: not to be asked, and only what the config says counts.
        trained_here: whether a run of this library has trained the weights.
        seen: the normalisation of that run's data, where it is known (:func:`trained_with`).

    Raises:
        ConfigError: an impossible option, or the data does not say what it normalises with.
    """
    options = {key: spec[key] for key in TEACHER_KEYS if key in spec and key not in MODEL_KEYS}
    facts = facts_of(model)
    _take_size(options, facts, where)
    if data is not None:
        if trained_here:
            expected = seen if seen and data() else None
            if seen and not expected and not any(key in options for key in _GIVEN):
                warnings.warn(
                    f"{where}: its weights were trained on images normalised with mean "
                    f"{_list(seen[0])}, std {_list(seen[1])}, and the data does not say what it "
                    "normalises with (by attributes mean and std): it is given the student's "
                    f"images as they are; expected these attributes, or {where}.student_mean and "
                    f"{where}.student_std",
                    stacklevel=2,
                )
        else:
            expected = _expected(facts)
        _take_normalization(options, expected, data, where)
    elif not all(key in options for key in _GIVEN):
        options = {key: value for key, value in options.items() if key not in _GIVEN}
    try:
        return Teacher(model, **options)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


_GIVEN = ("mean", "std", "student_mean", "student_std")


def _take_size(options: dict, facts: Facts | None, where: str) -> None:
    """``input_size='own'``, and how images are resized to it."""
    if options.get("input_size") == "own":
        if facts is None or facts.input_size is None:
            raise ConfigError(
                f"{where}: nothing says what size the model's own input has: expected input_size=a "
                "side, or (height, width)"
            )
        options["input_size"] = facts.input_size
    if options.get("input_size") and facts and facts.interpolation in INTERPOLATIONS:
        options.setdefault("interpolation", facts.interpolation)


def _expected(facts: Facts | None) -> Normalization | None:
    """What the weights of a model's name expect, if it does not normalise by itself."""
    if facts is None or facts.normalizes or facts.mean is None or facts.std is None:
        return None
    return facts.mean, facts.std


def trained_with(meta: Mapping) -> Normalization | None:
    """The normalisation of the data that a run has trained weights on, of what it wrote beside
    them.
    """
    seen = meta.get("normalization")
    return (tuple(seen["mean"]), tuple(seen["std"])) if seen else None


def warn_of_other_normalization(
    role: str, seen: Normalization | None, data: Callable[[], Normalization | None]
) -> None:
    """Say it where a learner goes on from weights of a run whose data was normalised otherwise.

    Args:
        role: its name.
        seen: see :func:`trained_with`.
        data: gives the normalisation of the data that it goes on with.
    """
    given = data() if seen else None
    if seen is None or given is None or _is_same(seen, given):
        return
    warnings.warn(
        f"{role}: its weights were trained on images normalised with mean {_list(seen[0])}, std "
        f"{_list(seen[1])}, and go on with mean {_list(given[0])}, std {_list(given[1])}: expected "
        "the same in both configs",
        stacklevel=2,
    )


def other_test_normalization(train: Normalization | None, test: Normalization | None) -> list[str]:
    """What to warn of where test images are normalised otherwise than those that were learned
    from, where both say it; empty: nothing.
    """
    if train is None or test is None or _is_same(train, test):
        return []
    return [
        f"the test images are normalised with mean {_list(test[0])}, std {_list(test[1])}, and "
        f"those that the weights were trained on with mean {_list(train[0])}, std "
        f"{_list(train[1])}: expected the same mean and std in data.train and data.test"
    ]


def odd_normalization(experiment: "Experiment") -> list[str]:
    """:func:`other_test_normalization` of the data of all stages."""
    texts: list[str] = []
    for stage in experiment.stages:
        data = experiment.setting(stage, "data")
        train, test = (
            data_sets.normalization(experiment.data_set(data, part)) for part in ("train", "test")
        )
        texts += other_test_normalization(train, test)
    return list(dict.fromkeys(texts))


def _is_same(first: Normalization, second: Normalization) -> bool:
    return all(tuple(values) == tuple(others) for values, others in zip(first, second))


def _take_normalization(
    options: dict,
    expected: Normalization | None,
    data: Callable[[], Normalization | None],
    where: str,
) -> None:
    """What the weights expect, and what the data gives, where the config does not say it."""
    if expected is not None:
        for key, value in zip(("mean", "std"), expected):
            options.setdefault(key, value)
    if "mean" not in options and "std" not in options:
        return
    if "student_mean" not in options and "student_std" not in options:
        given = data()
        if given is None:
            raise ConfigError(
                f"{where} expects inputs normalised with mean={options.get('mean')} and std="
                f"{options.get('std')}, and the data does not say what it normalises with (by "
                f"attributes mean and std): expected {where}.student_mean and {where}.student_std"
            )
        options["student_mean"], options["student_std"] = given
    same = all(
        tuple(options.get(f"student_{key}", ())) == tuple(options.get(key, ()))
        for key in ("mean", "std")
    )
    if same:
        for key in _GIVEN:
            del options[key]


def described(facts: Facts, teacher: Teacher | None, data: Normalization | None) -> dict[str, Any]:
    """What results.json says of pretrained weights.

    Args:
        facts: of the model.
        teacher: that it is; None: it is the student.
        data: the data's normalisation, where it says it.
    """
    keys = ("name", "weights", "licence", "mean", "std", "input_size", "interpolation")
    stated = {key: getattr(facts, key) for key in keys}
    stated = {key: list(v) if isinstance(v, tuple) else v for key, v in stated.items()}
    gets: dict[str, Any] = {}
    if data is not None:
        gets = {"mean": list(data[0]), "std": list(data[1])}
    if teacher is not None:
        gets["renormalised"] = teacher.scale is not None
        gets["input_size"] = None if teacher.input_size is None else list(teacher.input_size)
    return {**stated, "gets": gets}


def sentence(role: str, facts: Mapping) -> str:
    """What the screen says of :func:`described` before the first step."""
    said = [f"{role}: {facts['name']}"]
    if facts["weights"] and facts["weights"] not in facts["name"]:
        said.append(f" with the weights {facts['weights']}")
    said.append(f" (licence: {facts['licence'] or 'not stated'})")
    gets = facts["gets"]
    if facts["mean"]:
        said.append(f"; expects mean {_list(facts['mean'])}, std {_list(facts['std'])}")
    else:
        said.append("; nothing says which normalisation it expects")
    if facts["input_size"]:
        size = "x".join(map(str, facts["input_size"]))
        said.append(f", {size} {facts['interpolation'] or ''}".rstrip())
    how = []
    if "mean" in gets:
        how.append(f"mean {_list(gets['mean'])}, std {_list(gets['std'])}")
    if gets.get("renormalised"):
        how.append("converted to what it expects")
    if gets.get("input_size"):
        how.append("resized to " + "x".join(map(str, gets["input_size"])))
    return "".join(said) + (f"; the data has {', '.join(how)}" if how else "")


def mismatch(role: str, facts: Mapping) -> str | None:
    """What is to be warned of where a model that no :class:`Teacher` prepares inputs for gets
    another normalisation than its weights expect; None: nothing.
    """
    gets = facts["gets"]
    if "renormalised" in gets or "mean" not in gets or not facts["mean"] or not facts["std"]:
        return None
    pairs = [pair for key in ("mean", "std") for pair in zip(gets[key], facts[key], strict=False)]
    if all(math.isclose(*pair, abs_tol=1e-3) for pair in pairs):
        return None
    return (
        f"the weights of {role} expect mean {_list(facts['mean'])}, std {_list(facts['std'])}, and "
        "get what the data gives; where they are to be tested or tuned as they are: mean="
        f"{list(facts['mean'])}, std={list(facts['std'])} of data.train and data.test"
    )


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
