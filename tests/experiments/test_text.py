"""The language model's task: its text, its score, its networks."""

import json
import math

import pytest
import torch
from torch.utils.data import TensorDataset
from torchmetrics.text import Perplexity

from experiments.cli import main
from experiments.contestants.matching import matched_sizes
from experiments.contestants.own import known
from experiments.contestants.terms import TERMS
from experiments.errors import InputError
from experiments.failures import Failures
from experiments.tasks.goals import NextCharacter
from experiments.tasks.make import make_task
from experiments.tasks.small import digits
from experiments.tasks.task import Task
from experiments.tasks.text import ALPHABET, LENGTH, distinct_paragraphs, encoded, windows
from implicit import Equilibrium

NAMES = ("explicit", "tied", "looped", "deq", "paraformer")
EXACTLY_CAUSAL = ("explicit", "tied", "looped", "paraformer")


@pytest.fixture(scope="module")
def task():
    return make_task("text")


@pytest.fixture
def build(task):
    rows = known("text", task)
    return lambda name, size=32: rows[name].build(size).eval()


def decoded(part):
    """The characters of the windows in their order, and the last one's next."""
    inputs, targets = part.tensors
    return "".join("\0" if code == 0 else ALPHABET[code - 1] for code in [*inputs.flatten().tolist(), targets[-1, -1]])


def test_windows_are_those_of_a_loop():
    text = "The quick brown fox jumps over the lazy dög."
    inputs, targets = windows(text, length=7).tensors
    assert inputs.shape == targets.shape == (6, 7)
    for row in range(6):
        for place in range(7):
            here = text[7 * row + place]
            assert inputs[row, place] == (1 + ALPHABET.index(here) if here in ALPHABET else 0)
            assert targets[row, place] == encoded(text)[7 * row + place + 1]
    assert len(windows(text[:42], length=7)) == 5  # the last window's last character has no next one


def test_the_alphabet_is_printable_and_everything_else_is_one_character():
    assert len(set(ALPHABET)) == len(ALPHABET) == 96
    assert "\n" in ALPHABET
    assert all(letter.isascii() and (letter.isprintable() or letter == "\n") for letter in ALPHABET)
    assert encoded("ß\t…\0").tolist() == [0, 0, 0, 0]
    assert sorted(encoded(ALPHABET).tolist()) == list(range(1, 97))


def test_a_paragraph_that_comes_again_is_left_out():
    topics = {"b": "one\n\ntwo  lines\nhere\n\n\n\nthree", "a": "two lines here\n\n\n\nfour"}
    assert distinct_paragraphs(topics) == ["two lines here", "four", "one", "three"]


def test_the_parts_follow_each_other_and_share_no_paragraph(task):
    train, validation, test = map(decoded, (task.train, task.validation, task.test))
    assert 7 < len(train) / len(test) < 9
    assert len(validation) / len(test) == pytest.approx(1, abs=0.1)
    parts = [{" ".join(paragraph.split()) for paragraph in train.split("\n\n")}]
    for part in (validation, test):
        again = {" ".join(paragraph.split()) for paragraph in part.split("\n\n")[1:-1]}  # the ends are cut
        assert len(again) > 20
        assert not any(again & earlier for earlier in parts)
        parts.append(again)
    assert task.train.tensors[0].shape[1] == LENGTH
    assert task.goal.characters == 97


def test_a_python_without_the_text_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="the task text needs pydoc_data"):
        make_task("text")


def test_the_score_is_the_mean_of_all_characters_in_bits():
    goal = NextCharacter(5)
    metric, total, count = goal.metric(), 0.0, 0
    for rows in (3, 1):
        outputs, targets = torch.randn(rows, 4, 5), torch.randint(5, (rows, 4))
        metric.update(outputs, targets)
        for row, place in [(row, place) for row in range(rows) for place in range(4)]:
            probabilities = outputs[row, place].softmax(dim=0)
            total, count = total - math.log2(probabilities[targets[row, place]]), count + 1
    assert float(metric.compute()) == pytest.approx(total / count, rel=1e-5)
    perplexity = Perplexity()
    perplexity.update(outputs, targets)
    assert float(goal.loss(outputs, targets)) == pytest.approx(math.log(float(perplexity.compute())), rel=1e-5)
    assert not goal.higher_is_better
    assert goal.heading == "bits per character"


