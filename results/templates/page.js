"use strict";
// Sorts tables; shows the runs of the JSON island a page at a time, and all that is known of one when it is opened.
// Text is only ever set as text, so nothing that a study says can become markup.

const PAGE = 100;
const [ARM, SEED, STATUS, METRIC, VALIDATION, PARAMS, GMAC, SECONDS, DEVICE, COMMIT, RUN, REASON] = Array(12).keys();
const TEXTS = new Set([ARM, STATUS, DEVICE, COMMIT, REASON]);
const NUMBERS = new Set([SEED, METRIC, VALIDATION, PARAMS, GMAC, SECONDS]);
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Sorting: up, down, then the study's own order again. What is missing comes last, both ways.

function compare(a, b, direction) {
  const [noA, noB] = [a === null || a === "", b === null || b === ""];
  if (noA || noB) return noA - noB;
  const [x, y] = [Number(a), Number(b)];
  const both = !Number.isNaN(x) && !Number.isNaN(y);
  return direction * (both ? (x > y) - (x < y) : String(a).localeCompare(String(b), "en", { numeric: true }));
}

function turn(header) {
  const next = { ascending: "descending", descending: "none" }[header.getAttribute("aria-sort")] ?? "ascending";
  for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", next);
  return { ascending: 1, descending: -1, none: 0 }[next];
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.setAttribute("aria-sort", "none");
    header.querySelector("button").addEventListener("click", () => {
      const direction = turn(header), key = (row) => row.cells[column].dataset.sort;
      body.append(...(direction ? [...rows].sort((a, b) => compare(key(a), key(b), direction)) : rows));
    });
  });
}

// The table of all runs

const value = (i, column) => (TEXTS.has(column) ? data.texts[data.rows[i][column]] : data.rows[i][column]);
const haystack = data.rows.map((row, i) =>
  [ARM, SEED, STATUS, DEVICE, COMMIT, RUN, REASON].map((column) => value(i, column)).join("\n").toLowerCase());
const opened = new Set();
let order = data.rows.map((_, i) => i), shown = order, page = 0;

function printed(i, column) {
  const v = value(i, column);
  if (v === null || v === "") return column === REASON ? "" : "–";
  if (column === PARAMS) return Number(v).toLocaleString("en");
  if (column === METRIC || column === VALIDATION) return Number(v).toFixed(data.decimals).replace("-", "−");
  if (column === GMAC) {
    const text = Number(v).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
    return data.lower[i] ? `≥ ${text}` : text;
  }
  if (column === SECONDS) return Number(v).toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  return v;
}

function rowOf(i) {
  const row = make("tr");
  data.head.forEach((_, column) => {
    const cell = make("td", NUMBERS.has(column) ? { class: "right" } : {});
    if (column === ARM) {
      const button = make("button", { type: "button", "aria-expanded": opened.has(i) }, value(i, ARM));
      button.addEventListener("click", () => toggle(i, row, button));
      cell.append(button);
    } else cell.append(printed(i, column));
    if (column === STATUS && value(i, STATUS) !== "done") cell.className = "bad";
    row.append(cell);
  });
  return opened.has(i) ? [row, sheetRow(i)] : [row];
}

function sheetRow(i) {
  return make("tr", { class: "run" }, make("td", { colspan: data.head.length }, sheet(i)));
}

function toggle(i, row, button) {
  const open = !opened.has(i);
  if (open) { opened.add(i); row.after(sheetRow(i)); } else { opened.delete(i); row.nextSibling.remove(); }
  button.setAttribute("aria-expanded", open);
}

function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  const from = page * PAGE, some = shown.slice(from, from + PAGE);
  byId("all").tBodies[0].replaceChildren(...some.flatMap(rowOf));
  byId("count").textContent = `${shown.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} runs`;
  byId("where").textContent = `${from + 1} to ${from + some.length}`;
  byId("before").disabled = page === 0;
  byId("after").disabled = page === pages - 1;
  byId("pages").hidden = pages === 1;
}

function filter() {
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean), status = byId("status").value;
  shown = order.filter((i) =>
    (!status || value(i, STATUS) === status) && words.every((word) => haystack[i].includes(word)));
  page = 0;
  draw();
}

function begin() {
  const original = order, counts = new Map();
  data.head.forEach((name, column) => {
    const button = make("button", { type: "button" }, name);
    const header = make("th", { scope: "col", "aria-sort": "none", class: NUMBERS.has(column) ? "right" : "" }, button);
    button.addEventListener("click", () => {
      const direction = turn(header);
      order = direction
        ? [...original].sort((a, b) => compare(value(a, column), value(b, column), direction)) : original;
      filter();
    });
    byId("all").tHead.rows[0].append(header);
  });
  for (const i of original) counts.set(value(i, STATUS), (counts.get(value(i, STATUS)) ?? 0) + 1);
  for (const [status, n] of counts) byId("status").append(make("option", { value: status }, `${status} (${n})`));
  byId("find").addEventListener("input", filter);
  byId("status").addEventListener("change", filter);
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  byId("before").addEventListener("click", () => { page -= 1; draw(); });
  byId("after").addEventListener("click", () => { page += 1; draw(); });
  window.addEventListener("hashchange", reach);
  draw();
  reach();
}

