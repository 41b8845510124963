// The figures, filters and tables of a report, from the JSON in #data. Text of rows reaches plotly through esc(), and
// hover texts through %{text}, so that neither markup nor templates in it count.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const PALETTE = ["#d1495b", "#0891a5", "#d99a1e", "#5f9e7c", "#9a77ad", "#5b7fa6", "#b8703f", "#7f8c3a"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star", "hexagon"];
const SIGNS = ["●", "■", "◆", "▲", "▼", "✚", "★", "⬢"];
const PAGE = 6, MAX_LINES = 24, ROWS = 100;
const coarse = matchMedia("(pointer: coarse)").matches;
const byId = (id) => document.getElementById(id);
const esc = (s) => String(s).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const num = (v, digits = 4) => (v === null || v === undefined ? "-" : Number(v.toPrecision(digits)).toString());
const short = (s, n = 44) => (s.length > n ? s.slice(0, n - 1) + "…" : s);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// --- Filters: a study or a point is visible if each of its facets is ticked -----------------------------------
// Maps: the names are data, and an object has a `constructor` and a `__proto__` before it is given any
const facets = new Map(), off = new Map();
for (const item of [...data.studies, ...data.phase])
  for (const [name, value] of Object.entries(item.facets)) {
    if (!facets.has(name)) { facets.set(name, new Set()); off.set(name, new Set()); }
    facets.get(name).add(value);
  }
const visible = (item) => Object.entries(item.facets).every(([name, value]) => !off.get(name).has(value));
const inOrder = (values) =>
  [...values].every((v) => v !== "" && isFinite(v)) ? [...values].sort((a, b) => a - b) : [...values];

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function makeFilters() {
  const box = element("div");
  for (const [name, values] of facets) {
    if (values.size < 2) continue;
    const ticks = [];
    const set = element("fieldset", {}, element("legend", { textContent: name }));
    const all = (on) => {
      for (const tick of ticks) { tick.checked = on; off.get(name)[on ? "delete" : "add"](tick.value); }
      refresh();
    };
    for (const value of inOrder(values)) {
      const tick = element("input", { type: "checkbox", checked: true, name, value });
      tick.addEventListener("change", () => { off.get(name)[tick.checked ? "delete" : "add"](value); refresh(); });
      ticks.push(tick);
      set.append(element("label", {}, tick, short(value, 60)));
    }
    for (const [text, on] of [["all", true], ["none", false]])
      set.append(" ", element("button", { type: "button", textContent: text, onclick: () => all(on) }));
    box.append(set);
  }
  if (box.children.length) {
    const open = element("details", { open: innerWidth > 600 }, element("summary", { textContent: "Filters" }), box);
    byId("filters").append(open);
    byId("filters").hidden = false;
  }
}

// --- What all figures share ----------------------------------------------------------------------------------
const widths = [...new Set(data.studies.flatMap((s) => s.curves.map((c) => c.width)))].sort((a, b) => a - b);
const VIRIDIS = [[122, 209, 81], [34, 168, 132], [42, 120, 142], [65, 68, 135], [72, 36, 117]];
const VIRIDIS_DARK = [[253, 231, 37], [122, 209, 81], [34, 168, 132], [60, 140, 170], [130, 125, 210]];
function widthColor(width) {
  const scale = matchMedia("(prefers-color-scheme: dark)").matches ? VIRIDIS_DARK : VIRIDIS;
  const at = ((scale.length - 1) * widths.indexOf(width)) / Math.max(widths.length - 1, 1);
  const i = Math.min(Math.floor(at), scale.length - 2);
  return `rgb(${scale[i].map((v, c) => Math.round(v + (at - i) * (scale[i + 1][c] - v))).join(",")})`;
}
const studyStyle = (i) => ({ color: PALETTE[i % PALETTE.length], symbol: SYMBOLS[Math.floor(i / PALETTE.length) % SYMBOLS.length] });

