"""What an evaluation tells a person: what fits, or what takes hosts away and the smallest change. Pure."""

from collections.abc import Iterator, Sequence

from fleet.evaluation.answer import ClassView, FilterCount, FitView, MaxReplicas, Message
from fleet.evaluation.rent import Money, Rental
from fleet.inventory import AcceleratorKind
from fleet.placement.decision import Filter, Removed
from fleet.sizing.sizing import GpuClass, Shape

GIB = 1 << 30
_WHAT_FILTERS_MEAN = {
    Filter.EXCLUDED: "set aside after failures",
    Filter.LABELS: "without the labels of placement.host_selector",
    Filter.RESERVED: "reserved for other deployments",
    Filter.RUNTIME: "without the runtime that is asked for",
    Filter.IMAGE: "without an image for the engine",
    Filter.ENGINE: "that cannot run the engine",
    Filter.FILE: "without the model",
    Filter.AVOID: "with deployments that this one avoids",
    Filter.CARDS: "without a GPU that takes claims",
    Filter.VENDORS: "without cards of placement.vendors",
    Filter.GPU_TYPES: "without cards of placement.gpu_types",
    Filter.GPU_IDS: "without the GPUs of placement.gpu_ids",
    Filter.ACCELERATOR: "whose engine cannot use their cards",
    Filter.MODEL: "on whose cards the model cannot run",
    Filter.COUNT: "with too few cards",
    Filter.FABRIC: "on no network for replicas that span hosts",
    Filter.MEMORY: "without enough free GPU memory",
    Filter.RAM: "without enough free RAM",
    Filter.PORTS: "without a free port",
    Filter.GANG: "that could take a share of a replica",
}


def fleet_messages(
    wanted: int, most: MaxReplicas, classes: Sequence[ClassView], removed: Sequence[Removed], reasons: Sequence[str]
) -> list[Message]:
    """On hosts: how many fit and where; else which filter took how many hosts away, and what to change."""
    now, empty = most.now or 0, most.if_empty or 0
    told: list[Message] = []
    if now:
        level, missing = ("ok", "") if now >= wanted else ("problem", f" of {wanted}")
        told.append(
            Message.model_validate(
                {"level": level, "text": f"{min(now, wanted)}{missing} {_fit(classes, now, wanted)}"}
            )
        )
    else:
        told.append(_problem(f"no replica fits now{_counts(removed)}"))
    if now < wanted:
        told += [_problem(reason) for reason in reasons]
        told.append(_problem(_if_empty(now, empty, wanted)))
        said = "; ".join(reasons)
        told += [
            Message(level="warning", text=text) for text in changes(classes) if text.partition(": ")[2] not in said
        ]
    return told + [Message(level="warning", text=text) for text in doubts(classes)]


def catalog_messages(wanted: int, classes: Sequence[ClassView]) -> list[Message]:
    rentable = [(c, r) for c in classes for r in c.rentals[:1]]
    if not rentable:
        found = [_problem(f"no machine of the catalog runs it: {_tried(classes)}")]
        return found + [Message(level="warning", text=text) for text in changes(classes)]
    priced = [(c, r, r.price_for_all) for c, r in rentable if r.price_for_all is not None]
    if not priced:
        names = ", ".join(sorted({f"{r.instance_type} ({r.cloud})" for _, r in rentable}))
        return [Message(level="ok", text=f"can be rented: {names}; no price is known, ask the cloud")]
    best = min(priced, key=lambda found: float(found[2].amount))
    told = [Message(level="ok", text=f"cheapest for {_replicas(wanted)}: {_rental(best[0], best[1], best[2])}")]
    return told + [Message(level="warning", text=text) for text in doubts([best[0]])]


def changes(classes: Sequence[ClassView]) -> Iterator[str]:
    """The smallest change on each class of cards where it does not fit as asked."""
    for view in classes:
        nearest = next((f for f in view.fits if f.asked is None and (f.limit or f.remedy)), None)
        if view.why_not:
            yield f"{named(view.gpu)}: {view.why_not}"
        elif nearest is not None and not any(f.asked for f in view.fits):
            parts = [part for part in (nearest.limit, nearest.remedy) if part]
            yield f"{named(view.gpu)}: {'; '.join(parts)}"


