"""A real etcd in a lab."""

from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import Sandbox

CLIENT_PORT = 2379
PREFIX = "/coreos.com/network"


class EtcdServer:
    """One etcd on a sandbox of the lab, reached by the address that the hosts know.

    Attributes:
        endpoint: what `--etcd-endpoints` takes.
        url: what `--store` takes.
    """

    def __init__(self, place: Sandbox, address: str) -> None:
        self._place = place
        self.endpoint = f"http://{address}:{CLIENT_PORT}"
        self.url = f"etcd://{address}:{CLIENT_PORT}{PREFIX}"

    def start(self) -> Program:
        """Start it, on the data of an earlier start if there are any; return when it answers."""
        return self._place.start_service(
            [
                "etcd",
                "--data-dir=/var/lib/etcd-lab",
                "--unsafe-no-fsync",  # the data need not outlive the machine
                f"--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}",
                f"--advertise-client-urls={self.endpoint}",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=default=http://127.0.0.1:2380",
            ],
            name="etcd",
        )

    def etcdctl(self, *argv: str) -> str:
        """Run etcdctl beside the server and return what it printed."""
        patience = ["--dial-timeout=20s", "--command-timeout=30s"]
        asking = ["etcdctl", f"--endpoints=http://127.0.0.1:{CLIENT_PORT}", *patience]
        return self._place.run(["env", "ETCDCTL_API=3", *asking, *argv]).stdout
