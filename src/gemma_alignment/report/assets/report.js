"use strict";
(() => {
  const { figures, axes } = JSON.parse(document.getElementById("data").textContent);
  const plots = [...document.querySelectorAll("[data-figure]")];
  const drawn = new Set();
  const axisChoice = document.getElementById("axis");
  // The colours of paper are asked for before the style sheet of paper holds.
  const PAPER = { "--ink": "#000", "--soft": "#444", "--line": "#bbb", "--card": "#fff" };
  let printing = false;
  const color = (name) => (printing ? PAPER[name] : getComputedStyle(document.documentElement).getPropertyValue(name).trim());

  // Text and grid take the page's colours; a specification holds only what is data.
  function themed(layout) {
    const ink = color("--ink"), soft = color("--soft"), line = color("--line");
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: soft, tickfont: { color: soft } };
    const full = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false, // a finger scrolls the page
      font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: soft } },
      hoverlabel: { bgcolor: color("--card"), bordercolor: line, font: { color: ink } },
      ...layout,
    };
    for (const name of ["xaxis", "yaxis", "yaxis2"]) if (layout[name]) full[name] = { ...axis, ...layout[name] };
    return full;
  }

  function onAxis(spec, choice) {
    const known = spec.data.some((trace) => trace.meta);
    if (!known || choice === "iteration") return spec;
    const data = spec.data.map((trace) => {
      const table = trace.meta && axes.series[trace.meta] && axes.series[trace.meta][choice];
      return table ? { ...trace, x: trace.x.map((i) => (i in table ? table[i] : null)) } : trace;
    });
    const xaxis = { ...spec.layout.xaxis, title: { text: axes.labels[choice] } };
    return { data, layout: { ...spec.layout, xaxis } };
  }

  function draw(element) {
    const spec = onAxis(figures[element.dataset.figure], axisChoice ? axisChoice.value : "iteration");
    drawn.add(element);
    return Plotly.react(element, spec.data, themed(spec.layout), { responsive: true, displayModeBar: false });
  }

  // One after the other, so that the page answers while they come.
  const redraw = () => drawn.forEach(draw);
  (function next(i) {
    if (i >= plots.length) return;
    if (!drawn.has(plots[i])) draw(plots[i]);
    setTimeout(next, 0, i + 1);
  })(0);

  if (axisChoice) axisChoice.addEventListener("change", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    printing = true;
    plots.forEach(draw);
    plots.forEach(scale);
  });
  addEventListener("afterprint", () => {
    printing = false;
    document.querySelectorAll(".plot .main-svg").forEach((svg) => svg.removeAttribute("viewBox"));
    redraw();
  });

  // What was drawn for the screen becomes as wide as a column of the paper.
  function scale(element) {
    for (const svg of element.querySelectorAll(".main-svg")) {
      const width = svg.width.baseVal.value, height = svg.height.baseVal.value;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      element.style.aspectRatio = `${width} / ${height}`;
    }
  }

  const table = document.querySelector("#answer-table table");
  if (table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const search = document.getElementById("search"), verdict = document.getElementById("verdict");
    const count = document.getElementById("search-count");

    function show() {
      const wanted = search.value.toLowerCase(), word = verdict ? verdict.value : "";
      let found = 0;
      for (const row of rows) {
        row.hidden = !texts.get(row).includes(wanted) || (word !== "" && row.dataset.verdict !== word);
        found += !row.hidden;
      }
      count.textContent = wanted || word ? `${found} of ${rows.length}` : "";
    }

    // Scores the highest first, prompts and verdicts in their order; a second click turns it around.
    function sort(column) {
      const before = heads[column].ariaSort;
      const scores = column > 0 && column < heads.length - (verdict ? 1 : 0);
      const up = before === "none" ? !scores : before === "descending";
      for (const head of heads) head.ariaSort = "none";
      heads[column].ariaSort = up ? "ascending" : "descending";
      const value = (row) => Number(row.dataset.sort.split(" ")[column].replace("inf", "Infinity"));
      const place = (row) => Number(row.dataset.sort.split(" ")[0]);
      rows.sort((a, b) => (up ? 1 : -1) * (value(a) - value(b)) || place(a) - place(b));
      body.append(...rows);
    }

    search.addEventListener("input", show);
    if (verdict) verdict.addEventListener("change", show);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
  }
})();
