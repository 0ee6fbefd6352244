"use strict";

// Empty cells stay at the end, whichever way a column is sorted.
const compareCells = (one, other, sign) => {
  const [a, b] = [one, other].map((cell) => cell.dataset.order);
  if (a === undefined && b === undefined) {
    return sign * one.textContent.localeCompare(other.textContent, "en", { numeric: true });
  }
  if (a === undefined || b === undefined) {
    return a === undefined ? 1 : -1;
  }
  return sign * (Number(a) - Number(b));
};

const sortBy = (table, head, column) => {
  const isNumber = head.classList.contains("number");
  const before = head.ariaSort;
  const direction = before === "none" ? (isNumber ? "descending" : "ascending")
    : before === "ascending" ? "descending" : "ascending";
  for (const other of head.parentElement.cells) {
    other.ariaSort = "none";
  }
  head.ariaSort = direction;
  const sign = direction === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compareCells(a.cells[column], b.cells[column], sign));
  table.tBodies[0].append(...rows);
};

for (const table of document.querySelectorAll("table.sortable")) {
  if (table.tBodies[0].rows.length < 2) {
    continue;
  }
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    button.addEventListener("click", () => sortBy(table, head, column));
  });
}

const made = (tag, attributes, ...children) => {
  const it = Object.assign(document.createElement(tag), attributes);
  it.append(...children);
  return it;
};

// A legend's entry shows and hides its run.
for (const entry of document.querySelectorAll(".legend li")) {
  const button = made("button", { type: "button", ariaPressed: "true" }, ...entry.childNodes);
  entry.append(button);
  button.addEventListener("click", () => {
    const isShown = button.ariaPressed === "false";
    button.ariaPressed = String(isShown);
    for (const line of entry.closest(".curves").querySelectorAll(`svg [data-series="${entry.dataset.series}"]`)) {
      line.style.display = isShown ? "" : "none";
    }
  });
}

// Confusion matrices of two models side by side.
const models = [...document.querySelectorAll("#models > details")];
if (models.length > 1) {
  const panels = [0, 1].map((chosen) => {
    const select = made("select", { ariaLabel: `Model ${"AB"[chosen]}` },
      ...models.map((it, place) => made("option", { value: place }, it.querySelector(".name").textContent)));
    const figure = made("figure", {});
    const show = () => figure.replaceChildren(models[select.value].querySelector("[data-figure=confusion_matrix]").cloneNode(true));
    select.selectedIndex = chosen;
    select.addEventListener("change", show);
    show();
    return made("div", {}, select, figure);
  });
  models[0].before(made("div", { className: "compare" }, made("h3", {}, "Two confusion matrices side by side"),
    made("div", { className: "charts" }, ...panels)));
}

// A click shows a clip's frames large.
const dialog = made("dialog", {});
const pictures = made("div", {});
dialog.append(made("button", { type: "button", onclick: () => dialog.close() }, "Close"), pictures);
document.body.append(dialog);
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
for (const figure of document.querySelectorAll(".clips figure")) {
  const strips = [...figure.querySelectorAll("img")];
  const button = made("button", { type: "button", ariaLabel: "Show large", title: "Show large" });
  strips[0].before(button);
  button.append(...strips);
  button.addEventListener("click", () => {
    pictures.replaceChildren(...figure.querySelector("figcaption").cloneNode(true).childNodes, ...strips.map((it) => it.cloneNode()));
    dialog.showModal();
  });
}

// Paper shows everything; what was closed is closed again afterwards.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((it) => { it.open = true; });
});
addEventListener("afterprint", () => closed.forEach((it) => { it.open = false; }));
