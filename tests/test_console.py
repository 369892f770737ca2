"""What a terminal and a log show."""

from __future__ import annotations

import io

import pytest

from tf_covid import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless its only number is changed."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (0, ["a; 5 min left", "b; 5 min left", "c; 5 min left"]),
        (20, ["a; 2 min left", "b; 88 s left", "c; 84 s left"]),
        (29, ["a; 0 s left"]),
    ],
)
def test_the_time_left_counts_what_this_process_did(
    clock: list[float], capsys: pytest.CaptureFixture[str], first: int, said: list[str]
) -> None:
    """Steps of 10, 12 and 14 seconds, of 30.

    Those before `first` were done by an earlier process.
    """
    with console.step_progress("fold 0", 30) as step:
        for number, (text, seconds) in enumerate(
            zip("abc", (10.0, 12.0, 14.0), strict=True), first
        ):
            if number < 30:
                clock[0] += seconds
                step(number, text)
    assert capsys.readouterr().err.splitlines() == [f"fold 0: {text}" for text in said]


def test_the_bar_begins_where_the_run_goes_on(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    shown = io.StringIO()
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        console,
        "_terminal",
        lambda: Console(file=shown, force_terminal=True, color_system=None, width=120),
    )
    with console.step_progress("fold [0]", 10) as step:
        clock[0] += 4.0
        step(7, "epoch 8/10")
    last = next(line for line in reversed(shown.getvalue().split("\r")) if "epoch" in line)
    assert "fold [0] epoch 8/10" in last
    assert "8 s left" in last
    assert last.count("━") == 32, "four fifths of the bar's forty columns"
