"""A model card: ``README.md`` beside exported weights, in the form that model hubs read (a YAML
head, then Markdown).
"""

import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import kdtasks
from kdtasks.core import Stage
from kdtasks.core.files import write_atomically, write_text
from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import as_route
from kdtasks.engine import deployment
from kdtasks.engine.compare.files import read_comparisons
from kdtasks.engine.dry_run import example
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.models import is_name
from kdtasks.engine.pretrained import trained_with
from kdtasks.engine.report.facts import is_number, number, weight_text

NAME = "README.md"
# the last line: a card that was changed by hand since is not written over
_MARK = "<!-- written by kdtasks export --card; checksum of the lines above: {} -->\n"
# what hubs call a licence that nobody has stated
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Card:
    """What a card is written from.

    Args:
        experiment: of the run.
        results: its results.json.
        facts: what stands beside the exported weights.
        model: which model of the config they are.
        file: the exported file.
        format: of it.
        comparison: of several seeds, with this run among them: a ``compare.json``.
        config: its name in the comparison.
    """

    experiment: Experiment
    results: Mapping[str, Any]
    facts: Mapping[str, Any]
    model: str
    file: Path
    format: str
    comparison: Mapping[str, Any] | None = None
    config: str = ""

    @property
    def name(self) -> str:
        """Of the config."""
        return self.results["config"]

    @property
    def stage(self) -> Stage:
        """That has trained the weights, where they say so, or the one that counts."""
        stages = self.experiment.stages
        named = [stage for stage in stages if stage.name == self.facts.get("stage")]
        return [*named, self.experiment.final or stages[-1]][0]

    @property
    def is_final(self) -> bool:
        """Whether the weights are those that the run and a comparison are about."""
        final = self.experiment.final
        return self.model == "student" and final is not None and self.stage is final


def check_replaceable(folder: str | Path) -> None:
    """Raise ConfigError if a README.md is there that is not a card as it was written."""
    path = Path(folder) / NAME
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    body, _, last = text.rstrip("\n").rpartition("\n")
    if last + "\n" != _MARK.format(_checksum(body + "\n")):
        raise ConfigError(
            f"{str(path)!r} is no model card of ours, or was changed since: --card would write "
            "over it; move it, or expected another --output"
        )


def write_card(card: Card) -> Path:
    """Write ``README.md`` beside the exported file; returns its path.

    Raises:
        ConfigError: as :func:`check_replaceable`.
    """
    check_replaceable(card.file.parent)
    path, text = card.file.parent / NAME, text_of(card)
    whole = text + _MARK.format(_checksum(text))
    write_atomically(path, lambda temporary: write_text(temporary, whole))
    return path


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def comparison_of(
    work_dir: Path, results: Mapping, given: str | Path | None
) -> tuple[dict, str] | None:
    """The comparison that a run is part of, and the name of its config there.

    Args:
        work_dir: of the run.
        results: its results.json.
        given: a ``compare.json``; None: one in a folder above that names this run's, if there is.

    Raises:
        FileNotFoundError, ConfigError: the given file is no comparison, or not with this run.
    """
    if given is not None:
        (content,) = read_comparisons([given]).values()
        name = _config_in(content, Path(given).resolve().parent, work_dir)
        if name is None and results["seed"] in content["seeds"]:
            name = results["config"] if results["config"] in content["configs"] else None
        if name is None:
            raise ConfigError(
                f"{str(given)!r} does not have this run, {results['config']!r} of seed "
                f"{results['seed']}: it has the seeds {content['seeds']}, and of configs "
                + did_you_mean(results["config"], content["configs"])
            )
        return content, name
    for folder in work_dir.resolve().parents:
        if (folder / "compare.json").is_file():
            try:
                (content,) = read_comparisons([folder / "compare.json"]).values()
            # something else of that name
            except (ConfigError, OSError):
                continue
            name = _config_in(content, folder, work_dir)
            if name is not None:
                return content, name
    return None


