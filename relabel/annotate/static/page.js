// Keys, times, pictures ahead, and words for those who do not see the page. Everything works by mouse without this.
(() => {
  "use strict";
  const KEYS = {
    ArrowLeft: "left", "1": "left", ArrowRight: "right", "2": "right",
    ArrowDown: "tie", t: "tie", s: "skip", u: "undo", Backspace: "undo",
  };
  const AGAIN = 2000;  // milliseconds until what was not saved is sent again
  const ahead = [];
  let since = performance.now();
  let focused = "";
  let unsaved = null;  // the choice that is not on disk yet: its button, ticket and time
  let again = 0;

  const desk = () => document.getElementById("desk");

  function arrived(kept) {
    const now = desk();
    if (!now) return;
    if (!kept) since = performance.now();
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
      if (!kept) image.addEventListener("load", () => { since = performance.now(); });
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

  const button = (choice) => choice && desk() && desk().querySelector(`button[value="${choice}"]`);
  const ticket = () => { const found = desk() && desk().querySelector("[name=ticket]"); return found ? found.value : ""; };

  function mark(choice) {
    for (const chosen of document.querySelectorAll(".chosen")) chosen.classList.remove("chosen");
    const picture = desk() && desk().querySelector(`.picture[value="${choice}"]`);
    if (picture) picture.classList.add("chosen");
  }

  // an answer that was not acknowledged stays here, and is sent until it is; another choice takes its place
  function later() {
    clearTimeout(again);
    if (!unsaved || unsaved.ticket !== ticket() || !button(unsaved.choice)) return;
    mark(unsaved.choice);
    again = setTimeout(() => { unsaved.again = true; button(unsaved.choice).click(); }, AGAIN);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest && event.target.closest("input, select, textarea")) return;
    const pressed = button(KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]);
    if (!pressed) return;
    event.preventDefault();
    if (!pressed.disabled) pressed.click();
  });

  document.addEventListener("htmx:config:request", (event) => {
    const body = event.detail.ctx.request.body;
    if (!body || !body.get || !body.get("choice")) return;
    const choice = body.get("choice");
    const ms = unsaved && unsaved.again ? unsaved.ms : Math.round(performance.now() - since);
    clearTimeout(again);
    unsaved = { choice, ms, ticket: ticket() };
    body.set("ms", String(ms));
    focused = document.activeElement ? document.activeElement.id : "";
    mark(choice);
  });

  document.addEventListener("htmx:after:swap", () => {
    offline("");
    const kept = unsaved && desk() && "unsaved" in desk().dataset;
    clearTimeout(again);
    if (kept) later();
    else unsaved = null;
    arrived(kept);
    say();
    const place = (focused && document.getElementById(focused)) || document.getElementById("prompt");
    if (place && document.body.classList.contains("labelling")) place.focus({ preventScroll: true });
  });

  document.addEventListener("htmx:error", (event) => {
    const ctx = event.detail && event.detail.ctx;
    if (ctx && ctx.request.method === "GET") return;  // a look for new pairs: there will be another
    offline("Not saved yet: prefloop does not answer. Is it still running? The answer is sent again by itself.");
    later();
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
