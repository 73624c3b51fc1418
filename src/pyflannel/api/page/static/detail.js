// The panel on the right: this host, or the path of a packet to the selected peer.

import { duration, h, nameOf, stateOf } from "./dom.js";

export class Detail {
  constructor(panel, select) {
    this.panel = panel;
    this.select = select;
  }

  show(host, peer, pinged) {
    const parts = peer === null ? ownParts(host) : peerParts(host, peer, pinged);
    const title = peer === null ? "This host" : nameOf(peer);
    const back = peer === null ? null : h("button", { click: () => this.select(null) }, "This host ", h("kbd", { "aria-hidden": "true" }, "Esc"));
    const now = h("div", {}, h("div", { class: "bar" }, h("h2", {}, title), back), ...parts);
    if (this.shown?.isEqualNode(now)) return; // a selection of text stays
    const top = this.panel.scrollTop;
    this.shown = now;
    this.panel.replaceChildren(now);
    this.panel.scrollTop = top;
  }
}

const part = (...children) => h("div", { class: "part" }, ...children);

function facts(rows) {
  return h("dl", { class: "facts" }, rows.filter((row) => row[1]).map(([name, value, kind]) =>
    [h("dt", {}, name), h("dd", { class: kind ?? false }, value)]));
}

const mono = (...texts) => h("span", { class: "mono" }, texts.filter(Boolean).join(" "));

function notice(kind, title, text, command) {
  return h("div", { class: `notice ${kind}` }, title && h("b", {}, title), text, command && h("code", { class: "command" }, command));
}

const whole = (trouble) => [trouble.text, trouble.hint].filter(Boolean).join(". ");

function ownParts(host) {
  const { lease, underlay, backend, store, network, reconcile, fast_path: path, lease_signing: signing } = host;
  const troubles = [
    ...[network?.trouble, lease?.trouble, signing?.trouble].filter(Boolean).map((one) => notice("bad", null, whole(one))),
    ...host.warnings.map((text) => notice("warn", null, text)),
    ...host.strangers.slice(0, 5).map((one) => notice("warn", `Rejected packets from ${one.address}`, `${one.cause}. ${one.hint}`)),
  ];
  return [
    troubles.length ? part(...troubles) : null,
    part(facts([
      ["Ready", host.is_ready ? "yes" : host.waiting_for ?? "no", host.is_ready ? "good" : "bad"],
      ["Subnet", mono(lease?.subnet ?? "none", lease?.ipv6_subnet)],
      ["Lease", lease && leaseText(lease), lease?.phase === "held" ? "good" : "bad"],
      ["Network", network && mono(network.network, network.ipv6_network)],
      ["Identity", host.owner && mono(host.owner)],
      ["Version", host.version],
    ])),
    part(h("h3", {}, "Data path"), facts([
      ["Backend", backend && backend.type + (backend.is_encrypted ? ", encrypted" : "")],
      ["Device", backend?.link && mono(backend.link)],
      ["MTU", backend?.mtu && `${backend.mtu} bytes for containers`],
      ["Port", backend?.port && `UDP ${backend.port}`],
      ["Fast path", path && (path.mode === "safe" ? "in the kernel" : `${path.mode}${path.reason ? `: ${path.reason}` : ""}`), path ? (["user-space", "uncached"].includes(path.mode) ? "warn" : null) : null],
      ["Underlay", underlay && mono(`${underlay.link} ${underlay.address}`)],
      ["Public IP", underlay && mono(underlay.public_ip, underlay.public_ipv6)],
    ])),
    part(h("h3", {}, "Store"), facts([
      ["State", store && storeText(store), store?.is_connected ? "good" : "bad"],
      ["URL", store && mono(store.url)],
      ["Last error", store?.last_error && !store.is_connected && store.last_error],
    ])),
    part(h("h3", {}, "Repairs"), facts([
      ["Passes", reconcile && `${reconcile.passes.toLocaleString("en")}${reconcile.failures ? `, ${reconcile.failures} failed` : ""}`],
      ["Repaired", reconcile && `${reconcile.repairs.toLocaleString("en")} objects`],
      ["Last", reconcile?.last_repair],
      ["Failed", reconcile?.refused.join("; "), "bad"],
      ["Delayed", reconcile?.held.join("; "), "warn"],
    ])),
  ].filter(Boolean);
}

function leaseText(lease) {
  if (lease.phase !== "held") return lease.holder ? `${lease.phase} by ${lease.holder}` : lease.phase ?? "none";
  if (lease.is_reservation) return "held, reserved";
  return lease.expires_in_s === null ? "held" : `held for ${duration(lease.expires_in_s)} more`;
}

