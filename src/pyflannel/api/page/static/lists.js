// The lists under the map: hosts, events, findings of doctor, and the network config.

import { byId, bytes, count, h, nameOf, set, stateOf, STATE_TEXT, write } from "./dom.js";

const MOST_ROWS = 2000;
const RANKS = { silent: 0, refused: 1, unprobed: 2, reached: 2 }; // problems come first, the rest by subnet
const TABS = ["hosts", "events", "findings", "config"];

export class Lists {
  constructor(select, ask) {
    this.select = select;
    this.ask = ask;
    this.tab = "hosts";
    this.rows = new Map();
    for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => this.open(name));
    document.querySelector("[role=tablist]").addEventListener("keydown", (event) => this.key(event));
    this.clear();
  }

  clear() {
    this.rows.clear();
    this.body = h("tbody");
    this.more = h("p", { class: "empty", hidden: true });
    const heads = ["Host", "Subnet", "Address", "Backend", "State"].map((text) => h("th", { scope: "col" }, text));
    const numbers = ["RTT", "Traffic"].map((text) => h("th", { scope: "col", class: "number" }, text));
    this.table = h("table", { "aria-label": "Peers of this host" }, h("thead", {}, h("tr", {}, ...heads, ...numbers)), this.body);
    byId("hosts").replaceChildren(this.table, this.more);
    for (const name of TABS.slice(1)) byId(name).replaceChildren();
    this.editor = null;
  }

  key(event) {
    const at = TABS.indexOf(this.tab);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: TABS.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.open(TABS[(next + TABS.length) % TABS.length]);
    byId(`tab-${this.tab}`).focus();
  }

  open(name) {
    if (this.tab === name) return;
    this.tab = name;
    for (const one of TABS) {
      set(byId(`tab-${one}`), "aria-selected", one === name);
      set(byId(`tab-${one}`), "tabindex", one === name ? 0 : -1);
      byId(one).hidden = one !== name;
    }
    document.querySelector(".filter").hidden = name !== "hosts";
    this.refresh();
  }

  /** Request the document of the open tab. The document of the hosts has a separate request. */
  async refresh() {
    const panel = byId(this.tab);
    try {
      if (this.tab === "events") this.showEvents(panel, (await this.ask("/v1/events")).events);
      if (this.tab === "findings" && !panel.firstChild) await this.examine();
      if (this.tab === "config" && !this.editor) this.showEditor(panel, (await this.ask("/v1/config")).text);
    } catch (error) {
      if (!error.isBusy) panel.replaceChildren(h("p", { class: "empty problem" }, problem(error)));
      this.editor = null;
    }
  }

  // Hosts

  show({ peers, selected, filter, rates }) {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const found = peers.filter((peer) => matches(peer, filter.toLowerCase().trim(), words)).sort((one, other) => RANKS[stateOf(one)] - RANKS[stateOf(other)]);
    const shown = found.slice(0, MOST_ROWS);
    const silent = peers.filter((peer) => stateOf(peer) === "silent").length;
    const number = byId("tab-hosts").querySelector(".count");
    write(number, silent ? `${silent} of ${peers.length.toLocaleString("en")} silent` : peers.length.toLocaleString("en"));
    set(number, "class", silent ? "count bad" : "count");
    this.table.classList.toggle("no-traffic", !rates?.size); // only some backends count the bytes of each peer
    const gone = new Set(this.rows.keys());
    let before = null;
    for (const peer of shown) {
      gone.delete(peer.subnet);
      const row = this.rows.get(peer.subnet) ?? this.addRow(peer);
      this.fill(row, peer, selected, rates?.get(peer.subnet));
      const wanted = before === null ? this.body.firstChild : before.nextSibling;
      if (row.element !== wanted) this.body.insertBefore(row.element, wanted);
      before = row.element;
    }
    for (const subnet of gone) {
      this.rows.get(subnet).element.remove();
      this.rows.delete(subnet);
    }
    this.more.hidden = found.length > 0 && found.length === shown.length;
    write(this.more, found.length ? `${count(found.length - shown.length, "further host")}: use the filter.` : peers.length ? "No host matches the filter." : "No peers.");
  }

  addRow(peer) {
    const button = h("button", { click: () => this.select(peer.subnet) });
    const cells = Array.from({ length: 3 }, () => h("td", { class: "mono" }));
    const text = h("span", { class: "state-text" });
    const key = h("span", { "aria-hidden": "true" });
    const numbers = [h("td", { class: "number" }), h("td", { class: "number" })];
    const element = h("tr", {}, h("td", {}, button), ...cells, h("td", {}, h("span", { class: "state" }, key, text)), ...numbers);
    const row = { element, button, cells, key, text, numbers };
    this.rows.set(peer.subnet, row);
    return row;
  }

  fill(row, peer, selected, rate) {
    const state = stateOf(peer);
    set(row.element, "class", `${state}${peer.subnet === selected ? " selected" : ""}`);
    set(row.button, "aria-pressed", peer.subnet === selected);
    write(row.button, nameOf(peer));
    [[peer.subnet, peer.ipv6_subnet], [peer.public_ip, peer.public_ipv6], [peer.backend_type || "udp"]].forEach((texts, at) =>
      write(row.cells[at], texts.filter(Boolean).join(" ")));
    set(row.key, "class", `key ${state}`);
    write(row.text, state === "refused" ? `refused: ${peer.refused}` : STATE_TEXT[state]);
    write(row.numbers[0], peer.rtt_ms === null ? "" : `${peer.rtt_ms.toFixed(1)} ms`);
    write(row.numbers[1], rate === undefined ? "" : `${bytes(rate)}/s`);
  }

  // Events

  showEvents(panel, events) {
    const last = events.at(-1);
    const now = `${events.length} ${last?.at}`;
    if (panel.dataset.now === now && panel.firstChild) return;
    panel.dataset.now = now;
    if (!events.length) {
      panel.replaceChildren(h("p", { class: "empty" }, "flanneld has changed nothing since it started."));
      return;
    }
    const rows = events.slice(-500).reverse().map(({ at, event, found }) =>
      h("tr", {}, h("td", { class: "mono" }, moment(at)), h("td", { class: `event-${event.split(" ")[0]}` }, event), h("td", { class: "wide mono" }, found)));
    const heads = ["Time", "Event", "Object"].map((text) => h("th", { scope: "col" }, text));
    panel.replaceChildren(h("table", { "aria-label": "Events, the latest first" }, h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rows)));
  }

  // Findings of doctor

  async examine() {
    const panel = byId("findings");
    panel.replaceChildren(h("p", { class: "empty" }, "flannelctl doctor examines this host. This takes a few seconds."));
    try {
      const { findings } = await this.again(() => this.ask("/v1/doctor"));
      this.showFindings(panel, findings);
    } catch (error) {
      panel.replaceChildren(h("div", { class: "panel" }, h("p", { class: "problem" }, problem(error)), h("p", {}, "Run this command on the host: ", h("code", {}, "flannelctl doctor"))));
    }
  }

  /** Repeat a request while flanneld prepares the answer for another page. */
  async again(work) {
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (!error.isBusy) throw error;
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
  }

  showFindings(panel, findings) {
    const at = new Date().toLocaleTimeString("en-GB");
    const items = findings.map(({ code, severity, cause, evidence, fix }) =>
      h("article", { class: `finding ${severity}` }, h("b", {}, cause), " ", h("span", { class: "code" }, `${severity} · ${code}`),
        evidence.length ? h("ul", {}, ...evidence.slice(0, 8).map((text) => h("li", {}, text))) : null, fix && h("code", { class: "command" }, fix)));
    panel.replaceChildren(h("div", { class: "panel" },
      h("div", { class: "row" }, h("button", { class: "main", click: () => this.examine() }, "Examine again"), " ",
        h("span", { class: "code" }, `${findings.length ? count(findings.length, "finding") : "Nothing is wrong on this host"}, ${at}`)),
      ...items));
  }

  // The network config

  showEditor(panel, text) {
    const editor = h("textarea", { spellcheck: "false", "aria-label": "Network config", autocomplete: "off" });
    editor.value = indented(text ?? "");
    const result = h("div", { class: "result", role: "status" }, h("p", { class: "code" }, "Edit the config and check it. The check shows the effects on the running hosts. Nothing is written."));
    const button = h("button", { class: "main", click: () => this.check(editor.value, result, button) }, "Check");
    const edit = h("div", { class: "edit" }, editor, h("div", { class: "row" }, button, h("span", {}, "This page writes nothing. To write it: "), h("code", {}, "flannelctl config set FILE")));
    panel.replaceChildren(h("div", { class: "panel config" }, edit, result));
    this.editor = editor;
  }

  async check(text, result, button) {
    button.disabled = true;
    try {
      const { Warnings: warnings, Difference: difference, Effects: effects, Written: _, ...computed } = await this.again(() => this.ask("/v1/config/check", { body: text }));
      const changes = h("div", {}, h("h3", {}, "Changes on this host"), h("p", { class: "code" }, "flanneld compares the host with the new plan."));
      result.replaceChildren(
        h("div", { class: "notice good" }, h("b", {}, "The config is valid."), difference.length ? "" : "The config does not differ from the config in use."),
        ...warnings.map((warning) => h("div", { class: "notice warn" }, warning)),
        effects.length ? h("div", {}, h("h3", {}, "Effects on running hosts"), h("ul", { class: "effects" }, ...effects.map((effect) => h("li", {}, effect)))) : difference.length ? h("p", {}, "The config has no effect on running hosts.") : "",
        difference.length ? h("pre", { class: "diff" }, ...difference.slice(2).map((line) => h("div", { class: { "+": "added", "-": "removed" }[line[0]] ?? false }, line || " "))) : "",
        difference.length ? changes : "",
        h("details", {}, h("summary", {}, "Computed values"), h("pre", { class: "diff" }, JSON.stringify(computed, null, 2))),
      );
      if (difference.length) await this.plan(text, changes);
    } catch (error) {
      result.replaceChildren(h("div", { class: "notice bad" }, h("b", {}, error.message), error.hint ?? ""));
    } finally {
      button.disabled = false;
    }
  }

  /** Show the changes that flanneld would make on this host. */
  async plan(text, place) {
    const title = h("h3", {}, "Changes on this host");
    try {
      const { changes, waits_for: waitsFor } = await this.again(() => this.ask("/v1/plan", { body: text }));
      const lines = changes.slice(0, 200).map(({ action, kind, text: object }) => h("div", { class: SIGNS[action][1] }, `${SIGNS[action][0]} ${kind} ${object}`));
      if (changes.length > lines.length) lines.push(h("div", {}, `${changes.length - lines.length} more: flannelctl plan`));
      place.replaceChildren(title, waitsFor ? h("p", {}, `There is no plan yet: ${waitsFor}`) : lines.length ? h("pre", { class: "diff" }, ...lines) : h("p", {}, "none"));
    } catch (error) {
      place.replaceChildren(title, h("p", { class: "problem" }, problem(error)));
    }
  }
}

const SIGNS = { add: ["+", "added"], remove: ["-", "removed"], change: ["~", false] };

const problem = (error) => (error.hint ? `${error.message}. ${error.hint}` : error.message);

/** Return whether the state is the filter, or each word is in a text of the peer. */
function matches(peer, filter, words) {
  const state = STATE_TEXT[stateOf(peer)];
  if (!words.length || filter === state) return true;
  const text = [peer.host_name, peer.subnet, peer.ipv6_subnet, peer.public_ip, peer.public_ipv6, peer.owner, peer.backend_type || "udp", state].filter(Boolean).join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

function moment(at) {
  const time = new Date(at * 1000);
  const day = time.toDateString() === new Date().toDateString() ? "" : `${time.toLocaleDateString("en-CA")} `;
  return `${day}${time.toLocaleTimeString("en-GB")}.${String(time.getMilliseconds()).padStart(3, "0")}`;
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
