"""The one script of a page: tokens that a reader can look through, and tables that can be sorted. It reads only what is in the page."""

from __future__ import annotations

import base64
import hashlib

_SCRIPT = r"""
"use strict";
function make(tag, parent, attributes, text) {
  const element = document.createElement(tag);
  for (const name in attributes || {}) element.setAttribute(name, attributes[name]);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}
function told(value, unit) {
  if (value === null) return "n/a";
  const digits = Math.abs(value) >= 100 ? value.toLocaleString("en-US", {maximumFractionDigits: 0})
    : String(Number(value.toPrecision(3)));
  return digits + unit;
}
function share(value, low, high) {
  if (value === null || value <= 0) return 0;
  const t = low > 0 ? Math.log(value / low) / Math.log(high / low) : value / high;
  return Math.min(1, Math.max(0, t));
}
const STOPS = [[255, 255, 255], [158, 202, 225], [43, 123, 186], [8, 38, 79]];
function colour(t) {
  const at = Math.min(2, Math.floor(3 * t)), part = 3 * t - at;
  return "rgb(" + STOPS[at].map((from, i) => Math.round(from + part * (STOPS[at + 1][i] - from))).join(",") + ")";
}
function tokens(root) {
  const data = JSON.parse(root.querySelector("script").textContent), heads = data.heads;
  const layers = data.measures[0].values.length;
  root.hidden = false;
  const controls = make("p", root, {class: "controls"});
  function control(name, tag, attributes) {
    const label = make("label", controls, {}, name + " ");
    return make(tag, label, attributes);
  }
  function pick(name, options) {
    const select = control(name, "select");
    options.forEach((option, i) => make("option", select, {value: i}, option));
    return select;
  }
  const names = data.measures.map(measure => measure.name);
  const what = pick("colour by", heads ? names.concat(["attention received in one head"]) : names);
  const which = pick("sequence", data.texts.map((_, i) => i));
  which.parentElement.hidden = data.texts.length === 1;
  const layer = control("layer", "input", {type: "range", min: 1, max: layers, value: data.start + 1});
  const layerName = make("output", layer.parentElement);
  let head, headName, grid, cells = [];
  if (heads) {
    head = control("head", "input", {type: "range", min: 0, max: heads.share[0].length - 1, value: 0});
    headName = make("output", head.parentElement);
  }
  const readout = make("p", root, {class: "readout", "aria-live": "polite"}, "Point at a token to read its value.");
  const text = make("div", root, {class: "text"});
  if (heads) {
    make("p", root, {class: "note"}, "All heads, coloured by their attention on " + heads.what
      + ": layers from left to right, heads from top to bottom. A click shows one head in the text.");
    grid = root.querySelector("svg");
    const NS = grid.namespaceURI, count = heads.share[0].length;
    grid.setAttribute("viewBox", "0 0 " + layers * 10 + " " + count * 10);
    grid.setAttribute("preserveAspectRatio", "none");
    grid.style.height = Math.min(24 * count, 420) + "px";
    root.append(grid);
    const most = Math.max(1e-9, ...heads.share.flat());
    heads.share.forEach((row, l) => row.forEach((value, h) => {
      const cell = document.createElementNS(NS, "rect"), name = document.createElementNS(NS, "title");
      for (const [key, v] of Object.entries({x: 10 * l, y: 10 * h, width: 10, height: 10})) cell.setAttribute(key, v);
      cell.style.fill = colour(share(value, 0, most));
      name.textContent = "layer " + (l + 1) + ", head " + h + ": "
        + (value === null ? "n/a" : (100 * value).toFixed(0) + "%");
      cell.append(name);
      cell.addEventListener("click", () => { layer.value = l + 1; head.value = h; what.value = names.length; draw(); });
      cell.place = [l, h];
      cells.push(cell);
      grid.append(cell);
    }));
  }
  let values = [], unit = "", shown = [];
  function fill() {
    text.textContent = "";
    shown = data.texts[which.value].map((token, i) => {
      const span = make("span", text, {}, token);
      span.addEventListener("mouseenter", () => {
        readout.textContent = "token " + i + " “" + token + "”, layer " + layer.value + ": " + told(i < values.length ? values[i] : null, unit);
      });
      return span;
    });
  }
  function draw() {
    const l = layer.value - 1, one = Number(what.value) === names.length;
    const measure = one ? heads : data.measures[what.value];
    unit = measure.unit;
    values = measure.values[l][one ? head.value : which.value];
    layerName.textContent = layer.value + " of " + layers;
    if (heads) {
      headName.textContent = head.value;
      head.parentElement.hidden = !one;
      for (const cell of cells) cell.classList.toggle("chosen", one && cell.place[0] === l && cell.place[1] === Number(head.value));
    }
    shown.forEach((span, i) => {
      const value = i < values.length ? values[i] : null, t = share(value, measure.low, measure.high);
      span.style.background = value === null ? "#eeeeee" : colour(t);
      span.style.color = t > 0.55 ? "white" : "black";
      span.title = told(value, unit);
    });
  }
  what.addEventListener("change", draw);
  which.addEventListener("change", () => { fill(); draw(); });
  layer.addEventListener("input", draw);
  if (head) head.addEventListener("input", draw);
  fill();
  draw();
}
function sortable(table) {
  const body = table.tBodies[0];
  function key(row, i) {
    const words = row.cells[i].textContent, found = words.replace(/,/g, "").replace(/−/g, "-").match(/^[×+]?(-?[\d.]+(e-?\d+)?)/);
    return [found ? Number(found[1]) : words === "∞" ? Infinity : null, words];
  }
  [...table.tHead.rows[0].cells].forEach((header, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [key(row, i), row]);
      rows.sort(([[a, s]], [[b, t]]) => a === null || b === null ? (a === null) - (b === null) || sign * s.localeCompare(t)
        : sign * (a - b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
document.querySelectorAll(".tokens").forEach(tokens);
document.querySelectorAll("table.sortable").forEach(sortable);
"""

#: The content of the script element; the comments make it XML too.
CONTENT = f"//<![CDATA[{_SCRIPT}//]]>"


def source_hash(content: str) -> str:
    """How a content security policy names the one script or style that it allows."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
