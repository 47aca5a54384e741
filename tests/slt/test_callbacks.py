"""When estimates are made in training, where they are logged, and Lightning's and Transformers' trainers."""

import csv
import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import slt
from slt.callbacks import LLCMonitor, log_spaced, to_csv, to_tensorboard, to_wandb
from slt.callbacks.schedule import Schedule
from tests.slt.models import cross_entropy, fitted_regression, half_squares

SHORT = {"num_draws": 20, "num_warmup": 5, "num_chains": 2, "sampler": "mala", "step_size": 1e-3}


def test_steps_at_even_ratios():
    assert log_spaced(1, 1000, 4) == [1, 10, 100, 1000]
    assert log_spaced(1, 4, 50) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="1 ≤ first ≤ last"):
        log_spaced(0, 10, 3)


def test_a_schedule():
    assert [step for step in range(10) if Schedule(4, None, None).due(step)] == [0, 4, 8]
    assert [step for step in range(10) if Schedule(None, [2, 3], None).due(step)] == [2, 3]
    for wrong in ((None, None, None), (1, [1], None), (0, None, None), (1, None, 0.0), (1, None, float("nan"))):
        with pytest.raises(ValueError, match="expected"):
            Schedule(*wrong)


def test_estimates_take_no_more_than_their_share_of_training():
    """Each takes a second and each step a tenth of one: at 5 % one in two hundred steps."""
    now = [0.0]
    schedule = Schedule(1, None, 0.05, clock=lambda: now[0])
    made = []
    for step in range(1010):
        now[0] += 0.1
        if schedule.due(step):
            made.append(step)
            now[0] += 1.0
            schedule.took(1.0)
            assert len(made) == 1 or schedule.spent <= 0.05 * (now[0] - schedule.spent) + 1e-9
    assert made[0] == 0
    assert len(made) == 5
    assert all(later - sooner >= 199 for sooner, later in itertools.pairwise(made[1:]))


def test_the_share_is_kept_by_a_monitor(monkeypatch):
    """On a clock of its own: a step of training takes a tenth of a second, and an estimate one."""
    model, data, _ = fitted_regression()
    now, started = [0.0], [0.0]
    monkeypatch.setattr("slt.callbacks.monitor.perf_counter", lambda: now[0])

    def loss_fn(model, batch):
        now[0] = started[0] + 1.0
        return half_squares(model, batch)

    monitor = LLCMonitor(data, loss_fn, every=1, share=0.5, **SHORT)
    monitor.schedule = Schedule(1, None, 0.5, clock=lambda: now[0])
    for step in range(130):
        now[0] += 0.1
        started[0] = now[0]
        monitor.step(model, step)
    assert monitor.schedule.spent == pytest.approx(len(monitor.estimates))
    # The first at once; the second when four seconds of training pay for both, and then one in two seconds.
    assert np.abs(np.diff(sorted(monitor.estimates)) - [40, 20, 20, 20, 20]).max() <= 1


def test_a_monitor_gives_bitwise_what_the_call_gives():
    model, data, _ = fitted_regression()
    found = LLCMonitor(data, half_squares, every=1, **SHORT).step(model, 0)
    alone = slt.estimate_llc(model, data, half_squares, **SHORT)
    assert found is not None
    np.testing.assert_array_equal(found.trace.loss, alone.trace.loss)
    assert (found.llc, found.interval) == (alone.llc, alone.interval)


def test_a_file_has_every_step_once_after_a_restart_too(tmp_path):
    model, data, _ = fitted_regression()
    path = tmp_path / "llc.csv"
    monitor = LLCMonitor(data, half_squares, every=1, log=to_csv(path), **SHORT)
    for step in range(3):
        monitor.step(model, step)
    again = LLCMonitor(data, half_squares, every=1, log=to_csv(path), **SHORT)
    state = monitor.state_dict()
    again.load_state_dict({**state, "logged": {step: state["logged"][step] for step in (0, 1)}})
    for step in (2, 3):  # training went on from a checkpoint of step 1
        again.step(model, step)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[0]["llc"]) == monitor.estimates[0].llc
    assert sorted(again.logged) == [0, 1, 2, 3]
    assert again.schedule.spent > monitor.schedule.spent > 0
    again.step(model, 3)  # once a step, however many batches it has
    assert sorted(again.estimates) == [2, 3]
    with pytest.raises(ValueError, match="folder that does not exist"):
        to_csv(tmp_path / "none" / "llc.csv")
    to_csv(path)


