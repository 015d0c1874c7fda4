"""Training learns, is reproducible, survives kill -9 to the bit, and fails early in one line."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from npr_model import checkpoints
from npr_model.datasets.folders import DatasetError
from npr_model.errors import InputError
from npr_model.evaluation.metrics import Metrics
from npr_model.inference.fused import InferenceDetector
from npr_model.training import loop
from npr_model.training.config import TrainConfig, load_run
from npr_model.training.distributed import Process
from npr_model.training.loop import Callbacks
from npr_model.training.trainer import Trainer
from tests.model.conftest import make_detector, noise

CPU = Process(torch.device("cpu"))


def small(*folders: Path, **values) -> TrainConfig:
    options = {"batch_size": 8, "crop_size": 24, "workers": 0, "device": "cpu", "epochs": 2}
    return TrainConfig(folders=tuple(map(str, folders)), **{**options, **values})


def history(folder: Path) -> list[dict]:
    """The epochs without the times they took."""
    epochs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in e.items() if name not in ("rate", "waiting")} for e in epochs]


def test_learns_and_writes_loadable_checkpoints(labelled, tmp_path):
    root = labelled({"train/0_real": 12, "train/1_fake": 8, "held/gan/1_fake": 4, "held/photos/0_real": 4})
    config = small(root / "train", validation=(str(root / "held"),), epochs=6, learning_rate=1e-3, view="crop:24")
    config = replace(config, name="tiny", training_data="noise", licence="none")
    plans, steps, epochs = [], [], []
    callbacks = Callbacks(on_start=plans.append, on_step=steps.append, on_epoch=epochs.append)
    chosen = loop.train(config, tmp_path / "run", callbacks=callbacks)
    assert chosen == tmp_path / "run" / "best.safetensors"
    assert (plans[0].steps, plans[0].first_step) == (3, 0)
    assert (len(plans[0].images.samples), len(plans[0].images.validation)) == (20, 8)
    assert [step.number for step in steps] == list(range(1, 19)) and all(step.images == 8 for step in steps)
    for number, epoch in enumerate(epochs):
        losses = [step.loss for step in steps[3 * number : 3 * number + 3]]
        assert epoch.loss == pytest.approx(sum(losses) / 3)
        assert 0 < epoch.waiting < 1 and epoch.rate > 0
    assert epochs[-1].loss < 0.5 * epochs[0].loss and epochs[-1].accuracy > 0.9
    assert max(epoch.score for epoch in epochs) == 1.0
    assert [line["loss"] for line in history(tmp_path / "run")] == [epoch.loss for epoch in epochs]
    for name in ("best", "last"):
        loaded = checkpoints.load(tmp_path / "run" / f"{name}.safetensors").metadata
        assert (loaded.name, loaded.training_data, loaded.licence, str(loaded.view)) == (
            "tiny",
            "noise",
            "none",
            "crop:24",
        )
        assert loaded.decoder.startswith("pillow ") and loaded.training == config.recipe()


def test_reproducible_and_independent_of_workers(labelled, tmp_path):
    root = labelled({"0_real": 4, "1_fake": 4})
    for workers in (0, 2):
        config = small(root, batch_size=4, workers=workers, jpeg_probability=0.5, match_classes=True)
        assert loop.train(config, tmp_path / str(workers)).name == "last.safetensors"
    files = [(tmp_path / str(workers) / "last.safetensors").read_bytes() for workers in (0, 2)]
    assert files[0] == files[1] and history(tmp_path / "0") == history(tmp_path / "2")


def test_best_is_the_epoch_that_validates_best(labelled, tmp_path, monkeypatch):
    root = labelled({"train/0_real": 4, "train/1_fake": 4, "held/0_real": 2, "held/1_fake": 2})
    scores, evaluate = iter([0.5, 0.9, 0.9, 0.7]), loop.evaluate

    def scripted(*arguments):
        mean = Metrics(2, 2, 0.5, next(scores), 0.5, 0.5, 0.5, None)
        return replace(evaluate(*arguments), mean=mean)

    monkeypatch.setattr(loop, "evaluate", scripted)
    config, kept = small(root / "train", validation=(str(root / "held"),), epochs=4), []
    run = tmp_path / "run"
    callbacks = Callbacks(on_epoch=lambda epoch: kept.append((run / "last.safetensors").read_bytes()))
    loop.train(config, run, callbacks=callbacks)
    assert (run / "best.safetensors").read_bytes() == kept[1] != kept[3]


def test_starts_from_a_checkpoint(labelled, checkpoint, tmp_path):
    root = labelled({"0_real": 4, "1_fake": 4})
    config = small(root, start=str(checkpoint), learning_rate=1e-12, epochs=1)
    tuned = checkpoints.load(loop.train(config, tmp_path / "run"))
    start = checkpoints.load(checkpoint).model
    for (name, parameter), begun in zip(tuned.model.named_parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(parameter, begun, rtol=0, atol=1e-9, msg=name)
    assert not torch.equal(tuned.model.bn1.running_mean, start.bn1.running_mean)
    assert tuned.metadata.training["start"] == checkpoint.name
    with pytest.raises(InputError, match="has anchor 0, not 1: set anchor=0"):
        loop.train(small(root, start=str(checkpoint), anchor=1), tmp_path / "other")
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        loop.train(small(root, start=str(tmp_path / "gone.pth")), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_learns_from_a_teacher(labelled, checkpoint, tmp_path):
    """The agreement with a random teacher can only come from the teacher: the labels say nothing of its logits."""
    root, shares = labelled({"0_real": 8, "1_fake": 8}), {"labels": 0.0, "teacher": 1.0}
    teacher = checkpoints.load(checkpoint).model
    pixels = torch.stack([torch.from_numpy(noise(24, 24, seed)).permute(2, 0, 1) for seed in range(16)])
    differences = {}
    for name, share in shares.items():
        config = small(root, size="fast", teacher=str(checkpoint), distillation=share, epochs=12, learning_rate=3e-3)
        student = checkpoints.load(loop.train(config, tmp_path / name))
        assert student.model.size == "fast" and student.metadata.training["teacher"] == checkpoint.name
        with torch.no_grad():
            differences[name] = (student.model(pixels) - teacher(pixels)).abs().mean()
    assert differences["teacher"] < 0.5 * differences["labels"]


def test_a_student_begins_with_the_stem_of_its_teacher(checkpoint):
    trainer, teacher = Trainer(small(size="fast", teacher=str(checkpoint)), CPU), checkpoints.load(checkpoint).model
    assert torch.equal(trainer.network.conv1.weight, teacher.conv1.weight)
    assert torch.equal(trainer.network.bn1.running_var, teacher.bn1.running_var)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"grid_size": 3}, "has grid_size 2, not 3: use another teacher"), ({"anchor": 1}, "has anchor 0, not 1")],
)
def test_a_teacher_with_another_npr_is_refused(checkpoint, changes, message):
    with pytest.raises(InputError, match=message):
        Trainer(small(teacher=str(checkpoint), **changes), CPU)


def test_a_teacher_of_another_detector_is_refused():
    with pytest.raises(InputError, match="teacher clip-3 is of the detector ojha: only npr can teach"):
        Trainer(small(teacher="clip-3"), CPU)


def test_the_loss_against_a_teacher(checkpoint):
    """The cross entropy against its probability, and the squared error of its standardised features."""
    trainer, teacher = Trainer(small(size="fast", teacher=str(checkpoint)), CPU), checkpoints.load(checkpoint).model
    pixels, labels = pixels_and_labels(6)
    network, distillation = trainer.network, trainer.distillation
    distillation.teacher[0] = InferenceDetector(teacher, dtype=torch.float32)  # whatever this processor prefers
    with torch.no_grad():
        features = network.maps(pixels).mean((2, 3))
        wanted = teacher.maps(pixels).mean((2, 3))
        standard = (wanted - wanted.mean(0)) / (wanted.var(0, unbiased=False) + 1e-5).sqrt()
        logits, probability = network.fc1(features), teacher.fc1(wanted).sigmoid()
        error = (distillation.adapt(features) - standard).square().mean()
        entropy = -(probability * F.logsigmoid(logits) + (1 - probability) * F.logsigmoid(-logits)).mean()
        own = F.binary_cross_entropy_with_logits(logits, labels.float())
    network.train()
    loss = trainer.step(iter([(pixels, labels.float())]))
    assert loss.item() == pytest.approx(0.8 * (entropy + error).item() + 0.2 * own.item(), rel=1e-4)


def test_classes_choose_the_groups(labelled, tmp_path):
    root = labelled({"car/0_real": 2, "car/1_fake": 2, "cat/0_real": 3, "cat/1_fake": 3})
    samples = loop.find_images(small(root, classes=("cat",))).samples
    assert len(samples) == 6 and {sample.group for sample in samples} == {"cat"}
    with pytest.raises(DatasetError, match="the training folders have no class 'dog'; set classes to some of car, cat"):
        loop.find_images(small(root, classes=("cat", "dog")))


def pixels_and_labels(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.stack([torch.from_numpy(noise(24, 24, seed)).permute(2, 0, 1) for seed in range(count)])
    return pixels, torch.arange(count, dtype=torch.float64)[:, None] % 2


def test_the_running_average_is_what_a_checkpoint_stores():
    parts, decay = pixels_and_labels(), 0.75
    trainer = Trainer(small(average_decay=decay), CPU)
    trainer.network.double(), trainer.average.double()
    expected = None
    for _ in range(4):
        trainer.step(iter([parts]))
        now = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
        expected = {n: decay * expected[n] + (1 - decay) * now[n] for n in now} if expected else now
    stored = trainer.result.state_dict()
    for name in ("conv1.weight", "bn1.running_var", "layer2.3.conv3.weight", "fc1.bias"):
        torch.testing.assert_close(stored[name], expected[name], rtol=1e-12, atol=1e-12, msg=name)
        assert not torch.equal(stored[name], now[name])
    resumed = Trainer(small(average_decay=decay), CPU)
    resumed.load(trainer.state())
    assert torch.equal(resumed.result.state_dict()["fc1.bias"], stored["fc1.bias"].float())


def test_accumulation_equals_the_large_batch():
    """Each part repeats the batch's images, so that its batch-norm statistics are those of the whole batch."""
    pixels, labels = pixels_and_labels()
    doubled = torch.cat([pixels, pixels]), torch.cat([labels, labels])
    trained = []
    for accumulation, parts in ((1, [doubled]), (2, [(pixels, labels)] * 2)):
        trainer = Trainer(small(accumulation=accumulation), CPU)
        trainer.network.double()
        loss = trainer.step(iter(parts))
        trained.append((loss, trainer.totals.tolist(), dict(trainer.network.named_parameters())))
    assert trained[0][0].item() == pytest.approx(trained[1][0].item(), rel=1e-12)
    assert trained[0][1] == pytest.approx(trained[1][1]) and trained[0][1][2] == 8
    for name, parameter in trained[0][2].items():
        torch.testing.assert_close(trained[1][2][name], parameter, rtol=1e-6, atol=1e-9, msg=name)


