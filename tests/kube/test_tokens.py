"""Tokens that expire, on a real API server."""

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from pyflannel.lab.waiting import wait_until
from testlab.cluster import Cluster, Member, peer, pod_on
from testlab.pinging import pinging

LEEWAY_S = 60
"""Time in seconds for which the server accepts a token after its expiry."""


def expiring(cluster: Cluster, token: str, expiry: float) -> str:
    """Return a token of a pod with another expiry, signed by the key of the server."""
    header, payload, _ = token.split(".")
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=="))
    claims |= {"iat": int(expiry) - 600, "nbf": int(expiry) - 600, "exp": int(expiry)}
    signed = f"{header}.{urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}"
    key = serialization.load_pem_private_key((cluster.directory / "sa.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    numbers = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    signature = b"".join(number.to_bytes(32, "big") for number in numbers)  # RFC 7518 section 3.4
    return f"{signed}.{urlsafe_b64encode(signature).decode().rstrip('=')}"


def write(path: Path, token: str) -> None:
    """Replace a token, as the kubelet does."""
    new = path.with_suffix(".new")
    new.write_text(token)
    new.replace(path)


def test_a_token_that_expires_is_reported_and_a_renewed_one_is_used(
    members: list[Member], cluster: Cluster
) -> None:
    one, two = members
    token, expiring_at = cluster.directory / "bound-token", time.time() + 10 - LEEWAY_S
    bound = cluster.token(pod=pod_on("node1", cluster))
    write(token, expiring(cluster, bound, expiring_at))
    by_file = cluster.kubeconfig("bound", tokenFile=token.name)
    one.start(kubeconfig=by_file)
    two.start()
    one.until_route("10.244.2.0/24")
    two.until_route("10.244.1.0/24")
    containers = [
        member.host.container("token", gateway=member.host.gateway(), mtu=1450) for member in members
    ]

    with pinging(containers[0], str(containers[1].address)) as pings:

        def is_refused() -> bool:
            return cluster.call("GET", "/api/v1/nodes", token=token.read_text())[0] == 401

        wait_until(is_refused, what="the expiry", deadline_s=30)
        assert one.waits_for() == "flanneld is ready"  # the server does not end the watch of docker1
        cluster.kill_api_server()
        cluster.start_api_server()
        one.until_waits_for(f"does not accept the token in {token} (401 Unauthorized)")
        assert "Renew the credentials: they are expired" in one.log()
        cluster.add_node("node3", "10.244.3.0/24", **peer("10.10.10.103", "02:00:00:00:00:03"))
        two.until_route("10.244.3.0/24")
        assert not one.has_route("10.244.3.0/24")

        renewed_at = time.monotonic()
        write(token, bound)
        one.until_route("10.244.3.0/24")
        one.until_ready()
        took_s = time.monotonic() - renewed_at
    print(f"renewed token in use after {took_s:.1f} s")
    assert took_s < 20
    assert pings.lost == 0

    one.stop()
    write(token, expiring(cluster, bound, time.time() - LEEWAY_S - 10))
    one.launch(kubeconfig=by_file)
    one.until_waits_for("does not accept the token")
    write(token, bound)
    one.until_ready()
