"""Results are finished in another thread while the next ones are made: in their order, few at a time, and none is lost."""

import time
from collections.abc import Iterator
from threading import Event

import pytest
from prefloop.core.background import in_background


def test_a_result_is_finished_while_the_next_one_is_made():
    made = [Event() for _ in range(4)]

    def results() -> Iterator[int]:
        for number in range(4):
            made[number].set()
            yield number

    def squared(number: int) -> int:
        assert number == 3 or made[number + 1].wait(5), "the next one is not made before this one is finished"
        return number**2

    assert list(in_background(results(), squared)) == [0, 1, 4, 9]


def test_one_result_waits_at_most():
    finished, ahead = [], []

    def results() -> Iterator[int]:
        for number in range(5):
            ahead.append(number - len(finished))
            yield number

    def finish(number: int) -> None:
        time.sleep(0.01)
        finished.append(number)

    list(in_background(results(), finish))
    # while result n is made, only n - 1 can be unfinished
    assert ahead[0] == 0
    assert max(ahead) == 1


def test_what_was_made_is_finished_whatever_ends_the_loop():
    finished = []

    def finish(number: int) -> int:
        time.sleep(0.01)
        finished.append(number)
        return number

    def failing() -> Iterator[int]:
        yield from range(2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(in_background(failing(), finish))
    assert finished == [0, 1]
    for _ in in_background(range(9), finish):
        break
    assert finished == [0, 1, 0, 1]


def test_an_error_while_finishing_is_raised_and_nothing_more_is_made():
    made = []

    def results() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            yield number

    def finish(number: int) -> None:
        if number == 1:
            raise ZeroDivisionError("the disk is full")

    with pytest.raises(ZeroDivisionError, match="the disk is full"):
        list(in_background(results(), finish))
    assert made == [0, 1, 2]
