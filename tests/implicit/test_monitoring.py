"""What a monitor samples in training, and that it is neither paid for nor felt between samples."""

import csv
import math
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from implicit import Equilibrium, ImplicitGradient, NeumannGradient, record
from implicit.calls import _listeners
from implicit.diagnostics import diagnose, gradient_audit, spectral_radius
from implicit.lightning_monitor import MonitorCallback
from implicit.logs import current_logs
from implicit.monitoring import Monitor, MonitorWarning, read_samples


class Cell(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.inner, self.inject = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + self.inject(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.drop, self.norm = nn.Linear(6, 6), nn.Dropout(0.3), nn.BatchNorm1d(6)
        self.first, self.second = Equilibrium(Cell()), Equilibrium(Cell(), gradient=NeumannGradient(steps=2))

    def forward(self, x):
        return self.second(self.first(self.norm(self.drop(self.stem(x)))))


def trained(monitor=None, steps=7):
    torch.manual_seed(3)
    model = Model()
    if monitor is not None:
        monitor = monitor(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(12, 6)
        if monitor is None:
            model(x).square().mean().backward()
        else:
            with monitor:
                model(x).square().mean().backward()
        optimizer.step()
    return model, monitor


def test_samples_are_of_each_layer_every_so_many_steps():
    _, monitor = trained(lambda model: Monitor(model, every=3))
    assert [(sample.step, sample.layer) for sample in monitor.samples] == [
        (step, layer) for step in (0, 3, 6) for layer in ("first", "second")
    ]
    for sample in monitor.samples:
        assert sample.converged == 1
        assert sample.residual <= 1e-4
        assert sample.evaluations > 2
        assert 0 < sample.spectral_radius < 1
    first, second = monitor.samples[:2]
    assert first.gradient_cosine > 0.9999
    assert 0.5 < second.gradient_cosine < 0.9999
    assert first.backward_evaluations > 2
    assert second.backward_evaluations == 0  # a Neumann series solves nothing


def test_figures_are_those_of_the_diagnostics():
    layer, x = Equilibrium(Cell()), torch.randn(5, 6)
    with Monitor(layer) as monitor:
        layer(x).sum().backward()
    (sample,) = monitor.samples
    assert sample.layer == "Equilibrium(Cell)"
    solution = layer.solve(x)
    assert sample.evaluations == pytest.approx(solution.evaluations.double().mean().item())
    assert sample.residual == solution.residual.max().item()
    radius = spectral_radius(layer.cell, solution.value, (x,)).max().item()
    assert sample.spectral_radius == pytest.approx(radius)
    assert sample.gradient_cosine == pytest.approx(gradient_audit(layer, x).cosine)


def test_a_sample_has_its_layers_own_name_within_a_log_of_a_larger_model():
    layer = Equilibrium(Cell())
    model = nn.Sequential(nn.Linear(6, 6), layer)
    with Monitor(layer) as monitor, record(model) as log:
        model(torch.randn(5, 6)).sum().backward()
    assert log.forward[0].name == "1"
    assert monitor.samples[0].layer == "Equilibrium(Cell)"
    assert monitor.samples[0].evaluations > 1


def test_training_goes_on_as_it_would_have():
    plain, _ = trained()
    watched, _ = trained(lambda model: Monitor(model, every=2, rows=3))
    for one, other in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_between_samples_nothing_is_recorded_and_nothing_hangs_on_the_model():
    model = Model()
    monitor = Monitor(model, every=5)
    for step in range(10):
        with monitor:
            sampled = step % 5 == 0
            assert len(current_logs()) == len(_listeners.get()) == int(sampled)
            model(torch.randn(4, 6)).sum().backward()
        assert not current_logs()
        assert not _listeners.get()


def test_a_file_is_written_read_and_appended_to(tmp_path):
    path = tmp_path / "monitor.csv"
    _, monitor = trained(lambda model: Monitor(model, every=3, path=path))
    assert read_samples(path) == monitor.samples
    _, more = trained(lambda model: Monitor(model, every=3, path=path), steps=1)
    assert read_samples(path) == monitor.samples + more.samples
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"foreign.csv was not written by a Monitor"):
        Monitor(Model(), path=foreign)


def test_a_line_that_a_killed_run_left_half_written_is_named(tmp_path):
    path = tmp_path / "monitor.csv"
    trained(lambda model: Monitor(model, every=3, path=path), steps=1)
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    with pytest.raises(ValueError, match=r"monitor.csv, line 3 is not a whole sample"):
        read_samples(path)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_layers_are_watched_in_evaluation_too(mode):
    layer, x = Equilibrium(Cell()), torch.randn(5, 6)
    with mode(), Monitor(layer) as monitor:
        layer(x)
    with mode():
        assert not diagnose(layer, x)
    (sample,) = monitor.samples
    assert sample.gradient_cosine > 0.9999
    assert sample.backward_evaluations == 0


def test_empty_batches_and_models_without_layers_have_nothing_to_sample():
    layer = Equilibrium(Cell())
    with Monitor(layer) as monitor:
        layer(torch.randn(0, 6)).sum().backward()
    assert monitor.samples[0].converged == 1
    assert math.isnan(monitor.samples[0].spectral_radius)
    with pytest.warns(MonitorWarning, match="no call of .* at step 0"), Monitor(nn.Linear(2, 2)) as monitor:
        pass
    assert not monitor.samples


def test_a_writer_gets_curves():
    points = []

    class Writer:
        def add_scalar(self, tag, value, step):
            points.append((tag, step))

    trained(lambda model: Monitor(model, every=5, writer=Writer()))
    assert ("implicit/first/spectral_radius", 0) in points
    assert ("implicit/second/gradient_cosine", 5) in points
    assert len(points) == 2 * 2 * 6


def test_a_step_that_failed_is_no_sample_and_leaves_nothing_behind():
    model = Model()
    monitor = Monitor(model, every=1)
    with pytest.raises(RuntimeError, match="on purpose"), monitor:
        raise RuntimeError("on purpose")
    assert not monitor.samples
    assert not _listeners.get()
    with monitor:
        model(torch.randn(4, 6))
        with pytest.raises(RuntimeError, match="cannot be nested"), monitor:
            pass
    assert len(monitor.samples) == 2


def test_what_has_no_exact_gradient_or_shares_inputs_is_sampled_all_the_same():
    class Shared(nn.Module):
        def forward(self, z, x, w):
            return 0.5 * torch.tanh(z @ w) + x

    layer = Equilibrium(Shared(), compact=False)
    with Monitor(layer) as monitor:
        layer(torch.randn(20, 3), torch.eye(3))
    (sample,) = monitor.samples
    assert sample.converged == 1
    assert sample.gradient_cosine > 0.9999
    assert 0 < sample.spectral_radius < 0.5
    wild = Equilibrium(Cell())
    with torch.no_grad():
        wild.cell.inner.weight.mul_(float("nan"))
    monitor = Monitor(wild, every=1)
    for step in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with monitor:
                wild(torch.randn(4, 6))
        told = [str(warning.message) for warning in caught if warning.category is MonitorWarning]
        assert len(told) == (0 if step else 2)  # each missing figure once
        if not step:
            assert "cannot compute the spectral radius (the Jacobian is not finite at any of the solutions" in told[0]
            assert "cannot compute the gradient cosine (the exact gradient cannot be computed" in told[1]
        assert monitor.samples[step].converged == 0
        assert math.isnan(monitor.samples[step].gradient_cosine)
        assert math.isnan(monitor.samples[step].spectral_radius)


@pytest.mark.parametrize("option", ["every", "rows"])
def test_bad_options_are_named(option):
    with pytest.raises(ValueError, match=f"{option}=0 must be an integer of at least 1"):
        Monitor(Model(), **{option: 0})
    with pytest.raises(TypeError, match="model is a function"):
        Monitor(lambda: None)


class Task(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = Model()

    def training_step(self, batch, index):
        return self.model(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_under_lightning_it_is_a_callback_and_logs_with_the_rest(tmp_path):
    loader = DataLoader(TensorDataset(torch.randn(40, 6)), 8)
    callback, logger = MonitorCallback(every=4, rows=2), CSVLogger(tmp_path)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Task(), loader)
    assert [sample.step for sample in callback.samples] == [0, 0, 4, 4, 8, 8]
    assert {sample.layer for sample in callback.samples} == {"model.first", "model.second"}
    assert all(sample.backward_evaluations > 0 for sample in callback.samples if sample.layer == "model.first")
    with open(f"{logger.log_dir}/metrics.csv", newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line.get("implicit/model.first/residual")]
    assert len(lines) == 3


def test_a_figure_that_cannot_be_found_is_said_and_training_goes_on():
    weight = torch.eye(6) * 0.5  # captured: it does not follow the copy into float64

    class Captures(nn.Module):
        def forward(self, z, x):
            return torch.tanh(z @ weight + x)

    layer, x = Equilibrium(Captures()), torch.randn(5, 6, requires_grad=True)
    with pytest.warns(MonitorWarning, match=r"cannot compute the gradient cosine .*float64"), Monitor(layer) as monitor:
        layer(x).sum().backward()
    assert x.grad is not None
    (sample,) = monitor.samples
    assert math.isnan(sample.gradient_cosine)
    assert 0 < sample.spectral_radius <= 0.5
    assert sample.evaluations > 1


def test_layers_are_sampled_under_the_autocast_of_their_call_and_from_starts_of_one_dtype():
    torch.manual_seed(0)
    half = Equilibrium(Cell(), rtol=1e-2, gradient=ImplicitGradient(rtol=1e-2))  # what bfloat16 resolves
    model = nn.Sequential(nn.Linear(6, 6), half)
    with Monitor(model) as monitor:
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            loss = model(torch.randn(5, 6)).float().sum()
        loss.backward()
    assert monitor.samples[0].gradient_cosine > 0.99
    layer = Equilibrium(Cell(), initial=lambda x: torch.zeros(len(x), 6))
    with Monitor(layer) as monitor:
        layer(torch.randn(5, 6)).sum().backward()
    assert monitor.samples[0].gradient_cosine > 0.9999


def test_calls_through_iterates_and_with_their_own_steps_are_seen_as_they_ran():
    layer, x = Equilibrium(Cell()), torch.randn(5, 6)
    with Monitor(layer) as monitor:
        *_, z = layer.iterates(x, at=(2,))
        z.sum().backward()
    assert monitor.samples[0].gradient_cosine > 0.9999

    class Short(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, max_steps=2)

    assert [finding.name for finding in diagnose(Short(), x)] == ["steps ran out"]


def test_a_log_around_a_sample_holds_the_steps_own_solves_alone():
    layer, x = Equilibrium(Cell()), torch.randn(5, 6)
    with record() as log, Monitor(layer):
        layer(x).sum().backward()
    assert (len(log.forward), len(log.backward)) == (1, 1)


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_batches_that_another_skips_and_mixed_precision_are_no_obstacle_under_lightning(tmp_path):
    class Skipping(Task):
        def on_train_batch_start(self, batch, index):
            return -1 if index == 2 else None

    callback = MonitorCallback(every=1, rows=2)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Skipping(), DataLoader(TensorDataset(torch.randn(40, 6)), 8))
    assert len({sample.step for sample in callback.samples}) == 4
    assert not current_logs()  # the last step was begun and never ended
    with pytest.raises(ValueError, match="every=0"):
        MonitorCallback(every=0)
