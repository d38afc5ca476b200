"""Who may import whom, what an import costs, and the public names with their signatures."""

import ast
import fnmatch
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kdtasks"
TASKS = [
    name
    for name in (
        "general",
        "classification",
        "detection",
        "metric_learning",
        "super_resolution",
        "incremental",
        "quantization",
        "representation",
    )
    if (PACKAGE / name).is_dir()
]
SLOW = {
    "avalanche",
    "kornia",
    "pytorch_metric_learning",
    "sklearn",
    "scipy",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "faster_coco_eval",
    "timm",
    "mmdet",
    "spandrel",
    "skimage",
    "lpips",
}
# of weights: imported where one is read or written
FORMATS = {"safetensors"}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(source: str, module: str = "", for_types: bool = True) -> tuple[set[str], set[str]]:
    """What a file imports at its top, and inside of its functions or for type checkers only: full
    names, ``kdtasks.core.names.did_you_mean``. Without ``for_types``: but for type checkers.
    """
    tree, package = ast.parse(source), module.rpartition(".")[0]
    left_out = {
        id(node)
        for part in ast.walk(tree)
        if not for_types and _is_for_types(part)
        for node in ast.walk(part)
    }
    inside = {id(node) for part in ast.walk(tree) if _is_run_later(part) for node in ast.walk(part)}
    found = set(), set()
    for node in ast.walk(tree):
        names = []
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            parent = (
                ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level])
                if node.level
                else ""
            )
            names = [
                ".".join(filter(None, (parent, node.module, alias.name))) for alias in node.names
            ]
        found[id(node) in inside].update(names)
    return found


