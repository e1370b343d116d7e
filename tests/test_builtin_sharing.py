"""The number of threads follows what the machine gives."""

from __future__ import annotations

import pytest

from leaves.serving.sharing import TRY_EVERY, Sharing


class Machine:
    """Takes so many seconds for a step, by its threads."""

    def __init__(self, most: int = 4) -> None:
        self.took = {1: 1.0, most: 1.0}
        self.now = 0.0
        self.sharing = Sharing(most, lambda: self.now)

    def steps(self, count: int, rows: int = 1) -> list[int]:
        used = []
        for _ in range(count):
            used.append(self.sharing.begin(rows))
            self.now += self.took[used[-1]]
            self.sharing.end()
        return used


def test_all_threads_work_while_that_is_no_worse() -> None:
    machine = Machine()
    used = machine.steps(10 * TRY_EVERY)
    assert used.count(1) <= 10
    assert used[0] == 4


@pytest.mark.parametrize("rows", [1, 8])
def test_one_thread_works_where_cores_are_busy_until_they_are_not(rows: int) -> None:
    machine = Machine()
    machine.took = {1: 1.0, 4: 3.0}
    assert machine.steps(2 * TRY_EVERY, rows)[-10:] == [1] * 10
    machine.took = {1: 1.0, 4: 0.4}
    assert machine.steps(2 * TRY_EVERY, rows)[-10:] == [4] * 10


def test_a_step_of_other_rows_is_not_compared() -> None:
    machine = Machine()
    machine.steps(TRY_EVERY, 8)
    machine.took = {1: 0.1, 4: 0.1}
    assert machine.steps(1, 1) == [4]


def test_one_core_has_nothing_to_try() -> None:
    machine = Machine(1)
    assert set(machine.steps(5 * TRY_EVERY)) == {1}