function axis(title, more = {}) {
  return { title: { text: title, standoff: 8 }, gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true,
    fixedrange: coarse, ...more };
}
function layout(height, more = {}) {
  return { height, margin: { l: 55, r: 12, t: 46, b: 46 }, hovermode: "closest", dragmode: coarse ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), size: 12 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--soft"), font: { color: css("--ink"), size: 12 }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--ink") },
    legend: { orientation: "h", yref: "container", y: 1, yanchor: "top", x: 0 }, ...more };
}
const HOVER = { hovertemplate: "%{text}<extra></extra>" };
// Only what is near the screen is drawn, the rest when it comes into sight
const drawers = {}, near = new Set(), stale = new Set();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    near[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    if (entry.isIntersecting) drawIfStale(entry.target.id);
  }
}, { rootMargin: "300px" });
function drawIfStale(id) {
  if (stale.delete(id)) draw(id);
}
function draw(id) {
  const { traces, layout: shape } = drawers[id](byId(id).clientWidth);
  Plotly.react(id, traces, shape, { displaylogo: false, displayModeBar: coarse || innerWidth < 600 ? false : "hover",
    modeBarButtons: [["toImage", "resetScale2d"]] });
}
function figure(id, make) {
  if (!byId(id)) return;
  drawers[id] = make;
  stale.add(id);
  byId(id).addEventListener("keydown", (event) => step(byId(id), event));
}
function drawAll() { for (const id of Object.keys(drawers)) drawIfStale(id); }
function redraw(ids = Object.keys(drawers)) {
  for (const id of ids) { stale.add(id); if (near.has(id)) drawIfStale(id); }
}

// Which mark is which study, above a row of figures
function key(id, entries) {
  byId(id).replaceChildren(...entries.map(([i, name]) => {
    const mark = element("span", { textContent: SIGNS[Math.floor(i / PALETTE.length) % SIGNS.length], ariaHidden: "true" });
    mark.style.color = studyStyle(i).color;
    return element("span", {}, mark, " " + short(name, 60));
  }));
}

// Arrow keys walk over the points of a figure: they show what hovering shows, and say it
function step(node, event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by || !node.data) return;
  event.preventDefault();
  const all = node.data.flatMap((trace, curveNumber) => (trace.visible === "legendonly" || !trace.text || trace.hoverinfo === "skip" ? [] :
    trace.x.map((x, pointNumber) => ({ curveNumber, pointNumber })).filter(({ pointNumber: p }) => trace.y[p] !== null)));
  if (!all.length) return;
  node.at = ((node.at ?? (by > 0 ? -1 : 0)) + by + all.length) % all.length;
  const { curveNumber, pointNumber } = all[node.at], trace = node.data[curveNumber];
  Plotly.Fx.hover(node, [all[node.at]], (trace.xaxis ?? "x") + (trace.yaxis ?? "y"));
  const text = element("p", { innerHTML: String(Array.isArray(trace.text) ? trace.text[pointNumber] : trace.text).replace(/<br>/g, ", ") });
  byId("said").textContent = text.textContent;
}

// --- Panels, a study each: loss against learning rate, training curves ----------------------------------------
let first = 0; // index of the first study shown, among the visible
const chosen = () => data.studies.map((s, i) => i).filter((i) => visible(data.studies[i]));
const shown = () => chosen().slice(first, first + PAGE);
function panels(indices, width, xtitle, ytitle, range) {
  const cols = Math.max(1, Math.min(indices.length, 3, Math.floor(width / 300))), rows = Math.ceil(indices.length / cols) || 1;
  const shape = layout(Math.max(rows * 300 + 60, 360), { annotations: [], margin: { l: 58, r: 12, t: 76, b: 50 } });
  const gap = 0.05, tall = 90 / (shape.height - 126);
  indices.forEach((s, k) => {
    const c = k % cols, r = Math.floor(k / cols), n = k ? String(k + 1) : "";
    const w = (1 - gap * (cols - 1)) / cols, h = (1 - tall * (rows - 1)) / rows, top = 1 - r * (h + tall);
    shape["xaxis" + n] = axis(r === rows - 1 || k + cols >= indices.length ? xtitle : "", { domain: [c * (w + gap), c * (w + gap) + w], anchor: "y" + n });
    shape["yaxis" + n] = axis(c ? "" : ytitle, { domain: [Math.max(top - h, 0), top], anchor: "x" + n, range, showticklabels: !c,
      ...(k ? { matches: "y" } : {}) });
    shape.annotations.push({ text: esc(short(data.studies[s].name)) + ": " + data.studies[s].word, xref: "paper", yref: "paper",
      x: c * (w + gap) + w / 2, xanchor: "center", y: top, yanchor: "bottom", showarrow: false, font: { size: 13 } });
  });
  return shape;
}
const place = (k) => ({ xaxis: "x" + (k ? k + 1 : ""), yaxis: "y" + (k ? k + 1 : "") });