function storeText(store) {
  const since = store.since_s === null ? "" : ` for ${duration(store.since_s)}`;
  return store.is_connected ? `responds` : `unreachable${since}`;
}

function peerParts(host, peer, pinged) {
  const report = pinged?.report ?? null;
  const state = stateOf(peer);
  return [
    peer.refused ? part(notice("warn", "This host does not send to this peer", peer.refused)) : null,
    pinged?.error ? part(notice("bad", pinged.error.message, pinged.error.hint)) : null,
    report && !report.ok && !peer.refused ? part(notice("bad", `Packets stop at: ${report.stops}`, report.cause, report.fix)) : null,
    part(h("h3", {}, "The path of a packet"), way(host, peer, report, state)),
    part(facts([
      ["Subnet", mono(peer.subnet, peer.ipv6_subnet)],
      ["Address", mono(peer.public_ip, peer.public_ipv6)],
      ["Backend", (peer.backend_type || "udp") + (peer.is_encrypted ? ", encrypted" : "")],
      ["Handshake", peer.is_encrypted && (peer.handshake_age_s === null ? "none yet" : `${duration(peer.handshake_age_s)} ago`)],
      ["Identity", peer.owner ? mono(peer.owner) : "original flannel"],
    ])),
  ].filter(Boolean);
}

/** Return the stops of a packet from a container on this host to a container on the peer. */
function way(host, peer, report, state) {
  const { underlay, backend, lease } = host;
  const steps = new Map((report?.steps ?? []).map((step) => [step.name, step]));
  const type = backend?.type ?? "";
  const hasTunnel = Boolean(backend?.port) || type === "wireguard";
  const carrier = hasTunnel ? `${type}${type === "wireguard" ? "" : " in"} UDP port ${backend.port}${backend.is_encrypted ? ", encrypted" : ""}` : "without a tunnel";
  const isRefused = state === "refused";
  const stops = [
    { place: host.host_name ?? "This host" },
    { name: "Container", note: lease?.subnet, isFine: true },
    { name: "Route", note: `${peer.subnet}${backend?.link ? ` through ${backend.link}` : ` by ${peer.public_ip}`}`, isFine: !isRefused, isBroken: isRefused },
    { name: hasTunnel ? "Tunnel device" : "Forwarding", note: `${carrier}, MTU ${backend?.mtu ?? "unknown"}`, isFine: !isRefused },
    { name: "Underlay", note: underlay && `${underlay.link} ${underlay.address}, MTU ${underlay.mtu}`, isFine: !isRefused },
    { place: nameOf(peer) },
    { name: "Host", note: peer.public_ip, step: steps.get("underlay") },
    ...(steps.has("tunnel") || hasTunnel ? [{ name: "Tunnel device", note: firstAddress(peer.subnet), step: steps.get("tunnel") }] : []),
    { name: "Container bridge", note: steps.get("container")?.destination, step: steps.get("container"), isOptional: true },
  ];
  const kinds = stops.map((stop) => (stop.place ? "place" : kindOf(stop)));
  const list = stops.map((stop, at) => {
    if (stop.place) return h("li", { class: "place" }, h("h3", {}, stop.place));
    const next = kinds.slice(at + 1).find((kind) => kind !== "place");
    const names = ["stop", kinds[at], next === "broken" ? "before-break" : "", at === stops.length - 1 ? "last" : ""];
    return h("li", { class: names.filter(Boolean).join(" ") }, h("span", { class: "result" }, resultOf(stop)), h("div", { class: "name" }, stop.name), stop.note && h("div", { class: "note mono" }, stop.note));
  });
  return h("ol", { class: "way" }, ...list);
}

function kindOf({ step, isFine, isBroken, isOptional }) {
  if (isBroken) return "broken";
  if (isFine || step?.state === "reached") return "reached";
  if (!step || step.state === "skipped") return "unknown";
  return isOptional && step.state !== "rejected" ? "unknown" : "broken";
}

function resultOf({ step, isOptional }) {
  if (!step || step.state === "skipped") return "";
  if (step.state === "reached") return `${step.rtt_ms?.toFixed(1) ?? "?"} ms${step.mtu ? `, ${step.mtu} bytes` : ""}`;
  if (isOptional && step.state === "silent") return "no bridge answers";
  return step.text || { silent: "no answer", rejected: "rejected", unsent: "not sent" }[step.state];
}

const firstAddress = (subnet) => subnet.split("/")[0];
