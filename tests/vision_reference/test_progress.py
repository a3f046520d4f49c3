"""How far a long work has come is told in whole lines where nobody watches a terminal."""

from vision_reference import progress as told
from vision_reference.progress import progress


def test_everything_is_handed_on_and_short_work_needs_no_line(capsys):
    assert list(progress(iter("abc"), "storing", total=3, unit="view", scale=10)) == ["a", "b", "c"]
    assert list(progress([], "nothing")) == []
    assert not capsys.readouterr().err


def test_a_line_tells_rate_and_remaining_time_by_the_clock(monkeypatch, capsys):
    clock = iter([0.0, 11.0, 12.0, 30.0, 40.0])  # at the begin, and after each step
    monkeypatch.setattr(told.time, "monotonic", lambda: next(clock))
    assert len(list(progress(range(4), "checking", unit="file", scale=110))) == 4
    assert capsys.readouterr().err.splitlines() == [
        "checking: 25 %, 10 files/s, ETA 0:00:33",
        "checking: 75 %, 11 files/s, ETA 0:00:10",
        "checking: 100 %, 11 files/s, ETA 0:00:00",
    ]
