"""The page in a real browser, with hosts that the test adds, cuts and repairs."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyflannel.model.status import Finding
from pyflannel.wire.control_json import format_findings
from testlab.browser import Page, browser_page
from testlab.shown_network import ShownHost, ShownHosts, classes_of, served

SOON_S = 30.0
"""Deadline in seconds. The lab measures the five seconds of a cut link, on an idle machine."""

FEW, MANY = 4, 999
WRITTEN = '{"Network": "10.100.0.0/14", "Backend": {"Type": "host-gw"}}'


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browser_page() as page:
        page.resize(1440, 900)
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The browser, which reports no problem during the test."""
    browser.problems.clear()
    yield browser
    assert browser.problems == []
    browser.call("Page.navigate", url="about:blank")


def opened(page: Page, url: str, network: ShownHosts) -> None:
    page.open(url)
    page.wait(f"document.querySelectorAll('.peer').length === {len(network.peers)}")
    page.wait("document.querySelector('#verdict').className !== 'unknown'")


@pytest.mark.parametrize("count", [FEW, MANY])
def test_a_join_a_cut_and_a_repair_appear_live(page: Page, count: int) -> None:
    network = ShownHosts(count)
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)
        assert (
            page.run("document.querySelector('#verdict').innerText") == f"All is well: {count} peers answer"
        )

        joined = network.add()
        page.wait(f"{classes_of(joined.subnet)} === 'peer reached new'", SOON_S)
        assert page.run("document.querySelector('#news').innerText") == f"docker{count + 2} joined"
        cut = network.peers[1].subnet
        network.cut.add(cut)
        page.wait(f"{classes_of(cut)} === 'peer silent'", SOON_S)
        assert page.run("document.querySelector('#verdict').innerText") == "docker3 does not answer"
        assert page.run("document.querySelector('#hosts tbody tr').innerText").startswith("docker3")
        network.cut.clear()
        page.wait(f"{classes_of(cut)} === 'peer reached'", SOON_S)
        assert page.run("document.querySelector('#news').innerText") == "docker3 answers again"
        network.peers.remove(joined)
        page.wait(f"!document.getElementById('peer-10-100-{count + 2}-0-24') || {count} > 250", SOON_S)


def test_names_of_hosts_cannot_become_code(page: Page) -> None:
    network = ShownHosts(2)
    evil = "<img src=x onerror=alert(1)>"
    first = network.peers[0]
    network.peers[0] = replace(first, attributes=replace(first.attributes, host_name=evil))
    network.refused = {first.subnet: "<script>document.title='owned'</script>"}
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)

        assert page.run("document.querySelector('#hosts tbody button').innerText") == evil
        assert page.run("document.querySelectorAll('img').length") == 1
        assert "owned" not in page.run("document.title")


def test_every_control_can_be_reached_by_the_keyboard(page: Page) -> None:
    network = ShownHosts(FEW)
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)
        page.run("document.querySelector('#drawing').focus()")
        page.key("ArrowRight")
        page.wait("document.querySelector('#detail h2').innerText === 'docker2'")
        page.key("ArrowRight")
        page.wait("document.querySelector('#detail h2').innerText === 'docker3'")
        page.key("Escape")
        page.wait("document.querySelector('#detail h2').innerText === 'This host'")
        page.key("/", "/")
        page.type("10.100.4")
        page.wait("document.querySelectorAll('#hosts tbody tr').length === 1")
        page.key("Escape")
        page.wait(f"document.querySelectorAll('#hosts tbody tr').length === {FEW}")
        page.run("document.querySelector('#tab-hosts').focus()")
        page.key("ArrowRight")
        page.wait("document.querySelector('#events').innerText.includes('flannel.1: mtu 1300')")
        page.key("End")
        page.wait("document.querySelector('#config textarea')")