def test_a_step_is_that_of_plain_pytorch():
    pixels, labels = pixels_and_labels()
    trainer = Trainer(small(), CPU)
    trainer.network.double()
    torch.manual_seed(100)
    network = checkpoints.Metadata().network().double().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.9, 0.999))
    for _ in range(2):
        expected = torch.nn.BCEWithLogitsLoss()(network(pixels), labels)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert trainer.step(iter([(pixels, labels)])).item() == pytest.approx(expected.item(), rel=1e-12)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(trainer.network.get_parameter(name), parameter, rtol=1e-7, atol=1e-9, msg=name)


def test_the_rate_decays():
    trainer, rates = Trainer(small(learning_rate=1.0, decay=0.9, decay_epochs=10), CPU), []
    for _ in range(30):
        rates.append(trainer.learning_rate)
        trainer.optimizer.step()
        trainer.totals += 1
        assert trainer.end_epoch() == (1, 1)
    assert rates == pytest.approx([1.0] * 10 + [0.9] * 10 + [0.81] * 10)


def test_bfloat16_autocasts_and_keeps_float32_weights():
    pixels, labels = pixels_and_labels()
    losses = {}
    for dtype in ("float32", "bfloat16"):
        trainer = Trainer(small(dtype=dtype), CPU)
        losses[dtype] = [trainer.step(iter([(pixels, labels.float())])).item() for _ in range(2)]
        assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]


