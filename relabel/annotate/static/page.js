// Keyboard, response times, preloading, retries and announcements for screen readers. Without this the page works by mouse.
(() => {
  "use strict";
  const KEYS = {
    ArrowLeft: "left", "1": "left", ArrowRight: "right", "2": "right",
    ArrowDown: "tie", t: "tie", x: "bad", s: "skip", u: "undo", Backspace: "undo",
  };
  const RETRY = 2000;  // milliseconds until an answer that was not saved is sent again
  const preloaded = [];
  let shownAt = performance.now();
  let focused = "";
  let unsaved = null;  // the answer that is not on disk yet: its button, ticket and time
  let timer = 0;

  const workspace = () => document.getElementById("workspace");

  function start(retrying) {
    const current = workspace();
    if (!current) return;
    if (!retrying) shownAt = performance.now();
    preloaded.length = 0;
    for (const path of (current.dataset.preload || "").split(" ").filter(Boolean)) {
      const image = new Image();
      image.src = path;
      preloaded.push(image);
    }
    for (const image of current.querySelectorAll(".candidate img")) {
      const failed = () => image.closest(".candidate").classList.add("failed");
      if (image.complete && !image.naturalWidth) failed();
      image.addEventListener("error", failed);
      // the response time starts when the images are visible
      if (!retrying) image.addEventListener("load", () => { shownAt = performance.now(); });
    }
  }

  function announce() {
    const current = workspace(), region = document.getElementById("announcement"), prompt = document.getElementById("prompt");
    if (region && current) region.textContent = [current.dataset.message, prompt && prompt.textContent].filter(Boolean).join(" ");
  }

  function offline(message) {
    const box = document.getElementById("offline");
    if (!box) return;
    box.hidden = !message;
    box.textContent = message || "";
  }

  const button = (choice) => choice && workspace() && workspace().querySelector(`button[value="${choice}"]`);
  const ticket = () => { const input = workspace() && workspace().querySelector("[name=ticket]"); return input ? input.value : ""; };

  function mark(choice) {
    for (const chosen of document.querySelectorAll(".candidate.chosen")) chosen.classList.remove("chosen");
    const candidate = workspace() && workspace().querySelector(`.candidate[value="${choice}"]`);
    if (candidate) candidate.classList.add("chosen");
  }

  // an answer that was not acknowledged is kept here and sent again until it is; another choice replaces it
  function retryLater() {
    clearTimeout(timer);
    if (!unsaved || unsaved.ticket !== ticket() || !button(unsaved.choice)) return;
    mark(unsaved.choice);
    timer = setTimeout(() => { unsaved.retrying = true; button(unsaved.choice).click(); }, RETRY);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest && event.target.closest("input, select, textarea")) return;
    if (document.querySelector("dialog[open]")) return;
    const pressed = button(KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]);
    if (!pressed) return;
    event.preventDefault();
    if (!pressed.disabled) pressed.click();
  });

  document.addEventListener("htmx:config:request", (event) => {
    const body = event.detail.ctx.request.body;
    if (!body || !body.get || !body.get("choice")) return;
    const choice = body.get("choice");
    const ms = unsaved && unsaved.retrying ? unsaved.ms : Math.round(performance.now() - shownAt);
    clearTimeout(timer);
    unsaved = { choice, ms, ticket: ticket() };
    body.set("ms", String(ms));
    focused = document.activeElement ? document.activeElement.id : "";
    mark(choice);
  });

  document.addEventListener("htmx:after:swap", () => {
    offline("");
    const retrying = unsaved && workspace() && "unsaved" in workspace().dataset;
    clearTimeout(timer);
    if (retrying) retryLater();
    else unsaved = null;
    start(retrying);
    announce();
    const target = (focused && document.getElementById(focused)) || document.getElementById("prompt");
    if (target && document.body.classList.contains("labelling")) target.focus({ preventScroll: true });
  });

  document.addEventListener("htmx:error", (event) => {
    const ctx = event.detail && event.detail.ctx;
    if (ctx && ctx.request.method === "GET") return;  // polling for new pairs: the next poll tries again
    offline("Not saved yet: prefloop does not respond. Is it still running? Retrying; leave this page open.");
    retryLater();
  });

  document.addEventListener("DOMContentLoaded", () => {
    start();
    const filters = document.querySelector(".filters");
    // on a phone the pairs come first; the filters are in the address
    if (filters && !document.querySelector(".notice") && matchMedia("(max-width: 40rem)").matches) filters.open = false;
    const form = document.querySelector("form[data-submit]");
    if (form) form.requestSubmit();
  });
})();
