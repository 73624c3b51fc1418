"""containerd: `ctr run --cni`, and pods by the interface of Kubernetes (CRI)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import wait_until
from testlab.container_ways import (
    CTR_RUN,
    IMAGE,
    SOON_S,
    UNUSABLE_SUBNET_FILES,
    Containerd,
    CriWay,
    CtrWay,
    attachments,
    other_subnet_file,
)


@pytest.fixture(scope="module")
def containerds(hosts: list[Host]) -> Iterator[list[Containerd]]:
    """Start containerd on both hosts, with an image that sleeps."""
    running = [Containerd(host) for host in hosts]
    for containerd in running:
        containerd.start()
        containerd.import_image()
    yield running
    for containerd in running:
        containerd.stop()


def test_containers_of_two_hosts_reach_each_other_with_ctr(containerds: list[Containerd]) -> None:
    first, second = containerds
    other = CtrWay(second).start("other")
    alone = [*CTR_RUN, "--rm", IMAGE, "one", "ping", "-c1", "-W5", str(other.address)]
    assert "1 packets received" in first.host.run(alone).stdout
    CtrWay(second).end("other")
    for containerd in containerds:
        assert attachments(containerd.host) == []


def test_pods_of_two_hosts_reach_each_other_by_cri(containerds: list[Containerd], go_programs: Path) -> None:
    ways = [CriWay(containerd, go_programs) for containerd in containerds]
    first, second = [way.start("web") for way in ways]  # the condition NetworkReady is true
    assert ping(first, second.address).is_reached
    assert ping(second, first.address).is_reached
    for way, containerd in zip(ways, containerds, strict=True):
        way.end("web")
        assert attachments(containerd.host) == []


@pytest.mark.parametrize(("text", "reason"), UNUSABLE_SUBNET_FILES.values(), ids=UNUSABLE_SUBNET_FILES)
def test_containerd_shows_why_the_subnet_file_is_unusable(
    containerds: list[Containerd], go_programs: Path, text: str | None, reason: str
) -> None:
    containerd = containerds[0]
    pods = CriWay(containerd, go_programs)

    with other_subnet_file(containerd.host, text) as path:
        by_ctr = containerd.host.run([*CTR_RUN, IMAGE, f"refused-{text is None}", "true"], check=False).stderr
        wait_until(lambda: path in pods.crictl("info"), what="CRI reads the file again", deadline_s=SOON_S)
        with pytest.raises(LabError) as by_cri:
            pods.start("refused")

    assert f"{path}: {reason}" in by_ctr
    assert f"{path}: {reason}" in str(by_cri.value)
    assert attachments(containerd.host) == []
    wait_until(lambda: path not in pods.crictl("info"), what="CRI reads the file again", deadline_s=SOON_S)
    assert pods.crictl("pods", "--quiet") == ""
