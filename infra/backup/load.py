"""Loading a dump by a connection of ours, so that all that comes after it is the same transaction."""

import gzip
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from infra.backup.manifest import BackupRefused

END_OF_ROWS = b"\\.\n"
PIECE_LINES = 1000


async def load(connection: AsyncConnection[Any], dump: Path) -> None:
    """Run a script of pg_dump in the transaction that stands open.

    It is what psql would do: statements, and the rows of tables after a COPY. Lines between statements that
    begin with a backslash are for psql alone.
    """
    try:
        with gzip.open(dump) as script:
            statements: list[bytes] = []
            for line in script:
                if line.startswith(b"COPY ") and line.endswith(b" FROM stdin;\n"):
                    await _run(connection, statements)
                    async with connection.cursor() as cursor, cursor.copy(line) as copy:
                        async for piece in _rows(script):
                            await copy.write(piece)
                elif not line.startswith(b"\\"):
                    statements.append(line)
            await _run(connection, statements)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BackupRefused(f"{dump} cannot be read: {error}") from None


async def _run(connection: AsyncConnection[Any], statements: list[bytes]) -> None:
    if statements:
        await connection.execute(b"".join(statements))
        statements.clear()


async def _rows(script: Iterator[bytes]) -> AsyncIterator[bytes]:
    piece: list[bytes] = []
    for line in script:
        if line == END_OF_ROWS:
            break
        piece.append(line)
        if len(piece) == PIECE_LINES:
            yield b"".join(piece)
            piece.clear()
    yield b"".join(piece)
