"use strict";
/* The chart of an explorer: bars over difficulty levels, from the JSON beside it (synergy/report/explorer.py says what that
   holds). Everything that comes from there is set as text or as an attribute, never as markup. */
const explorer = (() => {
  const EDGE = { left: 46, right: 6, top: 26, foot: 40 };

  /** Round numbers from at most `low` to at least `high`, about `count` of them. */
  function ticks(low, high, count) {
    const rough = (high - low || 1) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
    const [first, last] = [Math.floor(low / step + 1e-9), Math.ceil(high / step - 1e-9)];
    return Array.from({ length: Math.max(1, last - first) + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  }

  /** What the axis must reach: zero, every bar, its whisker and, if they are shown, the paper's values. */
  function reach(figures, metric, paper) {
    const all = figures.flatMap((f) => [f.value, f.low, f.high, paper ? f.paper : null]).filter((v) => v !== null);
    return [Math.min(0, ...all), Math.max(metric === "accuracy" ? 100 : 0, ...all)];
  }

  /** How many groups stand in one line, so that each has `wanted` pixels; lines are filled evenly. */
  function columns(width, groups, wanted) {
    const most = Math.min(groups, Math.max(1, Math.floor(width / wanted)));
    return Math.ceil(groups / Math.ceil(groups / most));
  }

  /** The groups of bars: a level each, with a bar per strategy; or, at one level, a strategy each. */
  function groups(data, state) {
    const at = (model, level) =>
      data.points.find((p) => p.model === model && p.benchmark === state.benchmark && p.level === level);
    const bar = (model, level) => ({ model, level, point: at(model, level) });
    const known = (b) => b.point && b.point[state.metric] && b.point[state.metric].value !== null;
    const models = [...data.models.keys()].filter((model) => state.models.has(model));
    if (state.level === null)
      return data.levels.map((name, level) => ({
        name,
        bars: models.map((model) => bar(model, level)).filter(known),
      }));
    return models
      .map((model) => ({ name: data.models[model].name, bars: [bar(model, state.level)] }))
      .filter((group) => known(group.bars[0]));
  }

  /** All that is known of a point, the shown metric first. */
  function lines(data, state, bar) {
    const order = [state.metric, ...data.metrics.map((m) => m.name).filter((name) => name !== state.metric)];
    const known = order.map((name) => bar.point[name]).filter(Boolean);
    const told = known.map((f) => f.text + (f.paper_text ? ` (${f.paper_text})` : ""));
    return [title(data, state, bar), ...told, `${bar.point.n.toLocaleString("en")} questions`];
  }

  function title(data, state, bar) {
    const level = data.levels[bar.level];
    return `${data.models[bar.model].name}, ${data.benchmarks[state.benchmark]}, ${level === "all" ? "all levels" : `level ${level}`}`;
  }

  function mount(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    const [svg, tip, chart] = [part("plot"), part("tip"), part("chart")];
    const state = { benchmark: 0, metric: data.metrics.at(-1).name, level: null, models: new Set(data.models.keys()), paper: false };
    let bars = [];

    function add(parent, name, attributes, text) {
      const made = document.createElementNS(svg.namespaceURI, name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      if (text !== undefined) made.textContent = text;
      parent.append(made);
      return made;
    }

    /** Bars of one group, from `left`, `pitch` pixels each. */
    function group(frame, shown, left, pitch, y, base) {
      const single = state.level !== null;
      shown.bars.forEach((bar, number) => {
        const [figure, model] = [bar.point[state.metric], data.models[bar.model]];
        const [x, wide] = [left + number * pitch, Math.max(2, pitch * (single ? 0.6 : 0.82))];
        const middle = x + pitch / 2;
        const [top, bottom] = [Math.min(y(figure.value), y(0)), Math.max(y(figure.value), y(0))];
        const made = add(frame, "g", {
          class: "point", role: "img", tabindex: -1, "data-number": bars.length, "data-model": model.name,
          "data-level": data.levels[bar.level], "data-value": figure.value, "aria-label": lines(data, state, bar).join("; "),
        });
        add(made, "rect", { class: "hit", x, y: base.top, width: pitch, height: base.bottom - base.top });
        add(made, "rect", {
          class: `bar fill-${model.fill}`, x: middle - wide / 2, y: top, width: wide, height: bottom - top,
          fill: model.colour, stroke: model.colour,
        });
        if (figure.low !== null)
          add(made, "path", { class: "whisker", d: `M${middle} ${y(figure.low)}V${y(figure.high)}` });
        if (state.paper && figure.paper !== null) {
          const [r, at] = [Math.min(5, pitch / 2.4), y(figure.paper)];
          add(made, "path", { class: "paper", d: `M${middle} ${at - r}l${r} ${r}l${-r} ${r}l${-r} ${-r}z` });
        }
        if (pitch >= 30) {
          const over = figure.value < 0 ? Math.max(bottom, y(figure.low ?? 0)) + 13 : Math.min(top, y(figure.high ?? 0)) - 5;
          add(made, "text", { class: "value", x: middle, y: over }, figure.short);
        }
        if (!single && pitch >= 8) add(made, "text", { class: "mark", x: middle, y: base.bottom + 12 }, model.mark);
        bars.push({ ...bar, made, middle, top: Math.min(top, y(figure.high ?? 0)), foot: base.bottom + EDGE.foot - 4 });
      });
    }

    function draw() {
      const width = Math.max(240, Math.floor(chart.clientWidth));
      const shown = groups(data, state);
      const figures = shown.flatMap((g) => g.bars.map((b) => b.point[state.metric]));
      const [inner, single] = [width - EDGE.left - EDGE.right, state.level !== null];
      const longest = Math.max(3, ...shown.map((g) => g.name.length));
      const across = columns(inner, shown.length, single ? Math.min(inner, longest * 7 + 12) : state.models.size * 9 + 10);
      const [down, high] = [Math.ceil(shown.length / across) || 1, 250];
      const each = (shown.length > across ? 150 : high) + EDGE.top + EDGE.foot;
      const found = ticks(...reach(figures, state.metric, state.paper), 5);
      bars = [];
      tip.hidden = true;
      svg.replaceChildren();
      svg.setAttribute("viewBox", `0 0 ${width} ${down * each}`);
      const metric = data.metrics.find((m) => m.name === state.metric);
      svg.setAttribute("aria-label", `${metric.label}, ${data.benchmarks[state.benchmark]}: ${figures.length} bars; arrow keys go from one to the next`);
      if (!figures.length) add(svg, "text", { class: "none", x: width / 2, y: each / 2 }, "Nothing is chosen, or nothing is known here.");
      for (let line = 0; figures.length && line < down; line++) {
        const frame = add(svg, "g", { transform: `translate(0 ${line * each})` });
        const base = { top: EDGE.top, bottom: each - EDGE.foot };
        const y = (v) => base.bottom - ((v - found[0]) / (found.at(-1) - found[0])) * (base.bottom - base.top);
        for (const tick of found) {
          add(frame, "path", { class: tick ? "grid" : "zero", d: `M${EDGE.left} ${y(tick)}H${width - EDGE.right}` });
          const text = tick.toLocaleString("en", { maximumFractionDigits: 6 }).replace("-", "\u2212");
          add(frame, "text", { class: "tick", x: EDGE.left - 6, y: y(tick) + 4 }, text);
        }
        if (!line) add(frame, "text", { class: "unit", x: 2, y: 10 }, metric.label);
        shown.slice(line * across, (line + 1) * across).forEach((one, place) => {
          const room = inner / across;
          const pitch = Math.min(single ? 64 : 40, (room - 10) / Math.max(1, one.bars.length));
          const left = EDGE.left + place * room;
          if (!single && one.name === "all" && place)
            add(frame, "path", { class: "divide", d: `M${left} ${base.top}V${base.bottom + 30}` });
          group(frame, one, left + (room - pitch * one.bars.length) / 2, pitch, y, base);
          const label = single ? one.name : one.name === "all" ? "all levels" : `level ${one.name}`;
          add(frame, "text", { class: "level", x: left + room / 2, y: base.bottom + (single ? 18 : 30) }, label);
        });
      }
      if (bars.length) bars[0].made.setAttribute("tabindex", 0);
      const theirs = data.paper && figures.some((f) => f.paper !== null);
      const paper = state.paper ? (theirs ? data.paper : "The paper has no values for what is shown.") : "";
      const whiskers = figures.some((f) => f.low !== null) ? metric.note : "";
      part("note").textContent = [whiskers, paper].filter(Boolean).join(" ");
    }

    function show(made) {
      const bar = bars[Number(made.dataset.number)];
      tip.replaceChildren(...lines(data, state, bar).map((text, number) => {
        const line = document.createElement(number ? "span" : "strong");
        line.textContent = text;
        return line;
      }));
      tip.hidden = false;
      const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      const shift = made.parentNode.transform.baseVal[0].matrix.f;
      const left = bar.middle * scale - tip.offsetWidth / 2;
      // Below its line of bars, so that it hides none of them; above the bar where the window ends before.
      const below = (shift + bar.foot) * scale;
      const room = innerHeight - svg.getBoundingClientRect().top - below;
      tip.style.left = `${Math.max(0, Math.min(left, chart.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${room > tip.offsetHeight ? below : (shift + bar.top) * scale - tip.offsetHeight - 8}px`;
      for (const other of bars) other.made.classList.toggle("chosen", other.made === made);
    }

    function hide() {
      tip.hidden = true;
      for (const bar of bars) bar.made.classList.remove("chosen");
    }

    function go(event) {
      const here = bars.findIndex((bar) => bar.made === document.activeElement);
      const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: bars.length - 1 }[event.key];
      if (event.key === "Escape") hide();
      if (here < 0 || !bars[to]) return;
      event.preventDefault();
      bars[here].made.setAttribute("tabindex", -1);
      bars[to].made.setAttribute("tabindex", 0);
      bars[to].made.focus();
    }

    function choices(name, labels, set) {
      part(name).append(...labels.map((label, number) => new Option(label, number)));
      part(name).addEventListener("change", (event) => {
        set(Number(event.target.value));
        draw();
      });
    }

    function legend() {
      data.models.forEach((model, number) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-pressed", true);
        const [swatch, mark] = [document.createElement("i"), document.createElement("b")];
        swatch.className = `fill-${model.fill}`;
        swatch.style.setProperty("--colour", model.colour);
        mark.textContent = model.mark;
        button.append(swatch, mark, model.name);
        button.addEventListener("click", () => {
          if (!state.models.delete(number)) state.models.add(number);
          button.setAttribute("aria-pressed", state.models.has(number));
          draw();
        });
        part("legend").append(button);
      });
    }

    choices("benchmark", data.benchmarks, (to) => (state.benchmark = to));
    choices("metric", data.metrics.map((m) => m.name), (to) => (state.metric = data.metrics[to].name));
    part("metric").value = data.metrics.length - 1;
    const levels = data.levels.map((name) => (name === "all" ? "all levels together" : `level ${name} only`));
    choices("level", ["side by side", ...levels], (to) => (state.level = to ? to - 1 : null));
    part("paper").closest("label").hidden = !data.paper;
    part("paper").addEventListener("change", (event) => {
      state.paper = event.target.checked;
      draw();
    });
    legend();
    for (const kind of ["pointerover", "focusin", "click"])
      svg.addEventListener(kind, (event) => {
        const made = event.target.closest(".point");
        if (made) show(made);
        else hide();
      });
    chart.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    svg.addEventListener("focusout", hide);
    svg.addEventListener("keydown", go);
    root.hidden = false;
    draw();
    let drawn = chart.clientWidth;
    new ResizeObserver(() => {
      if (chart.clientWidth !== drawn) draw();
      drawn = chart.clientWidth;
    }).observe(chart);
  }

  return { ticks, reach, columns, groups, lines, mount };
})();

if (typeof module === "object") module.exports = explorer;
else for (const root of document.querySelectorAll(".explorer")) explorer.mount(root);
