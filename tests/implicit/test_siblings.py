"""A folder or file of the user's that has the name of one of our packages, and comes first on sys.path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def last_words(folder, code):
    """Of Python, started in the folder; a warning is an error there, so that PyTorch need not be imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def foreign(folder, name):
    path = folder.resolve() / name
    if path.suffix != ".py":
        path.mkdir()
        (path / "__init__.py").touch()
    else:
        path.touch()
    return str(path)


@pytest.mark.parametrize("name", ["solvers", "solvers.py"])
def test_solvers_of_the_users_own_are_refused(tmp_path, name):
    theirs = foreign(tmp_path, name)
    words = last_words(tmp_path, "import implicit")
    assert words.startswith(
        f"ImportError: implicit needs its own package solvers, {ROOT / 'solvers'}, but Python finds "
    )
    assert f"finds {theirs} first: rename that one, or start Python where it is not on sys.path" in words


@pytest.mark.parametrize("name", ["models", "models.py", "experiments"])
def test_models_and_experiments_of_the_users_own_are_warned_of(tmp_path, name):
    theirs, package = foreign(tmp_path, name), name.removesuffix(".py")
    words = last_words(tmp_path, "import implicit")
    assert words.startswith(f"UserWarning: import {package} finds {theirs}, not the {package} of implicit-networks, ")
    assert f"{ROOT / package}. If you need the latter, rename the former" in words
    silence = f"import warnings; warnings.filterwarnings('ignore', 'import {package} finds')"
    assert silence.partition("; ")[2] in words
    code = f"{silence}; import sys; sys.modules['solvers'] = None; import implicit"  # as far as to the next import
    assert last_words(tmp_path, code).startswith("ModuleNotFoundError: import of solvers halted")


def test_an_implicit_of_the_users_own_is_refused_by_models(tmp_path):
    theirs = foreign(tmp_path, "implicit")
    words = last_words(tmp_path, "import models")
    assert words.startswith("ImportError: models needs the package implicit of implicit-networks, but Python finds ")
    assert theirs in words


def test_a_folder_without_python_in_it_hides_nothing(tmp_path):
    (tmp_path / "models").mkdir()
    code = "import sys; sys.modules['solvers'] = None; import implicit"
    assert last_words(tmp_path, code).startswith("ModuleNotFoundError: import of solvers halted")
