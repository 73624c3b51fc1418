"""The page: the access to it, its documents, and the limits of its costs for flanneld."""

import asyncio
import json
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from pyflannel.api.monitoring.routes import health_routes, metrics_routes
from pyflannel.api.page import routes as page
from pyflannel.api.page.access import Access, read_token
from pyflannel.api.page.routes import HIDDEN, PREPARED, page_routes
from pyflannel.errors import TargetError, UsageError
from pyflannel.http.server import Request, Response
from pyflannel.model.probe import PingStep
from pyflannel.model.status import Notice, PlanPreview, Status
from pyflannel.wire.control_json import parse_events, parse_status
from pyflannel.wire.network_config_json import parse_network_config
from testlab.documents import read_document
from testlab.shown_network import CONFIG, ShownHost, ShownHosts

LOOPBACK = Access(ip_address("127.0.0.1"))
ANYWHERE = Access(ip_address("0.0.0.0"))
TOKEN = "a-token-of-28-characters-123"
PSK = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="
STATIC = Path(page.__file__).with_name("static")


def request(target: str, *, method: str = "GET", body: bytes = b"", **headers: str) -> Request:
    path, _, query = target.partition("?")
    given = {"host": "127.0.0.1:8471", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request(method=method, path=path, query=query, headers=given, body=body)


async def asked(daemon: ShownHost, access: Access, *requests: Request) -> list[Response]:
    """Return the answers to requests that arrive at the same time."""
    routes = page_routes(daemon, access)
    return await asyncio.gather(*(routes[one.method, one.path](one) for one in requests))


def ask(given: Request, daemon: ShownHost | None = None, access: Access = LOOPBACK) -> Response:
    [answer] = asyncio.run(asked(daemon or ShownHost(_=ShownHosts(3)), access, given))
    return answer


def document(answer: Response) -> Any:
    assert answer.status == 200, answer
    return json.loads(answer.body)


# Access


def test_the_files_need_nothing_from_outside_and_no_inline_script() -> None:
    for path, name in {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}.items():
        answer = ask(request(path))
        assert (answer.status, answer.body) == (200, STATIC.joinpath(name).read_bytes())
        assert "script-src 'self'" in dict(answer.headers)["Content-Security-Policy"]
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?://|//cdn|\beval\(|innerHTML|\son[a-z]+=|<script>|<style|style=", text
        ), file.name


@pytest.mark.parametrize("path", ["/", "/page.js", "/v1/status", "/v1/peers"])
@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:8471", "127.0.0.1.attacker.example", "10.0.0.1", "", "["]
)
def test_a_name_that_resolves_to_loopback_gets_no_answer(path: str, host: str) -> None:
    """DNS rebinding: the browser of an operator sends the Host header of the attacker."""
    assert ask(request(path, host=host)).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9000", "localhost:8471", "[::1]:8471", "127.1.2.3"])
def test_each_loopback_name_is_answered(host: str) -> None:
    """An SSH tunnel to the page may have another port."""
    assert ask(request("/v1/status", host=host)).status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_cannot_start_work(site: str) -> None:
    assert ask(request("/v1/doctor", sec_fetch_site=site)).status == 403
    assert ask(request("/v1/doctor", sec_fetch_site="same-origin")).status == 200


@pytest.mark.parametrize("path", ["/", "/v1/status"])
def test_beyond_loopback_nothing_is_answered_without_a_token(path: str) -> None:
    answer = ask(request(path), access=ANYWHERE)

    assert answer.status == 403
    assert b"--http-token-file" in answer.body