// Up to the 85th percentile of losses, so that no outlier flattens the optima
function lossRange(indices) {
  const all = indices.flatMap((i) => data.studies[i].curves.flatMap((c) => c.y.filter((y) => y !== null))).sort((a, b) => a - b);
  if (!all.length) return [0, 1];
  const high = all[Math.floor(0.85 * (all.length - 1))], margin = 0.06 * (high - all[0]) || 0.1;
  return [all[0] - margin, high + margin];
}
const HEAD = ["interpolated (68%)", "L*", "curvature", "penalty", "stable range", "regret", "vs SP", "parameters", "tokens", "flags"];
figure("curves", (width) => {
  const indices = shown(), range = lossRange(indices), traces = [], named = new Set();
  indices.forEach((s, k) => data.studies[s].curves.forEach((c, j) => {
    const color = widthColor(c.width), group = { legendgroup: String(c.width), ...place(k), ...HOVER }, best = data.studies[s].optima[j];
    const lead = `${esc(data.studies[s].name)}<br>width ${c.width}<br>`;
    const rate = (x) => `LR ${num(2 ** x)} = 2^${num(x, 5)}`;
    const seeds = (i) => (c.seeds && c.seeds[i].length > 1 ? `<br>${c.seeds[i].length} seeds: ${c.seeds[i].map((v) => v ?? "diverged").join(", ")}` : "");
    // One trace a curve, for speed: its points, the best one a star, then the diverged ones as crosses at the top
    const fine = c.x.map((x, i) => i).filter((i) => c.y[i] !== null), gone = c.x.map((x, i) => i).filter((i) => c.y[i] === null);
    const order = [...fine, ...gone.flatMap((i) => [null, i])], isStar = (i) => best && c.x[i] === best.x && c.y[i] !== null;
    const told = (i) => (i === null ? "" : `${lead}${isStar(i) ? "best point, " : ""}${rate(c.x[i])}<br>` + (c.y[i] === null ? "diverged" : `loss ${c.y[i].toFixed(4)}`) + seeds(i) +
      (isStar(i) ? HEAD.map((h, j) => (best.text[j] && best.text[j] !== "-" ? `<br>${h}: ${esc(best.text[j])}` : "")).join("") : ""));
    traces.push({ x: order.map((i) => (i === null ? null : c.x[i])), y: order.map((i) => (i === null ? null : c.y[i] ?? range[1])), mode: "lines+markers",
      name: String(c.width), showlegend: !named.has(c.width), line: { color }, cliponaxis: false, text: order.map(told), ...group,
      marker: { color, opacity: 1, symbol: order.map((i) => (i === null || (c.y[i] !== null && !isStar(i)) ? "circle" : isStar(i) ? "star" : "x")),
        size: order.map((i) => (i === null || (c.y[i] !== null && !isStar(i)) ? 6 : isStar(i) ? 14 : 8)), line: { width: order.map((i) => (isStar(i) ? 1 : 0)), color: css("--page") } } });
    named.add(c.width);
  }));
  const shape = panels(indices, width, "log2 learning rate", "validation loss (nats/token)", range);
  shape.legend.title = { text: "width" };
  return { traces, layout: shape };
});

figure("training", (width) => {
  const indices = shown(), traces = [], named = new Set(), at = new Map(indices.map((s, k) => [s, k]));
  const runs = data.training.runs.filter((run) => at.has(run.s)).sort((a, b) => a.w - b.w);
  let low = Infinity, high = -Infinity; // what rises above every start has left the question
  for (const run of runs) {
    const study = data.studies[run.s], best = study.optima[study.curves.findIndex((c) => c.width === run.w)];
    const isBest = best && Math.abs(best.x - run.x) < 1e-3, steps = data.training.steps[run.k];
    low = Math.min(low, ...run.y); high = Math.max(high, run.y[0]);
    const lead = `${esc(study.name)}<br>width ${run.w}, LR ${num(2 ** run.x)} = 2^${num(run.x, 5)}, seed ${run.seed}`;
    traces.push({ x: steps, y: run.y, mode: "lines", name: String(run.w), legendgroup: String(run.w), showlegend: isBest && !named.has(run.w),
      line: { color: widthColor(run.w), width: isBest ? 2.5 : 1 }, opacity: isBest ? 1 : 0.28, ...place(at.get(run.s)),
      text: run.y.map((y, i) => `${lead}<br>step ${steps[i]}<br>loss ${y}`), ...HOVER });
    if (isBest) named.add(run.w);
  }
  const shape = panels(indices, width, "step", "training loss (nats/token)", runs.length ? [low - 0.1, high + 0.1] : undefined);
  shape.legend.title = { text: "width" };
  return { traces, layout: shape };
});

