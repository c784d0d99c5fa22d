"""HTTP as bytes on a socket, which no client library has mended."""

import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n")


@dataclass(frozen=True)
class Spoken:
    """All that was answered on a connection, and whether the other side ended it."""

    answered: bytes
    is_ended: bool

    @property
    def statuses(self) -> list[int]:
        """Of each answer. No body of ours has a line that looks like a status."""
        return [int(status) for status in _STATUS_LINE.findall(self.answered)]


def connect(url: str, seconds: float = 20) -> socket.socket:
    """A connection to the server at ``url``."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=seconds)


def speak(url: str, *pieces: bytes) -> Spoken:
    """Send ``pieces`` one by one and read until the connection is ended."""
    with connect(url) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except ConnectionError:
            pass  # refused while it was sent: the answer is there all the same
        return listen(connection)


def listen(connection: socket.socket) -> Spoken:
    """Read until the connection is ended, or nothing comes any more."""
    answered = b""
    try:
        while piece := connection.recv(65536):
            answered += piece
    except TimeoutError:
        return Spoken(answered, is_ended=False)
    except ConnectionError:
        pass
    return Spoken(answered, is_ended=True)