def test_float16_scales_the_loss(cuda):
    pixels, labels = (tensor.to(cuda) for tensor in pixels_and_labels())
    trainer = Trainer(small(dtype="float16", device="cuda"), Process(cuda))
    before = trainer.network.fc1.weight.detach().clone()
    losses = [trainer.step(iter([(pixels, labels.float())])).item() for _ in range(30)]
    assert trainer.scaler.get_scale() > 1 and losses[-1] < losses[0]
    assert not torch.equal(before, trainer.network.fc1.weight)


class Killed(Exception):
    """Raised to end a run between two steps."""


def killed_after(number: int):
    def on_step(step: loop.Step) -> None:
        if step.number == number:
            raise Killed

    return on_step


def test_a_resumed_run_has_the_losses_and_weights_of_an_unbroken_one(labelled, checkpoint, tmp_path):
    """The run ends before its first save, within an epoch, or between epochs; each has three steps."""
    root = labelled({"train/0_real": 12, "train/1_fake": 12, "held/0_real": 2, "held/1_fake": 2})
    values = {"epochs": 3, "save_steps": 2, "decay_epochs": 2, "average_decay": 0.9, "balance_groups": 0.5}
    values |= {"size": "fast", "teacher": str(checkpoint)}
    config = small(root / "train", validation=(str(root / "held"),), **values)
    unbroken = []
    loop.train(config, tmp_path / "unbroken", callbacks=Callbacks(on_step=unbroken.append))
    # Saved every second step and after every third; a step is reported when the next one is done.
    for stop, first_step in {1: 0, 6: 5, 7: 6}.items():
        run, resumed, plans = tmp_path / f"stopped at {stop}", [], []
        with pytest.raises(Killed):
            loop.train(config, run, callbacks=Callbacks(on_step=killed_after(stop)))
        (run / ".state.pt.1.partial").write_bytes(b"half")
        loop.train(config, run, resume=True, callbacks=Callbacks(on_start=plans.append, on_step=resumed.append))
        assert plans[0].first_step == first_step, stop
        assert [step.loss for step in resumed] == [step.loss for step in unbroken[first_step:]], stop
        assert not list(run.glob(".*")), stop
        assert history(run) == history(tmp_path / "unbroken") and len(history(run)) == 3, stop
        for name in ("best.safetensors", "last.safetensors"):
            assert (run / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), stop