@pytest.mark.parametrize("ip", ["0.0.0.0", "127.0.0.1"])
def test_a_token_protects_each_document(tmp_path: Path, ip: str) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    access = Access(ip_address(ip), file)
    daemon = ShownHost(_=ShownHosts(1))
    documents = [path for _, path in page_routes(daemon, access) if path.startswith("/v1/")]

    page = ask(request("/", host="flannel.example"), access=access)
    assert page.status == 200  # the page asks for the token
    for path in documents:
        method = "POST" if path in ("/v1/config/check", "/v1/plan") else "GET"
        for wrong in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": TOKEN},
            {"authorization": f"Basic {TOKEN}"},
        ):
            assert ask(request(path, method=method, **wrong), access=access).status == 401
    right = request("/v1/status", host="flannel.example", authorization=f"Bearer {TOKEN}")
    assert ask(right, access=access).status == 200


def test_a_changed_token_is_valid_without_a_restart_and_a_missing_file_prevents_access(
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    access = Access(ip_address("0.0.0.0"), file)
    given = request("/v1/status", authorization=f"Bearer {TOKEN}")
    statuses = []
    for text in ("another-token-of-sufficient-length", TOKEN, ""):
        file.write_text(text)
        statuses.append(ask(given, access=access).status)
    file.unlink()

    assert [*statuses, ask(given, access=access).status] == [401, 200, 503, 503]


@pytest.mark.parametrize("text", ["", "short", "two words of sufficient length", "x" * 2000, "\xe4" * 20])
def test_a_file_without_a_good_token_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)

    with pytest.raises(UsageError, match="at least 16 characters"):
        read_token(file)
    with pytest.raises(UsageError, match="No such file"):
        read_token(tmp_path / "missing")


def test_health_and_metrics_keep_their_paths() -> None:
    """Collectors send the Host header of their own configuration, and no token."""
    daemon: Any = ShownHost(_=ShownHosts(1))
    others = {**health_routes(daemon), **metrics_routes(daemon)}

    assert not page_routes(daemon, ANYWHERE).keys() & others.keys()


# Documents


def test_the_documents_are_those_of_flannelctl() -> None:
    network = ShownHosts(3)
    cut = network.peers[1].subnet
    network.cut, network.refused = {cut}, {network.peers[2].subnet: "two hosts have this address"}
    daemon = ShownHost(_=network)

    status = ask(request("/v1/status"), daemon).body
    peers = ask(request("/v1/peers"), daemon).body

    read_document(["status"], status.decode())
    found = read_document(["peers"], peers.decode())["peers"]
    assert [peer["is_reached"] for peer in found] == [True, False, None]
    assert found[0]["rtt_ms"] > 0
    assert all(peer["received_bytes"] > 0 for peer in found)
    assert found[2]["refused"] == "two hosts have this address"
    reach = parse_status(status).reach
    assert reach is not None
    assert (reach.probed, reach.silent) == (2, (cut,))
    assert parse_events(ask(request("/v1/events"), daemon).body) == network.events()
    read_document(["doctor"], ask(request("/v1/doctor"), daemon).body.decode())


def test_the_status_reports_that_no_peer_can_be_probed() -> None:
    network = ShownHosts(1)
    network.is_probed, network.probe_trouble = False, Notice("cannot send ICMP echo requests", "Run as root.")

    status = parse_status(ask(request("/v1/status"), ShownHost(_=network)).body)

    assert status.reach is None
    assert status.warnings == ("peers are not probed: cannot send ICMP echo requests. Run as root.",)


def test_each_network_has_its_documents() -> None:
    daemon = ShownHost(blue=ShownHosts(1), red=ShownHosts(2))

    assert document(ask(request("/v1/networks"), daemon)) == {"networks": ["blue", "red"]}
    assert len(document(ask(request("/v1/peers?network=red"), daemon))["peers"]) == 2
    missing = ask(request("/v1/peers?network=green"), daemon)
    assert (missing.status, json.loads(missing.body)["error"]["message"]) == (
        422,
        "flanneld runs no network 'green'",
    )


