// Shows the images of a prompt at the same place, with a slider between them. Without this they are side by side.
(() => {
  "use strict";
  const bar = document.querySelector(".modes");
  if (!bar) return;
  for (const views of document.querySelectorAll(".views")) {
    const images = [...views.querySelectorAll(".image")];
    if (images.length < 2) continue;
    const two = images.length === 2, names = images.map((image) => image.querySelector(".name").textContent);
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: two ? 100 : images.length - 1, value: two ? 50 : 0 });
    slider.setAttribute("aria-label", two ? `Left of the line ${names[0]}, right of it ${names[1]}` : "Image of a model");
    const update = () => {
      const at = Number(slider.value);
      if (two) views.style.setProperty("--cut", `${at}%`);
      else images.forEach((image, place) => image.classList.toggle("shown", place === at));
      slider.setAttribute("aria-valuetext", two ? `${at} % ${names[0]}` : names[at]);
    };
    slider.addEventListener("input", update);
    views.classList.add(two ? "two" : "many");
    views.append(slider);
    update();
  }
  const buttons = [...bar.querySelectorAll("button")];
  const show = (over) => {
    document.body.classList.toggle("over", over);
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(over === (place === 1))));
  };
  buttons.forEach((button, place) => button.addEventListener("click", () => show(place === 1)));
  show(false);
  bar.hidden = false;
})();
