// Each chart gets a button that saves what is shown as an SVG file, its colours written out.
(() => {
  const save = (figure) => {
    const shown = [...figure.querySelectorAll(".plot svg")].find((one) => one.getBoundingClientRect().width > 0);
    const copy = shown.cloneNode(true);
    const style = getComputedStyle(document.documentElement);
    const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of [["width", "100%"], ["height", "100%"], ["fill", "var(--paper)"]]) paper.setAttribute(name, value);
    copy.prepend(paper);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("font-family", "system-ui, sans-serif");
    const text = copy.outerHTML.replace(/var\((--[a-z]+)(?:, *[^)]*)?\)/g, (_, name) => style.getPropertyValue(name).trim());
    const title = figure.querySelector(".chart-title").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = `${title.replace(/[^A-Za-z0-9]+/g, "_").slice(0, 80)}.svg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "save";
    button.textContent = "SVG";
    button.setAttribute("aria-label", `Save as SVG: ${figure.querySelector(".chart-title").textContent}`);
    button.addEventListener("click", () => save(figure));
    figure.querySelector(".chart-title").after(button);
  }
  for (const list of document.querySelectorAll(".pairs-tools")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Open all";
    button.addEventListener("click", () => {
      const boxes = [...list.parentElement.querySelectorAll("details.pairbox")];
      const open = boxes.some((box) => !box.open);
      for (const box of boxes) box.open = open;
      button.textContent = open ? "Close all" : "Open all";
    });
    list.append(button);
  }
})();
