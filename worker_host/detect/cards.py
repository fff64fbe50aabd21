"""All cards of this host, asked again and again: no vendor's driver or tool holds up another, or the one who asks."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fleet.inventory import GPUS_MAX, Gpu
from worker_host.detect.card import CannotLook, Card, Look, Vendor, card_of
from worker_host.detect.known import nameless, recognised

FRESH_S = 35.0
"""So long the figures of a slow driver are good."""
PATIENCE_S = 60.0
"""A driver that has said nothing for so long: its cards are taken for unusable."""


class Cards:
    """Keeps the last that each vendor said. Not for several threads at once."""

    def __init__(
        self, vendors: Sequence[Vendor], known: Sequence[Gpu] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``known``: cards of this host as an earlier process saw them, to recognise one that cannot tell who it is."""
        self._eyes = [_Eye(vendor, [g for g in known if g.kind is vendor.kind], clock) for vendor in vendors]

    def look(self, longest_s: float) -> Look:
        """All cards. Those of a vendor that takes longer are as they were last, after a while without figures."""
        for eye in self._eyes:
            eye.open()
        deadline = time.monotonic() + longest_s
        seen = [eye.seen(max(0.0, deadline - time.monotonic())) for eye in self._eyes]
        cards = [card for look in seen for card in look.cards]
        notes = tuple(note for look in seen for note in look.notes)
        if len(cards) > GPUS_MAX:
            notes = (*notes, f"{len(cards)} cards were found; the first {GPUS_MAX} are used")
        return Look(tuple(_distinct(cards)[:GPUS_MAX]), notes)

    def known(self) -> tuple[Gpu, ...]:
        """For the next process."""
        return tuple(gpu for eye in self._eyes for gpu in eye.known)


@dataclass(frozen=True)
class _Answer:
    look: Look | None
    error: str = ""


class _Eye:
    """One vendor. It is asked in a thread of its own, and not again before it has answered."""

    def __init__(self, vendor: Vendor, known: Sequence[Gpu], clock: Callable[[], float]) -> None:
        self._vendor = vendor
        self._clock = clock
        self.known = tuple(known)
        """As they were when they were last well."""
        self._last = Look(tuple(card_of(gpu) for gpu in known))
        self._heard_at: float | None = None
        self._begun = clock()
        self._answer: _Answer | None = None
        self._late = False
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._ask, name=f"look for {self._vendor.kind} cards", daemon=True)
            self._thread.start()

    def seen(self, longest_s: float) -> Look:
        if self._thread is not None:
            self._thread.join(longest_s)
            if self._thread.is_alive():
                self._late = True
                return self._silent("it has not answered yet", waiting=True)
        self._thread, late, self._late = None, self._late, False
        answer, self._answer = self._answer, None
        if late:
            self.open()  # so that there is an answer the next time
        if answer is None or answer.look is None:
            return self._silent(answer.error if answer is not None else "it could not be asked")
        self._heard_at = self._clock()
        self._last = recognised(answer.look, self.known)
        self.known = _remembered(self.known, self._last)
        return self._last

    def _ask(self) -> None:
        try:
            seen = () if self._heard_at is None else tuple(card.gpu for card in self._last.cards)
            self._answer = _Answer(self._vendor.look(seen))
        except CannotLook as error:
            self._answer = _Answer(None, str(error))
        except Exception as error:  # noqa: BLE001 - what a driver says must not cost the other cards
            self._answer = _Answer(None, f"{type(error).__name__}: {error}")

    def _silent(self, why: str, *, waiting: bool = False) -> Look:
        now, notes = self._clock(), (f"{self._vendor.kind}: {why}",)
        if self._heard_at is not None and now - self._heard_at < FRESH_S:
            return Look(self._last.cards, notes)
        silent_s = now - (self._begun if self._heard_at is None else self._heard_at)
        gone = f"its driver has said nothing for {silent_s:.0f} s: {why}" if silent_s >= PATIENCE_S else ""
        if self._heard_at is None and not waiting:
            gone = f"its driver does not answer: {why}"
        return Look(tuple(_without_figures(card, gone) for card in self._last.cards), notes)


def _without_figures(card: Card, gone: str) -> Card:
    reason = card.gpu.reason or gone
    healthy = card.gpu.healthy and not gone
    return card_of(card.gpu.model_copy(update={"healthy": healthy, "reason": reason}))


def _remembered(known: Sequence[Gpu], look: Look) -> tuple[Gpu, ...]:
    """Each card as it was when it was last well. As long as one is there that nobody recognises, all is as before."""
    if any(nameless(card) for card in look.cards):
        return tuple(known)
    before = {gpu.uuid: gpu for gpu in known}
    return tuple(c.gpu if c.gpu.healthy else before.get(c.gpu.uuid, c.gpu) for c in look.cards)


def _distinct(cards: Sequence[Card]) -> list[Card]:
    """Two cards of one UUID (a broken driver, a cheap clone) are two cards."""
    found: dict[str, Card] = {}
    for card in cards:
        uuid, number = card.gpu.uuid, 2
        while uuid in found:
            uuid, number = f"{card.gpu.uuid}#{number}", number + 1
        same = uuid == card.gpu.uuid
        found[uuid] = card if same else _renamed(card, uuid)
    return list(found.values())


def _renamed(card: Card, uuid: str) -> Card:
    gpu = card.gpu.model_copy(update={"uuid": uuid})
    return replace(card, gpu=gpu, status=card.status.model_copy(update={"uuid": uuid}))
