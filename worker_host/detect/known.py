"""Cards that cannot tell any more who they are, recognised by where they are. On disk over restarts."""

import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fleet.inventory import Gpu
from worker_host.detect.card import UNKNOWN, Card, Look
from worker_host.files import write_atomically

log = logging.getLogger("holdfast.host")

_GPUS = TypeAdapter(tuple[Gpu, ...])


def recognised(look: Look, known: Sequence[Gpu]) -> Look:
    """A card that fell off the bus tells no UUID. If it is in the place of one that is missing, it is that one.

    Only where the driver still counts it: among as many whole cards as before, each of the others in its old place.
    """
    whole = [card for card in look.cards if not card.gpu.parent_uuid]
    places = {gpu.index: gpu for gpu in known if not gpu.parent_uuid}
    moved = [c for c in whole if not nameless(c) and _at(places, c).uuid != c.gpu.uuid]
    if len(whole) != len(places) or moved:
        return look
    return Look(tuple(_named(card, places) if nameless(card) else card for card in look.cards), look.notes)


def nameless(card: Card) -> bool:
    """Whether it could not tell who it is."""
    return card.gpu.uuid.startswith(UNKNOWN) and not card.gpu.healthy


def read(path: Path) -> tuple[Gpu, ...]:
    """Cards as an earlier process saw them; none if nothing (readable) is there."""
    try:
        return _GPUS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return ()


def write(path: Path, gpus: Sequence[Gpu]) -> None:
    """A disk that is full or read-only costs only the recognition of cards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _GPUS.dump_json(tuple(gpus)).decode())
    except OSError as error:
        log.warning("cannot keep in mind which cards are here: %s", error)


def _at(places: dict[int, Gpu], card: Card) -> Gpu:
    return places.get(card.gpu.index, card.gpu)


def _named(card: Card, places: dict[int, Gpu]) -> Card:
    was = _at(places, card)
    gpu = was.model_copy(update={"healthy": False, "reason": card.gpu.reason})
    return Card(gpu, card.status.model_copy(update={"uuid": gpu.uuid}), card.processes)
