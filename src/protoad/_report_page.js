"use strict";
(() => {
  const table = document.getElementById("parts");
  if (!table) return;
  const parts = [...table.tBodies]; // a row of figures and a row of pictures each
  const headings = [...table.tHead.rows[0].cells];
  const cells = (part) => [...part.rows[0].cells];
  const text = (cell) => cell.textContent;
  const make = (label) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(label);
    return button;
  };

  // Sorting: each heading becomes a button.
  const byText = new Intl.Collator("en", { numeric: true });
  function sort(heading, direction) {
    const numeric = heading.dataset.sort === "number";
    const cell = (part) => cells(part)[heading.cellIndex];
    parts.sort((a, b) => {
      if (!numeric) return direction * byText.compare(text(cell(a)), text(cell(b)));
      const [x, y] = [a, b].map((part) => parseFloat(cell(part).dataset.key));
      return Number.isNaN(x) - Number.isNaN(y) || direction * (x - y); // a part without the number comes last
    });
    table.append(...parts);
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  }
  for (const heading of headings) {
    const first = heading.dataset.sort === "number" ? -1 : 1; // numbers from the worst down, texts from A to Z
    const name = first > 0 ? "ascending" : "descending";
    const button = make(text(heading));
    button.addEventListener("click", () => sort(heading, heading.getAttribute("aria-sort") === name ? -first : first));
    heading.replaceChildren(button);
  }

  // Filtering.
  const tools = document.getElementById("tools");
  const search = document.getElementById("search");
  const choices = [...tools.querySelectorAll("button")];
  function filter() {
    const state = choices.find((choice) => choice.getAttribute("aria-pressed") === "true").value;
    const sought = search.value.trim().toLowerCase();
    for (const part of parts) {
      const found = [...part.querySelectorAll(".name, .kind")].some((cell) => text(cell).toLowerCase().includes(sought));
      part.hidden = !(found && (!state || part.classList.contains(state)));
    }
    document.getElementById("shown").textContent =
      `${parts.filter((part) => !part.hidden).length} of ${parts.length} parts`;
  }
  for (const choice of choices) {
    choice.addEventListener("click", () => {
      choices.forEach((other) => other.setAttribute("aria-pressed", other === choice));
      filter();
    });
  }
  search.addEventListener("input", filter);
  tools.hidden = false;
  filter();

  // A larger view of one part at a time; its pictures are shown again, not stored again.
  const viewer = document.getElementById("viewer");
  const figures = (part) => [...part.querySelectorAll("figure")];
  let current;
  function show(part) {
    current = part;
    const [name, ...others] = cells(part);
    viewer.querySelector("h2").textContent = text(name);
    viewer.querySelector("p").textContent = others.map((cell) => `${cell.dataset.label}: ${text(cell)}`).join(" · ");
    viewer.querySelector(".pictures").replaceChildren(...figures(part).map((figure) => figure.cloneNode(true)));
    if (!viewer.open) viewer.showModal();
  }
  function step(by) {
    const visible = parts.filter((part) => !part.hidden);
    show(visible[(visible.indexOf(current) + by + visible.length) % visible.length]);
  }
  for (const part of parts.filter((other) => figures(other).length)) {
    const place = part.querySelector(".pictures");
    place.append(make("enlarge"));
    place.addEventListener("click", () => show(part));
  }
  viewer.querySelector("[value=back]").addEventListener("click", () => step(-1));
  viewer.querySelector("[value=next]").addEventListener("click", () => step(1));
  viewer.querySelector("[value=close]").addEventListener("click", () => viewer.close());
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
})();