@pytest.mark.parametrize("table", ["step,train_loss\n0,1.5\n", "0,1.5\n", "\n"])
def test_a_table_of_someone_else_is_refused_and_stays(table, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(table)
    with pytest.raises(ValueError, match=r"metrics.csv' begins with .*Give the log a file of its own"):
        to_csv(path)
    assert path.read_text() == table


def test_a_log_that_fails_stops_nothing_and_a_wrong_option_is_told_at_once():
    model, data, _ = fitted_regression()

    def down(values, step):
        torch.rand(3)
        raise OSError("the tracker is down")

    monitor = LLCMonitor(data, half_squares, every=1, log=down, **SHORT)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="the log failed at step 0: OSError: the tracker is down"):
        assert monitor.step(model, 0) is not None
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(TypeError, match="num_drawz; expected arguments of slt.estimate_llc"):
        LLCMonitor(data, half_squares, every=1, num_drawz=5)


def test_time_before_training_pays_for_nothing():
    now = [0.0]
    schedule = Schedule(1, None, 0.05, clock=lambda: now[0])
    now[0] = 3600.0
    assert schedule.due(0)
    schedule.took(1.0)
    now[0] += 1.1
    assert not schedule.due(1)
    again = Schedule(1, None, 0.05, clock=lambda: now[0])
    again.load_state_dict(schedule.state_dict())
    assert not again.due(2)  # and a restart gives none for free


def test_trackers():
    class Writer:
        def __init__(self):
            self.scalars, self.texts = [], []

        def add_scalar(self, tag, value, step):
            self.scalars.append((tag, value, step))

        def add_text(self, tag, text, step):
            self.texts.append((tag, text, step))

    class Run:
        def __init__(self):
            self.rows = []

        def log(self, row):
            self.rows.append(row)

    values = {"llc": 2.0, "llc_rhat": float("nan"), "llc_verdict": "healthy"}
    writer, run = Writer(), Run()
    to_tensorboard(writer)(values, 5)
    to_wandb(run)(values, 5)
    assert writer.scalars == [("llc/llc", 2.0, 5)]
    assert writer.texts == [("llc/verdict", "healthy", 5)]
    assert run.rows == [{"llc/llc": 2.0, "llc/verdict": "healthy", "llc/step": 5}]


def seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


