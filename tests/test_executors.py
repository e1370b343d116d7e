"""Work away from the caller: one contract for all executors, and what children add to it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_executors import (
    ChildContract,
    Contract,
    Part,
    TrainingContract,
    die,
    ended,
    until,
)

from leaves.model import Matrix
from leaves.parallel import map_in_order
from leaves.ports import Executor, NoiseReason, Progress
from node.executor_child import pass_on
from node.executors import (
    InlineExecutor,
    ProcessExecutor,
    WorkerDiedError,
    in_child,
)
from node.frames import HEAD, Done, FrameError, receive, send

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), str(tests)]))


class TestInline(Contract):
    """The contract, at once."""

    @pytest.fixture
    def executor(self) -> Executor:
        return InlineExecutor()


class TestProcesses(ChildContract, TrainingContract):
    """The contract, in a child."""

    @pytest.fixture
    def executor(self) -> Iterator[Executor]:
        made = ProcessExecutor(1)
        yield made
        made.close()


def test_several_children_give_the_results_in_order() -> None:
    executor = ProcessExecutor(2)
    assert map_in_order(executor, abs, range(-9, 9)) == [abs(x) for x in range(-9, 9)]
    executor.close()


def test_without_an_executor_items_are_done_here() -> None:
    assert map_in_order(None, abs, [-1, 2]) == [1, 2]


@pytest.fixture
def processes() -> Iterator[ProcessExecutor]:
    executor = ProcessExecutor(1)
    yield executor
    executor.close()


def test_a_child_that_dies_is_told_and_the_next_job_has_another(
    processes: ProcessExecutor,
) -> None:
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        processes.submit(die).result()
    assert processes.submit(abs, -3).result() == 3


def test_a_child_gives_way_to_other_work() -> None:
    assert in_child(os.nice, 0) == min(os.nice(0) + 10, 19)


def test_what_a_job_reports_is_passed_on_in_order() -> None:
    told: list[Progress] = []
    assert in_child(_counting, 3, report=told.append) == 3
    assert [progress.done for progress in told] == [0, 1, 2]


def test_a_report_that_raises_ends_the_child() -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_child(_counting, 10**9, report=stop)


def test_a_memory_mapped_array_goes_as_the_name_of_its_file(tmp_path: Path) -> None:
    whole = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    whole.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=(1000, 4)).view(np.ndarray)
    assert in_child(_file_of, mapped[10:20]) == (str(tmp_path / "rows"), whole[10:20].sum())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends children with the parent")
def test_a_child_in_a_long_call_dies_with_its_parent(tmp_path: Path) -> None:
    found = tmp_path / "pid"
    code = "from node.executors import in_child; from support_executors import write_pid; "
    code += f"in_child(write_pid, {str(found)!r})"
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env)
    until(lambda: found.exists() and bool(found.read_text()))
    parent.kill()
    parent.wait()
    child = int(found.read_text())
    until(lambda: ended(child))


def _counting(count: int) -> int:
    for done in range(count):
        pass_on(Progress("counting", done, count))
    return count


def _file_of(array: Matrix) -> tuple[str, float]:
    base: Any = array
    while not isinstance(base, np.memmap):
        base = base.base
    return str(base.filename), float(array.sum())


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False)
    | st.sampled_from(NoiseReason)
    | st.builds(Part, st.sampled_from(NoiseReason), st.lists(st.integers(0, 9)).map(tuple)),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(0, 99), inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_a_message_comes_back_as_it_was(value: object) -> None:
    pipe = io.BytesIO()
    send(pipe, Done(value))
    pipe.seek(0)
    back = receive(pipe)
    assert back == Done(value) and type(back.value) is type(value)


def test_an_array_comes_back_with_its_type_and_may_be_written() -> None:
    pipe = io.BytesIO()
    array = np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2]
    send(pipe, Done(array))
    pipe.seek(0)
    back = receive(pipe).value
    assert back.dtype == np.int16 and np.array_equal(back, array)
    back[0, 0] = 7


@pytest.mark.parametrize("value", [object(), lambda: None, np.array([object()]), {1, 2}])
def test_what_has_no_plain_form_is_refused_before_anything_is_written(value: object) -> None:
    pipe = io.BytesIO()
    with pytest.raises(FrameError):
        send(pipe, Done(value))
    assert pipe.getvalue() == b""


@pytest.mark.parametrize(
    "message", [["name of a stranger"], ["dataclass", "os:getpid"], ["enum", "builtins:print", 1]]
)
def test_reading_a_message_calls_nothing_but_dataclasses_and_enumerations(
    message: list[object],
) -> None:
    data = msgspec.msgpack.encode(message)
    with pytest.raises(FrameError):
        receive(io.BytesIO(HEAD.pack(len(data)) + data))
