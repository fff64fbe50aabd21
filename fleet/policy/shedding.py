"""Which requests are turned away early, so that those that matter more need not wait for them. Pure."""


def shed_probability(saturation: float) -> float:
    """Of a request with a priority below 0. 2 % at 0.15, all from about 0.32 on.

    ``saturation``: of all requests that are here, the share that waits; 0 to 1. The steep curve is llm-d's.
    """
    return min(max(saturation, 0.0) ** 5 * 300, 1.0)


def saturation(waiting: int, in_flight: int) -> float:
    return waiting / (waiting + in_flight) if waiting else 0.0


def is_shed(priority: int, waiting: int, in_flight: int, chance: float) -> bool:
    """``chance``: a random number from 0 to below 1."""
    return priority < 0 and chance < shed_probability(saturation(waiting, in_flight))