def _is_run_later(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_types(node)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def own(names) -> set[str]:
    return {name for name in names if name.split(".")[0] == "kdtasks"}


def foreign(names) -> set[str]:
    return {name.split(".")[0] for name in names} - {"kdtasks"} - set(sys.stdlib_module_names)


def is_late(file: str) -> bool:
    """Whether a file belongs to a task's package ``plugin`` that reaches it by imports inside of
    functions only: such a file may import a slow library at its top.
    """
    package, _, name = file.partition("/plugin/")
    reached, left = set(), ["__init__"] if name else []
    while left:
        module = left.pop()
        reached.add(module)
        top, _ = imports((PACKAGE / package / "plugin" / f"{module}.py").read_text())
        for path in top:
            prefix, _, rest = path.partition(f"kdtasks.{package}.plugin.")
            if not prefix and rest and rest.split(".")[0] not in reached:
                left.append(rest.split(".")[0])
    return bool(name) and name.removesuffix(".py") not in reached


def module_of(file: str) -> str:
    """``'core/names.py'`` -> ``'kdtasks.core.names'``."""
    return "kdtasks." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(file: str) -> tuple[set[str], set[str]]:
    """What a file of the package imports, as :func:`imports` says it."""
    return imports(
        (PACKAGE / file).read_text(), module_of(file) + ".x" * file.endswith("__init__.py")
    )


MODULES = {module_of(file): file for file in FILES if "/" in file}


def files_of(names) -> set[str]:
    """The files of the package that imported names are of."""
    return {MODULES.get(name) or MODULES.get(name.rpartition(".")[0], "") for name in names} - {""}


def method_files() -> set[str]:
    """The files that ``import kdtasks.<task>`` reads: what a task's package exports, its losses and
    formulas, and what these need. They need torch and no more; a task's other files may need its
    libraries.
    """
    reached, left = set(), {f"{task}/__init__.py" for task in ("core", *TASKS)}
    while left:
        reached |= left
        left = files_of(name for file in left for name in imports_of(file)[0]) - reached
    return reached


METHOD_FILES = method_files()


def allowed(file: str) -> tuple[set[str], set[str], set[str]]:
    """For a file: the parts of kdtasks, the libraries at its top, and those inside of its
    functions.
    """
    folder = file.split("/")[0]
    if file in METHOD_FILES:
        parts = {"core"} if folder == "core" else {"core", "general", folder}
        return parts, {"torch"}, FORMATS
    if folder == "core":
        return {"core"}, {"torch", "numpy"}, FORMATS
    libraries = {"torch", "torchvision", "numpy", "PIL", "mmengine"}
    if folder == "images":
        return {"core", "images"}, {"torch", "numpy"}, libraries - {"mmengine"} | SLOW
    if folder == "engine":
        at_top = {"torch", "mmengine", "numpy", "rich"}
        later = {"jinja2", "transformers", "yaml", "PIL"}
        return {"core", "engine"}, at_top, SLOW | FORMATS | later
    at_top = libraries | (SLOW if is_late(file) else set())
    return {"core", "general", "images", "engine", folder}, at_top, libraries | SLOW


def test_the_files_of_a_method_are_those_that_its_task_exports():
    losses = {"general/kd.py", "detection/adl.py", "incremental/lwf.py"}
    assert losses <= METHOD_FILES and {"core/distiller.py", "core/precision.py"} <= METHOD_FILES
    assert not any(file.startswith(("engine/", "images/")) for file in METHOD_FILES)
    assert not any(file.endswith(("/trainer.py", "/pictures.py")) for file in METHOD_FILES)


def test_late_files_are_those_that_a_plugin_imports_inside_of_functions():
    assert is_late("metric_learning/plugin/distill_loss.py")
    for file in ("metric_learning/plugin/losses.py", "incremental/plugin/base.py"):
        assert not is_late(file)
    assert not any(is_late(file) for file in FILES if "/plugin/" not in file)


def test_the_reader_of_imports_reads_all_kinds():
    top, inside = imports(
        "import a.b\nfrom .c import d\nfrom .. import e\nif x:\n    import f\ndef g():\n    import "
        "h\nclass I:\n    import j\n    def k(self): from ..l.m import n\nif TYPE_CHECKING:\n    "
        "import o\n",
        "kdtasks.task.file",
    )
    assert top == {"a.b", "kdtasks.task.c.d", "kdtasks.e", "f", "j"} and inside == {
        "h",
        "kdtasks.l.m.n",
        "o",
    }


@pytest.mark.parametrize("file", MODULES.values())
def test_imports_go_in_one_direction(file):
    top, inside = imports_of(file)
    parts, libraries, later = allowed(file)
    assert {name.split(".")[1] for name in own(top | inside) if "." in name} <= parts | {
        "__version__"
    }
    assert foreign(top) <= libraries and foreign(inside) <= libraries | later
    if file.startswith(("engine/", "core/")):
        assert not any(f"kdtasks.{task}" in (PACKAGE / file).read_text() for task in TASKS), (
            "names a task"
        )
    if file in METHOD_FILES:
        assert files_of(own(inside)) <= METHOD_FILES


# ------------------------------------------------------------------------------ no word of any task
def constants(tree: ast.AST) -> set[str]:
    """The texts in a file but its docstrings, those in f-strings included."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    }


def words_of_tasks() -> tuple[set[str], set[str]]:
    """What trainer modules call their metrics and batches, patterns by their beginning; and the
    flags of tools/test.py that tasks declare.
    """
    words, flags = set(), set()
    for path in PACKAGE.glob("*/*.py"):
        if path.parts[-2] not in (*TASKS, "images"):
            continue
        tree = ast.parse(path.read_text())
        is_command = "__main__" in constants(tree)  # with arguments of its own
        for node in ast.walk(tree):
            is_argument = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ".add_argument"
            )
            if is_argument and not is_command:
                flags |= {argument.value for argument in node.args}
            target = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
            if path.name == "trainer.py" and target in ("PRIMARY", "OWN_NAMES"):
                words |= constants(node.value)
            if path.name == "trainer.py" and target == "METRICS":
                words |= {key.value for key in node.value.keys}
    return words, flags


def test_the_engine_holds_no_word_of_a_task():
    words, flags = words_of_tasks()
    assert {"accuracy", "psnr_y", "map", "class_counts"} <= words
    assert {"--tile", "--ensemble", "--score", "--images", "--inputs", "--out"} <= flags
    for file in (file for file in FILES if file.startswith("engine/")):
        source = (PACKAGE / file).read_text()
        texts = constants(ast.parse(source))
        found = {text for text in texts for word in words if fnmatch.fnmatchcase(text, word)}
        found |= {
            word.rstrip("*")
            for word in words
            if len(word.rstrip("*")) > 3
            and any(re.search(rf"(?<![a-z]){re.escape(word.rstrip('*'))}", t) for t in texts)
        }
        found |= {flag for flag in flags if any(re.search(rf"{flag}\b", text) for text in texts)}
        assert not found, f"{file}: {found}"


def test_the_engine_does_not_look_what_a_task_or_a_distiller_has():
    """``engine/task.py`` has read it once."""
    asks = re.compile(r"(hasattr|getattr)\(\s*(\w+\.)*(task|distiller)\b")
    for file in (file for file in FILES if file.startswith("engine/")):
        assert not asks.search((PACKAGE / file).read_text()), file


# ---------------------------------------------------------------------------- cycles, private names
def imported_modules(source: str, module: str, modules) -> set[str]:
    """The modules of the package that a file imports, at its top or later, but for type checkers."""
    names = set().union(*imports(source, module, for_types=False))
    return {name if name in modules else name.rpartition(".")[0] for name in own(names)} & modules


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of some cycle, in turn; [] without one."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        found = next(
            filter(None, (search(n, [*path, node]) for n in sorted(graph[node] - done))), []
        )
        done.add(node)
        return found

    return next(filter(None, (search(node, []) for node in sorted(graph))), [])


def test_no_module_imports_itself_over_others():
    assert cycle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    graph = {
        name: imported_modules(
            (PACKAGE / file).read_text(), name + ".x" * file.endswith("__init__.py"), MODULES.keys()
        )
        for name, file in MODULES.items()
    }
    assert not cycle(graph)


# Private by their names, but of Python or of a library that gives nothing else for the purpose.
PRIVATE_ELSEWHERE = {
    # the standard library
    "_asdict",
    "_replace",
    "_getframe",
    "_exit",
    "_processes",
    "_apply",
    "_buffers",
    "_conv_forward",
    "_metadata",
    "_modules",
    "_parameters",
    "_version",
    "_BatchNorm",
    "_NormBase",
    "_foreach_lerp_",
    "_foreach_norm",
    "_shape_as_tensor",
    # torch
    "_C",
    "_iterator",
    "_shutdown_workers",
    "_are_functorch_transforms_active",
    "_dynamo",
    # mmdet, mmengine
    "_bbox_forward",
    "_instance_dict",
    "_ParamScheduler",
}


def private_names(source: str) -> set[str]:
    """Private names of other objects and modules that a file uses."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in (
            "self",
            "cls",
            "super()",
        ):
            found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_private_names_stay_where_they_are():
    assert private_names(
        "from a import _b, c\nself._d = self.e._f\nsuper()._g(h()._i, j[0]._k, l.__class__)"
    ) == {"_b", "_f", "_i", "_k"}
    for file in FILES:
        assert not private_names((PACKAGE / file).read_text()) - PRIVATE_ELSEWHERE, file


