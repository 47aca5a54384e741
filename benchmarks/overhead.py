"""What λ̂ during training costs: prints a table and writes ``benchmarks/results/overhead.json``.

A network with Dropout learns the digits from a shuffling DataLoader, in a plain loop, in Lightning's Trainer and in
Transformers' Trainer: without a monitor, and with one that may take 5 and 20 % of the time of training, at every step
that the budget allows. Runs alternate, and every run with a monitor must end with the same weights, bit by bit.

The overhead is (with − without) / without, of the processor time of the process, which other work on the machine
lengthens by a tenth or two, and of wall time, which it may double: the median over pairs of runs stands for much, a
single pair for little. Beside it stands what was spent in estimates, which is measured within one run: their
processor time, and their wall time as the monitor itself counts it and keeps its budget by. What is left is what the
callback costs where no estimate is due, which a monitor that never estimates shows, and caches that are cold after one.

What is loaded once, at the first estimate of a process, is loaded before, and its time is stated. The first estimate is
made at once whatever the budget, because nobody knows what it costs: training must be long enough to pay for it, as
it is here.

    python benchmarks/overhead.py                       # about a quarter of an hour of one core, if nothing else runs
    python benchmarks/overhead.py --seconds 2 --repeats 2 --json overhead.json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import slt
from slt.callbacks import LLCMonitor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record import commit, machine_facts

HERE = Path(__file__).resolve().parent
BUDGETS = (None, 0.0, 0.05, 0.2)  # no monitor; one that never estimates; and shares of the time of training
FIGURES = ("processor", "processor_in_estimates", "wall", "counted", "microseconds_a_step", "estimates")
WATCHED = 500  # pictures on which λ̂ is measured
# Short, so that many fit into a run.
ESTIMATE = {"sampler": "mala", "step_size": 1e-5, "num_chains": 2, "num_warmup": 10, "num_draws": 20}
WEIGHT_DECAY, LEARNING_RATE, BATCH_SIZE = 0.01, 1e-3, 64


class Digits(Dataset):
    """Pictures as 64 numbers between 0 and 1, and their digits, by the names that Transformers' Trainer passes on."""

    def __init__(self) -> None:
        digits = load_digits()
        self.pictures, self.digits = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"pictures": self.pictures[place], "digits": self.digits[place]}


class Classifier(nn.Module):
    """Two hidden layers with Dropout; with digits it returns its loss, as Transformers' Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, pictures: Tensor, digits: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.layers(pictures)
        return {"loss": nn.functional.cross_entropy(logits, digits), "logits": logits}


def watched_loss(model: nn.Module, batch: Any) -> Tensor:
    pictures, digits = batch
    return model(pictures, digits)["loss"]


class CountedMonitor(LLCMonitor):
    """A monitor that knows the processor time of its estimates."""

    processor = 0.0

    def _estimate(self, model: nn.Module, step: int) -> slt.LLCEstimate | None:
        start = time.process_time()
        try:
            return super()._estimate(model, step)
        finally:
            self.processor += time.process_time() - start


class Run(NamedTuple):
    """One training."""

    processor: float
    wall: float
    weights: list[Tensor]


def timed(train: Callable[[], nn.Module]) -> Run:
    processor, wall = time.process_time(), time.perf_counter()
    model = train()
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    return Run(processor, wall, [value.clone() for value in model.state_dict().values()])


def plain_loop(data: Digits, steps: int, monitor: LLCMonitor | None) -> Run:
    """A DataLoader that shuffles, and a step of Adam."""
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)

    def train() -> nn.Module:
        step = 0
        while True:
            for batch in loader:
                optimizer.zero_grad()
                model(**batch)["loss"].backward()
                optimizer.step()
                if monitor is not None:
                    monitor.step(model, step)
                step += 1
                if step == steps:
                    return model

    return timed(train)


def lightning_trainer(data: Digits, steps: int, monitor: LLCMonitor | None) -> Run:
    """The same in Lightning's Trainer, with the callback."""
    from lightning.pytorch import LightningModule, Trainer

    from slt.callbacks.lightning import LLCCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Classifier()

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    torch.manual_seed(0)
    module = Module()
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[] if monitor is None else [LLCCallback(monitor, part="model")],
    )  # fmt: skip
    loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
    return timed(lambda: (trainer.fit(module, loader), module)[1])


def transformers_trainer(data: Digits, steps: int, monitor: LLCMonitor | None) -> Run:
    """The same in Transformers' Trainer, with the callback."""
    import transformers

    from slt.callbacks.transformers import LLCCallback

    torch.manual_seed(0)
    model = Classifier()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY, label_names=["digits"], save_strategy="no", logging_steps=1000, report_to=[],
            use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        callbacks = [] if monitor is None else [LLCCallback(monitor)]
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
        trainer.remove_callback(transformers.PrinterCallback)
        return timed(lambda: (trainer.train(), model)[1])


