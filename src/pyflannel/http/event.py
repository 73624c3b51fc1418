"""h11 fed from a stream."""

import asyncio

import h11

READ_OCTETS = 64 * 1024


async def next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    """Return the next h11 event, reading as much as it takes; the stream's end is an event too.

    Raises:
        h11.RemoteProtocolError: the other side does not keep to HTTP/1.1, or to the connection's bounds.
    """
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(READ_OCTETS))
    return event
