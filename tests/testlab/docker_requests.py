"""A network driver of Docker that only records requests. The containers of the driver have no interface."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingUnixStreamServer
from threading import Thread

from pyflannel.lab.topology import Host

DRIVER = "recorder"
_ANSWERS: dict[str, object] = {
    "/Plugin.Activate": {"Implements": ["NetworkDriver"]},
    "/NetworkDriver.GetCapabilities": {"Scope": "local"},
    "/NetworkDriver.EndpointOperInfo": {"Value": {}},
}


@contextmanager
def _recorded_requests(host: Host) -> Iterator[list[str]]:
    """Serve the driver on a host during a block. Yield the list of requests, each with path and body."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            requests.append(f"{self.path} {body.decode()}")
            answer = json.dumps(_ANSWERS.get(self.path, {})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing, because the driver records the requests."""

    path = host.directory / f"run/docker/plugins/{DRIVER}.sock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = Thread(target=server.serve_forever, name=DRIVER)
        thread.start()
        try:
            yield requests
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


NAMES = ("of-network", "of-container", "of-host", "of-alias", "of-label", "of-option")


def requests_for_names(host: Host) -> str:
    """Return the requests of Docker for a network and a container that have all of `NAMES`."""
    docker = host.engine.docker
    network = "name=of-network,alias=of-alias,driver-opt=flannel.name=of-option"
    named = ["--name=of-container", "--hostname=of-host", "--label=of-label=x", f"--network={network}"]
    with _recorded_requests(host) as requests:
        docker("network", "create", "-d", DRIVER, "--label=of-label=x", "of-network")
        docker("run", "--rm", *named, "busybox", "true")
        docker("network", "rm", "of-network")
    return "\n".join(requests)