@pytest.mark.parametrize(
    "backend",
    [
        {"Type": "wireguard", "PSK": PSK},
        {"type": "wireguard", "psk": PSK},
        {"Type": "wireguard", "P\u017fK": PSK},
    ],
)
@pytest.mark.parametrize("escapes", [False, True])
def test_no_document_contains_the_preshared_key(backend: dict[str, str], escapes: bool) -> None:
    text = json.dumps({"Network": "10.100.0.0/14", "Backend": backend})
    if escapes:
        text = text.replace(PSK, "".join(f"\\u{ord(one):04x}" for one in PSK))
    daemon = ShownHost(_=ShownHosts(2, text))
    hidden = document(ask(request("/v1/config"), daemon))["text"]
    edited = hidden.replace("10.100.0.0/14", "10.96.0.0/11")
    answers = [ask(request(path), daemon) for path in ("/v1/config", "/v1/status")] + [
        ask(
            request("/v1/config/check", method="POST", body=edited.encode(), content_type="application/json"),
            daemon,
        )
    ]

    assert HIDDEN in hidden
    for answer in answers:
        assert answer.status == 200
        assert PSK not in str(json.loads(answer.body))
        assert f"u{ord(PSK[0]):04x}" not in answer.body.decode()


def test_a_config_is_checked_with_its_effects_and_not_written() -> None:
    network = ShownHosts(2)
    text = CONFIG.replace("vxlan", "host-gw")

    checked = document(
        ask(
            request("/v1/config/check", method="POST", body=text.encode(), content_type="application/json"),
            ShownHost(_=network),
        )
    )

    read_document(["config", "set"], json.dumps(checked))
    assert (checked["Written"], checked["BackendType"]) == (False, "host-gw")
    assert checked["Effects"][0].startswith("Hosts change the backend from vxlan with VNI 1 to host-gw.")
    assert '-    "Type": "vxlan"' in checked["Difference"]
    assert network.config == CONFIG


DEEP = b'{"a":' * 900 + b"1" + b"}" * 900
"""The JSON module of Python reads this document, but most recursive functions fail."""


@pytest.mark.parametrize("path", ["/v1/config/check", "/v1/plan"])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"Network": "10.0.0.0/99"}', b"[" * 4000, DEEP])
def test_an_invalid_config_is_refused_with_the_reason(path: str, body: bytes) -> None:
    class Host(ShownHosts):
        async def preview(self, text: str | None) -> PlanPreview:
            parse_network_config(text or "")
            return await super().preview(text)

    given = request(path, method="POST", body=body, content_type="application/json")
    answer = ask(given, ShownHost(_=Host(1)))

    assert answer.status == 422
    assert json.loads(answer.body)["error"]["message"]


@pytest.mark.parametrize("query", ["&".join("abcdefghi"), "network=x", "network=%ff"])
def test_an_invalid_query_is_refused_with_the_reason(query: str) -> None:
    """Another error would be a traceback in the log for each request."""
    answer = ask(request(f"/v1/status?{query}"))

    assert answer.status == 422
    assert json.loads(answer.body)["error"]["message"]


def test_checks_of_configs_take_a_small_part_of_the_time_of_flanneld() -> None:
    given = request("/v1/config/check", method="POST", body=CONFIG.encode(), content_type="application/json")

    first, second = asyncio.run(asked(ShownHost(_=ShownHosts(1)), LOOPBACK, given, given))

    assert (first.status, second.status) == (200, 503)


def test_an_unusable_file_of_the_token_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(ip_address("127.0.0.1"), tmp_path / "missing")

    for _ in range(3):
        assert ask(request("/v1/status"), access=access).status == 503

    assert len(caplog.records) == 1


