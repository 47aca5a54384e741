"""The table that a monitor keeps in a file: no row of another training or monitor is lost without a word."""

import csv
import warnings
from pathlib import Path

import pytest
from torch import multiprocessing

from slt.callbacks import LLCMonitor, to_csv
from tests.processes import finish
from tests.slt.models import fitted_regression, half_squares

multiprocessing.set_forkserver_preload([__name__])
SHORT = {"num_draws": 20, "num_warmup": 5, "num_chains": 2, "sampler": "mala", "step_size": 1e-3}
ROW = {"llc": 1.5, "llc_verdict": "healthy"}


def rows(path):
    with path.open(newline="") as file:
        return [(int(row["step"]), float(row["llc"])) for row in csv.DictReader(file)]


def test_two_monitors_of_one_file_are_told_so_and_the_file_is_of_one(tmp_path):
    model, (x, y), _ = fitted_regression()
    path = tmp_path / "two.csv"
    one = LLCMonitor((x, y), half_squares, every=2, log=to_csv(path), **SHORT)
    other = LLCMonitor((x[:100], y[:100]), half_squares, every=3, log=to_csv(path), **SHORT)
    one.step(model, 0)
    with pytest.warns(UserWarning, match=r"two\.csv' had a row of step 0, .* a file of its own"):
        other.step(model, 0)
    with pytest.warns(UserWarning, match=r"log failed at step 2: ValueError: path: '.*two\.csv' .*another log"):
        one.step(model, 2)
    other.step(model, 3)
    with pytest.warns(UserWarning, match="log failed at step 4"):
        one.step(model, 4)
    assert rows(path) == [(step, other.estimates[step].llc) for step in (0, 3)]
    assert sorted(one.logged) == [0, 2, 4]  # nothing is lost to who asks the monitor


def test_a_cell_that_is_run_again_is_not_refused(tmp_path):
    path = tmp_path / "llc.csv"
    first = to_csv(path)
    for step in range(3):
        first(ROW, step)
    again = to_csv(path)
    with pytest.warns(UserWarning, match="had 3 rows of steps 0 to 2"):
        again({**ROW, "llc": 2.5}, 0)
    again(ROW, 1)
    assert rows(path) == [(0, 2.5), (1, 1.5)]


def test_a_training_that_goes_on_before_its_last_row_says_what_it_replaces(tmp_path):
    path = tmp_path / "llc.csv"
    log = to_csv(path)
    for step in range(4):
        log(ROW, step)
    with pytest.warns(UserWarning, match="had 2 rows of steps 2 to 3, which the one of step 2 replaces"):
        log({**ROW, "llc": 2.5}, 2)
    log(ROW, 3)
    assert rows(path) == [(0, 1.5), (1, 1.5), (2, 2.5), (3, 1.5)]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path):
    path = tmp_path / "llc.csv"
    log = to_csv(path)
    log(ROW, 0)
    path.rename(tmp_path / "first.csv")
    log(ROW, 1)
    assert rows(path) == [(1, 1.5)]
    assert rows(tmp_path / "first.csv") == [(0, 1.5)]


def test_processes_that_log_the_same_write_it_once(tmp_path):
    path = tmp_path / "llc.csv"
    ranks = [to_csv(path), to_csv(path)]
    for step in range(3):
        for log in ranks:
            log(ROW, step)
    assert rows(path) == [(0, 1.5), (1, 1.5), (2, 1.5)]


def hammer(rank, folder):
    log, refused = to_csv(f"{folder}/hammer.csv"), []
    warnings.simplefilter("ignore")  # the second tells of the rows of the first that it replaces
    for step in range(100):
        try:
            log({"llc": float(rank), "llc_verdict": "healthy"}, step)
        except ValueError as error:
            refused.append(str(error))
    Path(folder, f"{rank}.txt").write_text("\n".join(refused))


def test_processes_that_write_one_file_at_once_keep_it_whole_and_of_one(tmp_path):
    finish(hammer, tmp_path, 2)
    found = rows(tmp_path / "hammer.csv")
    owner = int(found[0][1])
    assert found == [(step, float(owner)) for step in range(100)]
    assert not (tmp_path / f"{owner}.txt").read_text()
    assert not list(tmp_path.glob("*partial*"))
    for refusal in (tmp_path / f"{1 - owner}.txt").read_text().splitlines():
        assert "another log" in refusal