def _config_in(comparison: Mapping, folder: Path, work_dir: Path) -> str | None:
    for name, row in comparison["configs"].items():
        if work_dir.resolve() in [(folder / run).resolve() for run in row.get("folders", [])]:
            return name
    return None


# The text -----------------------------------------------------------------------------------------
def text_of(card: Card) -> str:
    """The card, without its last line."""
    import yaml

    head = yaml.safe_dump(_head(card), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {card.name}",
        _summary(card),
        "## How to load",
        *_loading(card),
        "## Result",
        *_result(card),
        "## Teacher",
        *_teachers(card),
        "## Method",
        *_method(card),
        "## Data",
        *_data(card),
        "## Deployment",
        *_deployment(card),
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def _head(card: Card) -> dict[str, Any]:
    experiment, about = card.experiment, card.experiment.config["card"]
    task, metrics = experiment.task, _metrics(card)
    tags = ["knowledge-distillation", task.package, card.format, "pytorch"]
    head: dict[str, Any] = {
        "license": about.get("licence") or UNKNOWN,
        "library_name": "kdtasks",
        "tags": list(dict.fromkeys(tags)),
    }
    if task.hub_task:
        head["pipeline_tag"] = task.hub_task
    datasets = list(about.get("datasets", []))
    if datasets:
        head["datasets"] = datasets
    if metrics:
        head["metrics"] = list(metrics)
        train = experiment.setting(card.stage, "data")["test"]["type"]
        name = datasets[0] if datasets else str(train)
        entries = [
            {"type": key, "name": task.axis(key), "value": value} for key, value in metrics.items()
        ]
        result = {
            "task": {"type": task.hub_task or task.package},
            "dataset": {"name": name, "type": name.rpartition(".")[2]},
            "metrics": entries,
        }
        head["model-index"] = [{"name": card.name, "results": [result]}]
    return head


def _metrics(card: Card) -> dict[str, float]:
    """Those of the exported weights that tables show, the primary one first."""
    task = card.experiment.task
    numbers = {k: v for k, v in card.facts.get("metrics", {}).items() if is_number(v)}
    names = sorted(numbers, key=lambda name: name != task.primary)
    return {name: float(numbers[name]) for name in names if task.metric(name).listed}


def _summary(card: Card) -> str:
    licence = card.experiment.config["card"].get("licence")
    said = f"Licence: {licence}." if licence else "Nobody has stated a licence of these weights."
    what = "taught by a teacher" if card.stage.taught else "trained without a teacher"
    return (
        f"A network {what} (knowledge distillation), written by kdtasks {kdtasks.__version__}: "
        f"stage `{card.stage.name}`, seed {card.results['seed']}. {said}"
    )


def _loading(card: Card) -> list[str]:
    sample = example(card.experiment, card.stage, 1)["input"]
    shape = tuple(sample.shape if isinstance(sample, Tensor) else sample[0].shape)
    images = f"torch.zeros{shape}" if isinstance(sample, Tensor) else f"[torch.zeros{shape}]"
    parts = [_input(card, shape)]
    plain = _plain_code(card, images, shape)
    if plain:
        name = "onnxruntime" if card.format == "onnx" else "plain PyTorch"
        parts += [f"In {name}:", _fenced(plain)]
    return [*parts, "In kdtasks:", _fenced(_own_code(card, images))]


def _input(card: Card, shape: Sequence[int]) -> str:
    given = trained_with(card.facts) or card.experiment.normalization(card.stage)
    text = f"Images as float32, in training of the shape {tuple(shape)}"
    if given is None:
        return f"{text}; the data does not say what it is normalised with."
    mean, std = ([float(f"{value:.6g}") for value in values] for values in given)
    return f"{text}, values in [0, 1] normalised with mean {mean} and std {std}."


def _plain_code(card: Card, images: str, shape: Sequence[int]) -> str:
    """Without the engine; empty where there is no such way."""
    name = card.file.name
    if card.format == "onnx":
        return (
            "import numpy\nimport onnxruntime\n\n"
            f"session = onnxruntime.InferenceSession({name!r})\n"
            f"images = numpy.zeros({tuple(shape)}, dtype=numpy.float32)\n"
            "outputs = session.run(None, {session.get_inputs()[0].name: images})"
        )
    spec = card.facts.get("spec", {})
    module, _, kind = str(spec.get("type", "")).rpartition(".")
    nested = any("type" in value for value in spec.values() if isinstance(value, Mapping))
    if card.format == "packed" or is_name(spec.get("type")) or nested or not _is_module(module):
        return ""
    given = ", ".join(f"{key}={value!r}" for key, value in spec.items() if key != "type")
    load = f"torch.load({name!r}, weights_only=True)"
    extra = ""
    if card.format == "safetensors":
        load, extra = f"load_file({name!r})", "from safetensors.torch import load_file\n"
    return (
        f"import torch\n{extra}\nfrom {module} import {kind}\n\n"
        f"model = {kind}({given})\nmodel.load_state_dict({load})\nmodel.eval()\n"
        f"outputs = model({images})"
    )


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, ValueError):
        return False
    return True