def test_a_run_that_was_stopped_before_its_first_save_still_starts_from_its_checkpoint(labelled, checkpoint, tmp_path):
    root, run = labelled({"0_real": 4, "1_fake": 4}), tmp_path / "run"
    config = small(root, start=str(checkpoint), learning_rate=1e-12, epochs=1)

    def stop(plan):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(config, run, callbacks=Callbacks(on_start=stop))
    assert not list(run.glob("*.pt"))
    trained = checkpoints.load(loop.train(config, run, resume=True)).model.state_dict()
    for name, tensor in checkpoints.load(checkpoint).model.named_parameters():
        torch.testing.assert_close(trained[name], tensor)


def test_a_state_of_another_version_is_one_line(labelled, tmp_path):
    root, run = labelled({"0_real": 4, "1_fake": 4}), tmp_path / "run"
    loop.train(small(root, epochs=1), run)
    (path,) = run.glob("*.pt")
    state = torch.load(path)
    for broken in (state["trainer"]["network"] | {"other": torch.ones(1)}, None):
        changed = {name: value for name, value in state["trainer"].items() if name != "steps"}
        torch.save(state | {"trainer": changed | ({"network": broken} if broken else {})}, path)
        with pytest.raises(InputError, match="does not fit the detector npr of this version") as caught:
            loop.train(small(root, epochs=2), run, resume=True)
        assert len(str(caught.value).splitlines()) == 1


