// What builds the page. Text of strangers goes into text nodes and attributes alone: there is no other way here.

export const byId = (id) => document.getElementById(id);

/** Escape what would not be seen of a text, or would turn around what stands beside it: marks of direction, ends of lines. */
export const visible = (text) =>
  String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (each) => `\\u{${each.codePointAt(0).toString(16)}}`);

/** Make an element. Children may be elements or texts; what is null is left out. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  const there = children.filter((each) => each !== null && each !== undefined);
  made.append(...there.map((each) => (each instanceof Node ? each : visible(each))));
  return made;
}

/** Have an element say a text; touch nothing that says it already, so that nobody's selection is lost. */
export function say(element, text) {
  const shown = visible(text);
  if (element.textContent !== shown) element.textContent = shown;
}

/** Have a list show items, one child each, by key: who has the focus keeps it while everything around changes. */
export function keep(parent, items, keyOf, create, update) {
  const there = new Map([...parent.children].map((each) => [each.dataset.key, each]));
  let before = null;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = there.get(key);
    if (child) there.delete(key);
    else {
      child = create(item);
      child.dataset.key = key;
    }
    update(child, item);
    const place = before ? before.nextSibling : parent.firstChild;
    if (place !== child && !(child.contains(document.activeElement) && child.parentNode === parent)) {
      parent.insertBefore(child, place);
    }
    before = child;
  }
  for (const gone of there.values()) gone.remove();
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** A number of bytes, in few letters. */
export function bytes(number) {
  let unit = 0;
  while (number >= 1000 && unit < UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit === 0 || number >= 99.5 ? number.toFixed(0) : number.toFixed(1)} ${UNITS[unit]}`;
}

export const rate = (number) => `${bytes(number)}/s`;

/** A count, in few letters. */
export function count(number) {
  if (number >= 1e6) return `${(number / 1e6).toFixed(1)} M`;
  if (number >= 1e4) return `${(number / 1e3).toFixed(1)} k`;
  return number >= 10 || Number.isInteger(number) ? number.toFixed(0) : number.toFixed(1);
}

/** A count, to the last one: for who holds it against another program's. */
export const exact = (number) => number.toLocaleString("en");

/** A time that has passed. */
export function duration(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** How long a request takes. */
export function latency(seconds) {
  if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${seconds.toFixed(1)} s`;
}

export const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

/** An export's name as people see it: the default export has an empty one. */
export const named = (name) => (name === "" ? "(default)" : name);
