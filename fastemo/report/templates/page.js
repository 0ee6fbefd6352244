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

// Paper shows everything; what was closed is closed again afterwards.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((it) => { it.open = true; });
});
addEventListener("afterprint", () => closed.forEach((it) => { it.open = false; }));