def test_a_resumed_run_refuses_another_teacher(labelled, tmp_path):
    root, teacher = labelled({"0_real": 8, "1_fake": 8}), tmp_path / "teacher.safetensors"
    checkpoints.save(teacher, make_detector(), checkpoints.Metadata(name="teacher"))
    config = small(root, size="fast", teacher=str(teacher))
    with pytest.raises(Killed):
        loop.train(config, tmp_path / "run", callbacks=Callbacks(on_step=killed_after(3)))
    checkpoints.save(teacher, make_detector(seed=1), checkpoints.Metadata(name="teacher"))
    with pytest.raises(InputError, match=r"this run learns from teacher@\w+, but its teacher is teacher@\w+ now"):
        loop.train(config, tmp_path / "run", resume=True)


# `npr train` in a process group of its own, which is killed while it writes its fourth state.
KILLED = """
import os, signal, sys
import torch
from npr_model import cli
torch.set_num_threads(1)  # as in all tests of this package: the sums depend on it
replace, written = os.replace, []
def replace_or_die(source, target):
    written.append(os.path.basename(target))
    if written.count("state.pt") == 4:
        os.killpg(0, signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
cli.main(["train", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_kill_9(labelled, tmp_path):
    root = labelled({"0_real": 12, "1_fake": 12})
    config = small(root, epochs=3, save_steps=1, jpeg_probability=0.5, workers=1)
    (tmp_path / "config.json").write_text(config.to_json())
    run, plans = tmp_path / "run", []
    command = [sys.executable, "-c", KILLED, "--config", str(tmp_path / "config.json"), "-o", str(run)]
    killed = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in run.glob(".state.pt.*")]

    loop.train(replace(config, workers=0), run, resume=True, callbacks=Callbacks(on_start=plans.append))
    assert 1 <= plans[0].first_step < 9
    loop.train(config, tmp_path / "unbroken")
    assert history(run) == history(tmp_path / "unbroken")
    assert (run / "last.safetensors").read_bytes() == (tmp_path / "unbroken" / "last.safetensors").read_bytes()


def test_what_a_resumed_run_may_change(labelled, tmp_path):
    root, run = labelled({"0_real": 4, "1_fake": 4}), tmp_path / "run"
    config = small(root, epochs=1)
    loop.train(config, run)
    for change, message in (
        ({"seed": 1}, "was trained with seed=100, not 1: resume it without this change"),
        ({"jpeg_quality": (50, 60)}, r"was trained with jpeg_quality=\[60, 100\], not \[50, 60\]"),
        ({"validation": (str(root),)}, r"was trained with validation=\[\], not"),
    ):
        with pytest.raises(InputError, match=message):
            loop.train(replace(config, **change), run, resume=True)
    assert len(history(run)) == 1
    longer, plans = replace(config, epochs=2, workers=1, save_steps=1), []
    loop.train(longer, run, resume=True, callbacks=Callbacks(on_start=plans.append))
    assert plans[0].first_step == 1 and len(history(run)) == 2
    assert load_run(run) == longer
    loop.train(longer, run, resume=True)  # nothing left to do
    assert len(history(run)) == 2

    (run / "config.json").write_text(replace(longer, seed=1).to_json())  # edited by hand
    with pytest.raises(InputError, match="was trained with seed=100, not 1"):
        loop.train(load_run(run), run, resume=True)
    (root / "0_real" / "3.png").unlink()
    with pytest.raises(InputError, match="was trained on other files: the training folders have changed"):
        loop.train(longer, run, resume=True)
    (run / "state.pt").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"state\.pt cannot be read"):
        loop.train(longer, run, resume=True)
    with pytest.raises(InputError, match=r"absent holds no training run to resume: it has no config\.json"):
        loop.train(longer, tmp_path / "absent", resume=True)


@pytest.mark.parametrize("name", ["state.pt", "last.safetensors", "history.jsonl"])
def test_a_failed_write_leaves_the_old_file(labelled, tmp_path, monkeypatch, name):
    root, run = labelled({"0_real": 4, "1_fake": 4}), tmp_path / "run"
    config = small(root, epochs=1)
    loop.train(config, run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    monkeypatch.setattr(os, "replace", failing(os.replace, name))
    with pytest.raises(Exception, match=r"disk full|cannot be written"):
        loop.train(replace(config, epochs=2), run, resume=True)
    monkeypatch.undo()
    assert (run / name).read_bytes() == before[name]
    assert {path.name for path in run.iterdir()} == set(before)
    loop.train(replace(config, epochs=2), run, resume=True)
    loop.train(replace(config, epochs=2), tmp_path / "unbroken")
    assert history(run) == history(tmp_path / "unbroken")


def failing(real_replace, name: str):
    """Replacement of os.replace that fails for the second epoch's file of this name."""
    seen = []

    def replace_or_fail(source, target):
        seen.append(Path(target).name)
        if seen[-1] == name and seen.count(name) == (2 if name == "history.jsonl" else 1):  # resuming rewrites it
            raise OSError(28, "disk full")
        real_replace(source, target)

    return replace_or_fail


