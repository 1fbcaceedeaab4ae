"""Which programs of a launch race: what they do to one address, when nothing puts it in an order.

A program is ordered after another one, once it acquires, by an atomic, what the other one released there. A release
gives away what its program did before its last barrier, and all that the program had acquired itself. It is kept how
far of every program each program knows.
"""

from typing import NamedTuple

import numpy as np

READ, WRITE, ATOMIC = "read", "write", "atomic"
# What meets what, in the order that it is looked for, and what to call it. Two reads never race, nor do two atomics.
_MEETINGS = {
    (WRITE, WRITE): "two programs write",
    (READ, WRITE): "a program reads what another one writes,",
    (WRITE, READ): "a program reads what another one writes,",
    (ATOMIC, WRITE): "a program counts on what another one writes,",
    (WRITE, ATOMIC): "a program counts on what another one writes,",
    (ATOMIC, READ): "a program reads what another one counts on,",
    (READ, ATOMIC): "a program reads what another one counts on,",
}


class _Access(NamedTuple):
    what: str
    addresses: np.ndarray
    program: int
    when: int  # a count of the program's barriers, or of its atomics
    known: np.ndarray  # of every program, how many barriers it is ordered after, and then, how many atomics


class History:
    """What the programs of one launch did, one after the other."""

    def __init__(self, programs: int) -> None:
        self.programs = programs
        self.accesses: list[_Access] = []
        self.released: dict[int, np.ndarray] = {}
        self.start(0)

    def start(self, program: int) -> None:
        self.program, self.barriers, self.atomics = program, 0, 0
        self.known = np.zeros(2 * self.programs, np.int64)

    def barrier(self) -> None:
        self.barriers += 1

    def touch(self, what: str, addresses: np.ndarray) -> None:
        when = self.atomics if what == ATOMIC else self.barriers
        self.accesses.append(_Access(what, addresses, self.program, when, self.known))

    def atomic(self, addresses: np.ndarray, acquires: bool, releases: bool) -> None:
        self.touch(ATOMIC, addresses)
        self.atomics += 1
        for address in addresses.tolist():
            before = self.released.get(address)
            if acquires and before is not None:
                self.known = np.maximum(self.known, before)
            if releases:
                known = self.known.copy()
                known[[self.program, self.programs + self.program]] = self.barriers, self.atomics
                self.released[address] = known if before is None else np.maximum(known, before)

    def race(self) -> tuple[str, int] | None:
        """What happened, and at which address."""
        shared = self._shared()
        if not len(shared):
            return None
        # Of every address and program: how many barriers or atomics one must know to be ordered after its last access.
        done = {what: np.zeros((len(shared), self.programs), np.int64) for what in (READ, WRITE, ATOMIC)}
        for what, addresses, program, when, known in self.accesses:
            at = np.searchsorted(shared, addresses)
            found = np.take(shared, at, mode="clip") == addresses
            at, addresses = at[found], addresses[found]
            if not len(at):
                continue
            others = np.arange(self.programs) != program
            for (one, other), said in _MEETINGS.items():
                if one == what:
                    knows = known[self.programs :] if other == ATOMIC else known[: self.programs]
                    unordered = ((done[other][at] > knows) & others).any(1)
                    if unordered.any():
                        return said, int(addresses[unordered][0])
            done[what][at, program] = when + 1
        return None

    def _shared(self) -> np.ndarray:
        """Addresses that two programs or more touch, and one of them not only to read."""
        changed = [x for x in self.accesses if x.what != READ]
        if not changed:
            return np.empty(0, np.uint64)
        address = np.concatenate([x.addresses for x in changed])
        address, first = np.unique(address, return_index=True)
        owner = np.repeat([x.program for x in changed], [len(x.addresses) for x in changed])[first]
        shared = []
        for x in self.accesses:
            at = np.minimum(np.searchsorted(address, x.addresses), len(address) - 1)
            shared.append(x.addresses[(address[at] == x.addresses) & (owner[at] != x.program)])
        return np.unique(np.concatenate(shared))
