"""The one-token requests that prove that an engine works, by what its model is for. Pure."""

import io
import wave

from fleet.engines.adapter import Probe
from fleet.sizing.facts import Task

_RATE_HZ = 16_000
_SILENCE_S = 1


def one_token(task: str, model: str) -> Probe:
    """In OpenAI's API, and that of rerankers."""
    match task:
        case Task.EMBED:
            return Probe("/v1/embeddings", {"model": model, "input": "a"})
        case Task.RERANK:
            return Probe("/v1/rerank", {"model": model, "query": "a", "documents": ["a"]})
        case Task.TRANSCRIBE:
            return Probe("/v1/audio/transcriptions", {"model": model}, ("silence.wav", _silence()))
    return Probe("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1})


def _silence() -> bytes:
    """A second of it: 16-bit mono."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(_RATE_HZ)
        sound.writeframes(bytes(2 * _RATE_HZ * _SILENCE_S))
    return buffer.getvalue()
