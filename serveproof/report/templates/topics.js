"use strict";
// One topic at a time, by the anchor in the address. Without scripts all of them stand one after another.
(() => {
  const topics = [...document.querySelectorAll(".topic")];
  const links = [...document.querySelectorAll("nav a")];
  const show = (topic) => {
    for (const one of topics) {
      // until-found: the browser's own search still looks into the others, and opens the one it finds.
      if (one === topic) one.removeAttribute("hidden");
      else one.setAttribute("hidden", "until-found");
    }
    for (const link of links) {
      if (link.hash === `#${topic.id}`) {
        link.setAttribute("aria-current", "page");
        const nav = link.closest("ul");
        nav.scrollLeft = link.offsetLeft - nav.clientWidth / 3;
      } else link.removeAttribute("aria-current");
    }
  };
  const follow = () => {
    const target = document.getElementById(location.hash.slice(1));
    const topic = target?.closest(".topic") ?? topics[0];
    show(topic);
    for (let box = target?.parentElement?.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    if (target && target !== topic) target.scrollIntoView();
    else window.scrollTo(0, 0);
    if (target === topic) topic.focus({ preventScroll: true });
  };
  for (const topic of topics) topic.addEventListener("beforematch", () => show(topic));
  window.addEventListener("hashchange", follow);
  document.documentElement.classList.add("scripted");
  follow();
})();
