"""One request over a Unix socket."""

import asyncio
from pathlib import Path

import h11

from pyflannel.errors import WireError
from pyflannel.http.server import JSON, Response, next_event

_BODY_OCTETS = 64 * 1024 * 1024
"""More than any answer of ours: 10,000 leases are 4 MB."""


async def request(path: Path, method: str, target: str, *, body: bytes = b"", deadline_s: float) -> Response:
    """Return the answer to one request, whatever its status, within `deadline_s`.

    Raises:
        OSError: nobody listens, the connection broke, or the deadline passed (TimeoutError).
        WireError: what answered does not speak HTTP, or speaks without end.
    """
    async with asyncio.timeout(deadline_s):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            return await _exchange(reader, writer, method, target, body)
        except h11.RemoteProtocolError as error:
            raise WireError(
                f"{path} gave no HTTP answer: {error}", hint="Check that the socket is flanneld's."
            ) from error
        finally:
            writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, target: str, body: bytes
) -> Response:
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", "localhost"), ("Connection", "close")]
    if body:
        headers += [("Content-Type", JSON), ("Content-Length", str(len(body)))]
    question: list[h11.Event] = [
        h11.Request(method=method, target=target, headers=headers),
        h11.Data(data=body),
        h11.EndOfMessage(),
    ]
    for event in question:
        writer.write(connection.send(event) or b"")
    await writer.drain()

    head = await next_event(connection, reader)
    while isinstance(head, h11.InformationalResponse):
        head = await next_event(connection, reader)
    if not isinstance(head, h11.Response):
        raise WireError("the connection ended without an answer", hint="Try again; see the log of flanneld.")
    answer = bytearray()
    while isinstance(piece := await next_event(connection, reader), h11.Data):
        answer += piece.data
        if len(answer) > _BODY_OCTETS:
            raise WireError(
                f"the answer is longer than {_BODY_OCTETS} octets", hint="Check what listens there."
            )
    content_type = next((value for name, value in head.headers if name == b"content-type"), b"")
    return Response(status=head.status_code, body=bytes(answer), content_type=content_type.decode("latin-1"))
