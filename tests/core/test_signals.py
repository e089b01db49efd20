"""Signals that arrive between two stages of a longer run."""

import os
import signal

import pytest
from prefloop.core.errors import Interrupted
from prefloop.core.signals import StopSignal


def test_a_stage_takes_the_signal_that_the_run_around_it_received():
    with StopSignal().listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with StopSignal().listening() as inner, pytest.raises(Interrupted) as caught:
            inner.check("one image is finished")
    assert caught.value.exit_code == 143


def test_a_signal_that_a_stage_received_at_its_end_is_left_to_the_run_around_it():
    with StopSignal().listening() as outer:
        with StopSignal().listening():
            os.kill(os.getpid(), signal.SIGINT)
        assert outer.number == signal.SIGINT
        with outer.listening() as same, pytest.raises(Interrupted):  # as train is given the loop's own
            same.check("")


def test_other_handlers_are_left_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal().listening() as stop:
        pass
    assert signal.getsignal(signal.SIGTERM) == before
    assert not stop.requested