def doubts(classes: Sequence[ClassView]) -> Iterator[str]:
    """Predictions that might turn out too low for the card, and what sizing warns of."""
    for view in classes:
        fit = best_fit_of(view)
        if fit is None or fit.asked is None:
            continue
        if not fit.asked.measured and fit.asked.gpu_bytes + fit.asked.error_bytes > view.allocatable_bytes:
            yield (
                f"{named(view.gpu)}: {gib(fit.asked.gpu_bytes)} is a prediction that may be off by "
                f"{gib(fit.asked.error_bytes)}, and the card has {gib(view.allocatable_bytes)}: it may not start"
            )
        for warning in fit.warnings:
            yield f"{named(view.gpu)}: {warning}"


def best_fit_of(view: ClassView) -> FitView | None:
    """The first shape that holds what is asked for."""
    return next((fit for fit in view.fits if fit.asked is not None), None)


def shape_text(shape: Shape, gpu: GpuClass) -> str:
    """``1 GPU``, ``4 GPUs (TP4)``, ``16 GPUs on 2 hosts (TP8 PP2)``, ``CPU``."""
    if gpu.kind is AcceleratorKind.CPU:
        return "CPU"
    ways = [f"{name}{n}" for name, n in (("TP", shape.tensor_parallel), ("PP", shape.pipeline_parallel)) if n > 1]
    cards = "1 GPU" if shape.gpus == 1 else f"{shape.gpus} GPUs"
    over = f" on {shape.hosts} hosts" if shape.hosts > 1 else ""
    return f"{cards}{over} ({' '.join(ways)})" if ways else cards


def named(gpu: GpuClass) -> str:
    return gpu.name or gpu.kind.value


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def filter_counts(removed: Sequence[Removed]) -> list[FilterCount]:
    return [FilterCount(filter=r.name.value, hosts=r.hosts, gpus=r.gpus) for r in removed]


def money(price: Money) -> str:
    kind = "spot, " if price.spot else ""
    where = "" if price.region == "all" else f"{price.region}, "
    return f"{price.amount} {price.currency} an hour ({kind}{where}{price.date})"


def _fit(classes: Sequence[ClassView], now: int, wanted: int) -> str:
    places = [f"{v.replicas_now} on {named(v.gpu)} ({_booked(v)})" for v in classes if v.replicas_now]
    verb = "replica fits" if min(now, wanted) == 1 and now >= wanted else "replicas fit"
    return f"{verb} now; room for {_replicas(now)} in all: {'; '.join(places)}"


def _booked(view: ClassView) -> str:
    fit = max(view.fits, key=lambda f: f.replicas_now, default=None)
    way = fit.asked or fit.minimum if fit is not None else None
    if fit is None or way is None:
        return "as much memory as the spec names"
    if not way.gpu_bytes:
        return f"{gib(way.ram_bytes)} of RAM"
    return f"{fit.shape}, {gib(way.gpu_bytes)} each"


def _counts(removed: Sequence[Removed]) -> str:
    told = [f"{_hosts(r.hosts)} {_WHAT_FILTERS_MEAN[r.name]}" for r in removed]
    return f": {', '.join(told)}" if told else ": there is no host"


def _if_empty(now: int, empty: int, wanted: int) -> str:
    if empty >= wanted:
        return f"{_replicas(empty)} would fit if nothing else ran there: stop or move other deployments, or add hosts"
    if empty > now:
        return f"{_replicas(empty)} would fit if nothing else ran there: add hosts, or ask for fewer replicas"
    return "nothing that runs there is in the way: add hosts with other cards, or change what is asked for"


def _tried(classes: Sequence[ClassView]) -> str:
    kinds = ", ".join(sorted({named(c.gpu) for c in classes}))
    return f"none with {kinds}" if kinds else "placement.vendors and placement.gpu_types leave no machine"


def _rental(view: ClassView, rental: Rental, price: Money) -> str:
    count = f"{rental.machines} × " if rental.machines > 1 else ""
    cards = "part of a" if rental.fraction else f"{rental.gpus} ×"
    return f"{count}{rental.instance_type} ({rental.cloud}, {cards} {named(view.gpu)}), {money(price)}"


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _hosts(count: int) -> str:
    return "1 host" if count == 1 else f"{count} hosts"


def _problem(text: str) -> Message:
    return Message(level="problem", text=text)
