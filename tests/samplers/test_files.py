"""Files that are whole or not there, beside other writers of the same place."""

import os

import pytest

from samplers.files import written_whole


def test_two_writers_of_one_place_write_beside_each_other(tmp_path):
    place = tmp_path / "table [1].csv"
    places = []

    def outer(partial):
        partial.write_text("outer")
        written_whole(place, inner)
        places.append(partial)

    def inner(partial):
        partial.write_text("inner")
        places.append(partial)

    written_whole(place, outer)
    assert place.read_text() == "outer"
    assert len(set(places)) == 2
    assert all(".partial" in each.name and each.suffix == ".csv" for each in places)
    assert list(tmp_path.iterdir()) == [place]


def test_what_failed_leaves_nothing_beside_what_was_there(tmp_path):
    place = tmp_path / "table.csv"
    place.write_text("before")

    def fails(partial):
        partial.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        written_whole(place, fails)
    assert list(tmp_path.iterdir()) == [place]
    assert place.read_text() == "before"


def test_what_a_killed_writer_left_is_removed_once_it_is_old(tmp_path):
    place, other = tmp_path / "run [1].pt", tmp_path / "run [1]-2.partial-0.pt"
    old, young = tmp_path / "run [1].partial-0.pt", tmp_path / "run [1].partial-1.pt"
    for each in (old, young, other):
        each.write_text("half")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    os.utime(young, (young.stat().st_mtime - 3600 / 2,) * 2)
    written_whole(place, lambda partial: partial.write_text("whole"))
    assert sorted(tmp_path.iterdir()) == sorted([place, other, young])
