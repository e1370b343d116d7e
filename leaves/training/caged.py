"""Runs code that a model wrote against tests, where it can hurt nothing. Started by `cage.py`.

A script of the standard library alone. It reads one line of JSON from standard input (`setup`,
`code`, `tests`, `token`, `root`, `cpu_s`, `wall_s`, `memory_bytes`, `no_cage`) and writes the token
to standard output if every test passed. What runs the code is the first process of a namespace, and
its parent, which the code cannot see, ends it after `wall_s`, or when standard input closes because
the node is done with it or is no more.

Before the code runs, the process gives up, in this order: the network, other processes and the file
system (namespaces, an empty root), its rights, and by limits all but a little time and memory: it
can open no file, start no process and write nothing. Where the system refuses any of that, nothing
is run and the exit status is `no_cage`.

It is no proof against a completion that looks for the token in memory: what it protects is the
machine. That a rate of right answers is honest is no concern of a node that measures its own.
"""

import array
import bisect
import cmath
import collections
import contextlib
import copy
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import heapq
import itertools
import json
import math
import operator
import os
import random
import re
import resource
import select
import signal
import statistics
import string
import sys
import textwrap
import time
import typing

NOBODY = 65_534
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = (
    0x0002_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
)
_SET_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES = 1, 38
_CAPABILITY_VERSION = 0x2008_0522
# Nothing can be imported once no file can be opened.
LOADED = (
    array, bisect, cmath, collections, contextlib, copy, dataclasses, datetime, decimal, enum,
    fractions, functools, heapq, itertools, math, operator, random, re, statistics, string,
    textwrap, time, typing,
)  # fmt: skip


def main() -> None:
    order = json.loads(sys.stdin.readline())
    leash, verdict = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    try:
        child = _apart()
        if child == 0:
            _confine(order)
    except (OSError, ValueError, AttributeError):  # the last: a system without such a call
        os._exit(order["no_cage"])
    if child == 0:
        if _passes(order):
            os.write(verdict, order["token"].encode())
        os._exit(0)
    try:
        refused = _ended(child, leash, order["wall_s"]) == order["no_cage"]
    except OSError:  # a system that cannot tell when a process ends
        refused = True
    os._exit(order["no_cage"] if refused else 0)


def _ended(child: int, leash: int, wall_s: float) -> int:
    """How the child ended, which it does when its time is over or the other side lets go."""
    try:
        poll = select.poll()
        poll.register(os.pidfd_open(child), select.POLLIN)
        poll.register(leash, 0)  # of its end poll tells unasked
        poll.poll(wall_s * 1000)
    finally:
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still its own
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "refused")


def _apart() -> int:
    """Fork into namespaces of its own: a signal to all processes then reaches none of ours."""
    libc = ctypes.CDLL(None, use_errno=True)
    apart = _NEW_MOUNTS | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK
    _checked(libc.unshare(apart if os.geteuid() == 0 else apart | _NEW_USER))
    return os.fork()


def _confine(order: dict[str, typing.Any]) -> None:
    """Give up all rights."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.chroot(order["root"])
    os.chdir("/")
    if os.geteuid() == 0:  # of the machine, not of a namespace: its rights go with the name
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _checked(libc.capset(header, (ctypes.c_uint32 * 6)()))
    _checked(libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != 0:  # the first of its namespace has no parent that it can see
        raise OSError("not apart")
    for limit, value in (
        (resource.RLIMIT_CPU, order["cpu_s"]),
        (resource.RLIMIT_AS, order["memory_bytes"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _passes(order: dict[str, typing.Any]) -> bool:
    names: dict[str, typing.Any] = {"__name__": "answer"}
    try:
        for part in (order["setup"], order["code"], *order["tests"]):
            exec(part, names)
    except BaseException:  # whatever it raises, SystemExit too, it is not right
        return False
    return True


if __name__ == "__main__":
    main()
