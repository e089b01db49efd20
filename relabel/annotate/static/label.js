// The labelling page: long prompts, and the notes of a pair.
(() => {
  "use strict";
  const element = (id) => document.getElementById(id);
  const say = (text) => { const region = element("announcement"); if (region) region.textContent = text; };

  // A prompt that is longer than its box can be scrolled, and opened up to a larger box; the images stay on the screen.
  function fit() {
    const prompt = element("prompt"), expand = element("expand");
    if (!prompt || !expand) return;
    const open = prompt.classList.contains("open");
    const cut = open || prompt.scrollHeight > prompt.clientHeight + 2;
    prompt.classList.toggle("cut", cut);
    prompt.tabIndex = cut ? 0 : -1;  // the arrow keys choose; a focused prompt scrolls by page, space, home and end
    expand.hidden = !cut;
    expand.setAttribute("aria-expanded", String(open));
    expand.firstElementChild.textContent = open ? "Less of the prompt" : "Whole prompt";
  }

  function toggle() {
    element("prompt").classList.toggle("open");
    element("prompt").scrollTop = 0;
    fit();
  }

  const flags = () => [...document.querySelectorAll(".flags input")];
  const flag = () => flags().find((one) => one.checked) || { value: "" };

  function refresh() {
    const notes = element("notes");
    if (!notes) return;
    const comment = element("comment").value.trim();
    element("comment-button").toggleAttribute("data-set", Boolean(comment));
    element("flag-button").toggleAttribute("data-set", Boolean(flag().value));
    for (const id of ["comment-button", "flag-button"]) element(id).setAttribute("aria-expanded", String(!notes.hidden));
  }

  function openNotes(open) {
    element("notes").hidden = !open;
    refresh();
    fit();
  }

  function comment() {
    openNotes(true);
    element("comment").focus();
  }

  // f goes through the flags, so that it takes no other key; a click opens them
  function nextFlag() {
    const all = flags(), next = all[(all.indexOf(flag()) + 1) % all.length];
    next.checked = true;
    openNotes(true);
    say(next.value ? `Flag: ${next.value}` : "No flag");
  }

  const leave = () => element("prompt").focus({ preventScroll: true });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && button.id === "expand") toggle();
    if (button && button.id === "comment-button") {
      // a second click closes the field; what was written stays and is saved
      if (element("notes").hidden) comment();
      else openNotes(false);
    }
    if (button && button.id === "flag-button") openNotes(element("notes").hidden);
    // after a click the arrow keys are for choosing again, not for the next flag
    if (event.target.closest(".flags") && event.detail) leave();
  });

  document.addEventListener("change", refresh);
  document.addEventListener("input", refresh);

  document.addEventListener("keydown", (event) => {
    if (!element("notes") || document.querySelector("dialog[open]")) return;
    if (event.target.closest("#notes")) {
      if (event.key === "Escape") leave();
      // without this, Enter in a flag would send the form with its first button: the left image
      if (event.key === "Enter" && event.target.type === "radio") event.preventDefault();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const action = { c: comment, f: nextFlag, p: () => { if (!element("expand").hidden) toggle(); } }[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });

  // behind a proxy only the browser knows the address and whether it is https
  function addressDevice() {
    const link = element("device-link");
    if (!link || ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname)) return;
    link.textContent = location.origin + link.textContent.slice(link.textContent.indexOf("/enter"));
  }

  const start = () => { fit(); refresh(); addressDevice(); };
  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:after:swap", start);
  addEventListener("resize", fit);
})();
