// Both images of the pair at full size, one over the other: flipping between them keeps place and size.
(() => {
  "use strict";
  const STEP = 1.25, LARGEST = 16, TAP = 8;  // pixels that a tap may move
  const NAMES = ["First image", "Second image"];
  let width = 1, height = 1;  // of the larger image, in its pixels
  let scale = 1, left = 0, top = 0;  // of the sheet on the stage
  let shown = 0, moved = 0, opener = null;
  const pointers = new Map();

  const dialog = () => document.getElementById("zoom");
  const stage = () => dialog().querySelector(".stage");
  const sheet = () => dialog().querySelector(".sheet");
  const fitting = () => Math.min(stage().clientWidth / width, stage().clientHeight / height);
  // an image that is smaller than the screen fills it
  const full = () => Math.max(1, fitting());

  // a sheet that is smaller than the stage is in its middle; the edges of a larger one stay outside of it
  const within = (place, size, room) => size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, place));

  function draw() {
    left = within(left, width * scale, stage().clientWidth);
    top = within(top, height * scale, stage().clientHeight);
    const style = sheet().style;
    style.width = `${width}px`;
    style.height = `${height}px`;
    style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    [...sheet().children].forEach((image, index) => image.classList.toggle("shown", index === shown));
    const whole = Math.abs(scale - fitting()) < 1e-6;
    dialog().querySelector('[data-zoom="fit"] span').textContent = whole && fitting() < 1 ? "100 %" : "Fit";
    const text = `${NAMES[shown]}, ${Math.round(scale * 100)} %`, name = document.getElementById("zoom-name");
    if (name.textContent !== text) name.textContent = text;
  }

  // x and y on the stage stay where they are
  function zoom(factor, x = stage().clientWidth / 2, y = stage().clientHeight / 2) {
    const next = Math.min(Math.max(scale * factor, Math.min(1, fitting())), Math.max(LARGEST, fitting()));
    left = x - (x - left) * next / scale;
    top = y - (y - top) * next / scale;
    scale = next;
    draw();
  }

  function open() {
    const images = [...document.querySelectorAll(".candidate img")];
    if (images.length !== 2 || dialog().open) return;
    opener = document.activeElement;
    images.forEach((image, at) => {
      const copy = sheet().children[at];
      copy.src = image.src;
      copy.classList.toggle("tiny", image.classList.contains("tiny"));
    });
    width = Math.max(...images.map((image) => image.naturalWidth || 1));
    height = Math.max(...images.map((image) => image.naturalHeight || 1));
    shown = 0;
    dialog().showModal();
    scale = full();
    left = (stage().clientWidth - width * scale) / 2;
    top = (stage().clientHeight - height * scale) / 2;
    draw();
  }

  const show = (index) => { shown = index; draw(); };
  const actions = {
    flip: () => show(1 - shown),
    in: () => zoom(STEP),
    out: () => zoom(1 / STEP),
    fit: () => zoom((Math.abs(scale - fitting()) < 1e-6 ? full() : fitting()) / scale),
    close: () => dialog().close(),
  };
  const pan = (x, y) => { left += x; top += y; draw(); };
  const KEYS = {
    " ": actions.flip, ArrowLeft: () => show(0), ArrowRight: () => show(1), "1": () => show(0), "2": () => show(1),
    "+": actions.in, "=": actions.in, "-": actions.out, "0": actions.fit, z: actions.close,
  };
  const PANS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.closest("button")) return;  // the button's own key
    const by = (event.shiftKey || !(event.key in KEYS)) && PANS[event.key];
    const action = by ? () => pan(...by) : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  const place = (event) => { const box = stage().getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

  function onMove(event) {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = place(event), other = [...pointers].find(([id]) => id !== event.pointerId);
    moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    pointers.set(event.pointerId, now);
    if (!other) return pan(now[0] - before[0], now[1] - before[1]);
    const distance = ([x, y]) => Math.hypot(x - other[1][0], y - other[1][1]) || 1;
    const middle = ([x, y]) => [(x + other[1][0]) / 2, (y + other[1][1]) / 2];
    left += middle(now)[0] - middle(before)[0];
    top += middle(now)[1] - middle(before)[1];
    zoom(distance(now) / distance(before), ...middle(now));
  }

  function onUp(event) {
    const known = pointers.delete(event.pointerId);
    if (known && event.type === "pointerup" && !pointers.size && moved < TAP) actions.flip();
  }

  document.addEventListener("DOMContentLoaded", () => {
    if (!dialog()) return;
    dialog().addEventListener("keydown", onKey);
    dialog().addEventListener("click", (event) => {
      const button = event.target.closest("[data-zoom]");
      if (button) actions[button.dataset.zoom]();
    });
    dialog().addEventListener("close", () => {
      pointers.clear();
      const target = opener && opener.isConnected && opener !== document.body ? opener : document.getElementById("prompt");
      if (target) target.focus({ preventScroll: true });
    });
    stage().addEventListener("pointerdown", (event) => {
      if (event.button) return;
      if (!pointers.size) moved = 0;
      else moved = TAP;  // two fingers are not a tap
      pointers.set(event.pointerId, place(event));
      stage().setPointerCapture(event.pointerId);
    });
    stage().addEventListener("pointermove", onMove);
    stage().addEventListener("pointerup", onUp);
    stage().addEventListener("pointercancel", onUp);
    stage().addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), ...place(event)); }, { passive: false });
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#enlarge")) open();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "z" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input, select, textarea, dialog")) return;
    open();
  });
  document.addEventListener("htmx:after:swap", () => { if (dialog() && dialog().open) dialog().close(); });  // another pair
  addEventListener("resize", () => { if (dialog() && dialog().open) draw(); });
})();