def test_the_package_itself_imports_nothing():
    assert imports((PACKAGE / "__init__.py").read_text()) == (set(), set())


def test_nobody_imports_tools_configs_or_tests_and_tools_import_the_engine_only():
    for file in FILES:
        names = set().union(
            *imports(
                (PACKAGE / file).read_text(),
                "kdtasks." + file.removesuffix(".py").replace("/", "."),
            )
        )
        assert not {name.split(".")[0] for name in names} & {
            "tools",
            "configs",
            "tests",
            "benchmarks",
        }, file
    for path in (ROOT / "tools").glob("*.py"):
        names = set().union(*imports(path.read_text()))
        # it measures the methods themselves
        if path.name != "benchmark.py":
            assert all(name.startswith("kdtasks.engine.") for name in own(names)) and not foreign(
                names
            ), path.name


@pytest.mark.parametrize(
    "command",
    [
        "tools/train.py --help",
        "tools/train.py --list",
        "tools/test.py --help",
        "tools/compare.py --help",
        "tools/export.py --help",
        "tools/results.py --help",
        "tools/benchmark.py --help",
        "-m kdtasks.cli --help",
        "-m kdtasks.cli list",
        "-m kdtasks.cli copy --help",
    ],
)
def test_what_only_informs_answers_without_torch(command):
    code = (
        "import runpy, sys\nargs = sys.argv[1:]\nmodule = args[0] == '-m'\nsys.argv = args[1:] if "
        "module else args\ntry: runpy.run_module(args[1], run_name='__main__') if module else "
        "runpy.run_path(args[0], run_name='__main__')\nexcept SystemExit as end: assert not "
        "end.code\nprint(sorted({name.split('.')[0] for name in sys.modules} - "
        "set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *command.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    # -S: nothing that is installed can be imported at all
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3 and "torch" not in done.stdout.splitlines()[-1]


def test_after_torch_a_task_costs_only_its_own_modules_and_the_standard_library():
    packages = ["kdtasks.core", "kdtasks.core.weights", *(f"kdtasks.{task}" for task in TASKS)]
    code = (
        "import sys, torch\nfor name in sys.argv[1:]:\n    before = set(sys.modules)\n    "
        "__import__(name)\n    print(name, *sorted(set(sys.modules) - before))"
    )
    lines = subprocess.run(
        [sys.executable, "-c", code, *packages],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    for line in lines.splitlines():
        name, *new = line.split()
        assert name in new
        assert {module.split(".")[0] for module in new} - {"kdtasks"} <= set(
            sys.stdlib_module_names
        ), name
        ours = [module for module in new if module.startswith("kdtasks.")]
        assert all(
            module.startswith(("kdtasks.core", "kdtasks.general", name)) for module in ours
        ), name


# A run of a data set and a loss of its own; the loss says what is imported whenever it is called.
CONFIG = """
task = "kdtasks.classification.trainer"
student = teacher = dict(type="kdtasks.classification.models.digits_cnn", num_classes=2)
losses = dict(
    loss_cls=dict(type="of_its_own.cross_entropy", of=("student", "target")),
    loss_kd=dict(type="kdtasks.general.KDLoss", of=("student", "teacher")),
)
data = dict(train=dict(type="of_its_own.Waves"), test=dict(type="of_its_own.Waves"), batch_size=4)
optimizer = dict(type="torch.optim.SGD", lr=0.1)
length = dict(iterations=1)
deployment = False
"""
OF_ITS_OWN = """
import sys
import torch


class Waves:
    image_shape, classes, target = (1, 8, 8), ["a", "b"], torch.arange(8) % 2

    def __len__(self):
        return 8

    def batch(self, index, view, seed):
        waves = torch.sin(index[:, None] + torch.arange(64.0)).view(-1, 1, 8, 8)
        return {"input": waves, "target": self.target[index]}


def cross_entropy(student, target):
    print("imported", *{name.partition(".")[0] for name in sys.modules})
    return torch.nn.functional.cross_entropy(student, target)
"""


def test_a_run_imports_no_library_that_its_config_does_not_use_before_its_last_step(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "of_its_own.py").write_text(OF_ITS_OWN)
    command = "-m kdtasks.cli train config.py --device cpu --work-dir run"
    out = subprocess.run(
        [sys.executable, *command.split()],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    ).stdout
    lines = [set(line.split()) for line in out.splitlines() if "imported " in line]
    # the check tries each of the three stages, then each has its step
    assert len(lines) >= 6 and all({"torch", "kdtasks"} <= line for line in lines)
    unused = SLOW | {"torchvision", "transformers"}
    assert [line & unused for line in lines] == [set()] * len(lines)


# ------------------------------------------------------------------------------------- public names
PUBLIC = {
    "quantization": {
        "quantizer": [
            "uniform_quantize(tensor, bits, bucket_size=256, stochastic=False, gradient='straight')"
        ],
        "lsq": [
            "lsq_quantize(tensor, step, bits, signed=True, count=None)",
            "lsq_init(tensor, bits, signed=True)",
            "pact(tensor, alpha, bits)",
        ],
    },
    "general": {
        "kd": [
            "kd_loss(student, teacher, temperature=4.0)",
            "KDLoss(temperature=4.0)",
            "binary_kd_loss(student, teacher, temperature=1.0)",
            "BinaryKDLoss(temperature=1.0)",
        ],
        "dml": ["mutual_losses(logits, target)", "peer_cross_entropies(logits, target)"],
        "bss": [
            "boundary_samples(score, input, base, target, step_size=0.3, max_steps=10, eps=0.0001, "
            "clip=(-2.5, 2.5))"
        ],
        "ban": [
            "cwtm_loss(student, teacher, target)",
            "dkpp_loss(student, teacher, permutation=None)",
            "CWTMLoss()",
            "DKPPLoss()",
        ],
        "ab": [
            "ab_loss(student, teacher, margin=1.0)",
            "ABLoss(margin=1.0, reduction='sum', student_channels=None, teacher_channels=None)",
        ],
        "rkd": [
            "rkd_distance_loss(student, teacher, divisor='all')",
            "rkd_angle_loss(student, teacher, divisor='all')",
            "RKDLoss(distance_weight=1.0, angle_weight=2.0, gather=False)",
        ],
        "rco": [
            "equal_interval_anchors(epochs, interval)",
            "next_anchor(hardness, current, threshold)",
        ],
    },
    "detection": {
        "chen2017": [
            "weighted_soft_cross_entropy(student, teacher, class_weight, temperature=1.0)",
            "bounded_regression_loss(student, teacher, target, margin=0.0, normalizer=None)",
            "hint_loss(student, teacher, p=2)",
            "HintLoss(student_channels=None, teacher_channels=None, p=2, layout=None, "
            "prefix_tokens=0, grid=None)",
        ],
        "adl": [
            "adl_loss(student, teacher, gamma=1.0, beta=1.5, power=1.8, base='kl', alpha=None, "
            "valid=None, normalizer=None)"
        ],
    },
    "metric_learning": {
        "darkrank": [
            f"darkrank_{kind}_loss(student, teacher, alpha=3.0, beta=3.0, list_length=4, "
            "normalize=True)"
            for kind in ("hard", "soft")
        ]
        + [
            "rkd_distance_loss(student, teacher, divisor='all')",
            "rkd_angle_loss(student, teacher, divisor='all')",
            "RKDLoss(distance_weight=1.0, angle_weight=2.0, gather=False)",
        ]
    },
    "super_resolution": {
        "ail": [
            "teacher_importance(teacher, target, slope=100.0, threshold=0.01)",
            "importance(initial, previous, target, round, decay=10.0, pace=0.15, growth=0.15)",
            "importance_loss(student, target, weight, power=2, reduction='sum')",
        ],
        "metrics": [
            "imresize(image, scale)",
            "psnr_y(output, target, crop)",
            "ssim_y(output, target, crop)",
        ],
    },
    "incremental": {
        "lwf": ["lwf_loss(student, teacher, temperature=2.0)"],
        "lwm": ["grad_cam(activation, gradient)", "lwm_attention_loss(student_map, teacher_map)"],
        "gd": [
            "ensemble_probabilities(previous, current)",
            "confidence_loss(logits)",
            "class_balance_weights(counts)",
            "global_distillation_losses(student, previous, current, target, labelled, "
            "temperature=2.0, class_weight=None)",
        ],
        "sampling": ["confident_indices(scores, per_class)"],
        "metrics": [
            "average_accuracy(A, sizes=None)",
            "average_incremental_accuracy(A, skip_first=False, sizes=None)",
            "forgetting(A, sizes=None)",
        ],
    },
}


@pytest.mark.parametrize(
    "task, file",
    [
        (task, file)
        for task in PUBLIC
        for file in PUBLIC[task]
        if (PACKAGE / task / f"{file}.py").is_file()
    ],
)
def test_public_names_are_importable_from_their_task_as_written(task, file):
    module = importlib.import_module(f"kdtasks.{task}")
    for written in PUBLIC[task][file]:
        name, _, arguments = written.partition("(")
        thing = getattr(module, name)
        assert name in module.__all__
        parameters = inspect.signature(thing).parameters.values()
        found = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
        expected = list(inspect.signature(eval(f"lambda {arguments[:-1]}: 0")).parameters.values())
        assert found == [
            p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in expected
        ], written


@pytest.mark.parametrize("folder", ["kdtasks", "tools", "benchmarks"])
def test_what_eval_returns_is_not_used(folder):
    """A model whose ``train()`` returns None (mmdet's LD detector) can be put in eval, but not in a
    chain of calls.
    """
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text())
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        alone |= {
            id(value)
            for node in ast.walk(tree)
            if isinstance(node, ast.IfExp)
            for value in (node.body, node.orelse)
        }
        lines = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "eval"
            and not node.args
            and id(node) not in alone
        ]
        assert not lines, f"{path}:{lines}"