def test_a_file_that_breaks_during_training_is_named(labelled, tmp_path):
    root = labelled({"0_real": 2, "1_fake": 2})

    def break_it(epoch):
        (root / "0_real/1.png").write_bytes(b"")

    with pytest.raises(DatasetError, match=r"0_real/1\.png: the file is empty"):
        loop.train(small(root, epochs=3, batch_size=2), tmp_path / "run", callbacks=Callbacks(on_epoch=break_it))
    assert checkpoints.load(tmp_path / "run" / "last.safetensors")


def test_a_loss_that_is_not_finite_ends_the_run(labelled, tmp_path, monkeypatch):
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, parts: step(self, parts) * math.nan)
    with pytest.raises(InputError, match="the loss became nan in step 1; try a lower learning_rate"):
        loop.train(small(labelled({"0_real": 8, "1_fake": 8})), tmp_path / "run")


def test_tensorboard(labelled, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    root = labelled({"train/0_real": 8, "train/1_fake": 8, "held/0_real": 2, "held/1_fake": 2})
    config = small(root / "train", validation=(str(root / "held"),), tensorboard=True, save_steps=1)
    steps = []
    with pytest.raises(Killed):
        loop.train(config, tmp_path / "run", callbacks=Callbacks(on_step=killed_after(2)))
    loop.train(config, tmp_path / "run", resume=True, callbacks=Callbacks(on_step=steps.append))
    written = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    written.Reload()
    losses = {event.step: event.value for event in written.Scalars("train/loss")}
    assert sorted(losses) == [1, 2, 3, 4]
    assert [losses[step.number] for step in steps] == pytest.approx([step.loss for step in steps], rel=1e-6)
    assert len(written.Scalars("validation/average_precision")) == 2


def test_early_errors(labelled, tmp_path, monkeypatch):
    root = labelled({"0_real": 8, "1_fake": 8})
    config = small(root)
    with pytest.raises(DatasetError, match="no folders to train on"):
        loop.train(small(), tmp_path / "run")
    with pytest.raises(InputError, match="dtype float16 needs a GPU: use bfloat16 on the CPU"):
        loop.train(replace(config, dtype="float16"), tmp_path / "run")
    with pytest.raises(InputError, match="fewer than one batch of 32: lower batch_size"):
        loop.train(replace(config, batch_size=32), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="needs TensorBoard: pip install 'npr-kernels\\[tensorboard\\]'"):
        loop.train(replace(config, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()

    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "last.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"already holds last\.safetensors; choose another, or resume that run"):
        loop.train(config, tmp_path / "used")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"output folder .* cannot be used: File exists"):
        loop.train(config, tmp_path / "file")
    (root / "0_real/0.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="1 of 16 images cannot be used; repair or remove them"):
        loop.train(config, tmp_path / "run")
    for path in (root / "1_fake").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="the training data has no images in 1_fake folders"):
        loop.train(config, tmp_path / "run")