TRAINERS = {"plain loop": plain_loop, "Lightning": lightning_trainer, "Transformers": transformers_trainer}


def measure(name: str, data: Digits, seconds: float, repeats: int) -> list[dict[str, Any]]:
    """One row for each budget: medians over repeats, and every single one."""
    train = TRAINERS[name]
    train(data, 20, None)  # what a trainer loads at its first use
    steps = max(50, int(500 * seconds / train(data, 500, None).processor))
    found: dict[float, list[dict[str, Any]]] = {budget: [] for budget in BUDGETS if budget is not None}
    for repeat in range(repeats):
        turn = repeat % len(BUDGETS)
        runs: dict[float | None, tuple[Run, CountedMonitor | None]] = {}
        for budget in BUDGETS[turn:] + BUDGETS[:turn]:
            monitor = None
            if budget is not None:
                watched = (data.pictures[:WATCHED], data.digits[:WATCHED])
                when = {"every": 1, "share": budget} if budget else {"steps": [steps + 1]}  # after the last
                monitor = CountedMonitor(watched, watched_loss, **when, **ESTIMATE)
            runs[budget] = (train(data, steps, monitor), monitor)
        without = runs[None][0]
        for budget, rows in found.items():
            run, monitor = runs[budget]
            assert monitor is not None
            if not all(torch.equal(one, other) for one, other in zip(run.weights, without.weights, strict=True)):
                raise AssertionError(f"{name}: the monitor has changed the training")
            rows.append({
                "processor": run.processor / without.processor - 1,
                "wall": run.wall / without.wall - 1,
                "processor_in_estimates": monitor.processor / (run.processor - monitor.processor),
                "counted": monitor.schedule.spent / (run.wall - monitor.schedule.spent),
                "estimates": len(monitor.estimates),
                "seconds_without": without.processor,
                "seconds_with": run.processor,
                "wall_without": without.wall,
                "wall_with": run.wall,
                "microseconds_a_step": (run.processor - without.processor - monitor.processor) / steps * 1e6,
            })  # fmt: skip
            print(f"  {name}, {budget:.0%}: {rows[-1]}", file=sys.stderr, flush=True)
    return [
        {"trainer": name, "budget": budget, "steps": steps, "bit_identical": True}
        | {key: statistics.median(row[key] for row in rows) for key in FIGURES}
        | {f"{key}_range": [min(row[key] for row in rows), max(row[key] for row in rows)] for key in FIGURES[:5]}
        | {"repeats": rows}
        for budget, rows in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of processor time of a training without a monitor")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--json", type=Path, default=HERE / "results" / "overhead.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the trainers
    for noisy in ("lightning.pytorch", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)

    data = Digits()
    watched = (data.pictures[:WATCHED], data.digits[:WATCHED])
    start = time.process_time()
    slt.estimate_llc(Classifier(), watched, watched_loss, progress=False, **ESTIMATE)
    loading = time.process_time() - start
    start = time.process_time()
    slt.estimate_llc(Classifier(), watched, watched_loss, progress=False, **ESTIMATE)
    record = {
        "commit": commit(),
        "machine": machine_facts() | {"threads": 1, "load": Path("/proc/loadavg").read_text().split()[0]},
        "versions": versions(),
        "estimate": {**ESTIMATE, "processor_seconds": time.process_time() - start, "first_of_a_process": loading},
        "rows": [row for name in options.trainers for row in measure(name, data, options.seconds, options.repeats)],
    }
    show(record)
    options.json.write_text(json.dumps(record, indent=1) + "\n")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "lightning", "transformers", "slt-toolkit")}


def show(record: dict[str, Any]) -> None:
    print("\n" + ", ".join(f"{name} {value}" for name, value in record["machine"].items()))
    names = ("budget", "processor", "in estimates", "wall", "counted", "other, µs a step", "estimates")
    print(f"{'trainer':<13}" + "".join(f"{name:>{len(name) + 3}}" for name in names))
    for row in record["rows"]:
        print(
            f"{row['trainer']:<13}{row['budget']:>9.0%}{row['processor']:>12.1%}{row['processor_in_estimates']:>15.1%}"
            f"{row['wall']:>7.1%}{row['counted']:>10.1%}{row['microseconds_a_step']:>19.0f}{row['estimates']:>12.0f}"
        )


if __name__ == "__main__":
    main()