function makePagers() {
  const total = chosen().length;
  first = Math.max(0, Math.min(first, Math.floor((total - 1) / PAGE) * PAGE));
  for (const pager of document.querySelectorAll("[data-pager]")) {
    const go = (by) => { first += by; makePagers(); redraw(["curves", "training"]); };
    pager.hidden = total > 0 && total <= PAGE;
    pager.replaceChildren(
      element("button", { type: "button", textContent: "‹ previous", disabled: first === 0, onclick: () => go(-PAGE) }),
      element("span", { textContent: total ? `studies ${first + 1} to ${Math.min(first + PAGE, total)} of ${total}` : "no study passes the filters" }),
      element("button", { type: "button", textContent: "next ›", disabled: first + PAGE >= total, onclick: () => go(PAGE) }));
  }
}

// --- Against width, with laws ----------------------------------------------------------------------------------
const LAWS = { optimum: "optimal log2 learning rate", loss: "loss at the optimum (nats/token)", curvature: "curvature, nats per (ln LR)²" };
for (const [kind, title] of Object.entries(LAWS)) figure("law-" + kind, () => {
  const traces = [];
  chosen().slice(0, MAX_LINES).forEach((s) => {
    const { color, symbol } = studyStyle(s), { points, line } = data.studies[s].laws[kind], name = data.studies[s].name;
    if (line) traces.push({ x: line.x, y: line.y, mode: "lines", line: { color, width: 1.5, dash: line.flags.length ? "dot" : "solid" }, 
      text: line.x.map((x, i) => `${esc(name)}<br>law at width ${num(x)}: ${num(line.y[i], 5)}<br>${esc(line.text)}` + line.flags.map((f) => `<br>${esc(f)}`).join("")), ...HOVER });
    traces.push({ x: points.map((p) => p[0]), y: points.map((p) => p[1]), mode: line ? "markers" : "lines+markers", 
      line: { color, width: 1, dash: "dot" }, marker: { color, size: 8, symbol: points.map((p) => symbol + (p[4] ? "-open" : "")) },
      error_y: { type: "data", symmetric: false, array: points.map((p) => p[3] - p[1]), arrayminus: points.map((p) => p[1] - p[2]), color, thickness: 1.2 },
      text: points.map((p) => `${esc(name)}<br>width ${p[0]}<br>${num(p[1], 5)}` + (p[3] > p[2] ? `, 68%: ${num(p[2], 5)} to ${num(p[3], 5)}` : "") +
        (p[4] ? `<br>flagged: ${esc((data.studies[s].optima[data.studies[s].curves.findIndex((c) => c.width === p[0])]?.text ?? []).at(-1))}` : "") +
        (line ? `<br>law: ${esc(line.text)}` : "")), ...HOVER });
  });
  const shape = layout(360, { xaxis: axis("width", { type: "log", tickvals: widths, ticktext: widths.map(String) }), yaxis: axis(title) });
  shape.showlegend = false;
  key("law-key", chosen().slice(0, MAX_LINES).map((s) => [s, data.studies[s].name]));
  const left = chosen().length - MAX_LINES;
  if (left > 0) byId("law-key").append(element("span", { textContent: `(${left} more, not drawn: filter the studies)` }));
  return { traces, layout: shape };
});

