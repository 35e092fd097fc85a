"""Pictures in folders: the loaders, the augmentation and the whole training path, on small folders written here."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import experiments.tasks.pictures as pictures
from experiments.cli import main
from experiments.commands import arguments
from experiments.commands.options import parser
from experiments.contestants.matching import matched_size
from experiments.contestants.own import known
from experiments.contestants.terms import TERMS, parameters
from experiments.tasks.goals import Classification
from experiments.tasks.make import make_task
from experiments.tasks.task import Source

RECIPES = sorted(path.stem for path in arguments.RECIPES.glob("*.txt"))


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder in CIFAR-10's format with 12 pictures a batch; the checksums are those of the real one."""
    folder, random = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (12, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(12)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    monkeypatch.setattr(pictures, "WORKERS", 0)
    return tmp_path


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders of pictures as ImageNet's, three classes."""
    random = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for label in "abc":
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    monkeypatch.setattr(pictures, "WORKERS", 0)
    return tmp_path


@pytest.fixture
def grey(tmp_path):
    """A folder in the format of MNIST and Fashion-MNIST, 40 pictures for training and 20 for testing."""
    random = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        for part, count in (("train", 40), ("t10k", 20)):
            pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(
                struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
            )
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return tmp_path


@pytest.mark.parametrize(("name", "mean", "deviation"), [("mnist", 0.1307, 0.3081), ("fashion", 0.2860, 0.3530)])
def test_grey_pictures_are_read_and_normalised(name, mean, deviation, grey):
    task = make_task(name, Source(str(grey)))
    assert (len(task.train), len(task.test)) == (40, 20)
    assert task.goal == Classification(10)
    folder = grey / ("MNIST" if name == "mnist" else "FashionMNIST") / "raw"
    pixels = np.frombuffer((folder / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(20, 28, 28)
    picture, label = task.test[3]
    assert picture.shape == (1, 28, 28)
    assert int(label) == 3
    np.testing.assert_allclose(picture[0].numpy(), (pixels[3] / 255 - mean) / deviation, rtol=1e-5)


def test_networks_for_grey_pictures_have_equal_parameters(grey):
    task = make_task("mnist", Source(str(grey)))
    contestants = known("mnist", task)
    inputs = task.sample(2)[0]
    for name in ("pgd-deq", "mondeq", "densenet", "paraformer", "paraformer-as-coded", "paraformer-as-coded-vit"):
        row = contestants[name]
        base = contestants[row.baseline]
        target = parameters(base.build(base.size))
        size = matched_size(name, row.build, target, TERMS["parameters"].cost, inputs, TERMS["parameters"].tolerance)
        with torch.no_grad():
            assert row.build(size).eval()(inputs).shape == (2, 10), name


@pytest.mark.usefixtures("latency_of_one_row")
def test_a_training_on_some_rows_of_grey_pictures_runs_from_end_to_end(grey, tmp_path):
    arguments = ["--rows", "16", "--epochs", "1", "--seeds", "1", "--data", str(grey), "--models", "mondeq,vit"]
    assert main(["compare", "fashion", *arguments, "--match", "shape", "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["models"]) == {"mondeq", "vit"}
    assert "16 samples per epoch for training,\n16 for testing" in (tmp_path / "run" / "report.html").read_text()
    assert len(results["models"]["mondeq"]["searched"]) >= 3


def test_more_rows_than_there_are_is_one_line(grey, capsys):
    assert main(["compare", "mnist", "--data", str(grey), "--rows", "41"]) == 2
    assert capsys.readouterr().err == "implicit: --rows 41: the training part of mnist has only 40\n"


@pytest.mark.parametrize("content", [b"", b"junk", struct.pack(">IIII", 2051, 40, 28, 28)])
def test_files_of_grey_pictures_that_are_cut_short_are_one_line(content, grey, capsys):
    (grey / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    assert main(["compare", "mnist", "--data", str(grey)]) == 2
    error = capsys.readouterr().err
    assert f"--data {grey} holds no complete MNIST (" in error
    assert len(error.splitlines()) == 1


def test_cifar_is_read_and_augmented(cifar):
    task = make_task("cifar10", Source(str(cifar)))
    assert len(task.train) == 60
    assert len(task.test) == 12
    assert task.goal == Classification(10, 0.1)
    first, again = task.train[0][0], task.train[0][0]
    assert first.shape == (3, 32, 32)
    assert not torch.equal(first, again)  # augmented anew
    assert torch.equal(task.test[0][0], task.test[0][0])
    inputs, shares = task.collate([task.train[i] for i in range(8)])
    assert inputs.shape == (8, 3, 32, 32)
    assert shares.shape == (8, 10)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(8))
    assert ((shares > 0).sum(dim=1) > 1).any()  # mixed


def test_loader_processes_take_the_collation(cifar):
    task = make_task("cifar10", Source(str(cifar)))
    loader = torch.utils.data.DataLoader(
        task.train, 8, collate_fn=pickle.loads(pickle.dumps(task.collate)), num_workers=1
    )
    assert next(iter(loader))[1].shape == (8, 10)


@pytest.mark.usefixtures("latency_of_one_row")
def test_a_training_on_cifar_runs_from_end_to_end(cifar, tmp_path):
    models = "gd,pgd-deq-jfb"
    arguments = ["--models", models, "--match", "shape", "--epochs", "1", "--seeds", "1", "--data", str(cifar)]
    assert main(["compare", "cifar10", "--no-search", *arguments, "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["models"]) == set(models.split(","))
    for model in results["models"].values():
        assert 0 <= model["runs"][0]["score"] <= 1
        assert "train_score" not in model["runs"][0]["curves"][0]  # mixed labels have no right answer
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_averaged_weights_are_what_is_tested(cifar, tmp_path):
    from dataclasses import replace

    from experiments.measuring.measure import score
    from experiments.training.train import train

    task = replace(make_task("cifar10", Source(str(cifar))), batch=20, learning_rate=0.05, averaging=0.2)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    seen = []

    class Watch(torch.optim.AdamW):
        def step(self, closure=None):
            loss = super().step(closure)
            seen.append(self.param_groups[0]["params"][0].detach().clone())
            return loss

    watched = replace(task, optimizer=Watch)
    training = train(network, watched, epochs=1, seed=0, device="cpu", folder=tmp_path, name="linear")
    average = seen[0]
    for weight, share in zip(seen[1:], (2 / 11, 0.2), strict=True):  # warms up to the decay
        average = share * average + (1 - share) * weight
    torch.testing.assert_close(network[1].weight, average)
    assert score(network.eval(), task, "cpu") == pytest.approx(training.curves[-1]["test_score"])


def test_averaging_keeps_short_runs_and_spectral_norms(tmp_path):
    from dataclasses import replace

    from torch.nn.utils import parametrize

    from experiments.training.train import train

    task = replace(make_task("digits"), averaging=pictures.AVERAGING)
    torch.manual_seed(0)
    network = known("digits", task)["pgd-implicit"].build(16)
    first = network[0].weight.detach().clone()
    train(network, task, epochs=2, seed=0, device="cpu", folder=tmp_path, name="pgd-implicit")
    checkpoint = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=False)
    torch.testing.assert_close(checkpoint["state_dict"]["network.0.weight"], network[0].weight.detach())
    last = checkpoint["current_model_state"]["network.0.weight"]
    assert 0 < (network[0].weight - last).norm() < 0.3 * (last - first).norm()
    normalised = [part for part in network.eval().modules() if parametrize.is_parametrized(part)]
    assert normalised
    for part in normalised:
        norm = torch.linalg.matrix_norm(part.weight.detach().flatten(1), 2)
        assert norm.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.usefixtures("latency_of_one_row")
def test_a_training_on_folders_runs_from_end_to_end(folders, tmp_path):
    arguments = ["--models", "vit,gd-vit", "--epochs", "1", "--seeds", "1", "--data", str(folders)]
    assert main(["compare", "imagenet", "--no-search", *arguments, "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    original, form = results["models"]["vit"], results["models"]["gd-vit"]
    assert form["parameters"] == pytest.approx(original["parameters"], rel=0.06)
    assert form["difference"]["mean"] == form["score_mean"] - original["score_mean"]
    assert original["difference"] is None
    assert f"--data {folders}" in results["command"]  # as it was typed


def test_corrupt_data_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"junk")
    assert main(["compare", "cifar10", "--data", "data"]) == 2
    error = capsys.readouterr().err
    assert "--data data holds no complete CIFAR10" in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_failed_download_does_not_advise_one(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        folder.mkdir()  # as torchvision does
        raise OSError("no route to host")

    folder = tmp_path / "new"
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    assert main(["compare", "cifar10", "--data", str(folder), "--download"]) == 2
    error = capsys.readouterr().err
    assert error == f"implicit: CIFAR10 could not be fetched into --data {folder}: no route to host\n"
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"compare digits\n--out it's\n", b"\xff\xfe\x00", b"@recipe.txt\n"])
def test_an_unreadable_recipe_is_one_line(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.txt").write_bytes(content)
    try:
        code = main(["@recipe.txt"])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_folders_of_pictures_are_read(folders):
    task = make_task("imagenet", Source(str(folders)))
    assert task.goal == Classification(3, 0.1)
    assert len(task.train) == 9
    assert task.test[0][0].shape == task.train[0][0].shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("cifar10", [], "the task cifar10 needs its data: pass --data DIR"),
        ("cifar100", ["--download"], "the task cifar100 needs its data: pass --data DIR"),
        ("cifar10", ["--data", "nowhere"], "--data nowhere holds no complete CIFAR10"),
        ("mnist", [], "the task mnist needs its data: pass --data DIR"),
        ("fashion", ["--data", "nowhere"], "--data nowhere holds no complete FashionMNIST"),
        ("imagenet", ["--data", "nowhere"], "--data nowhere holds no train/CLASS and val/CLASS pictures"),
        ("imagenet", ["--data", ".", "--download"], "the task imagenet cannot be downloaded"),
    ],
)
def test_missing_data_are_one_line_and_leave_nothing(task, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", task, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_classes_must_agree(folders, capsys):
    (folders / "train" / "d").mkdir()
    (folders / "train" / "a" / "0.png").rename(folders / "train" / "d" / "0.png")
    assert main(["compare", "imagenet", "--data", str(folders)]) == 2
    assert "train and val have different classes" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_names_what_there_is(recipe, cifar, folders, grey):
    options = parser().parse_args([arguments.shipped(f"@{recipe}"), "--data", "DIR"])
    task = make_task("cifar10" if options.task == "cifar100" else options.task, Source(str(folders)))
    contestants = known(options.task, task)
    names = options.models.split(",")
    for name in names:
        assert name in contestants, name
        assert contestants[name].baseline in names, name


def test_recipes_are_there_and_a_missing_one_is_named(capsys):
    assert len(RECIPES) >= 5
    with pytest.raises(SystemExit) as stop:
        main(["@no-such-recipe"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "no-such-recipe" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["gd-wide", "fista-implicit-deep", "apg2-convnext", "apg2-vit", "mdeq", "mondeq", "paraformer"]
)
def test_forms_for_cifar_answer(name, cifar):
    contestant = known("cifar10", make_task("cifar10", Source(str(cifar))))[name]
    with torch.no_grad():
        assert contestant.build(8).eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_forms_for_imagenet_answer(folders):
    rows = known("imagenet", make_task("imagenet", Source(str(folders))))
    with torch.no_grad():
        for name in ("apg2-vit", "gd-convnext"):
            assert rows[name].build(1).eval()(torch.rand(1, 3, 224, 224)).shape == (1, 3)


def test_each_form_has_the_size_of_its_baseline(cifar):
    contestants = known("cifar10", make_task("cifar10", Source(str(cifar))))
    terms, inputs = TERMS["parameters"], torch.rand(1, 3, 32, 32)
    for name, baseline in (
        ("dense-wide", "gd-wide"),
        ("pgd-implicit-wide", "gd-wide"),
        ("pdhg-deep", "gd-deep"),
        ("apg2-convnext", "convnext"),
        ("ladmm-vit", "vit"),
    ):
        contestant = contestants[name]
        assert contestant.baseline == baseline
        budget = parameters(contestants[baseline].build(contestant.size))
        size = matched_size("it", contestant.build, budget, terms.cost, inputs, terms.tolerance)
        assert parameters(contestant.build(size)) == pytest.approx(budget, rel=terms.tolerance)