def _own_code(card: Card, images: str) -> str:
    name = card.file.name
    if card.format == "onnx":
        return (
            "import torch\n\nfrom kdtasks.engine.onnx_model import OnnxModel\n\n"
            f"model = OnnxModel({name!r})\noutputs = model({images})"
        )
    code = (
        "import torch\n\nfrom kdtasks.core.weight_files import read_weights\n"
        "from kdtasks.core.weights import load_weights\n"
        "from kdtasks.engine.builder import build\n"
    )
    build = f'facts = read_weights({name!r})[1]\nmodel = build(facts["spec"], "model")\n'
    if card.format == "packed":
        code += "from kdtasks.engine.packed import packed_file\n\n" + build
        code += "form = packed_file(model)\nmodel = form.plain(model)\n"
        return code + f"form.load(model, {name!r})\nmodel.eval()\noutputs = model({images})"
    code += f"\n{build}load_weights(model, {name!r})\n"
    return code + f"model.eval()\noutputs = model({images})"


def _result(card: Card) -> list[str]:
    task, metrics = card.experiment.task, _metrics(card)
    parts = []
    if metrics:
        values = [[name, f"{number(v)}{task.unit(name)}"] for name, v in metrics.items()]
        parts.append(_table(["metric", "on the test data"], values))
    if not card.is_final:
        return [*parts, "These are not the weights of the student that counts in its run."]
    return [*parts, _gain(card)]


def _gain(card: Card) -> str:
    """What the teacher brought, over seeds where that is known."""
    experiment, task = card.experiment, card.experiment.task
    primary, unit = task.primary, task.unit(task.primary)
    better = "" if task.higher_is_better else " (lower is better)"
    if card.comparison is not None:
        row = card.comparison["configs"][card.config]
        seeds = ", ".join(map(str, card.comparison["seeds"]))
        where = ""
        if row["low"] is not None:
            level = card.comparison["confidence"]
            ends = f"{number(row['low'], True)}, {number(row['high'], True)}"
            where = f" [{ends}], the {level:.0%} interval of the paired differences"
        return (
            f"Against its control, the same student of the same seed without the teacher: "
            f"{number(row['mean'], True)}{unit} {task.label(primary)}{better}{where}, over the "
            f"seeds {seeds}; {row['verdict'] or row['why']}. These weights are of seed "
            f"{card.results['seed']}."
        )
    control = experiment.arms.control
    alone = card.results["stages"].get(control.name, {}).get(primary) if control else None
    reached = card.facts.get("metrics", {}).get(primary)
    if not is_number(alone) or not is_number(reached):
        return "The run has no control, so what the teacher brought is not known."
    return (
        f"Against its control, the same student without the teacher ({number(alone)}{unit}): "
        f"{number(reached - alone, True)}{unit} {task.label(primary)}{better}, of seed "
        f"{card.results['seed']} alone: one seed has no interval."
    )


