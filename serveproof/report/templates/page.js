"use strict";
(() => {
  const config = JSON.parse(document.getElementById("chart-config").textContent);
  // ast: Vega evaluates its expressions without building code from text, which the page's policy forbids.
  const options = { ast: true, actions: false, renderer: "svg", config, tooltip: { theme: "custom" } };
  const drawn = [];
  for (const figure of document.querySelectorAll("figure.chart")) {
    const plot = figure.querySelector(".plot");
    const spec = JSON.parse(figure.querySelector("script").textContent);
    drawn.push(
      window.serveproofEmbed(plot, spec, options).catch((error) => {
        plot.textContent = "This chart could not be drawn; its data is in the table below. " + error.message;
        console.error(error);
      }),
    );
  }
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
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
  // What is drawn inside a closed box has no width until it opens.
  for (const box of document.querySelectorAll("details.profile")) {
    box.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")));
  }
  Promise.all(drawn).then(() => document.documentElement.classList.add("charts-drawn"));
})();
