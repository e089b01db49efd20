"""Standard output has results alone, whoever in a scorer prints: Python, a library in C, or a program that it starts."""

import subprocess
import sys

from content import environment

PRINTS = """
import ctypes, os, subprocess, sys
from prefloop.relabel.scorers.own_code import prints_to_stderr

def print_everywhere(word):
    print(word + " python")
    sys.__stdout__.write(word + " own stream\\n")
    ctypes.CDLL(None).puts((word + " C").encode())
    subprocess.run(["echo", word + " child"])

print("before")
with prints_to_stderr():
    with prints_to_stderr():
        print_everywhere("inner")
    print_everywhere("outer")
print("result")
"""


def test_nothing_that_a_scorer_prints_comes_among_the_results():
    ended = subprocess.run(
        [sys.executable, "-c", PRINTS], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert (ended.returncode, ended.stdout.splitlines()) == (0, ["before", "result"]), ended.stderr
    printed = {f"{where} {by}" for where in ("inner", "outer") for by in ("python", "own stream", "C", "child")}
    assert set(ended.stderr.splitlines()) == printed


def test_a_closed_stdout_is_no_reason_to_fail():
    closed = PRINTS.replace('print("before")', "os.close(1)").replace('print("result")', "os._exit(7)")
    closed = closed.replace('print_everywhere("', 'len("')
    ended = subprocess.run(
        [sys.executable, "-c", closed], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert ended.returncode == 7, ended.stderr
