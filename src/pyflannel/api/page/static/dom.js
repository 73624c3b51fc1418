// Creates elements without HTML text. All values from the network become text nodes, so that no value is executed.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Return an HTML element. A value that is a function becomes a listener. A value that is false or null omits the attribute. */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** Return an SVG element. */
export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set an attribute only if its value differs, because each write makes the browser compute the layout again. */
export function set(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Set the text only if it differs, so that a selection in the text remains. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${count >= 100 || unit === 0 ? count.toFixed(0) : count.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** Return the state of a peer: reached, silent, refused or unprobed. */
export function stateOf(peer) {
  if (peer.refused !== null) return "refused";
  if (peer.is_reached === null) return "unprobed";
  return peer.is_reached ? "reached" : "silent";
}

export const STATE_TEXT = { reached: "answers", silent: "no answer", refused: "refused", unprobed: "not probed" };

export const nameOf = (peer) => peer.host_name ?? peer.public_ip;

export const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
