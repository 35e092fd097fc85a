"""What a user's type checker says of our names."""

import re
from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api", reason="pip install mypy")
ROOT = Path(__file__).parents[1]

SAID = {
    "Equilibrium(cell)(x)": "Tensor",
    "Equilibrium(cell)(x, z0=x)": "Tensor",
    "Equilibrium(cell, initial=pair)(x)": "tuple[Tensor, Tensor]",
    "Equilibrium(cell).solve(x)": "Solution[Tensor]",
    "Equilibrium(cell).iterates(x, at=(1,))": "tuple[Tensor, ...]",
    "Looped(cell, steps=3)(x)": "Tensor",
    "Looped(cell, steps=3, initial=pair)(x)": "tuple[Tensor, Tensor]",
    "fixed_point(pair, (x, x))": "tuple[Tensor, Tensor]",
    "OptDNN('gd', [Dense(2, 2)])(x)": "Tensor",
    "OptDEQ('gd', Dense(2, 2))(x)": "Tensor",
    "ProximalStep(None, Dense(2, 2))(x)": "Tensor",
    "implicit.__version__ + models.__version__ + solvers.__version__": "str",
}
REFUSED = {
    "Equilibrium(cell, rtoll=1e-3)": 'Unexpected keyword argument "rtoll" for "Equilibrium"',
    "Equilibrium(cell)(x, max_steps='many')": 'Argument "max_steps" has incompatible type "str"',
    "Equilibrium(cell)(x, z0=(x, x))": 'Argument "z0" has incompatible type "tuple[Tensor, Tensor]"',
    "Looped(cell, step=3)": 'Unexpected keyword argument "step" for "Looped"',
}
HEAD = """
import torch
from torch import Tensor, nn
import implicit, models, solvers
from implicit import Equilibrium, Looped, fixed_point
from models import Dense, OptDEQ, OptDNN, ProximalStep
x, cell = torch.ones(1, 2), nn.Linear(2, 2)
def pair(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x
class Own(nn.Module):
    def __init__(self, layer: Equilibrium) -> None:
        super().__init__()
        self.layer = layer
"""


def test_layers_and_networks_have_types_under_mypy_strict(tmp_path):
    head = HEAD.splitlines()
    module = tmp_path / "user.py"
    module.write_text("\n".join([*head, *(f"reveal_type({code})" for code in SAID), *REFUSED]) + "\n", encoding="utf-8")
    # with the settings of `make lint` PyTorch is read from its cache
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    out, error, _ = api.run([*settings, "--no-error-summary", str(module)])
    said = {}
    for line in out.splitlines():
        place, kind, message = re.match(r".*user\.py:(\d+): (\w+): (.*)", line).groups()
        if kind == "error" or "Revealed" in message:
            said[int(place) - len(head)] = re.sub(r"\b(?:\w+\.)+(?=\w)", "", message)
    expected = [f'Revealed type is "{kind}"' for kind in SAID.values()]
    assert [said.pop(number) for number in range(1, len(SAID) + 1)] == expected, out + error
    for number, message in enumerate(REFUSED.values(), len(SAID) + 1):
        assert said.pop(number).startswith(message), out
    assert not said