def test_a_screen_reader_gets_names_and_states(page: Page) -> None:
    network = ShownHosts(2)
    network.cut.add(network.peers[1].subnet)
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)
        page.wait(f"{classes_of(network.peers[1].subnet)} === 'peer silent'")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]

    named = {(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if "role" in one}
    assert ("option", "docker3, 10.100.3.0/24: no answer") in named
    assert ("option", "docker2, 10.100.2.0/24: answers") in named
    assert ("table", "Peers of this host") in named
    assert ("tab", "Hosts 1 of 2 silent") in named
    nameless = {
        role
        for role, name in named
        if not name and role in ("button", "link", "textbox", "combobox", "option")
    }
    assert nameless == set()


def test_the_config_is_checked_with_its_effects(page: Page) -> None:
    network = ShownHosts(FEW)
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)
        page.run("document.querySelector('#tab-config').click()")
        page.wait("document.querySelector('#config textarea')")
        page.run(f"document.querySelector('#config textarea').value = '{WRITTEN}'")
        page.run("document.querySelector('#config button').click()")
        page.wait("document.querySelector('#config .effects')?.innerText.includes('from vxlan')")
        page.wait("document.querySelector('#config .diff .removed')")
        page.wait("document.querySelector('#config .result').innerText.includes('- link flannel.1')")
        page.run("document.querySelector('#config textarea').value = '{'")
        page.run("document.querySelector('#config button').click()")
        page.wait("document.querySelector('#config .notice.bad')")
    page.problems.clear()  # the refused config


def test_findings_of_doctor_are_shown_with_their_commands(page: Page) -> None:
    network = ShownHosts(1)
    fix = "sysctl -w net.ipv4.ip_forward=1"
    found = Finding(code="forwarding-off", severity="error", cause="this host does not forward", fix=fix)
    network.findings = format_findings([found], is_ok=False)
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)
        assert network.examinations == 0
        page.run("document.querySelector('#tab-findings').click()")
        page.wait(f"document.querySelector('#findings')?.innerText.includes('{fix}')")


def test_a_token_opens_the_page(page: Page, tmp_path: Path) -> None:
    token = "a-token-of-28-characters-123"
    file = tmp_path / "token"
    file.write_text(token)
    network = ShownHosts(1)
    with served(ShownHost(_=network), token_file=file) as url:
        page.open(url)
        page.wait("document.querySelector('#token-dialog').open")
        for given in ("wrong", token):
            page.run(f"document.querySelector('#token').value = '{given}'")
            page.run("document.querySelector('#token-dialog button').click()")
            is_wrong = "sessionStorage.getItem('token') === 'wrong'"
            page.wait(f"document.querySelector('#token-dialog').open === ({is_wrong})")
        page.wait("document.querySelectorAll('.peer').length === 1")
    page.problems = [one for one in page.problems if "401" not in one]


def test_the_page_reports_that_flanneld_does_not_respond(page: Page) -> None:
    network = ShownHosts(1)
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)
    page.wait("document.querySelector('#live').className === 'lost'", SOON_S)
    assert "does not respond" in page.run("document.querySelector('#live').innerText")
    page.problems.clear()  # the refused connections


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("count", [FEW, MANY])
def test_texts_have_a_contrast_of_at_least_4_5(page: Page, scheme: str, count: int) -> None:
    """The Web Content Accessibility Guidelines require this contrast for level AA."""
    network = ShownHosts(count)
    network.cut.add(network.peers[0].subnet)
    network.refused = {network.peers[2].subnet: "two hosts have this address"}
    page.prefer(scheme)
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)
        page.wait("document.querySelector('.peer.silent')")
        assert page.run(_LOW_CONTRAST) == []


_LOW_CONTRAST = """
(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (!element.checkVisibility() || element.closest(".unseen, .skip, script, noscript")) continue;
    const style = getComputedStyle(element);
    const text = light(parts(element.namespaceURI.endsWith("svg") ? style.fill : style.color));
    const back = light(ground(element));
    const contrast = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    if (contrast < 4.5) found.add(`${element.textContent.slice(0, 30)} ${contrast.toFixed(2)}`);
  }
  return [...found];
})()
"""


def test_a_hidden_page_sends_no_request(page: Page) -> None:
    network = ShownHosts(1)
    with served(ShownHost(_=network)) as url:
        opened(page, url, network)
        page.run("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        page.run("new Promise((done) => setTimeout(done, 2500))")
        before = network.statuses
        page.run("new Promise((done) => setTimeout(done, 2500))")
        assert network.statuses == before
        page.run("Object.defineProperty(document, 'hidden', {value: false, configurable: true})")
        page.run("document.dispatchEvent(new Event('visibilitychange'))")
        started = time.monotonic()
        while network.statuses == before:
            assert time.monotonic() < started + SOON_S
            time.sleep(0.02)