// The address page.html#run-ID opens that run.
function reach() {
  const id = decodeURIComponent(location.hash.slice(1)), i = data.rows.findIndex((row) => `run-${row[RUN]}` === id);
  if (i < 0) return;
  opened.add(i);
  if (!shown.includes(i)) shown = order;
  page = Math.floor(shown.indexOf(i) / PAGE);
  draw();
  document.getElementById(id).scrollIntoView();
}

// All that is known of one run

function sheet(i) {
  const run = data.details[i], arm = data.arms[value(i, ARM)], id = value(i, RUN);
  const box = make("div", { class: "sheet", id: `run-${id}` });
  const part = (name, ...content) => box.append(make("h4", {}, name), ...content);
  const pooled = (places) => (places ?? []).map((place) => data.pool[place]);
  const state = value(i, STATUS) + (value(i, REASON) ? `: ${value(i, REASON)}` : "");
  part("Status", make("p", value(i, STATUS) === "done" ? {} : { class: "bad" }, state));
  if (run.traceback !== undefined) part("Traceback", make("pre", { class: "traceback" }, data.pool[run.traceback]));
  if (value(i, ARM) !== arm.reference) {
    const differs = arm.changes.map(([path, theirs, ours]) => [path, ours, theirs]);
    part(`Differs from ${arm.reference} in`, grid(["Field", "Here", arm.reference], differs));
  }
  if (arm.note) box.append(make("p", { class: "quiet" }, arm.note));
  if (run.curve) part("Curve", ...curve(run));
  if (run.metrics?.length) part("Metrics", grid(["Metric", "Value"], run.metrics));
  if (run.end) {
    const [steps, best, weights] = run.end;
    box.append(make("p", {}, `${steps} steps, best on validation at step ${best}.` + (weights ? ` Weights ${weights}.` : "")));
  }
  if (run.spec) part("Spec", make("pre", { class: "spec" }, `{\n  ${pooled(run.spec).join(",\n  ")}\n}`));
  if (run.facts?.length) part("Cost and data", make("pre", {}, `{\n  ${pooled(run.facts).join(",\n  ")}\n}`));
  if (run.attempts?.length) {
    const rows = run.attempts.map(([when, seconds, rest]) => [when, seconds, data.pool[rest]]);
    part("Attempts", grid(["Started (UTC)", "Seconds", "Where"], rows));
  }
  part("Files", files(id, run));
  return box;
}

function grid(head, rows) {
  const cells = (tag, texts) => make("tr", {}, ...texts.map((text) => make(tag, {}, text)));
  return make("table", {}, make("thead", {}, cells("th", head)), make("tbody", {}, ...rows.map((row) => cells("td", row))));
}

function files(id, run) {
  const folder = `${data.folder}/${encodeURIComponent(id)}/`;
  if (run.files === undefined) return make("p", { class: "quiet" }, `None yet; they will be in ${folder}`);
  const links = data.pool[run.files].split("\n").flatMap((name) =>
    [" ", make("a", { href: folder + encodeURIComponent(name) }, name)]);
  return make("p", { class: "files" }, "In ", make("a", { href: folder }, folder), ":", ...links);
}

function curve(run) {
  const [head, ...rows] = run.curve.split("\n").map((line) => line.split(","));
  const steps = rows.map((row) => Number(row[0]));
  const charts = head.slice(1).map((name, k) => chart(name, steps, rows.map((row) => row[k + 1])));
  const kept = rows.length < run.evaluations ? `${rows.length} of ${run.evaluations} evaluations; all are in curve.csv` : `${rows.length} evaluations`;
  return [
    make("div", { class: "curves" }, ...charts.filter(Boolean)),
    make("details", {}, make("summary", {}, kept), make("pre", { class: "log" }, run.curve)),
  ];
}

function chart(name, steps, texts) {
  const points = texts.map((text, i) => [steps[i], text === "" ? NaN : Number(text)]).filter((p) => p.every(Number.isFinite));
  if (!points.length) return null;
  const [width, height] = [208, 80], [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const [left, right] = [Math.min(...xs), Math.max(...xs)], [low, high] = [Math.min(...ys), Math.max(...ys)];
  const at = (v, from, to) => (to > from ? (v - from) / (to - from) : 0.5);
  const place = ([x, y]) => `${(width * at(x, left, right)).toFixed(1)} ${(height - 4 - (height - 8) * at(y, low, high)).toFixed(1)}`;
  const draw = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, text] of Object.entries(attributes)) element.setAttribute(key, text);
    return element;
  };
  const label = `${name}: ${Number(low.toPrecision(4))} to ${Number(high.toPrecision(4))}, last ${Number(ys.at(-1).toPrecision(4))}`;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  svg.append(draw("line", { x1: 0, x2: width, y1: height, y2: height }));
  // A single evaluation is a short stroke, else it would not be seen.
  svg.append(draw("path", { d: `M${points.map(place).join(" L")}${points.length > 1 ? "" : " h 6"}` }));
  return make("figure", {}, svg, make("figcaption", {}, label));
}

begin();
