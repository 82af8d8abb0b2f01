// Tables of class sortable sort by a heading; those of class tools can hide columns and filter rows.
(() => {
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const make = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].sort((one, other) => {
          const [a, b] = [valueOf(one, column), valueOf(other, column)];
          return (typeof a === "number" ? a - b : a.localeCompare(b)) * (up ? 1 : -1);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
  for (const table of document.querySelectorAll("table.tools")) {
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...table.tBodies[0].rows];
    const hide = (column, hidden) => {
      for (const row of table.rows) row.cells[column].hidden = hidden;
    };
    const boxes = heads.slice(1).map((head, before) => {
      const box = make("input", { type: "checkbox", checked: !("extra" in head.dataset) });
      box.addEventListener("change", () => hide(before + 1, !box.checked));
      hide(before + 1, !box.checked);
      return make("label", {}, box, ` ${head.textContent}`);
    });
    const tools = make("div", { className: "tabletools" });
    if (rows.length > 8) {
      const filter = make("input", { type: "search", placeholder: "name or verdict" });
      const left = make("span", { className: "left" });
      left.setAttribute("role", "status");
      filter.addEventListener("input", () => {
        const wanted = filter.value.trim().toLowerCase();
        for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
        left.textContent = wanted ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
      });
      tools.append(make("label", { className: "filter" }, "Filter ", filter), left);
    }
    tools.append(make("details", { className: "columns-menu" }, make("summary", { textContent: "Columns" }), make("div", {}, ...boxes)));
    table.closest(".scroll").before(tools);
  }
})();
