// A curve of the last quarter of an hour, as SVG. It is looked at by pointer or by arrow keys, and says what it shows.

const SVG = "http://www.w3.org/2000/svg";
const SPAN_SECONDS = 900;
const LEFT = 64;
const RIGHT = 6;
const TOP = 10;
const BOTTOM = 20;
const GAP_SECONDS = 10; // longer than that nothing was measured: no line is drawn over it

function svg(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The least round number that is no less: 1, 2 or 5, and zeros; of bytes, powers of two. */
function round(most, base) {
  if (!(most > 0)) return base;
  if (base === 1024) return 2 ** Math.ceil(Math.log2(Math.max(most, 1024)));
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= most * 0.999);
}

export class Chart {
  /** `series`: {name, value(point)} each, in the order of their colours; `show` gives a value as text. */
  constructor(element, { title, series, show, base, empty }) {
    Object.assign(this, { element, title, series, show, base, empty });
    this.points = [];
    this.at = null;
    this.svg = svg("svg", { "aria-hidden": "true" });
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    element.append(this.svg, this.tip);
    new ResizeObserver(() => this.draw()).observe(element);
    element.addEventListener("pointermove", (event) => this.look(this.pointAt(event.offsetX)));
    element.addEventListener("pointerleave", () => this.look(null));
    element.addEventListener("blur", () => this.look(null));
    element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
      if (!step || !this.points.length) return;
      event.preventDefault();
      const last = this.points.length - 1;
      const from = this.at === null ? last : this.points.indexOf(this.at);
      this.look(this.points[Math.min(last, Math.max(0, from + step))]);
    });
  }

  set(points) {
    this.points = points.filter((each) => this.series.some((one) => one.value(each) !== null));
    if (this.at && !this.points.includes(this.at)) this.at = null;
    this.draw();
  }

  look(point) {
    this.at = point ?? null;
    this.draw();
  }

  pointAt(x) {
    const time = this.now - SPAN_SECONDS + ((x - LEFT) / (this.width - LEFT - RIGHT)) * SPAN_SECONDS;
    let found = null;
    for (const each of this.points) {
      if (!found || Math.abs(each.time - time) < Math.abs(found.time - time)) found = each;
    }
    return found;
  }

  draw() {
    this.width = this.element.clientWidth;
    this.height = this.element.clientHeight;
    if (!this.width) return;
    const last = this.points.at(-1);
    this.now = last ? last.time : Date.now() / 1000;
    const values = this.points.flatMap((each) => this.series.map((one) => one.value(each) ?? 0));
    const most = round(Math.max(0, ...values), this.base);
    const x = (time) => LEFT + ((time - this.now + SPAN_SECONDS) / SPAN_SECONDS) * (this.width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / most) * (this.height - TOP - BOTTOM);
    const parts = [];
    for (const part of [0, 0.5, 1]) {
      const line = Math.round(y(most * part)) + 0.5;
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: line, y2: line }));
      const text = part === 0 ? "0" : this.show(most * part);
      parts.push(svg("text", { x: LEFT - 8, y: line + 4, "text-anchor": "end" }, text));
    }
    const wide = this.width > 380;
    for (const minutes of wide ? [15, 10, 5, 0] : [15, 0]) {
      const anchor = minutes === 15 ? "start" : minutes === 0 ? "end" : "middle";
      const text = minutes ? `${minutes} min ago` : "now";
      parts.push(svg("text", { x: x(this.now - minutes * 60), y: this.height - 3, "text-anchor": anchor }, text));
    }
    this.series.forEach((one, number) => {
      for (const run of this.runs(one)) {
        const way = run.map((each, i) => `${i ? "L" : "M"}${x(each.time).toFixed(1)} ${y(one.value(each)).toFixed(1)}`);
        const ends = `L${x(run.at(-1).time).toFixed(1)} ${y(0)}L${x(run[0].time).toFixed(1)} ${y(0)}Z`;
        parts.push(svg("path", { class: `area a${number}`, d: way.join("") + ends }));
        parts.push(svg("path", { class: `line s${number}`, d: way.join("") }));
      }
    });
    if (!this.points.length) {
      parts.push(svg("text", { class: "empty", x: (LEFT + this.width) / 2, y: this.height / 2 - 8, "text-anchor": "middle" }, this.empty));
    }
    if (this.at) {
      parts.push(svg("line", { class: "cross", x1: x(this.at.time), x2: x(this.at.time), y1: TOP, y2: this.height - BOTTOM }));
    }
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.replaceChildren(...parts);
    this.tell(x);
  }

  /** Pieces of a series that were measured without a gap. */
  runs(one) {
    const found = [];
    let before = null;
    for (const each of this.points) {
      if (one.value(each) === null) continue;
      if (before === null || each.time - before > GAP_SECONDS) found.push([]);
      found.at(-1).push(each);
      before = each.time;
    }
    return found.filter((run) => run.length > 1);
  }

  tell(x) {
    const last = this.points.at(-1);
    const words = (point) =>
      this.series.map((one) => `${one.name} ${one.value(point) === null ? "–" : this.show(one.value(point))}`).join(", ");
    this.tip.hidden = !this.at;
    if (this.at) {
      const ago = Math.round(this.now - this.at.time);
      const text = `${ago < 1 ? "now" : ago < 90 ? `${ago} s ago` : `${Math.round(ago / 60)} min ago`}: ${words(this.at)}`;
      this.tip.textContent = text;
      const place = Math.min(Math.max(0, x(this.at.time) - this.tip.offsetWidth / 2), this.width - this.tip.offsetWidth);
      this.tip.style.left = `${place}px`;
      this.element.setAttribute("aria-label", `${this.title}, ${text}`);
    } else if (last) {
      const most = this.series.map((one) => `${one.name} ${this.show(Math.max(...this.points.map((each) => one.value(each) ?? 0)))}`);
      this.element.setAttribute(
        "aria-label",
        `${this.title} of the last 15 minutes: now ${words(last)}; at most ${most.join(", ")}. Arrow keys go through it.`,
      );
    }
  }
}
