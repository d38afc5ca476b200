// Tables: a click on a head, or Enter on it, sorts by its column: up, down, as it was. On a narrow page
// each row is a block, whose cells bear the names of their columns (style.css).
const UNITS = {h: 3600, min: 60, s: 1, ms: 1e-3, bytes: 1, k: 1e3, kB: 1e3, M: 1e6, MB: 1e6, G: 1e9, GB: 1e9, T: 1e12};

// of "1 h 02 min" 3720, of "−1.5 [−2, −1]" −1.5, of "–" and "" null
function valueOf(text) {
  const plain = text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "");
  const found = [...plain.matchAll(/([+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([a-zA-Z]+)?/g)];
  if (!found.length) return null;
  const values = found.map(([, number, unit]) => Number(number) * (UNITS[unit] ?? 1));
  return ["h", "min"].includes(found[0][2]) ? values.reduce((a, b) => a + b) : values[0];
}

function compare(a, b, number) {
  if (number) return a - b;
  return a.localeCompare(b, "en", {numeric: true});
}

function sort(table, head, rows) {
  const next = {none: "ascending", ascending: "descending", descending: "none"};
  const way = next[head.getAttribute("aria-sort")], column = head.cellIndex;
  const number = head.classList.contains("n");
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", way);
  const keyed = rows.map((row) => {
    const text = row.cells[column].textContent.trim();
    return {row, key: number ? valueOf(text) : text};
  });
  const known = keyed.filter(({key}) => key !== null), unknown = keyed.filter(({key}) => key === null);
  const sign = way === "descending" ? -1 : 1;
  known.sort((a, b) => sign * compare(a.key, b.key, number));
  const sorted = way === "none" ? keyed : [...known, ...unknown];
  table.tBodies[0].append(...sorted.map(({row}) => row));
}

for (const table of document.querySelectorAll(".wide table")) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  for (const row of rows) [...row.cells].forEach((cell, k) => { cell.dataset.label = heads[k].textContent.trim(); });
  for (const head of rows.length > 1 ? heads : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(table, head, rows));
  }
}
