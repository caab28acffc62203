"""A body that drips in is ended in time: each of its pieces may be quick, and the whole still never be done."""

import time
from collections.abc import Iterator

import httpx2


def end_in_time(response: httpx2.Response) -> None:
    """Let the body of ``response`` take no longer, all in all, than its request allows one read to take.

    A hook of the client, called when the head of a response is there. The library's own timeout is
    that of a single read, which a piece every few seconds satisfies for ever.
    """
    seconds = response.request.extensions.get("timeout", {}).get("read")
    stream = response.stream
    if seconds is not None and isinstance(stream, httpx2.SyncByteStream):
        response.stream = _Timed(stream, response.request, time.monotonic() + seconds)


class _Timed(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, request: httpx2.Request, deadline: float) -> None:
        self._stream = stream
        self._request = request
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if time.monotonic() > self._deadline:
                raise httpx2.ReadTimeout("the body was not done in time", request=self._request)
            yield piece

    def close(self) -> None:
        self._stream.close()
