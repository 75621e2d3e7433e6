// Hiding runs, and reading values off the figures. All that the page says is there without it.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";
  const FAR = 24; // units of a figure: a point further away is not the one pointed at
  const report = JSON.parse(document.getElementById("report").textContent);
  const tip = document.getElementById("tip");
  const hidden = new Set();

  for (const box of document.querySelectorAll("input[data-toggle]")) {
    box.addEventListener("change", () => {
      const run = box.dataset.toggle;
      if (box.checked) hidden.delete(run);
      else hidden.add(run);
      for (const part of document.querySelectorAll(`.run[data-run="${run}"]`)) {
        part.classList.toggle("off", !box.checked);
      }
    });
  }

  const figure = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });

  // The position in `values`, which do not fall, that is nearest to `wanted`.
  function nearest(values, wanted) {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < wanted) low = middle;
      else high = middle;
    }
    return wanted - values[low] < values[high] - wanted ? low : high;
  }

  function scaled(value, [from, to], start, length, logarithmic) {
    const place = logarithmic ? Math.log(value / from) / Math.log(to / from) : (value - from) / (to - from);
    return start + place * length;
  }

  // What lies under the pointer: the nearest point of every curve that is shown.
  function found(plot, by, x) {
    const [left, top, width, height] = report.box;
    const axes = plot.axes[by];
    const wanted = axes.x[0] + ((x - left) / width) * (axes.x[1] - axes.x[0]);
    return plot.series
      .filter((series) => !hidden.has(String(series.run)))
      .map((series) => {
        const at = nearest(series[by], wanted);
        return {
          series,
          place: series[by][at],
          value: series.values[at],
          x: scaled(series[by][at], axes.x, left, width, false),
          y: scaled(series.values[at], axes.y, top + height, -height, plot.logarithmic),
        };
      })
      .filter((point) => Math.abs(point.x - x) <= FAR);
  }

  function element(parent, name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
  }

  function line(parent, name, text) {
    const made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  }

  function describe(plot, by, points) {
    tip.replaceChildren();
    const places = points.map((point) => point.place);
    const [least, most] = [Math.min(...places), Math.max(...places)].map((place) => figure.format(place));
    const span = least === most ? least : `${least} to ${most}`;
    line(tip, "b", by === "epoch" ? `epoch ${span}` : `${span} ${plot.time}`);
    for (const point of points) {
      const row = line(tip, "div", "");
      line(row, "em", "").style.background = `var(--run-${point.series.run % report.colours})`;
      const several = plot.several ? point.series.name : "";
      const run = report.runs.length > 1 ? report.runs[point.series.run] : "";
      line(row, "span", [run, several].filter(Boolean).join(", ") || point.series.name);
      line(row, "b", `${figure.format(point.value)} ${plot.unit}`);
    }
  }

  function place(event) {
    const { width, height } = tip.getBoundingClientRect();
    const right = event.clientX + 16 + width < window.innerWidth;
    tip.style.left = `${Math.max(4, right ? event.clientX + 16 : event.clientX - 16 - width)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 16, window.innerHeight - height - 8))}px`;
  }

  for (const part of document.querySelectorAll("figure [data-by]")) {
    const plot = report.plots[part.closest("figure").dataset.plot];
    const by = part.dataset.by;
    const svg = part.querySelector("svg");
    let marks = null;
    const leave = () => {
      marks?.remove();
      marks = null;
      tip.hidden = true;
    };
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("pointermove", (event) => {
      leave();
      const { x } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const points = found(plot, by, x);
      if (!points.length) return;
      const [, top, , height] = report.box;
      marks = element(svg, "g", {});
      element(marks, "line", { class: "guide", x1: x, x2: x, y1: top, y2: top + height });
      for (const point of points) {
        const mark = element(marks, "circle", { class: "dot", cx: point.x, cy: point.y, r: 3.6 });
        mark.style.fill = `var(--run-${point.series.run % report.colours})`;
      }
      describe(plot, by, points);
      tip.hidden = false;
      place(event);
    });
  }
}
