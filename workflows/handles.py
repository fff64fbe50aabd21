"""Handles that nobody waits for."""

import asyncio
from typing import Any


def let_go(handle: asyncio.Task[Any]) -> None:
    """Whatever becomes of it is no news. Without this its failure would be logged as an error of ours."""
    handle.add_done_callback(lambda done: None if done.cancelled() else done.exception())
