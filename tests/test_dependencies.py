"""What the package imports is declared, and a machine that lacks what cannot be declared is told
what to install.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdtasks.engine import builder

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CALLED = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "avalanche": "avalanche-lib",
}
# with mmcv in an environment of its own: README says how
ELSEWHERE = {"mmdet"}


def names(requirements) -> set[str]:
    """Of requirements, ``torch>=2.11`` -> ``torch``."""
    return {re.match(r"[\w.-]+", one).group().lower() for one in requirements}


def imported(folder: str, everywhere: bool) -> dict[str, set[str]]:
    """The distributions that files import, with the files; at their top only, or in functions
    too.
    """
    found: dict[str, set[str]] = {}
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree) if everywhere else tree.body:
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            for name in (
                {module.split(".")[0] for module in modules}
                - set(sys.stdlib_module_names)
                - {"kdtasks", "benchmarks"}
            ):
                package = CALLED.get(name, name).replace("_", "-").lower()
                found.setdefault(package, set()).add(path.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize("folder", ["kdtasks", "benchmarks", "tools", "configs"])
def test_everything_imported_is_declared(folder):
    extras = names(one for group in PROJECT["optional-dependencies"].values() for one in group)
    found = imported(folder, everywhere=True)
    assert folder in ("tools", "configs") or "torch" in found
    missing = {
        name: paths
        for name, paths in found.items()
        if name not in names(PROJECT["dependencies"]) | extras | ELSEWHERE
    }
    assert not missing


def test_what_is_imported_at_the_top_needs_no_extra():
    """But for a plug-in's files that are imported late: tests/test_imports.py holds them to it."""
    top = imported("kdtasks", everywhere=False)
    assert {"torch", "numpy", "mmengine"} <= set(top)
    for name in top.keys() - names(PROJECT["dependencies"]):
        assert all("/plugin/" in path for path in top[name]), (name, top[name])


def test_the_extra_that_a_config_is_told_of_brings_the_package():
    for package, extra in builder._EXTRAS.items():
        assert package in names(PROJECT["optional-dependencies"][extra])


def test_every_module_of_the_package_travels():
    """Hatch leaves out what git ignores."""
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in ("kdtasks", "configs", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *files], capture_output=True, text=True, cwd=ROOT
    )
    if ignored.returncode > 1:
        pytest.skip(f"no git here: {ignored.stderr.strip()}")
    assert not ignored.stdout


def test_a_machine_without_the_libraries_of_opencv_is_told_what_to_install(tmp_path):
    small = ROOT / "tests" / "engine" / "small" / "small.py"
    code = (
        "import sys\nclass Broken:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'cv2': raise ImportError('libGL.so.1: cannot open shared object "
        "file')\nsys.meta_path.insert(0, Broken())\nfrom kdtasks.engine import cli\n"
        f"cli.train([{str(small)!r}, '--device', 'cpu', '--work-dir', {str(tmp_path / 'run')!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{small.parent}"},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "libGL.so.1" in done.stderr and "pip install opencv-python-headless" in done.stderr
