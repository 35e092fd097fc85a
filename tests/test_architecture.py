"""The rooms: imports run one way, packages are this repository's, public names are documented."""

import ast
import configparser
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["solvers", "implicit", "models", "experiments", "benchmarks"]
PACKAGES = ROOMS[:4]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", PACKAGES)
def test_imports_run_one_way(room):
    later = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests"}
    for path in (ROOT / room).rglob("*.py"):
        assert not later & set(imported(path)), path


EXPERIMENTS = ["tasks", "contestants", "training", "measuring", "reporting", "running", "commands"]


def rooms_within(path):
    """The rooms of experiments that a file imports from, by relative imports."""
    place = path.relative_to(ROOT / "experiments").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            whole = [*place[: len(place) - node.level + 1], *filter(None, (node.module or "").split("."))]
            yield from whole[:1] or [alias.name for alias in node.names]


def test_imports_within_experiments_run_one_way():
    assert {path.name for path in (ROOT / "experiments").iterdir() if (path / "__init__.py").exists()} == {*EXPERIMENTS}
    for room in EXPERIMENTS:
        later = set(EXPERIMENTS[EXPERIMENTS.index(room) + 1 :])
        for path in (ROOT / "experiments" / room).rglob("*.py"):
            assert not later & set(rooms_within(path)), path
    for name in ("errors", "failures", "names"):
        assert not set(EXPERIMENTS) & set(rooms_within(ROOT / "experiments" / f"{name}.py")), name


@pytest.mark.parametrize("room", PACKAGES)
def test_packages_are_this_repositorys(room):
    assert Path(importlib.import_module(room).__file__).parent == ROOT / room


def test_the_core_needs_only_its_declared_packages():
    script = (
        "import sys, solvers, implicit, models; "
        "print({m.split('.')[0] for m in sys.modules} & {'matplotlib', 'lightning', 'sklearn', 'torchvision', 'rich'})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("room", PACKAGES[:3])
def test_public_names_are_documented(room):
    package = importlib.import_module(room)
    for name in package.__all__:
        thing = getattr(package, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        assert thing.__doc__, name
        assert not thing.__doc__.startswith(f"{name}("), f"{name} has no docstring of its own"


def test_every_package_is_in_the_distribution():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for room in PACKAGES for path in ROOT.glob(f"{room}/**/*.py")
    }
    assert set(settings["options"]["packages"].split()) == found


def test_no_python_file_outgrows_its_job():
    for room in PACKAGES:
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path


UNIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


@pytest.mark.parametrize("room", ROOMS)
def test_what_only_unix_has_is_imported_where_it_is_used(room):
    for path in (ROOT / room).rglob("*.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import):
                assert not UNIX & {alias.name for alias in statement.names}, path
            elif isinstance(statement, ast.ImportFrom):
                assert statement.module not in UNIX, path


def without_encoding(path):
    """Lines on which a text file is read or written in whatever encoding the system prefers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or "encoding" in [keyword.arg for keyword in node.keywords]:
            continue
        room, _, name = ast.unparse(node.func).rpartition(".")
        words = [word.value for word in node.args if isinstance(word, ast.Constant)]
        text = name == "open" and room != "os" and not any(isinstance(word, str) and "b" in word for word in words)
        positional = {"read_text": 1, "write_text": 2}
        if text or len(node.args) < positional.get(name, 0):
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("room", ["implicit", "benchmarks"])
def test_text_files_are_written_alike_on_every_system(room):
    assert not [line for path in (ROOT / room).rglob("*.py") for line in without_encoding(path)]


def test_a_text_file_without_an_encoding_is_found(tmp_path):
    source = tmp_path / "made.py"
    source.write_text("open('a')\npath.open('rb')\npath.write_text(x)\npath.read_text('utf-8')\n", encoding="utf-8")
    assert list(without_encoding(source)) == ["made.py:1: open('a')", "made.py:3: path.write_text(x)"]


FACTORIES = {
    *(
        "zeros",
        "ones",
        "empty",
        "full",
        "eye",
        "arange",
        "linspace",
        "logspace",
        "tensor",
        "as_tensor",
        "scalar_tensor",
    ),
    *("rand", "randn", "randint", "randperm", "normal", "tril_indices", "triu_indices", "hann_window"),
}


def nameless(path):
    """Lines on which a tensor is made on whatever the default device is; parameters and buffers are meant to be."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    meant = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("Parameter", "register_buffer")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in meant:
            continue
        room, _, name = ast.unparse(node.func).rpartition(".")
        if room == "torch" and name in FACTORIES and "device" not in [keyword.arg for keyword in node.keywords]:
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("room", PACKAGES)
def test_every_new_tensor_names_its_device(room):
    assert not [line for path in (ROOT / room).rglob("*.py") for line in nameless(path)]


def test_a_tensor_without_a_device_is_found(tmp_path):
    source = tmp_path / "made.py"
    source.write_text(
        "x = torch.zeros(3)\ny = torch.zeros(3, device=d)\nself.w = nn.Parameter(torch.zeros(3))\n", encoding="utf-8"
    )
    assert list(nameless(source)) == ["made.py:1: torch.zeros(3)"]
