"use strict";
// The map: a canvas of dots under a view that pans and zooms, and the tree beside it as its legend.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const leaves = data.leaves;
  const none = leaves.length; // the index of sessions in no leaf
  const numbers = (text) =>
    new Uint16Array(Uint8Array.from(atob(text), (each) => each.charCodeAt(0)).buffer);
  const places = numbers(data.places); // x and y in turn, 0 to 65535
  const leafOf = numbers(data.leaf_of);
  const days = numbers(data.days); // since 1970-01-01
  const count = leafOf.length;
  const groups = Array.from({ length: none + 1 }, () => []);
  for (let i = 0; i < count; i += 1) groups[leafOf[i]].push(i);
  const visible = new Array(none + 1).fill(true);
  const view = { x: 0.5, y: 0.5, scale: 1 }; // what is in the middle, and pixels per unit
  const size = { wide: 1, high: 1, fit: 1 };
  const canvas = byId("canvas");
  const pen = canvas.getContext("2d");
  const slider = byId("until");
  let until = data.last;
  let lit = null; // the leaves that stand out, or null for all
  let under = -1; // the session under the pointer
  let crosshair = false;
  let waiting = false;

  const dated = (day) => new Date(day * 86400000).toISOString().slice(0, 10);
  const across = (x) => size.wide / 2 + (x - view.x) * view.scale;
  const down = (y) => size.high / 2 - (y - view.y) * view.scale;
  const placeOf = (i) => [across(places[2 * i] / 65535), down(places[2 * i + 1] / 65535)];

  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    const paper = style.getPropertyValue("--paper").trim();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size.wide, size.high);
    const base = count > 10000 ? 1.2 : count > 2000 ? 1.7 : 2.6;
    const radius = Math.min(7, base * Math.sqrt(view.scale / size.fit));
    const named = new Set();
    for (const leaf of [none, ...leaves.keys()]) {
      if (!visible[leaf]) continue;
      pen.globalAlpha = lit && !lit.has(leaf) ? 0.08 : leaf === none ? 0.45 : 0.8;
      pen.fillStyle = leaf === none ? data.unassigned : leaves[leaf].colour;
      pen.beginPath();
      for (const i of groups[leaf]) {
        if (days[i] > until) continue;
        named.add(leaf);
        const [x, y] = placeOf(i);
        if (x < -9 || y < -9 || x > size.wide + 9 || y > size.high + 9) continue;
        trace(leaf === none ? "circle" : leaves[leaf].shape, x, y, radius);
      }
      pen.fill();
    }
    pen.globalAlpha = 1;
    labels(named, ink, paper);
    if (under >= 0) ring(...placeOf(under), ink);
    if (crosshair) cross(ink);
  }

  function trace(shape, x, y, r) {
    if (r < 1.6 || shape === "square") {
      pen.rect(x - r, y - r, 2 * r, 2 * r); // smaller than a shape can be told, and four times as fast
    } else if (shape === "circle") {
      pen.moveTo(x + r, y);
      pen.arc(x, y, r, 0, 2 * Math.PI);
    } else if (shape === "triangle") {
      pen.moveTo(x, y - 1.2 * r);
      pen.lineTo(x + 1.2 * r, y + r);
      pen.lineTo(x - 1.2 * r, y + r);
      pen.closePath();
    } else {
      pen.moveTo(x, y - 1.4 * r);
      pen.lineTo(x + 1.2 * r, y);
      pen.lineTo(x, y + 1.4 * r);
      pen.lineTo(x - 1.2 * r, y);
      pen.closePath();
    }
  }

  function labels(named, ink, paper) {
    const taken = [];
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineWidth = 3;
    pen.lineJoin = "round";
    const order = [...leaves.keys()].filter((leaf) => named.has(leaf) && leaves[leaf].spot);
    order.sort((a, b) => groups[b].length - groups[a].length);
    for (const leaf of order) {
      if (lit && !lit.has(leaf)) continue;
      const x = across(leaves[leaf].spot[0]);
      const y = down(leaves[leaf].spot[1]);
      const half = pen.measureText(leaves[leaf].name).width / 2 + 3;
      const box = [x - half, y - 9, x + half, y + 9];
      if (x < 0 || y < 0 || x > size.wide || y > size.high) continue;
      const hit = (b) => box[0] < b[2] && b[0] < box[2] && box[1] < b[3] && b[1] < box[3];
      if (taken.some(hit)) continue; // zooming in makes room for it
      taken.push(box);
      pen.strokeStyle = paper;
      pen.strokeText(leaves[leaf].name, x, y);
      pen.fillStyle = ink;
      pen.fillText(leaves[leaf].name, x, y);
    }
  }

  function ring(x, y, ink) {
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x, y, 8, 0, 2 * Math.PI);
    pen.stroke();
  }

  function cross(ink) {
    const [x, y] = [size.wide / 2, size.high / 2];
    pen.strokeStyle = ink;
    pen.lineWidth = 1;
    pen.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 5 * dx, y + 5 * dy);
      pen.lineTo(x + 14 * dx, y + 14 * dy);
    }
    pen.stroke();
  }

  function nearest(x, y, reach) {
    let best = -1;
    let least = reach * reach;
    for (let i = 0; i < count; i += 1) {
      if (days[i] > until || !visible[leafOf[i]]) continue;
      const [px, py] = placeOf(i);
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  function told(i) {
    const leaf = leaves[leafOf[i]];
    const name = leaf ? `${leaf.name} (${leaf.stage})` : "in no leaf";
    return [name, `${dated(days[i])}, session ${data.ids[i]}`, ...(data.texts ? [data.texts[i]] : [])];
  }

  function hover(x, y, reach) {
    const tip = byId("tip");
    under = nearest(x, y, reach);
    tip.hidden = under < 0;
    if (under >= 0) {
      tip.replaceChildren(
        ...told(under).map((line) => {
          const row = document.createElement("div");
          row.textContent = line;
          return row;
        }),
      );
      const [px, py] = placeOf(under);
      tip.style.left = `${Math.max(0, Math.min(px + 12, size.wide - tip.offsetWidth))}px`;
      const below = py + 14 + tip.offsetHeight < size.high;
      tip.style.top = `${below ? py + 14 : Math.max(0, py - 14 - tip.offsetHeight)}px`;
    }
    redraw();
  }

  function zoom(factor, x = size.wide / 2, y = size.high / 2) {
    const scale = Math.min(size.fit * 400, Math.max(size.fit * 0.5, view.scale * factor));
    view.x += (x - size.wide / 2) * (1 / view.scale - 1 / scale);
    view.y -= (y - size.high / 2) * (1 / view.scale - 1 / scale);
    view.scale = scale;
    redraw();
  }

  function pan(dx, dy) {
    view.x -= dx / view.scale;
    view.y += dy / view.scale;
    redraw();
  }

  function frame(points) {
    const box = [1, 1, 0, 0];
    for (const i of points) {
      const [x, y] = [places[2 * i] / 65535, places[2 * i + 1] / 65535];
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x);
      box[3] = Math.max(box[3], y);
    }
    if (box[0] > box[2]) return;
    view.x = (box[0] + box[2]) / 2;
    view.y = (box[1] + box[3]) / 2;
    const across_ = size.wide / (box[2] - box[0] + 0.02);
    view.scale = 0.92 * Math.min(across_, size.high / (box[3] - box[1] + 0.02), size.fit * 400);
    redraw();
  }

  function whole() {
    Object.assign(view, { x: 0.5, y: 0.5, scale: size.fit });
    redraw();
  }

  function resized() {
    const before = view.scale / size.fit;
    const ratio = window.devicePixelRatio || 1;
    size.wide = canvas.clientWidth;
    size.high = canvas.clientHeight;
    canvas.width = Math.round(size.wide * ratio);
    canvas.height = Math.round(size.high * ratio);
    size.fit = 0.94 * Math.min(size.wide, size.high);
    view.scale = before * size.fit;
    redraw();
  }

  // The tree: what it says of a day, what it shows, what it lets stand out.

  const rows = [...document.querySelectorAll("li[data-leaf]")];
  const within = (row) => [row, ...row.querySelectorAll("li[data-leaf]")].filter((x) => x.dataset.leaf);
  const indexes = (found) => new Set(found.map((row) => Number(row.dataset.leaf)));

  function asOf(day) {
    until = day;
    const latest = day >= data.last;
    let seen = 0;
    for (let i = 0; i < count; i += 1) if (days[i] <= day) seen += 1;
    const part = data.total > count ? " shown" : "";
    byId("date").textContent = `${dated(day)}: ${seen.toLocaleString("en")} sessions${part}`;
    slider.setAttribute("aria-valuetext", dated(day));
    for (const row of rows) {
      const leaf = leaves[Number(row.dataset.leaf)];
      if (!leaf) continue;
      const then = latest ? leaf.life.at(-1) : leaf.life.filter((each) => each[0] <= day).at(-1);
      row.classList.toggle("unborn", !then);
      const stage = row.querySelector(".stage");
      stage.textContent = then ? then[1] : "not yet";
      stage.dataset.stage = stage.textContent;
      row.querySelector(".sessions").textContent = then ? then[2].toLocaleString("en") : "";
    }
    const line = byId("now");
    if (line) {
      const bar = (day - data.bars.first) / data.bars.days;
      const x = data.bars.left + data.bars.width * Math.min(bar, data.bars.count);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
    redraw();
  }

  function search() {
    const wanted = byId("search").value.trim().toLowerCase();
    const named = (row) => row.dataset.name.toLowerCase().includes(wanted);
    const all = [...document.querySelectorAll("#leaves li")];
    for (const row of all) {
      row.hidden = wanted !== "" && ![row, ...row.querySelectorAll("li")].some(named);
    }
    lit = wanted ? indexes(rows.filter(named)) : null;
    byId("found").textContent = wanted ? `${lit.size} found` : "";
    redraw();
  }

  function show(every) {
    for (const box of document.querySelectorAll("#leaves input[type=checkbox]")) {
      box.checked = every;
      visible[Number(box.dataset.show)] = every;
    }
    redraw();
  }

  const tree = byId("leaves");
  tree.addEventListener("change", (event) => {
    visible[Number(event.target.dataset.show)] = event.target.checked;
    redraw();
  });
  tree.addEventListener("click", (event) => {
    const wanted = event.target.dataset.find;
    if (wanted === undefined) return;
    const row = event.target.closest("li");
    frame([...indexes(within(row))].flatMap((leaf) => groups[leaf]));
    canvas.scrollIntoView({ block: "nearest" });
  });
  for (const name of ["pointerover", "focusin"]) {
    tree.addEventListener(name, (event) => {
      const row = event.target.closest("li");
      if (row && !byId("search").value) {
        lit = indexes(within(row));
        redraw();
      }
    });
  }
  for (const name of ["pointerleave", "focusout"]) {
    tree.addEventListener(name, () => {
      if (!byId("search").value) {
        lit = null;
        redraw();
      }
    });
  }
  byId("search").addEventListener("input", search);
  byId("all").addEventListener("click", () => show(true));
  byId("none").addEventListener("click", () => show(false));

  // Time.

  let playing = 0;
  function play() {
    const button = byId("play");
    if (playing) {
      clearInterval(playing);
      playing = 0;
    } else {
      const step = Math.max(1, Math.round((data.last - data.first) / 120));
      if (until >= data.last) slider.value = data.first;
      playing = setInterval(() => {
        slider.value = Number(slider.value) + step;
        asOf(Number(slider.value));
        if (until >= data.last) play();
      }, 100);
    }
    button.textContent = playing ? "Stop" : "Replay";
  }
  slider.addEventListener("input", () => asOf(Number(slider.value)));
  byId("play").addEventListener("click", play);

  // Pointers and keys.

  const pointers = new Map();
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    crosshair = false;
    hover(event.offsetX, event.offsetY, 14); // a finger does not hover
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    const here = [event.offsetX, event.offsetY];
    if (!before) {
      hover(...here, 12);
      return;
    }
    const apart = pointers.size === 2 ? spread() : 0;
    pointers.set(event.pointerId, here);
    byId("tip").hidden = true;
    if (pointers.size === 2) zoom(spread() / apart, ...here);
    else pan(here[0] - before[0], here[1] - before[1]);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  canvas.addEventListener("pointerleave", () => hover(-99, -99, 1));
  canvas.addEventListener("dblclick", (event) => zoom(2, event.offsetX, event.offsetY));
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // else the page scrolls
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
    },
    { passive: false },
  );
  const keys = {
    ArrowLeft: () => pan(40, 0),
    ArrowRight: () => pan(-40, 0),
    ArrowUp: () => pan(0, 40),
    ArrowDown: () => pan(0, -40),
    "+": () => zoom(1.5),
    "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    0: whole,
  };
  canvas.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
    crosshair = true;
    hover(size.wide / 2, size.high / 2, 30);
    byId("said").textContent = under < 0 ? "no session here" : told(under).join(", ");
  });
  canvas.addEventListener("blur", () => {
    crosshair = false;
    hover(-99, -99, 1);
  });
  byId("in").addEventListener("click", () => zoom(1.5));
  byId("out").addEventListener("click", () => zoom(1 / 1.5));
  byId("whole").addEventListener("click", whole);

  new ResizeObserver(resized).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  resized();
  whole();
  asOf(data.last);
})();