def left_random():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.fixture
def quiet():
    """What the trainers warn of is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_lightning_trains_bit_for_bit_the_same(tmp_path, quiet):
    lightning = pytest.importorskip("lightning")
    from slt.callbacks.lightning import LLCCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

        def training_step(self, batch, _):
            return cross_entropy(self.model, batch).mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    def run(monitor, resume=None):
        seeded()
        x, y = torch.randn(64, 6), torch.randint(3, (64,))
        loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
        module = Module()
        callbacks = [] if monitor is None else [LLCCallback(monitor((x, y)), part="model")]
        logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=logger, callbacks=callbacks, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=resume)
        moments = [state["exp_avg"] for state in trainer.optimizers[0].state.values()]
        return trainer, [*module.state_dict().values(), *moments], left_random(), callbacks

    _, plain, plain_random, _ = run(None)
    trainer, watched, watched_random, callbacks = run(
        lambda data: LLCMonitor(data, cross_entropy, every=4, progress=False, **SHORT)
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert plain_random == watched_random
    monitor = callbacks[0].monitor
    assert sorted(monitor.estimates) == [0, 4, 8, 12, 16]
    seeded()
    data = torch.randn(64, 6), torch.randint(3, (64,))
    with torch.no_grad():
        at_the_start = float(cross_entropy(Module().model.eval(), data).mean())
    assert monitor.estimates[0].loss_at_anchor == pytest.approx(at_the_start, rel=1e-6)
    trainer.logger.save()
    with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
        logged = {int(row["step"]): float(row["llc"]) for row in csv.DictReader(file) if row["llc"]}
    assert logged == {step: pytest.approx(found.llc) for step, found in monitor.estimates.items()}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]
    assert sorted(next(iter(kept.values()))["logged"]) == [0, 4, 8, 12, 16]


def test_transformers_trains_bit_for_bit_the_same_and_keeps_what_was_logged(tmp_path, quiet):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from slt.callbacks.transformers import LLCCallback

    tokens = torch.randint(16, (24, 8), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": row, "labels": row} for row in tokens]

    def next_token(model, batch):
        logits = model(batch).logits[:, :-1]
        return nn.functional.cross_entropy(logits.reshape(-1, 16), batch[:, 1:].reshape(-1))

    def run(monitored, steps=6, resume=False):
        seeded()
        config = transformers.GPT2Config(
            n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0
        )  # with its usual dropout
        model = transformers.GPT2LMHeadModel(config)
        monitor = LLCMonitor(tokens, next_token, every=2, engine="in_place", **SHORT)
        arguments = transformers.TrainingArguments(
            str(tmp_path / str(monitored)), max_steps=steps, save_steps=2, per_device_train_batch_size=4, report_to=[],
            use_cpu=True, disable_tqdm=True, logging_steps=1,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, train_dataset=examples, callbacks=[LLCCallback(monitor)] if monitored else []
        )
        trainer.train(resume_from_checkpoint=resume)
        moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
        return trainer, [*model.state_dict().values(), *moments], left_random(), monitor

    _, plain, plain_random, _ = run(False)
    _, watched, watched_random, monitor = run(True)
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert plain_random == watched_random
    assert sorted(monitor.estimates) == [0, 2, 4, 6]
    assert monitor.estimates[0].loss_at_anchor > monitor.estimates[2].loss_at_anchor

    trainer, _, _, resumed = run(True, steps=8, resume=str(tmp_path / "True" / "checkpoint-4"))
    assert sorted(resumed.estimates) == [6, 8]  # and not again those that the checkpoint has
    entries = [entry for entry in trainer.state.log_history if "llc_verdict" in entry]
    assert [entry["step"] for entry in entries] == [0, 2, 4, 6, 8]
    spent = [entry["llc_schedule"]["spent"] for entry in entries]  # of the share of time, before a restart too
    assert spent == sorted(spent)
    assert resumed.schedule.spent == spent[-1]
    assert not any("llc_schedule" in values for values in resumed.logged.values())
    assert entries[1]["llc"] == monitor.estimates[2].llc


def test_transformers_begins_again_with_what_the_training_has_and_nothing_of_one_given_up(tmp_path, quiet):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from slt.callbacks.transformers import LLCCallback

    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x, labels=None):
            out = self.linear(x)
            return {"loss": (out - labels).square().mean(), "logits": out}

    class Stop(transformers.TrainerCallback):
        at = 7

        def on_step_end(self, args, state, control, **more):
            if state.global_step == self.at:
                raise RuntimeError("preempted")

    x, y = torch.randn(32, 3), torch.randn(32, 1)
    monitor = LLCMonitor((x, y), lambda model, batch: half_squares(model.linear, batch), every=2, **SHORT)
    stop = Stop()

    def trainer():
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=8, save_steps=4, per_device_train_batch_size=4, report_to=[], use_cpu=True,
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        examples = [{"x": one, "labels": other} for one, other in zip(x, y, strict=True)]
        return transformers.Trainer(
            Regression(), arguments, train_dataset=examples, callbacks=[LLCCallback(monitor), stop]
        )

    def logged_by(trained):
        return [entry["step"] for entry in trained.state.log_history if "llc" in entry]

    first = trainer()
    with pytest.raises(RuntimeError, match="preempted"):
        first.train()
    before = monitor.estimates
    assert sorted(before) == sorted(monitor.logged) == [0, 2, 4, 6]

    stop.at = None
    first.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert logged_by(first) == sorted(monitor.logged) == sorted(monitor.estimates) == [0, 2, 4, 6, 8]
    assert monitor.estimates[4] is before[4]
    assert monitor.estimates[6] is not before[6]

    second = trainer()  # another model, the same monitor
    second.train()
    assert logged_by(second) == sorted(monitor.logged) == sorted(monitor.estimates) == [0, 2, 4, 6, 8]
    assert monitor.estimates[0].llc != before[0].llc
    assert sorted(before) == [0, 2, 4, 6]  # who holds them has those of the first training
    spent = monitor.schedule.spent
    assert spent == pytest.approx(sum(found.seconds for found in monitor.estimates.values()), rel=0.5)


def test_lightning_begins_again_with_what_the_checkpoint_has_and_nothing_of_one_given_up(tmp_path, quiet):
    lightning = pytest.importorskip("lightning")
    from slt.callbacks.lightning import LLCCallback

    class Keep(lightning.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "4.ckpt")

    monitor = LLCMonitor((torch.randn(8, 3), torch.randn(8, 1)), half_squares, every=2, **SHORT)
    callback = LLCCallback(monitor, part="model")
    first = short_fit(callback, epochs=3, more=[Keep()])
    before = monitor.estimates
    assert sorted(before) == sorted(monitor.logged) == [0, 2, 4, 6]

    short_fit(callback, epochs=4, resume=tmp_path / "4.ckpt")
    assert sorted(monitor.logged) == sorted(monitor.estimates) == [0, 2, 4, 6, 8]
    assert monitor.estimates[4] is before[4]
    assert monitor.estimates[6] is not before[6]

    resumed = monitor.estimates
    first.test(first.lightning_module, first.train_dataloader, ckpt_path=tmp_path / "4.ckpt")  # which trains nothing
    assert sorted(monitor.logged) == [0, 2, 4, 6, 8]

    short_fit(callback, epochs=1)  # another model, the same monitor
    assert sorted(monitor.logged) == sorted(monitor.estimates) == [0, 2]
    assert monitor.estimates[0].llc != before[0].llc
    assert sorted(resumed) == [0, 2, 4, 6, 8]

    again = short_fit(callback, epochs=1)
    begun = monitor.estimates[2]
    again.fit_loop.max_epochs = 2
    again.fit(again.lightning_module, again.train_dataloader)  # which goes on where it was
    assert sorted(monitor.logged) == [0, 2, 4]
    assert monitor.estimates[2] is begun

    bare = torch.load(tmp_path / "4.ckpt", weights_only=False)
    bare["callbacks"] = {}
    torch.save(bare, tmp_path / "bare.ckpt")
    short_fit(callback, epochs=3, resume=tmp_path / "bare.ckpt")  # of a training that had no monitor
    assert sorted(monitor.logged) == [4, 6]


def short_fit(callback, loggers=False, epochs=1, more=(), resume=None):
    """Two steps an epoch of Lightning's trainer on eight samples of least squares."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.head = nn.Linear(3, 1, bias=False), nn.Identity()

        def training_step(self, batch, _):
            return half_squares(self.model, batch).mean()

        def test_step(self, *_):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    loader = DataLoader(TensorDataset(torch.randn(8, 3), torch.randn(8, 1)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=loggers, callbacks=[callback, *more], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Module(), loader, ckpt_path=resume)
    return trainer


def test_a_logger_of_lightning_that_fails_stops_no_training(tmp_path, quiet):
    lightning = pytest.importorskip("lightning")
    from slt.callbacks.lightning import LLCCallback

    class Down(lightning.pytorch.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            raise OSError("no space")

    monitor = LLCMonitor((torch.randn(8, 3), torch.randn(8, 1)), half_squares, every=2, **SHORT)
    with pytest.warns(UserWarning, match="Down failed at step 0: OSError: no space"):
        trainer = short_fit(LLCCallback(monitor, part="model"), Down(tmp_path))
    assert trainer.global_step == 2
    assert sorted(monitor.estimates) == [0, 2]


def test_an_unknown_part_is_told_before_the_first_step_of_lightning(quiet):
    pytest.importorskip("lightning")
    from slt.callbacks.lightning import LLCCallback

    monitor = LLCMonitor((torch.randn(8, 3), torch.randn(8, 1)), half_squares, steps=[100], **SHORT)
    with pytest.raises(ValueError, match="part: 'nope' is no submodule of Module; expected one of model, head, or ''"):
        short_fit(LLCCallback(monitor, part="nope"))
