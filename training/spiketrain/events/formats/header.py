"""The text that Prophesee's .raw and .dat files begin with: lines of `% key value`."""

from __future__ import annotations

import re
from typing import NamedTuple

from spiketrain.events.formats.base import EventFormatError, Sensor
from spiketrain.events.formats.source import HEAD, Source

_LINE = re.compile(rb"%[ \t]?([\t\x20-\x7e\x80-\xff]*)\r?\n|%\r?\n")
_ENCODINGS = {
    "2.0": "evt2", "evt2": "evt2", "evt2.0": "evt2",
    "2.1": "evt21", "evt21": "evt21", "evt2.1": "evt21",
    "3.0": "evt3", "evt3": "evt3", "evt3.0": "evt3",
}  # fmt: skip


class Header(NamedTuple):
    """Keys in lower case. `length` is where the data begins."""

    fields: dict[str, str]
    length: int

    @property
    def encoding(self) -> str | None:
        """evt2, evt21 or evt3, where the header says so."""
        name = self._format[0] or self.fields.get("evt", "")
        return _ENCODINGS.get(name.strip().lower())

    @property
    def endianness(self) -> str | None:
        return self._format[1].get("endianness") or self.fields.get("endianness")

    @property
    def sensor(self) -> Sensor | None:
        options = {**self.fields, **self._format[1]}
        size = (options.get("width", ""), options.get("height", ""))
        if match := re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", self.fields.get("geometry", "")):
            size = (match[1], match[2])
        if not all(re.fullmatch(r"[0-9]{1,5}", side.strip()) for side in size):
            return None
        width, height = int(size[0]), int(size[1])
        return (width, height) if 0 < width <= 65536 and 0 < height <= 65536 else None

    @property
    def _format(self) -> tuple[str, dict[str, str]]:
        """`EVT3;height=720;width=1280` as its name and its options."""
        name, *options = self.fields.get("format", "").split(";")
        pairs = (option.partition("=") for option in options)
        return name, {key.strip().lower(): value.strip() for key, _, value in pairs}


def prophesee_header(head: bytes) -> Header | None:
    """None if the bytes do not begin with such a line."""
    fields: dict[str, str] = {}
    at = 0
    while match := _LINE.match(head, at):
        at = match.end()
        key, _, value = (match[1] or b"").decode("latin-1").strip().partition(" ")
        fields.setdefault(key.lower(), value.strip())
        if key.lower() == "end":
            break
    return Header(fields, at) if at else None


def take_prophesee_header(source: Source) -> Header:
    """Passes over the header, which may be missing where the format is known otherwise."""
    header = prophesee_header(source.head) or Header({}, 0)
    if header.length == HEAD:
        raise EventFormatError(f"the header does not end within {HEAD} bytes")
    source.take_head(header.length)
    return header