@pytest.mark.parametrize("folder", ["kdtasks", "tools", "benchmarks"])
def test_no_condition_stands_in_another(folder):
    """``a if x else b if y else c`` has to be read twice."""
    for path in (ROOT / folder).rglob("*.py"):
        choices = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.IfExp)]
        nested = [
            n.lineno
            for choice in choices
            for n in ast.walk(choice)
            if n is not choice and isinstance(n, ast.IfExp)
        ]
        assert not nested, f"{path}:{nested}"


def test_public_names_of_the_core():
    core = importlib.import_module("kdtasks.core")
    for name in core.__all__:
        assert getattr(core, name).__module__.startswith("kdtasks.core."), name
    assert {"Distiller", "Stage", "Teacher", "FeatureRecorder", "Linear", "Cosine", "Steps"} <= set(
        core.__all__
    )
    first = list(inspect.signature(core.Distiller).parameters)
    assert first[:3] == ["student", "teachers", "losses"]
    assert list(inspect.signature(core.Distiller.forward).parameters) == ["self", "input", "target"]


@pytest.mark.parametrize("package", ["kdtasks.core", *(f"kdtasks.{task}" for task in TASKS)])
def test_all_lists_what_is_there_and_every_public_thing_says_what_it_is(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == list(module.__all__)
    for name in module.__all__:
        assert (inspect.getdoc(getattr(module, name)) or "").strip(), (
            f"{package}.{name} has no docstring"
        )
