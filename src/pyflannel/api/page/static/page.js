// Requests the documents of `flannelctl --json` from flanneld, and shows them. The page sends short requests at
// intervals, so that flanneld keeps no connection for a closed page. While the page is hidden, it sends no requests, and
// flanneld sends no probes.

import { byId, bytes, count, h, nameOf, s, set, stateOf, write } from "./dom.js";
import { Detail } from "./detail.js";
import { Lists } from "./lists.js";
import { Topology } from "./map.js";

const PEERS_MS = 1000;
const STATUS_MS = 2000;
const DETAIL_MS = 2000;
const LATE_MS = 5000;
const SAMPLES = 60;
const RATE_ANSWERS = 4; // traffic of a peer: from the oldest of these answers to the latest

const state = { network: "", status: null, peers: null, selected: null, filter: "", pressed: null };
let token = sessionStorage.getItem("token") ?? "";

/** Return the answer of flanneld. Throws an Error with its message and its hint. */
async function ask(path, { parameters = {}, body = null } = {}) {
  const query = new URLSearchParams({ network: state.network, ...parameters });
  const answer = await fetch(`${path}?${query}`, {
    method: body === null ? "GET" : "POST",
    body,
    headers: { ...(token && { Authorization: `Bearer ${token}` }), ...(body !== null && { "Content-Type": "application/json" }) },
    signal: AbortSignal.timeout(path === "/v1/doctor" ? 3 * LATE_MS : LATE_MS),
  });
  if (answer.status === 401) {
    await askForToken();
    return ask(path, { parameters, body });
  }
  if (answer.ok) return answer.json();
  const text = await answer.text();
  const error = new Error(text);
  error.isBusy = answer.status === 503;
  try {
    const { message, hint } = JSON.parse(text).error;
    Object.assign(error, { message, hint });
  } catch {
    // the answer is a line of text, not JSON
  }
  throw error;
}

let asking = null;

