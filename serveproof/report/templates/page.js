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
  Promise.all(drawn).then(() => document.documentElement.classList.add("charts-drawn"));
})();