def test_an_unlikely_character_costs_many_bits_not_infinitely_many():
    metric = NextCharacter(2).metric()
    metric.update(torch.tensor([[[0.0, 300.0]]]), torch.tensor([[0]]))
    assert float(metric.compute()) == pytest.approx(300 / math.log(2))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((3, 4), 5), "characters numbered from 5 to 5, not from 0 to 4"),
        (torch.full((3, 4), -1), "characters numbered from -1 to -1, not from 0 to 4"),
        (torch.zeros(3, 4), r"targets of torch.float32 in shape \(3, 4\), not torch.int64"),
        (torch.zeros(3, dtype=torch.int64), r"in shape \(3,\), not torch.int64 in \(rows, length\)"),
    ],
)
def test_targets_that_are_no_characters_are_refused(targets, message):
    data = TensorDataset(torch.zeros(3, 4, dtype=torch.int64), targets)
    with pytest.raises(ValueError, match=message):
        Task("mine", data, data, goal=NextCharacter(5))


def test_windows_that_do_not_fit_are_refused(build):
    for windows_ in (torch.zeros(2, LENGTH + 1, dtype=torch.int64), torch.zeros(LENGTH, dtype=torch.int64)):
        with pytest.raises(ValueError, match=rf"\(batch, at most {LENGTH}\) expected"):
            build("explicit")(windows_)


def test_another_goal_is_refused():
    from experiments.contestants.text import language_models

    with pytest.raises(InputError, match="task digits: language models need the goal NextCharacter"):
        language_models(digits())


@pytest.mark.parametrize("name", NAMES)
def test_no_place_sees_a_later_one(name, build, task):
    network = build(name).double()
    for layer in network.modules():
        if isinstance(layer, Equilibrium):
            layer.rtol, layer.max_steps = 1e-11, 400
    inputs, _ = task.sample(4)
    before = network(inputs)
    assert before.shape == (4, LENGTH, task.goal.characters)
    for place in (0, 1, 13, LENGTH - 1):
        changed = inputs.clone()
        changed[:, place:] = (changed[:, place:] + 7) % task.goal.characters
        difference = (network(changed) - before).abs().amax(dim=(0, 2))
        assert (difference[:place] < (1e-12 if name in EXACTLY_CAUSAL else 1e-8)).all()
        assert difference[place] > 1e-3
    torch.testing.assert_close(network(inputs[:, :9]), before[:, :9], rtol=0, atol=1e-8)


def test_at_its_own_tolerance_the_equilibrium_knows_little_of_later_characters(build, task):
    network, (inputs, _) = build("deq"), task.sample(16)
    before, changed = network(inputs), inputs.clone()
    changed[:, 16:] = 1
    after = network(changed)
    assert (after - before)[:, :16].norm() < 1e-3 * (after - before)[:, 16:].norm()


def test_the_explicit_network_is_pre_norm_blocks_one_after_the_other(build, task):
    network = build("explicit").double()
    inputs, _ = task.sample(2)
    embedding, body, norm, head = network
    z = embedding.characters.weight[inputs] + embedding.places
    later = torch.full((LENGTH, LENGTH), -math.inf, dtype=torch.float64).triu(1)
    for transform in body.transforms:
        attention, tokens = transform.attention, transform.norm(z)
        packed = tokens @ attention.in_proj_weight.T + attention.in_proj_bias
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + later).softmax(dim=-1)
        z = z + attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
        z = z + transform.mlp(z)
    torch.testing.assert_close(network(inputs), head(norm(z)))


def test_tied_is_one_block_and_the_equilibrium_is_that_of_the_looped_cell(build, task):
    tied = build("tied")[1]
    assert len({id(transform) for transform in tied.transforms}) == 1
    looped, equilibrium = build("looped"), build("deq")
    equilibrium.load_state_dict(looped.state_dict())
    x = looped[0](task.sample(4)[0])
    torch.testing.assert_close(equilibrium[1](x), looped[1](x, steps=60), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("terms", ["parameters", "flops"])
def test_networks_match_on_either_terms(terms, task):
    failures = Failures()
    sizes = matched_sizes(known("text", task), list(NAMES), TERMS[terms], task, failures)
    assert sorted(sizes) == sorted(NAMES)
    assert not failures.found


@pytest.mark.usefixtures("latency_of_one_row")
def test_a_run_has_bits_evaluations_and_no_tolerance_where_there_is_none(tmp_path, capsys):
    arguments = ["--models", "looped,deq", "--no-search", "--epochs", "2", "--seeds", "2", "--rows", "64"]
    assert main(["compare", "text", *arguments, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "bits per character" in shown
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert not results["failures"]
    looped, deq = (results["models"][name]["runs"][0] for name in ("looped", "deq"))
    assert looped["converged"] is None
    assert looped["forward_evaluations"] == 8
    assert deq["converged"] > 0.9
    assert 7 <= deq["forward_evaluations"] <= 65
    for run in (looped, deq):
        assert 0 < run["score"] < 20
    assert "converged" not in looped["curves"][0]
    assert deq["curves"][0]["converged"] > 0.9
    (line,) = [line for line in shown.splitlines() if line.strip().startswith("looped")]
    assert " 8.0 / 0.0 " in line
    assert "–" in line
