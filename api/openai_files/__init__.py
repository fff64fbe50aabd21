"""OpenAI's ``files`` and ``batches``: what clients keep here, and what is worked off when there is room.

Plain ASGI beside the gateway, which has seen the key. It knows the database and no Temporal.
"""

from api.openai_files.app import FilesAndBatches
from api.openai_files.limits import Limits

__all__ = ["FilesAndBatches", "Limits"]