// --- Phase diagrams --------------------------------------------------------------------------------------------
const linear = data.guides.linear;
const symlog = (r) => (Math.abs(r) <= linear ? r / linear : Math.sign(r) * (1 + Math.log10(Math.abs(r) / linear)));
const PHASE = { E: "E (nats²)", kappa: "κ", R_inf: "R(∞) (nats)" };
const parameterizations = [...new Set(data.phase.map((p) => p.facets.parameterization ?? p.name))];
function phaseAxis(name) {
  if (name === "E") return axis(PHASE.E, { type: "log", exponentformat: "power" });
  if (name === "kappa") return axis(PHASE.kappa);
  const values = [-10, -1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10];
  return axis(PHASE.R_inf, { tickvals: values.map(symlog), ticktext: values.map(String) });
}
[["kappa", "E"], ["R_inf", "E"], ["kappa", "R_inf"]].forEach(([x, y], k) => figure("phase-" + k, () => {
  const at = (name, v) => (name === "R_inf" ? symlog(v) : v);
  const bars = (name, points, color) => ({ type: "data", symmetric: false, thickness: 1, width: 3, color,
    array: points.map((p) => (p[name].interval ? at(name, p[name].interval[1]) - at(name, p[name].value) : 0)),
    arrayminus: points.map((p) => (p[name].interval ? at(name, p[name].value) - at(name, p[name].interval[0]) : 0)) });
  const told = (p, name) => `<br>${PHASE[name]} ${num(p[name].value)}` + (p[name].interval ? ` (68%: ${p[name].interval.map((v) => num(v, 3)).join(" to ")})` : "") +
    p[name].flags.map((f) => `<br>  ? ${esc(f)}`).join("");
  const traces = parameterizations.flatMap((table, i) => {
    const points = data.phase.filter((p) => (p.facets.parameterization ?? p.name) === table && visible(p)), { color, symbol } = studyStyle(i);
    return points.length ? [{ x: points.map((p) => at(x, p[x].value)), y: points.map((p) => at(y, p[y].value)), mode: "markers",
      marker: { color, size: 8, opacity: 0.85, symbol: points.map((p) => symbol + (p[x].flags.length || p[y].flags.length ? "-open" : "")) },
      error_x: bars(x, points, color), error_y: bars(y, points, color), ...HOVER,
      text: points.map((p) => esc(p.name) + Object.entries(p.facets).map(([n, v]) => `<br>${esc(n)}: ${esc(v)}`).join("") + told(p, "E") + told(p, "kappa") + told(p, "R_inf")) }] : [];
  });
  const dash = { type: "line", line: { dash: "dash", width: 1, color: css("--soft") } };
  key("phase-key", parameterizations.map((table, i) => [i, table]));
  return { traces, layout: layout(360, { xaxis: phaseAxis(x), yaxis: phaseAxis(y), showlegend: false,
    shapes: [{ ...dash, yref: "paper", x0: at(x, data.guides[x]), x1: at(x, data.guides[x]), y0: 0, y1: 1 },
      { ...dash, xref: "paper", x0: 0, x1: 1, y0: at(y, data.guides[y]), y1: at(y, data.guides[y]) }] }) };
}));

// --- Every point, a page at a time, built when it is opened -----------------------------------------------------
function pointsTable() {
  const box = byId("points"), { header, rows, total } = data.points;
  let from = 0;
  const fill = () => {
    const lines = rows.slice(from, from + ROWS).map((row) => element("tr", {}, ...row.map((v) => element("td", { textContent: v ?? "" }))));
    box.querySelector(".scroll").replaceChildren(element("table", {}, element("tr", {}, ...header.map((h) => element("th", { textContent: h }))), ...lines));
    const go = (by) => { from += by; fill(); };
    box.querySelector(".pager").replaceChildren(
      element("button", { type: "button", textContent: "‹ previous", disabled: from === 0, onclick: () => go(-ROWS) }),
      element("span", { textContent: `${from + 1} to ${Math.min(from + ROWS, rows.length)} of ${rows.length}` + (total > rows.length ? ` here, ${total} in the results` : "") }),
      element("button", { type: "button", textContent: "next ›", disabled: from + ROWS >= rows.length, onclick: () => go(ROWS) }));
  };
  box?.addEventListener("toggle", fill, { once: true });
}

function refresh() {
  makePagers();
  for (const node of document.querySelectorAll("[data-study]")) node.hidden = !visible(data.studies[node.dataset.study]);
  for (const node of document.querySelectorAll("[data-phase]")) node.hidden = !visible(data.phase[node.dataset.phase]);
  redraw();
}

makeFilters();
makePagers();
pointsTable();
if (byId("training-section")) {
  const { runs, total } = data.training;
  byId("training-section").hidden = !runs.length;
  byId("training-note").textContent = "The best learning rate of each width stands out." + (runs.length < total ? ` ${runs.length} of ${total} runs, those nearest to the best.` : "");
}
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
addEventListener("beforeprint", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
document.documentElement.dataset.usableMs = Math.round(performance.now());

// Called once plotly, which takes longest to read, is there
window.mujaxReport = { drawAll, start() {
  for (const id of Object.keys(drawers)) observer.observe(byId(id));
  drawIfStale(byId("curves") ? "curves" : "phase-0");
  document.documentElement.dataset.readyMs = Math.round(performance.now());
} };
})();
