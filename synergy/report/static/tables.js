"use strict";
/* Tables sort by a click on a header, or Enter on it: numbers as numbers, whatever stands around them. Ties keep the order in
   which they are, and what is missing comes last either way. */
const tables = (() => {
  /** The number that a cell begins with, in one unit per column: 1,234 ± 5, +48.8 [+43.4, +53.8], <0.1 %, 1 h 05 min, 5.7 GB. */
  function number(text) {
    const plain = text.trim().replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
    const time = /^(?:(\d+) h ?)?(?:(\d+) min ?)?(?:([\d.]+) s)?$/.exec(plain);
    if (time && plain) return 3600 * (time[1] || 0) + 60 * (time[2] || 0) + Number(time[3] || 0);
    const found = /^(<?)\s*([+-]?\d+(?:\.\d+)?)(?:\s*(GB|MB)\b)?/.exec(plain);
    if (!found) return NaN;
    return Number(found[2]) * (found[3] === "GB" ? 1000 : 1) - (found[1] ? 1e-9 : 0);
  }

  /** Negative, zero or positive, as Array.sort wants it. */
  function compare(a, b, numeric, down) {
    if (!numeric) return (down ? -1 : 1) * a.localeCompare(b, "en", { numeric: true });
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return down ? y - x : x - y;
  }

  function sort(table, head) {
    const numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric; // numbers begin with the largest
    const text = (row) => row.cells[head.cellIndex].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(text(a), text(b), numeric, down));
    table.tBodies[0].append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  function mount(table) {
    if (table.tBodies[0].rows.length < 2) return;
    for (const head of table.tHead.rows[0].cells) {
      if (!head.textContent.trim()) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.title = "sort by this column";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head));
      head.append(button);
    }
  }

  return { number, compare, mount };
})();

if (typeof module === "object") module.exports = tables;
else for (const table of document.querySelectorAll("table")) tables.mount(table);
