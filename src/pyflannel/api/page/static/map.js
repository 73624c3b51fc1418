// The topology: this host in the middle, its peers around it. A path is coloured by the answer of the peer, and
// as wide as its traffic. Up to 40 peers form one ring with their names. More peers form a disc of dots.

import { bytes, nameOf, s, set, short, stateOf, STATE_TEXT, write } from "./dom.js";

const RING = 40;
const NAMED = 10;
const LEAST_RATE = 10000; // bytes per second of a wide path; probes of the page are much less
const GOLDEN_ANGLE = Math.PI * (3 - Math.sqrt(5));

export class Topology {
  constructor(svg, select) {
    this.svg = svg;
    this.select = select;
    this.spokes = s("g", { "aria-hidden": "true" });
    this.nodes = s("g", { role: "none" });
    this.own = s("g", { class: "own", "aria-hidden": "true" });
    this.shown = new Map();
    this.order = [];
    svg.append(this.spokes, this.own, this.nodes);
    svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.last && this.show(...this.last)).observe(svg);
  }

  show(host, peers, selected, rates) {
    this.last = [host, peers, selected, rates];
    const { width, height } = this.svg.getBoundingClientRect();
    if (width < 10 || height < 10) return;
    set(this.svg, "viewBox", `0 0 ${Math.round(width)} ${Math.round(height)}`);
    const isMany = peers.length > RING;
    this.svg.classList.toggle("many", isMany);
    const places = isMany ? disc(peers.length, width, height) : ring(peers.length, width, height);
    const middle = { x: width / 2, y: height / 2 };
    const busiest = Math.max(LEAST_RATE, ...rates.values());
    const size = isMany ? dotSize(peers.length, width, height) : 9;
    this.order = peers.map((peer) => peer.subnet);
    this.selected = selected;
    const gone = new Set(this.shown.keys());
    let named = 0;
    peers.forEach((peer, at) => {
      gone.delete(peer.subnet);
      const node = this.shown.get(peer.subnet) ?? this.add(peer);
      const state = stateOf(peer);
      const isSelected = peer.subnet === selected;
      const isNamed = !isMany || isSelected || (state === "silent" && (named += 1) <= NAMED);
      this.place(node, peer, places[at], middle, { state, isSelected, isNamed, isMany, size, rate: (rates.get(peer.subnet) ?? 0) / busiest });
    });
    for (const subnet of gone) {
      this.shown.get(subnet).spoke.remove();
      this.shown.get(subnet).group.remove();
      this.shown.delete(subnet);
    }
    this.showOwn(host, middle, isMany);
    set(this.svg, "aria-activedescendant", selected === null ? "" : idOf(selected));
  }

  add(peer) {
    const node = { spoke: s("line", { class: "spoke" }), halo: s("circle", { class: "halo" }), shape: null, text: s("text"), title: s("title") };
    node.group = s("g", { id: idOf(peer.subnet), role: "option", click: () => this.select(peer.subnet) }, node.title, node.halo, node.text);
    node.isNew = peer.isNew;
    this.spokes.append(node.spoke);
    this.nodes.append(node.group);
    this.shown.set(peer.subnet, node);
    return node;
  }

  place(node, peer, at, middle, { state, isSelected, isNamed, isMany, size, rate }) {
    const name = nameOf(peer);
    const kind = `peer ${state}${isSelected ? " selected" : ""}${node.isNew ? " new" : ""}`;
    const label = `${name}, ${peer.subnet}: ${STATE_TEXT[state]}${peer.refused ? `: ${peer.refused}` : ""}`;
    set(node.group, "class", kind);
    set(node.group, "aria-label", label);
    set(node.group, "aria-selected", isSelected);
    write(node.title, label);
    set(node.group, "transform", `translate(${at.x.toFixed(1)} ${at.y.toFixed(1)})`);
    set(node.spoke, "class", `spoke ${state}${isSelected ? " selected" : ""}${rate > 0.02 ? " busy" : ""}`);
    for (const [key, value] of Object.entries({ x1: middle.x, y1: middle.y, x2: at.x, y2: at.y })) set(node.spoke, key, value.toFixed(1));
    const wide = rate > 0 ? (1.5 + 5 * Math.sqrt(rate)).toFixed(1) : "";
    if (node.wide !== wide) node.spoke.style.strokeWidth = node.wide = wide;
    set(node.halo, "r", size + 5);
    const look = `${state} ${size}`;
    if (node.look !== look) {
      node.shape?.forEach((part) => part.remove());
      node.shape = shapeOf(state, size);
      node.halo.after(...node.shape);
      node.look = look;
    }
    const side = at.x - middle.x;
    const anchor = isMany || Math.abs(side) < 30 ? "middle" : side > 0 ? "start" : "end";
    const shift = anchor === "middle" ? 0 : side > 0 ? size + 11 : -size - 11;
    const down = anchor !== "middle" ? -1 : at.y < middle.y ? -size - (isMany ? 6 : 20) : size + 15;
    const hasSubnet = !isMany && middle.x > 260; // a narrow window has no space for it
    const words = isNamed ? `${short(name, 22)}|${hasSubnet ? peer.subnet : ""}|${anchor}|${shift}|${down}` : "";
    if (node.words !== words) {
      node.words = words;
      node.text.replaceChildren(...(isNamed ? [
        s("tspan", { x: shift, y: down }, short(name, 22)),
        hasSubnet && s("tspan", { x: shift, y: down + 14, class: "small" }, peer.subnet),
      ].filter(Boolean) : []));
      set(node.text, "text-anchor", anchor);
    }
    if (isSelected || state === "silent") this.nodes.append(node.group); // above the others
  }

  showOwn(host, { x, y }, isMany) {
    const name = host.host_name ?? host.underlay?.public_ip ?? "this host";
    const subnet = host.lease?.subnet ?? "no lease";
    const now = `${name} ${subnet} ${x} ${y} ${isMany}`;
    if (this.ownNow === now) return;
    this.ownNow = now;
    this.own.replaceChildren(
      s("circle", { class: "disc", cx: x, cy: y, r: isMany ? 34 : 26 }),
      s("circle", { class: "ring", cx: x, cy: y, r: 19 }),
      s("circle", { class: "shape", cx: x, cy: y, r: 16 }),
      s("path", { d: `M${x - 6} ${y - 4}h12v8h-12zM${x - 3} ${y + 7}h6`, class: "screen" }),
    );
    if (!isMany) this.own.append(s("text", { x, y: y + 40, "text-anchor": "middle" }, s("tspan", { x }, short(name, 22)), s("tspan", { x, dy: 14, class: "small" }, subnet)));
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !this.order.length) return;
    event.preventDefault();
    const at = this.order.indexOf(this.selected);
    const next = at < 0 ? (step > 0 ? 0 : this.order.length - 1) : (at + step + this.order.length) % this.order.length;
    this.select(this.order[next]);
  }
}

