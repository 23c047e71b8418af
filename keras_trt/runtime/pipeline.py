"""The batches of one call, on their way over several slots at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from .plan import Batch
from .slots import Slot

#: With so many batches on the GPU it has work while the thread sleeps; with fewer, rows on their way are waited for.
BUSY = 2
#: How often the thread asks again at once, which takes some 10 µs, and how long it sleeps after that, in seconds; Linux
#: makes 75 µs of it.
AT_ONCE, PAUSE = 10, 2e-5


class Pipeline:
    """Copies batches to page-locked memory, sends them to the GPU, has them computed, and takes their results out.

    Whatever is ready is done: rows are launched first, then sent, then staged, and results are taken out last. Where
    nothing is, nobody knows what will be first, so the thread asks again, unless all are launched or the GPU has too
    little to compute. A fixed order of waits let the GPU or the copies stand still (MobileNetV2 on an H200: 0.5 to 0.7
    of what its engine does); and where it waited for results, rows that were ready meanwhile waited too.

    Args:
        batches: in the order in which their results are taken out.
        take: returns a slot for a batch, where the call holds so many others; `None` where there is none to be had now.
        stage: begins to copy a batch to a slot's memory.
        give: takes the results of a batch out of a slot that has run, and gives the slot back.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        take: Callable[[Batch, int], Slot | None],
        stage: Callable[[Slot, Batch], None],
        give: Callable[[Slot, Batch], None],
    ) -> None:
        self._left = iter(batches)
        self._next = next(self._left, None)
        self._take, self._stage_rows, self._give = take, stage, give
        self._may_take = True  # whether a slot may be had, as after one was given back
        #: From the first on, so many are computed, and so many sent; those behind are copied.
        self.under_way: list[tuple[Slot, Batch]] = []
        self._computed = self._sent = 0

    def run(self) -> None:
        """Run all batches. After an error, slots that are `under_way` are left to the caller."""
        asked = 0  # since something was ready
        while self._next is not None or self.under_way:
            behind = self._computed + self._sent
            oldest = self.under_way[0][0] if self._computed else None
            sent = self.under_way[self._computed][0] if self._sent else None
            copied = self.under_way[behind][0] if behind < len(self.under_way) else None
            if sent and sent.is_idle:
                self._launch(sent)
            elif copied and copied.is_staged:
                self._send(copied)
            elif self._next is not None and self._may_take:
                self._stage(self._next)
            elif oldest and (oldest.is_idle or not (sent or copied)):
                self._finish(oldest)
            elif self._computed >= BUSY:
                asked += 1
                time.sleep(0 if asked <= AT_ONCE else PAUSE)
                continue
            elif sent:
                self._launch(sent)
            elif copied:
                self._send(copied)
            asked = 0

    def _stage(self, batch: Batch) -> None:
        slot = self._take(batch, len(self.under_way))
        self._may_take = slot is not None
        if slot is not None:
            self.under_way.append((slot, batch))
            self._next = next(self._left, None)
            self._stage_rows(slot, batch)

    def _send(self, slot: Slot) -> None:
        slot.send()
        self._sent += 1

    def _launch(self, slot: Slot) -> None:
        slot.launch()
        self._sent -= 1
        self._computed += 1

    def _finish(self, slot: Slot) -> None:
        slot.wait()
        self._give(slot, self.under_way[0][1])
        del self.under_way[0]
        self._computed -= 1
        self._may_take = True
