// Keys, times, pictures ahead, and words for those who do not see the page. Everything works by mouse without this.
(() => {
  "use strict";
  const KEYS = {
    ArrowLeft: "left", "1": "left", ArrowRight: "right", "2": "right",
    ArrowDown: "tie", t: "tie", s: "skip", u: "undo", Backspace: "undo",
  };
  const ahead = [];
  let since = performance.now();
  let focused = "";

  const desk = () => document.getElementById("desk");

  function arrived() {
    const now = desk();
    if (!now) return;
    since = performance.now();
    ahead.length = 0;
    for (const path of (now.dataset.preload || "").split(" ").filter(Boolean)) {
      const image = new Image();
      image.src = path;
      ahead.push(image);
    }
    for (const image of now.querySelectorAll(".picture img")) {
      const failed = () => image.closest(".picture").classList.add("failed");
      if (image.complete && !image.naturalWidth) failed();
      image.addEventListener("error", failed);
      // looking begins when there is something to see
      image.addEventListener("load", () => { since = performance.now(); });
    }
  }

  function say() {
    const now = desk(), said = document.getElementById("said"), prompt = document.getElementById("prompt");
    if (said && now) said.textContent = [now.dataset.told, prompt && prompt.textContent].filter(Boolean).join(" ");
  }

  function offline(message) {
    const box = document.getElementById("offline");
    if (!box) return;
    box.hidden = !message;
    box.textContent = message || "";
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest && event.target.closest("input, select, textarea")) return;
    const choice = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const button = choice && desk() && desk().querySelector(`button[value="${choice}"]`);
    if (!button) return;
    event.preventDefault();
    if (!button.disabled) button.click();
  });

  document.addEventListener("htmx:config:request", (event) => {
    const body = event.detail.ctx.request.body;
    if (!body || !body.get || !body.get("choice")) return;
    body.set("ms", String(Math.round(performance.now() - since)));
    focused = document.activeElement ? document.activeElement.id : "";
    const chosen = desk().querySelector(`.picture[value="${body.get("choice")}"]`);
    if (chosen) chosen.classList.add("chosen");
  });

  document.addEventListener("htmx:after:swap", () => {
    offline("");
    arrived();
    say();
    const again = (focused && document.getElementById(focused)) || document.getElementById("prompt");
    if (again && document.body.classList.contains("labelling")) again.focus({ preventScroll: true });
  });

  document.addEventListener("htmx:error", (event) => {
    const ctx = event.detail && event.detail.ctx;
    if (ctx && ctx.request.method === "GET") return;  // a look for new pairs: there will be another
    for (const chosen of document.querySelectorAll(".chosen")) chosen.classList.remove("chosen");
    offline("Not saved: prefloop does not answer. Is it still running? Choose again once it is.");
  });

  document.addEventListener("DOMContentLoaded", () => {
    arrived();
    const filters = document.querySelector(".filters");
    // on a phone the pairs come first; what is asked for stands in the address
    if (filters && !document.querySelector(".notice") && matchMedia("(max-width: 40rem)").matches) filters.open = false;
    const form = document.querySelector("form[data-send]");
    if (form) form.requestSubmit();
  });
})();
