"""An evaluation for people: what it is, what fits where, what to do, and what the memory is for."""

from collections.abc import Iterator
from typing import Any

from fleet.cli import output

Json = dict[str, Any]

_LEVELS = {"ok": "ok", "warning": "warn", "problem": "fail"}
_MOST_RENTALS = 12


def print_evaluation(answer: Json, *, explain: bool) -> None:
    output.print_fields(list(_head(answer)))
    print()
    if answer["against"] == "catalog":
        _print_rentals(answer["classes"])
    else:
        _print_cards(answer["classes"])
    print()
    for message in answer["messages"]:
        output.console().print(
            output.plain(message["level"], output.STYLES[_LEVELS[message["level"]]]).append(
                output.plain(f": {message['text']}", "")
            ),
            soft_wrap=True,
        )
    if explain:
        for view in answer["classes"]:
            _explain(view)


def _head(answer: Json) -> Iterator[tuple[str, str]]:
    model, most = answer["model"], answer["max_replicas"]
    parameters = f"{model['parameters'] / 1e9:.2f} B parameters" if model["parameters"] else ""
    kind = [model["architecture"], parameters, model["quantization"] or model["dtype"], model["format"]]
    yield "model", f"{model['display']}: {', '.join(part for part in kind if part)}"
    yield "weights", f"{output.bytes_text(model['weight_bytes'])}, made for {model['context']:,} tokens"
    engine = f"{answer['engine']} {answer['engine_version']}".strip()
    yield "engine", engine or "none can run it"
    yield "compatible", "yes" if answer["compatible"] else "no"
    if most["now"] is not None:
        room = f"{most['now']} now, {most['if_empty']} if nothing else ran there"
        yield "replicas", f"{answer['replicas']} asked for; room for {room}"
    for note in model["notes"]:
        yield "note", note


def _print_cards(classes: list[Json]) -> None:
    rows = [_row(view, fit, first=n == 0) for view in classes for n, fit in enumerate(view["fits"] or [None])]
    output.print_table(
        ["CARDS", "HAVE", "SHAPE", "MINIMUM", "ASKED", "CONTEXT", "REQUESTS", "NOW", "IF EMPTY"],
        rows,
        empty="no cards to evaluate it on",
    )


def _row(view: Json, fit: Json | None, *, first: bool) -> list[str]:
    named = [_cards(view), output.bytes_text(view["allocatable_bytes"])] if first else ["", ""]
    if fit is None:
        return [*named, view["why_not"] or "as the spec says", "", "", "", "", *_counts(view)]
    way = fit["asked"] or fit["minimum"]
    return [
        *named,
        fit["shape"],
        _size(fit["minimum"]),
        _size(fit["asked"]) or "does not fit",
        f"{way['context']:,}" if way else "",
        f"{way['concurrency']:.1f}" if way else "",
        *_counts(fit),
    ]


def _counts(found: Json) -> list[str]:
    return [str(found["replicas_now"]), str(found["replicas_if_empty"])]


def _cards(view: Json) -> str:
    name = view["gpu"]["name"] or view["gpu"]["kind"]
    if view["gpu"]["kind"] == "cpu":
        return f"{name} of {view['hosts']} {'host' if view['hosts'] == 1 else 'hosts'}"
    return f"{view['gpus']} × {name}" if view["gpus"] else str(name)


def _size(way: Json | None) -> str:
    """Of each card, or of RAM."""
    return "" if way is None else output.bytes_text(way["gpu_bytes"] or way["ram_bytes"])


def _print_rentals(classes: list[Json]) -> None:
    found = [(view, rental) for view in classes for rental in view["rentals"]]
    found.sort(key=lambda pair: _price(pair[1]))
    rows = [_rental(view, rental) for view, rental in found[:_MOST_RENTALS]]
    output.print_table(
        [
            "MACHINE",
            "CLOUD",
            "CARDS",
            "SHAPE",
            "ASKED",
            "MACHINES",
            "REPLICAS EACH",
            "PER REPLICA/H",
            "IN ALL/H",
            "LISTED",
        ],
        rows,
        empty="no machine of the catalog runs it",
    )
    if len(found) > _MOST_RENTALS:
        print(f"… and {len(found) - _MOST_RENTALS} more; --json has all")


def _rental(view: Json, rental: Json) -> list[str]:
    fit = next(f for f in view["fits"] if f["asked"])
    price = rental["price_for_all"]
    listed = f"{price['region']}, {price['date']}{', spot' if price['spot'] else ''}" if price else "price not known"
    return [
        rental["instance_type"],
        rental["cloud"],
        f"{'part of a' if rental['fraction'] else str(rental['gpus']) + ' ×'} {view['gpu']['name']}",
        fit["shape"],
        _size(fit["asked"]),
        str(rental["machines"]),
        str(rental["replicas_per_machine"]),
        _money(rental["price_per_replica"]),
        _money(price),
        listed,
    ]


def _price(rental: Json) -> tuple[bool, float]:
    price = rental["price_for_all"]
    return (price is None, float(price["amount"]) if price else 0.0)


def _money(price: Json | None) -> str:
    return f"{price['amount']} {price['currency']}" if price else ""


def _explain(view: Json) -> None:
    fit = next((f for f in view["fits"] if f["asked"]), view["fits"][0] if view["fits"] else None)
    way = fit and (fit["asked"] or fit["minimum"])
    if fit is None or way is None:
        return
    terms = way["terms"] if way["gpu_bytes"] else way["ram_terms"] or way["terms"]
    share = f", {way['utilization']:.4f} of the card" if way["utilization"] is not None else ""
    predicted = "measured" if way["measured"] else f"predicted, ± {output.bytes_text(way['error_bytes'])}"
    print()
    output.print_fields(
        [
            (f"{view['gpu']['name']}, {fit['shape']}", f"{_size(way)} each ({predicted}{share})"),
            *((f"  {name}", output.bytes_text(size)) for name, size in sorted(terms.items(), key=lambda t: -t[1])),
            ("  RAM", output.bytes_text(way["ram_bytes"]) if way["gpu_bytes"] else ""),
            ("  longest context", f"{fit['longest_context']:,}" if fit["longest_context"] else ""),
            ("  flags", " ".join(way["flags"])),
            *(("  warning", warning) for warning in fit["warnings"]),
        ]
    )