def _teachers(card: Card) -> list[str]:
    experiment, lines = card.experiment, []
    primary = experiment.task.primary
    pretrained = card.results.get("pretrained", {})
    for name, origin in card.stage.teachers.items():
        spec = experiment.specs[experiment.owner_of(card.stage, name)]
        line = f"- `{name}`: `{spec['type']}`"
        if name in pretrained:
            line += f", with the weights {pretrained[name]['weights'] or 'of the file'}"
            line += f"; licence: {pretrained[name]['licence'] or 'not stated'}"
        elif experiment.source_of(card.stage, name):
            source = experiment.source_of(card.stage, name)
            value = card.results["stages"].get(source, {}).get(primary)
            line += f", trained by stage `{source}` of the same run"
            line += f" ({number(value)}{experiment.task.unit(primary)})" if value else ""
        else:
            # of a route of anchors, the last
            file = as_route(origin)[-1] or spec.get("checkpoint")
            line += f", with the weights {Path(str(file)).name}; licence: not stated"
        lines.append(line)
    if "student" in pretrained:
        start = pretrained["student"]
        lines.append(
            f"- the student started from {start['name']} {start['weights'] or ''}; licence: "
            f"{start['licence'] or 'not stated'}"
        )
    return ["\n".join(lines) if lines else "No teacher taught this stage."]


def _method(card: Card) -> list[str]:
    rows = [
        [f"`{name}`", f"`{entry.get('type', '')}`", f"`{_names(entry['of'])}`", weight_text(entry)]
        for name, entry in card.stage.losses.items()
    ]
    distiller = card.experiment.config["distiller"]["type"]
    text = f"Stage `{card.stage.name}` of the config `{card.name}`, by `{distiller}`"
    text += "." if rows else ", with the model's own losses."
    control = card.experiment.arms.control
    parts = [text, *([_table(["loss", "what it is", "of", "weight"], rows)] if rows else [])]
    if control is not None and control is not card.stage:
        terms = ", ".join(f"{name} × {weight_text(e)}" for name, e in control.losses.items())
        parts.append(f"The control, stage `{control.name}`, has {terms or 'the own losses'}.")
    return parts


def _names(of: Any) -> str:
    return of if isinstance(of, str) else ", ".join(of)


def _data(card: Card) -> list[str]:
    data, classes = card.experiment.setting(card.stage, "data"), card.facts.get("classes")
    lines = [f"- {part}: `{_described(data[part])}`" for part in ("train", "test")]
    if classes:
        more = ", …" if len(classes) > 20 else ""
        lines.append(f"- {len(classes)} classes: {', '.join(map(str, classes[:20]))}{more}")
    return ["\n".join(lines)]


def _described(spec: Mapping) -> str:
    """``type(argument=value)``; of a path its last part: where it lay is nobody's business."""
    given = ", ".join(f"{key}={_value(v)}" for key, v in spec.items() if key != "type")
    return f"{spec['type']}({given})"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        if "type" in value:
            return _described(value)
        return "{" + ", ".join(f"{key}: {_value(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return repr(re.split(r"[/\\]", value)[-1] if isinstance(value, str) else value)


def _deployment(card: Card) -> list[str]:
    measured = card.results.get("deployment")
    if not measured:
        return ["Not measured in this run."]
    shown = deployment.table(measured)
    notes = [f"- {note}" for note in shown["notes"]]
    return [shown["about"], _table([title for title, _ in shown["heads"]], shown["rows"]), *notes]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def read_results(work_dir: Path) -> dict[str, Any]:
    """results.json of a run.

    Raises:
        ConfigError: the run has not got so far.
    """
    path = work_dir / "results.json"
    if not path.is_file():
        raise ConfigError(f"--card: {str(work_dir)!r} has no results.json: no stage has finished")
    return json.loads(path.read_text(encoding="utf-8"))