function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    byId("token-wrong").hidden = !token;
    dialog.addEventListener("close", () => {
      token = byId("token").value.trim();
      sessionStorage.setItem("token", token);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

const topology = new Topology(byId("drawing"), select);
const detail = new Detail(byId("detail"), select);
const lists = new Lists(select, ask);

function select(subnet) {
  state.selected = subnet === state.selected ? null : subnet;
  pinged = null;
  show();
  if (state.selected !== null) soon(ping);
}

// Repeated requests. Each task has at most one request at a time, and no request while the page is hidden.

const tasks = new Map();

function repeat(work, pauseOf) {
  const task = { timer: 0, isRunning: false };
  task.run = async () => {
    clearTimeout(task.timer);
    if (task.isRunning || document.hidden) return;
    task.isRunning = true;
    try {
      await work();
    } finally {
      task.isRunning = false;
      task.timer = setTimeout(task.run, pauseOf());
    }
  };
  tasks.set(work, task);
  task.run();
}

const soon = (work) => tasks.get(work).run();

document.addEventListener("visibilitychange", () => tasks.forEach((task) => task.run()));

let answeredAt = performance.now();

async function follow(work) {
  try {
    await work();
    answeredAt = performance.now();
    set(byId("live"), "class", "live");
    write(byId("live-text"), "live");
  } catch (error) {
    if (error.isBusy) return;
    set(byId("live"), "class", "lost");
    const seconds = Math.round((performance.now() - answeredAt) / 1000);
    write(byId("live-text"), error.hint ? `${error.message}. ${error.hint}` : `flanneld does not respond for ${seconds} s`);
  }
  document.body.classList.toggle("stale", byId("live").className === "lost");
}

const before = new Map();

async function peers() {
  const network = state.network;
  const answer = await ask("/v1/peers");
  if (network !== state.network) return;
  state.peers = answer.peers;
  measure();
  announce();
  show();
}

const counted = [];

/** Compute the traffic of each peer from its counters in the latest answers. */
function measure() {
  const links = new Map();
  for (const peer of state.peers) {
    if (peer.received_bytes !== null) links.set(peer.subnet, peer.received_bytes + (peer.sent_bytes ?? 0));
  }
  counted.push({ at: performance.now(), links });
  if (counted.length > RATE_ANSWERS) counted.shift();
  const [first, last] = [counted[0], counted.at(-1)];
  const passed = (last.at - first.at) / 1000;
  state.rates = new Map();
  for (const [subnet, total] of passed > 0 ? last.links : []) {
    if (first.links.has(subnet)) state.rates.set(subnet, Math.max(0, total - first.links.get(subnet)) / passed);
  }
}

/** Announce changes of peers to screen readers. */
function announce() {
  const news = [];
  const isFirst = before.size === 0;
  const gone = new Set(before.keys());
  for (const peer of state.peers) {
    const now = stateOf(peer);
    const then = before.get(peer.subnet)?.now;
    gone.delete(peer.subnet);
    if (then === undefined && !isFirst) news.push(`${nameOf(peer)} joined`);
    if (now === "silent" && then !== "silent" && !isFirst) news.push(`${nameOf(peer)} does not answer`);
    if (now === "reached" && then === "silent") news.push(`${nameOf(peer)} answers again`);
    peer.isNew = then === undefined && !isFirst;
    before.set(peer.subnet, { now, name: nameOf(peer) });
  }
  for (const subnet of gone) {
    news.push(`${before.get(subnet).name} left`);
    before.delete(subnet);
  }
  if (news.length) write(byId("news"), news.length > 3 ? `${news.slice(0, 3).join(", ")} and ${news.length - 3} more` : news.join(", "));
}

const samples = [];

async function status() {
  const network = state.network;
  const answer = await ask("/v1/status");
  if (network !== state.network) return;
  state.status = answer;
  sample();
  show();
}

function sample() {
  const { backend } = state.status;
  samples.push({ at: performance.now(), received: backend?.received ?? null, sent: backend?.sent ?? null });
  if (samples.length > SAMPLES + 1) samples.shift();
}

function rates(direction) {
  const found = [];
  for (let at = 1; at < samples.length; at += 1) {
    const [one, other] = [samples[at - 1], samples[at]];
    if (one[direction] === null || other[direction] === null) continue;
    found.push((Math.max(0, other[direction] - one[direction]) * 1000) / (other.at - one.at));
  }
  return found;
}

let pinged = null;

async function ping() {
  const subnet = state.selected;
  if (subnet === null) return;
  try {
    const report = await ask("/v1/ping", { parameters: { host: subnet } });
    if (subnet === state.selected) pinged = { report };
  } catch (error) {
    if (!error.isBusy && subnet === state.selected) pinged = { error };
  }
  show();
}

// The parts of the page.

/** Return the class and the text of the first line, which states whether all is well. */
function verdict() {
  const { status: host, peers: known } = state;
  if (host === null || known === null) return ["unknown", "Loading"];
  if (!host.is_ready) return ["bad", `Not ready: ${host.waiting_for ?? "starting"}`];
  const states = grouped(known);
  const number = (name) => states.get(name)?.length ?? 0;
  if (number("silent")) {
    const silent = states.get("silent");
    if (silent.length === 1) return ["bad", `${nameOf(silent[0])} does not answer`];
    return ["bad", `${silent.length.toLocaleString("en")} of ${count(known.length, "peer")} do not answer`];
  }
  if (number("refused")) return ["warn", `This host does not send to ${count(number("refused"), "peer")}`];
  if (host.warnings.length) return ["warn", host.warnings[0]];
  if (!known.length) return ["good", "Ready, without peers"];
  if (number("unprobed") === known.length) return ["unknown", `Ready, ${count(known.length, "peer")}`];
  if (number("unprobed")) return ["good", `${count(number("reached"), "peer")} of ${known.length.toLocaleString("en")} answer so far`];
  return ["good", known.length === 1 ? "All is well: the peer answers" : `All is well: ${count(known.length, "peer")} answer`];
}

function grouped(known) {
  const groups = new Map();
  for (const peer of known) {
    const name = stateOf(peer);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(peer);
  }
  return groups;
}

function show() {
  const [kind, text] = verdict();
  set(byId("verdict"), "class", kind);
  write(byId("verdict-text"), text);
  const host = state.status;
  if (host !== null) {
    const name = host.host_name ?? host.underlay?.public_ip ?? "";
    write(byId("host-name"), name);
    document.title = `${{ good: "✓", bad: "✕", warn: "!", unknown: "○" }[kind]} ${name || "flannel"}`;
    showTraffic();
  }
  if (state.peers === null || host === null) return;
  if (state.selected !== null && !state.peers.some((peer) => peer.subnet === state.selected)) state.selected = null;
  byId("no-peers").hidden = state.peers.length > 0;
  byId("drawing").classList.toggle("unseen", state.peers.length === 0);
  showLegend();
  topology.show(host, state.peers, state.selected, state.rates ?? new Map());
  detail.show(host, state.peers.find((peer) => peer.subnet === state.selected) ?? null, pinged);
  lists.show(state);
}

function showLegend() {
  const counts = grouped(state.peers);
  const text = { reached: "answer", silent: "no answer", refused: "refused", unprobed: "not probed" };
  const items = Object.keys(text).filter((name) => counts.has(name)).map((name) =>
    h("li", {}, h("button", { "aria-pressed": String(state.filter === text[name]), title: `List the hosts in this state`, click: () => filter(state.filter === STATES[name] ? "" : STATES[name]) },
      h("span", { class: `key ${name}` }), h("b", {}, counts.get(name).length.toLocaleString("en")), text[name])));
  const legend = byId("legend");
  const now = items.map((item) => item.textContent + item.firstChild.getAttribute("aria-pressed")).join();
  if (legend.dataset.now !== now) {
    legend.dataset.now = now;
    legend.replaceChildren(...items);
  }
}

const STATES = { reached: "answers", silent: "no answer", refused: "refused", unprobed: "not probed" };

function filter(text) {
  state.filter = text;
  byId("filter").value = text;
  if (text) lists.open("hosts");
  show();
}

function showTraffic() {
  const place = byId("traffic");
  const [received, sent] = [rates("received"), rates("sent")];
  place.hidden = received.length === 0;
  if (!received.length) return;
  const top = Math.max(1, ...received, ...sent);
  place.replaceChildren(
    s("svg", { viewBox: `0 0 ${SAMPLES} 22`, preserveAspectRatio: "none", "aria-hidden": "true" }, line(sent, top, "out"), line(received, top, "in")),
    h("span", {}, "in ", h("b", {}, `${bytes(received.at(-1))}/s`)),
    h("span", {}, "out ", h("b", {}, `${bytes(sent.at(-1))}/s`)),
  );
}

function line(values, top, way) {
  const points = values.map((value, at) => `${SAMPLES - values.length + at + 1},${(21 - (20 * value) / top).toFixed(1)}`);
  return s("polyline", { class: `spark ${way}`, points: points.join(" "), "vector-effect": "non-scaling-stroke" });
}

// Keys, the filter, and the choice of the network.

byId("filter").addEventListener("input", (event) => filter(event.target.value));

document.addEventListener("keydown", (event) => {
  const isWriting = event.target.matches("input, textarea, select");
  if (event.key === "/" && !isWriting) {
    event.preventDefault();
    lists.open("hosts");
    byId("filter").focus();
  } else if (event.key === "Escape" && !byId("token-dialog").open) {
    if (event.target === byId("filter") && state.filter) filter("");
    else if (state.selected !== null) select(null);
  }
});

byId("network").addEventListener("change", (event) => {
  Object.assign(state, { network: event.target.value, status: null, peers: null, selected: null });
  before.clear();
  samples.length = counted.length = 0;
  lists.clear();
  tasks.forEach((task) => task.run());
});

async function networks() {
  const { networks: names } = await ask("/v1/networks");
  const chosen = byId("network");
  const shown = [...chosen.options].map((option) => option.value);
  if (names.join() !== shown.join()) chosen.replaceChildren(...names.map((name) => h("option", { value: name }, name || "(single)")));
  byId("network-choice").hidden = names.length < 2 && names[0] === "";
  if (!names.includes(state.network) && names.length) {
    state.network = names[0];
    tasks.forEach((task) => task.run());
  }
  chosen.value = state.network;
}

await follow(networks);
repeat(() => follow(networks), () => 5 * STATUS_MS);
repeat(() => follow(status), () => STATUS_MS);
repeat(() => follow(peers), () => Math.max(PEERS_MS, state.peers?.length ?? 0));
repeat(ping, () => DETAIL_MS);
repeat(() => lists.refresh(), () => STATUS_MS);
