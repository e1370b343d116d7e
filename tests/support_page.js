"use strict";
// A stand-in for the browser in which the page's script runs: `node support_page.js PAGE.html`.
// It prints what was drawn and said after each step, as one JSON document. Elements hold what the
// script sets, and know no layout.
const { readFileSync } = require("node:fs");
const page = readFileSync(process.argv[2], "utf8");
const inline = (open) => page.split(open)[1].split("</script>")[0];

class Element {
  constructor(dataset = {}) {
    Object.assign(this, { dataset, hidden: false, value: "", textContent: "", style: {} });
    Object.assign(this, { clientWidth: 800, clientHeight: 600, offsetWidth: 9, offsetHeight: 9 });
    Object.assign(this, { checked: true, marks: {}, inner: [], heard: {}, attributes: {} });
    this.classList = { toggle: (name, on) => (this.marks[name] = on) };
  }
  addEventListener(name, act) { (this.heard[name] ??= []).push(act); }
  fire(name, event = {}) {
    for (const act of this.heard[name] ?? []) act({ preventDefault() {}, target: this, ...event });
    flush();
  }
  setAttribute(name, value) { this.attributes[name] = value; }
  replaceChildren(...inner) { this.inner = inner; }
  querySelectorAll() { return []; }
  querySelector(what) { return (this.attributes[what] ??= new Element()); }
  closest() { return this; }
  setPointerCapture() {}
  scrollIntoView() {}
}

const drawn = { dots: 0, names: [] };
const pen = new Proxy({ measureText: (text) => ({ width: 7 * text.length }) }, {
  get: (own, name) => own[name] ?? ((...given) => {
    if (name === "clearRect") Object.assign(drawn, { dots: 0, names: [] });
    if (name === "rect" || name === "arc") drawn.dots += 1;
    if (name === "fillText") drawn.names.push(given[0]);
  }),
});
const elements = {};
const element = (id) => (elements[id] ??= new Element());
element("canvas").getContext = () => pen;
element("data").textContent = inline('id="data">');
const data = JSON.parse(element("data").textContent);
element("until").value = String(data.last);
const rows = [...page.matchAll(/<li data-leaf="(\d+)" data-name="([^"]*)"/g)].map(
  ([, leaf, name]) => new Element({ leaf, name }),
);

let frames = [];
let ticks = null;
const flush = () => {
  const due = frames;
  frames = [];
  for (const act of due) act();
};
Object.assign(globalThis, {
  window: { devicePixelRatio: 2 },
  document: {
    getElementById: element,
    documentElement: null,
    activeElement: null,
    createElement: () => new Element(),
    querySelectorAll: (what) => (what.includes("li") ? rows : []),
  },
  getComputedStyle: () => ({ getPropertyValue: () => " #123456" }),
  requestAnimationFrame: (act) => frames.push(act),
  matchMedia: () => new Element(),
  ResizeObserver: class { observe() {} },
  setInterval: (act) => ((ticks = act), 1),
  clearInterval: () => (ticks = null),
});

new Function(inline("</script>\n<script>"))();
flush();
const out = [];
const note = (step) => out.push({
  step,
  ...structuredClone(drawn),
  tip: element("tip").hidden ? [] : element("tip").inner.map((line) => line.textContent),
  said: element("said").textContent,
  date: element("date").textContent,
  stages: rows.map((row) => row.attributes[".stage"]?.textContent ?? ""),
  found: element("found").textContent,
});
const canvas = element("canvas");
note("opened");
canvas.fire("keydown", { key: "+" });
canvas.fire("keydown", { key: "ArrowLeft" });
canvas.fire("keydown", { key: "0" });
note("by keys");
const at = (offsetX, offsetY, pointerId = 1) => ({ offsetX, offsetY, pointerId });
for (let x = 0; x < 800 && !element("tip").inner.length; x += 8) {
  for (let y = 0; y < 600; y += 8) canvas.fire("pointermove", at(x, y));
}
note("hovered");
canvas.fire("pointerdown", at(10, 10));
canvas.fire("pointermove", at(60, 60));
canvas.fire("pointerdown", at(90, 90, 2));
canvas.fire("pointermove", at(200, 200, 2));
canvas.fire("pointerup", at(0, 0, 1));
canvas.fire("pointerup", at(0, 0, 2));
canvas.fire("wheel", { ctrlKey: true, deltaY: -100, ...at(5, 5) });
canvas.fire("dblclick", at(5, 5));
element("whole").fire("click");
element("search").value = (data.leaves[0]?.name ?? "").slice(0, 4);
element("search").fire("input");
note("searched");
element("search").value = "";
element("search").fire("input");
element("leaves").fire("change", { target: { dataset: { show: "0" }, checked: false } });
note("first leaf hidden");
element("until").value = String(data.first);
element("until").fire("input");
note("first day");
element("play").fire("click");
for (let n = 0; n < 500 && ticks; n += 1) ticks();
flush();
note("replayed");
process.stdout.write(JSON.stringify(out));
