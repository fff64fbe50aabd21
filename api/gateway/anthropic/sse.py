"""Server-sent events taken apart, however they are cut."""


class Events:
    """Whole events come at once; of one that is cut, the beginning is held back."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event, which is JSON or ``[DONE]``; a comment comes as it is, with its colon."""
        if self._held:
            data = self._held + data
            self._held = b""
        if b"\r" in data:
            data = self._with_plain_ends(data)
        if not data.endswith(b"\n\n"):
            end = data.rfind(b"\n\n") + 2
            whole = data[:end] if end > 1 else b""
            self._held = data[len(whole) :] + self._held
            data = whole
        return [found for event in data.split(b"\n\n") if event and (found := _data(event))]

    def rest(self) -> list[bytes]:
        """When the stream has ended: what came without its last empty line."""
        return self.feed(b"\n\n") if self._held else []

    def _with_plain_ends(self, data: bytes) -> bytes:
        if data.endswith(b"\r"):
            self._held = b"\r"
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes:
    start = event.find(b"data:")
    if start >= 0 and (start == 0 or event[start - 1] == 10) and event.find(b"\n", start) < 0:
        return event[start + 5 :].strip()
    lines = event.split(b"\n")
    found = b"\n".join(line[5:] for line in lines if line.startswith(b"data:")).strip()
    return found or b"\n".join(line for line in lines if line.startswith(b":"))