const idOf = (subnet) => `peer-${subnet.replace(/[^0-9]/g, "-")}`;

/** Return places on an ellipse, the first at the top right. */
function ring(number, width, height) {
  const [wide, high] = [Math.max(60, width / 2 - 170), Math.max(50, height / 2 - 52)];
  return Array.from({ length: number }, (_, at) => {
    const angle = ((at + 0.5) / number) * 2 * Math.PI - Math.PI / 2;
    return { x: width / 2 + wide * Math.cos(angle), y: height / 2 + high * Math.sin(angle) };
  });
}

/** Return places of equal density on an ellipse with a free middle. */
function disc(number, width, height) {
  const [wide, high] = radii(width, height);
  const free = (46 / high) ** 2;
  return Array.from({ length: number }, (_, at) => {
    const far = Math.sqrt(free + (1 - free) * ((at + 0.5) / number));
    const angle = at * GOLDEN_ANGLE;
    return { x: width / 2 + wide * far * Math.cos(angle), y: height / 2 + high * far * Math.sin(angle) };
  });
}

function radii(width, height) {
  const high = Math.max(60, height / 2 - 24);
  return [Math.min(width / 2 - 40, high * 2.4), high];
}

function dotSize(number, width, height) {
  const [wide, high] = radii(width, height);
  return Math.max(1.5, Math.min(8, 0.32 * Math.sqrt((Math.PI * wide * high) / number)));
}

/** Return the shape of a state, so that the states differ even without colours. */
function shapeOf(state, size) {
  switch (state) {
    case "silent": {
      const arm = Math.max(2.4, size * 0.42);
      const radius = Math.max(size, 6.5);
      return [s("circle", { class: "shape", r: radius }), s("path", { class: "cross", d: `M${-arm} ${-arm}L${arm} ${arm}M${arm} ${-arm}L${-arm} ${arm}` })];
    }
    case "refused":
      return [s("rect", { class: "shape", x: -size * 0.85, y: -size * 0.85, width: size * 1.7, height: size * 1.7, transform: "rotate(45)" })];
    case "unprobed":
      return [s("circle", { class: "shape", r: Math.max(1.5, size - 1) })];
    default:
      return [s("circle", { class: "shape", r: size })];
  }
}
