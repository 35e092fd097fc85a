"""The wheel and the sdist: built, installed beside torch, numpy and scipy alone, and used there."""

import configparser
import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import implicit
import models
import solvers

ROOT = Path(__file__).parents[1]


def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["options"]


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the files that git knows."""
    source = tmp_path_factory.mktemp("source")
    for name in run("git", "-C", ROOT, "ls-files").stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    return source


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """Wheel and sdist, made without a network."""
    out = tmp_path_factory.mktemp("dist")
    result = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    assert result.returncode == 0, result.stderr + result.stdout
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def closure(names):
    """The installed distributions that these need, themselves included."""
    found, waiting = {}, list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """The interpreter of an environment that holds the wheel and what its core declares, nothing else."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    interpreter = place / "bin" / "python"
    packages = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    for distribution in closure(
        Requirement(line).name for line in settings()["install_requires"].split("\n") if line
    ).values():
        for file in distribution.files:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(Path(distribution.locate_file(top)))
    result = run(sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index", built[0])
    assert result.returncode == 0, result.stderr
    return interpreter


def test_wheel_and_sdist_hold_every_package_its_data_and_nothing_else(built):
    wheel, sdist = built
    names = zipfile.ZipFile(wheel).namelist()
    for package in settings()["packages"].split():
        assert f"{package.replace('.', '/')}/__init__.py" in names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"solvers", "implicit", "models", "experiments"}
    for data in (
        "experiments/reporting/report.html",
        "experiments/commands/recipes/cifar10-implicit.txt",
        "solvers/py.typed",
    ):
        assert data in names
    with tarfile.open(sdist, encoding="utf-8") as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "implicit/equilibrium.py"} <= inside


def test_the_readmes_first_example_runs_where_only_the_core_is_installed(python, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(f"{blocks[0]}\nimport implicit\n\nprint(implicit.__file__)\n", encoding="utf-8")
    result = run(python, "-I", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "8 CONVERGED" in result.stdout
    assert ROOT not in Path(result.stdout.splitlines()[-1]).parents


def test_an_editable_install_is_a_path_that_type_checkers_and_editors_follow(source, tmp_path):
    code = "import sys, setuptools.build_meta as backend; backend.build_editable(sys.argv[1])"
    result = run(sys.executable, "-c", code, tmp_path, cwd=source)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        outside = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert [Path(name).suffix for name in outside] == [".pth"], outside
        assert archive.read(outside[0]).decode().split() == [str(source.resolve())]


def test_the_version_is_that_of_the_code(built):
    wheel, sdist = built
    assert wheel.name.startswith(f"implicit_networks-{solvers.__version__}-")
    assert sdist.name == f"implicit_networks-{solvers.__version__}.tar.gz"
    assert implicit.__version__ == models.__version__ == solvers.__version__


MISSING = {
    "import implicit.plots": "implicit.plots needs matplotlib: pip install 'implicit-networks[plots]'",
    "import implicit.lightning_monitor": "needs Lightning: pip install 'implicit-networks[train]'",
    "import implicit.torchdeq_bridge": "needs torchdeq: pip install 'implicit-networks[torchdeq]'",
    "from models.baselines import resnet; resnet(3, 10)": "pip install 'implicit-networks[vision]'",
    "from experiments.cli import main; main(['compare', 'digits'])": "pip install 'implicit-networks[plots]'",
}


def test_a_missing_extra_is_named_and_the_core_loads_nothing_that_torch_has_not(python, tmp_path):
    script = """
import contextlib, io, json, sys
import torch
before = set(sys.modules)
import implicit, models
loaded = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
said = {}
for code in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as text:
        try:
            exec(code)
        except ImportError as error:
            print(error, file=text)
    said[code] = text.getvalue()
print(json.dumps([sorted(loaded), said]))
"""
    result = run(python, "-I", "-c", script, json.dumps(list(MISSING)), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    loaded, said = json.loads(result.stdout)
    assert set(loaded) <= {"implicit", "solvers", "models", "numpy", "optree"}
    for code, message in MISSING.items():
        assert message in said[code], said[code]