def test_the_plan_of_a_config_is_shown_but_requests_are_limited_in_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan contains the stored preshared key in place of the hidden key."""
    monkeypatch.setattr(page, "PLAN_S", 3600.0)
    stored = json.dumps({"Network": "10.100.0.0/14", "Backend": {"Type": "wireguard", "PSK": PSK}})
    given = request(
        "/v1/plan", method="POST", body=stored.replace(PSK, HIDDEN).encode(), content_type="application/json"
    )

    first, second = asyncio.run(asked(ShownHost(_=ShownHosts(1, stored)), LOOPBACK, given, given))

    planned = read_document(["plan"], first.body.decode())
    assert PSK in planned["changes"][0]["text"]  # the double returns the config that it got
    assert second.status == 503


def test_a_form_of_another_site_cannot_send_a_config() -> None:
    assert (
        ask(
            request("/v1/config/check", method="POST", body=CONFIG.encode(), content_type="text/plain")
        ).status
        == 422
    )


# Bounds


def test_clients_share_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATUS_S", "SHARED_S"):
        monkeypatch.setattr(page, name, 3600.0)
    network = ShownHosts(5)
    some = [request("/v1/status"), request("/v1/peers")] * (PREPARED // 2)

    answers = asyncio.run(asked(ShownHost(_=network), LOOPBACK, *some))

    assert {answer.status for answer in answers} == {200}
    assert network.statuses == 1
    assert len({id(answer.body) for answer in answers}) == 2


def test_a_daemon_that_hangs_keeps_few_clients_waiting() -> None:
    """The server can still answer health probes."""

    class Hanging(ShownHosts):
        async def status(self) -> Status:
            await answered.wait()
            return await super().status()

    async def life() -> list[int]:
        routes = page_routes(ShownHost(_=Hanging(1)), LOOPBACK)
        handler = routes["GET", "/v1/status"]
        waiting = [asyncio.ensure_future(handler(request("/v1/status"))) for _ in range(PREPARED)]
        await asyncio.sleep(0)
        refused = await handler(request("/v1/status"))
        answered.set()
        return [refused.status, *(one.status for one in await asyncio.gather(*waiting))]

    answered = asyncio.Event()
    assert asyncio.run(life()) == [503] + [200] * PREPARED


def test_doctor_runs_once_for_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ShownHosts(1)

    async def life() -> list[int]:
        routes = page_routes(ShownHost(_=network), LOOPBACK)
        answers = [await routes["GET", "/v1/doctor"](request("/v1/doctor")) for _ in range(5)]
        monkeypatch.setattr(page, "DOCTOR_S", 0.0)
        answers.append(await routes["GET", "/v1/doctor"](request("/v1/doctor")))
        return [answer.status for answer in answers]

    assert (asyncio.run(life()), network.examinations) == ([200] * 6, 2)


def test_a_failed_doctor_is_an_error_with_its_remedy() -> None:
    class Failing(ShownHosts):
        async def examine(self) -> bytes:
            raise TargetError("flannelctl doctor failed", hint="Run flannelctl doctor as root on this host.")

    answer = ask(request("/v1/doctor"), ShownHost(_=Failing(1)))

    assert (answer.status, json.loads(answer.body)["error"]["hint"]) == (
        422,
        "Run flannelctl doctor as root on this host.",
    )


def test_pings_are_limited_in_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    pinged = []

    async def probe_path(_: Status, peer: Any, container: Any) -> list[PingStep]:
        pinged.append(peer.subnet)
        return [
            PingStep(
                name="container",
                family=4,
                destination=peer.subnet.network_address + 1,
                state="reached",
                rtt_ms=1.0,
            )
        ]

    monkeypatch.setattr(page, "probe_path", probe_path)
    monkeypatch.setattr(page, "PING_S", 3600.0)
    network = ShownHosts(2)
    some = [request(f"/v1/ping?host={network.peers[0].subnet}")] * 5

    answers = asyncio.run(asked(ShownHost(_=network), LOOPBACK, *some))

    assert [answer.status for answer in answers] == [200, 503, 503, 503, 503]
    read_document(["ping"], answers[0].body.decode())
    assert pinged == [network.peers[0].subnet]
    assert ask(request("/v1/ping?host=unknown")).status == 422
