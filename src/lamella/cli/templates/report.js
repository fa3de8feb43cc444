"use strict";
(() => {
  const ROW = 26; // pixels, as in the style
  const SPARE = 8; // rows drawn above and below those in view
  const MOST_PRINTED = 1000;
  const KINDS = new Set(["2xx", "3xx", "4xx", "429", "5xx", "none"]);

  const at = (id) => document.getElementById(id);
  const calls = JSON.parse(at("calls").textContent);
  const list = at("list"), rows = at("rows"), head = at("head"), tip = at("tip"), details = at("details");
  const most = (of) => calls.reduce((found, call) => Math.max(found, of(call)), 1);
  const runs = most((call) => call.at + call.took);
  const longest = most((call) => call.took);
  calls.forEach((call, number) => {
    call.number = number;
    const last = call.attempts.at(-1);
    call.ended = last ? last.ended : call.outcome;
    call.well = call.outcome === "success";
    call.kinds = new Set(call.attempts.map((attempt) => attempt.kind));
    call.resource = (call.template ?? call.path.split("?")[0]).replace(/^\/(accounting\/)?/, "");
    call.text = `${call.method} ${call.account} ${call.path} ${call.trace}`.toLowerCase();
  });

  const state = {
    sort: "start", descending: false, axis: "run", from: 0, to: runs,
    shown: calls, active: 0, open: null, printing: false,
  };
  const drawn = new Map(); // the place in the list: its row

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text; // never as HTML: it may be anybody's
    return made;
  }

  // As lamella.cli.terminal.duration puts it, of microseconds.
  function duration(micros) {
    const seconds = micros / 1e6;
    const short = (value, digits) => String(Number(value.toFixed(digits)));
    if (!micros) return "0 s";
    if (Math.round(seconds * 1000) < 1000) return `${short(seconds * 1000, seconds < 0.01 ? 1 : 0)} ms`;
    if (Math.round(seconds * 10) < 600) return `${short(seconds, seconds < 10 ? 2 : 1)} s`;
    const whole = Math.round(seconds);
    const parts = [[Math.floor(whole / 3600), "h"], [Math.floor(whole / 60) % 60, "min"], [whole % 60, "s"]];
    return parts.filter(([number]) => number).map(([number, unit]) => `${number} ${unit}`).join(" ");
  }

  // --- what is shown, and in which order

  const ORDERS = {
    start: (a, b) => a.at - b.at,
    duration: (a, b) => a.took - b.took,
    attempts: (a, b) => a.attempts.length - b.attempts.length || a.took - b.took,
    account: (a, b) => compare(a.account, b.account) || compare(a.resource, b.resource),
    path: (a, b) => compare(a.path, b.path) || compare(a.method, b.method),
    ended: (a, b) => a.well - b.well || compare(a.ended, b.ended),
  };

  function compare(a, b) {
    return a < b ? -1 : Number(a > b);
  }

  function choose() {
    const outcome = at("outcome").value;
    const account = at("account").value, resource = at("resource").value;
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kinds = [...document.querySelectorAll('#kinds [aria-pressed="true"]')].map((button) => button.dataset.kind);
    const isWanted = (call) =>
      (!outcome || (outcome === "retried" ? call.attempts.length > 1 : call.well === (outcome === "well"))) &&
      (!account || call.account === account) &&
      (!resource || call.resource === resource) &&
      (!kinds.length || kinds.some((kind) => call.kinds.has(kind))) &&
      words.every((word) => call.text.includes(word));
    const sign = state.descending ? -1 : 1;
    state.shown = calls.filter(isWanted).sort((a, b) => sign * ORDERS[state.sort](a, b) || a.number - b.number);
    state.active = 0;
    at("shown").textContent = `${state.shown.length} of ${calls.length} calls`;
    at("nothing").hidden = state.shown.length > 0;
    list.setAttribute("aria-rowcount", state.shown.length + 1);
    list.scrollTop = 0;
    redraw();
  }

  // --- the time axis

  function extent(call) {
    if (state.axis === "fit") return [call.at, Math.max(1, call.took)];
    return [state.from + (state.axis === "start" ? call.at : 0), state.to - state.from];
  }

  function whole() {
    return state.axis === "start" ? longest : runs;
  }

  function look(from, length) {
    const size = Math.min(Math.max(length, 100), whole());
    state.from = Math.min(Math.max(from, 0), whole() - size);
    state.to = state.from + size;
    redraw();
  }

  function zoom(factor, where = 0.5) {
    const length = state.to - state.from;
    const next = Math.min(Math.max(length * factor, 100), whole());
    look(state.from + (length - next) * where, next);
  }

  function pan(share) {
    const length = state.to - state.from;
    look(state.from + length * share, length);
  }

  function ticks() {
    if (state.axis === "fit") return [];
    const length = state.to - state.from;
    const width = Math.max(head.lastElementChild.clientWidth, 200);
    const rough = length / Math.max(1, Math.floor(width / 90));
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const found = [];
    for (let number = Math.ceil(state.from / step); number * step <= state.to; number += 1) {
      found.push([number * step, ((number * step - state.from) / length) * 100]);
    }
    // Digits enough to tell one tick from the next.
    return found.map(([micros, left]) => [left, left < 95 ? tickLabel(micros, step) : ""]);
  }

  function tickLabel(micros, step) {
    if (!micros) return "0";
    const [unit, name] = step >= 1e5 ? [1e6, "s"] : [1e3, "ms"];
    return `${Number((micros / unit).toFixed(Math.max(0, -Math.floor(Math.log10(step / unit)))))} ${name}`;
  }

  // --- drawing

  function redraw() {
    for (const row of drawn.values()) row.remove();
    drawn.clear();
    state.ticks = ticks();
    at("ticks").replaceChildren(...state.ticks.map(([left, label]) => {
      const tick = element("span", "", label);
      tick.style.left = `${left}%`;
      return tick;
    }));
    for (const button of at("zoom").children) button.disabled = state.axis === "fit";
    hideTip();
    draw();
  }

  function draw() {
    const top = Math.max(0, list.scrollTop);
    let first = Math.max(0, Math.floor(top / ROW) - SPARE);
    let end = Math.min(state.shown.length, Math.ceil((top + list.clientHeight) / ROW) + SPARE);
    if (state.printing) [first, end] = [0, Math.min(state.shown.length, MOST_PRINTED)];
    rows.style.height = `${(state.printing ? end : state.shown.length) * ROW}px`;
    for (const [place, row] of drawn) {
      if (place < first || place >= end) {
        // A row with the focus is kept: without it the keyboard would lose its place.
        if (row.contains(document.activeElement)) continue;
        row.remove();
        drawn.delete(place);
      }
    }
    for (let place = first; place < end; place += 1) {
      if (drawn.has(place)) continue;
      const row = rowFor(state.shown[place], place);
      drawn.set(place, row);
      rows.append(row);
    }
    // One stop for Tab: the arrows do the rest.
    const stop = drawn.has(state.active) ? state.active : Math.min(Math.ceil(top / ROW), end - 1);
    for (const [place, row] of drawn) row.tabIndex = place === stop ? 0 : -1;
  }

  function rowFor(call, place) {
    const row = element("div", `row${call.well ? "" : " failed"}`);
    row.style.top = `${place * ROW}px`;
    row.dataset.place = place;
    row.setAttribute("role", "row");
    row.setAttribute("aria-rowindex", place + 2);
    row.setAttribute("aria-selected", state.open === call);
    const name = element("span", "name", call.path);
    if (call.account) name.prepend(element("span", "account", call.account));
    name.prepend(element("span", "method", call.method));
    name.title = call.account ? `${call.account}: ${call.path}` : call.path;
    const ended = element("span", "ended", call.ended);
    ended.title = call.ended;
    const mark = element("span", "mark", call.well ? "✓" : "✗");
    mark.setAttribute("aria-label", call.outcome);
    mark.setAttribute("role", "img");
    ended.prepend(mark);
    const cells = [
      name, ended, element("span", "right", call.attempts.length), element("span", "right", duration(call.took)), timeline(call),
    ];
    for (const cell of cells) cell.setAttribute("role", "gridcell");
    row.append(...cells);
    return row;
  }

  function timeline(call) {
    const cell = element("span", "time");
    const [from, length] = extent(call);
    const put = (className, start, took) => {
      const left = ((start - from) / length) * 100, width = (took / length) * 100;
      if (left > 100 || left + width < 0) return null;
      const bar = element("i", className);
      // A bar that begins at the very end would be out of sight.
      bar.style.left = `min(${Math.max(left, -1)}%, 100% - 4px)`;
      bar.style.width = `${Math.min(left + width, 101) - Math.max(left, -1)}%`;
      cell.append(bar);
      return bar;
    };
    const add = (className, start, took, label, words) => {
      const bar = put(className, start, took);
      if (!bar) return;
      bar.tabIndex = -1;
      bar.setAttribute("role", "img");
      bar.setAttribute("aria-label", label);
      bar.words = words;
      bar.start = start;
    };
    for (const [left] of state.ticks) {
      const tick = element("i", "tick");
      tick.style.left = `${left}%`;
      cell.append(tick);
    }
    put("span", call.at, call.took);
    for (const other of call.others) {
      add("pause", other.at, other.wait, `${other.name}: ${duration(other.wait)}`, () => [
        other.name, [["wait", duration(other.wait)]],
      ]);
    }
    call.attempts.forEach((attempt, index) => {
      const { decision } = attempt;
      if (decision && decision.wait) {
        const label = `wait before attempt ${index + 2}: ${duration(decision.wait)}`;
        add("pause", decision.at, decision.wait, label, () => [
          `Wait before attempt ${index + 2}`, [["after", `attempt ${index + 1}: ${attempt.ended}`], ...decisionWords(attempt)],
        ]);
      }
    });
    call.attempts.forEach((attempt, index) => {
      const kind = KINDS.has(attempt.kind) ? attempt.kind : "none";
      add(`attempt k${kind}`, attempt.at, attempt.took, `attempt ${index + 1}: ${attempt.ended}`, () => attemptWords(call, attempt, index));
    });
    return cell;
  }

  function attemptWords(call, attempt, index) {
    const left = attempt.decision && attempt.decision.left;
    const of = left === undefined ? "" : ` of ${index + 1 + left}`;
    const lines = [
      ["came back", attempt.ended], ["took", duration(attempt.took)], ["began", `${duration(attempt.at - call.at)} into the call`],
    ];
    return [`Attempt ${index + 1}${of}`, [...lines, ...decisionWords(attempt)]];
  }

  function decisionWords({ decision, kind }) {
    if (!decision) return [["decision", kind === "2xx" || kind === "3xx" ? "none needed" : "none"]];
    const lines = [];
    if (decision.stop === undefined) {
      lines.push(["decision", "retry"], ["wait", decision.wait ? `${duration(decision.wait)}, ${decision.source}` : decision.source]);
    } else {
      lines.push(["decision", "stop"], ["why", decision.stop]);
    }
    if (decision.rule) lines.push(["rule", decision.rule]);
    const left = [];
    if (decision.left !== undefined) left.push(`${decision.left} ${decision.left === 1 ? "attempt" : "attempts"}`);
    left.push(decision.deadline === undefined ? "no deadline" : `${duration(decision.deadline)} until the deadline`);
    lines.push(["left", left.join(", ")]);
    return lines;
  }

  // --- the tooltip

  function showTip(bar) {
    const [title, lines] = bar.words();
    const words = element("dl");
    for (const [name, value] of lines) words.append(element("dt", "", name), element("dd", "", value));
    tip.replaceChildren(element("b", "", title), words);
    tip.hidden = false;
    const box = bar.getBoundingClientRect();
    const view = list.getBoundingClientRect();
    const middle = (Math.max(box.left, view.left) + Math.min(box.right, view.right)) / 2;
    const left = Math.min(Math.max(8, middle - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 8}px`;
    bar.setAttribute("aria-describedby", "tip");
  }

  function hideTip() {
    tip.hidden = true;
  }

  const barOf = (event) => event.target.closest?.(".attempt, .pause");
  rows.addEventListener("mouseover", (event) => (barOf(event) ? showTip(barOf(event)) : hideTip()));
  rows.addEventListener("mouseleave", hideTip);
  rows.addEventListener("focusin", (event) => {
    const row = event.target.closest(".row");
    if (row) state.active = Number(row.dataset.place);
    if (barOf(event)) showTip(barOf(event));
    else hideTip();
  });
  rows.addEventListener("focusout", hideTip);

  // --- the details

  function open(call) {
    state.open = call;
    for (const [place, row] of drawn) row.setAttribute("aria-selected", state.shown[place] === call);
    details.hidden = !call;
    if (call) {
      details.querySelector("h2").textContent = `${call.method} ${call.path}${call.account ? `, ${call.account}` : ""}`;
      details.querySelector("pre").textContent = call.tree;
      details.scrollTop = 0;
    }
    draw();
    const row = call && drawn.get(state.shown.indexOf(call));
    if (row) reveal(state.shown.indexOf(call));
  }

  function reveal(place) {
    const top = place * ROW, room = list.clientHeight - head.offsetHeight - ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top > list.scrollTop + room) list.scrollTop = top - room;
    draw();
  }

  function go(place) {
    const next = Math.min(Math.max(place, 0), state.shown.length - 1);
    if (next < 0) return;
    state.active = next;
    reveal(next);
    drawn.get(next).focus({ preventScroll: true });
    draw();
  }

  rows.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row) return;
    const call = state.shown[Number(row.dataset.place)];
    open(state.open === call ? null : call);
  });

  rows.addEventListener("keydown", (event) => {
    const row = event.target.closest(".row");
    if (!row || event.ctrlKey || event.altKey || event.metaKey) return;
    const place = Number(row.dataset.place), page = Math.max(1, Math.floor(list.clientHeight / ROW) - 2);
    const places = {
      ArrowUp: place - 1, ArrowDown: place + 1, PageUp: place - page, PageDown: place + page, Home: 0, End: state.shown.length,
    };
    if (event.key in places) {
      go(places[event.key]);
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      // In the order of time: the waits are drawn first, below the attempts.
      const bars = [...row.querySelectorAll(".attempt, .pause")].sort((a, b) => a.start - b.start);
      const next = bars.indexOf(event.target) + (event.key === "ArrowLeft" ? -1 : 1);
      (next < 0 ? row : bars[Math.min(next, bars.length - 1)] ?? row).focus({ preventScroll: true });
    } else if (event.key === "Enter" || event.key === " ") {
      const call = state.shown[place];
      open(state.open === call ? null : call);
    } else {
      return;
    }
    event.preventDefault();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!tip.hidden) hideTip();
    else if (state.open) close();
  });

  function close() {
    const place = state.shown.indexOf(state.open);
    open(null);
    if (place >= 0) go(place);
  }

  at("close").addEventListener("click", close);
  at("zoom-to").addEventListener("click", () => {
    const call = state.open;
    if (state.axis === "fit") at("axis").value = state.axis = "run";
    const margin = Math.max(call.took * 0.05, 50);
    look((state.axis === "start" ? 0 : call.at) - margin, call.took + 2 * margin);
  });

  // --- the controls

  at("outcome").addEventListener("change", choose);
  for (const name of ["account", "resource"]) {
    const values = [...new Set(calls.map((call) => call[name]))].filter(Boolean).sort(compare);
    const select = at(name);
    for (const value of values) select.append(Object.assign(element("option", "", value), { value }));
    select.parentElement.hidden = values.length < 2;
    select.addEventListener("change", choose);
  }
  at("search").addEventListener("input", choose);
  at("kinds").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    choose();
  });
  at("axis").addEventListener("change", (event) => {
    state.axis = event.target.value;
    look(0, whole());
  });
  at("zoom").addEventListener("click", (event) => {
    const actions = {
      in: () => zoom(0.5), out: () => zoom(2), left: () => pan(-0.5), right: () => pan(0.5), all: () => look(0, whole()),
    };
    actions[event.target.dataset.zoom]?.();
  });
  head.addEventListener("click", (event) => {
    const { sort } = event.target.dataset;
    if (!sort) return;
    // What one looks for first: the longest, the most.
    const first = sort === "duration" || sort === "attempts";
    state.descending = state.sort === sort ? !state.descending : first;
    state.sort = sort;
    for (const column of head.children) {
      const isIt = column.firstElementChild.dataset.sort === sort;
      column.setAttribute("aria-sort", isIt ? (state.descending ? "descending" : "ascending") : "none");
    }
    choose();
  });
  list.addEventListener("wheel", (event) => {
    if (state.axis === "fit" || !(event.ctrlKey || event.shiftKey)) return;
    event.preventDefault();
    const box = head.lastElementChild.getBoundingClientRect();
    const where = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const turn = event.deltaY || event.deltaX;
    if (event.ctrlKey) zoom(turn > 0 ? 1.25 : 0.8, where);
    else pan(turn > 0 ? 0.1 : -0.1);
  }, { passive: false });

  let asked = false;
  list.addEventListener("scroll", () => {
    hideTip();
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  });
  let width = 0;
  new ResizeObserver(() => {
    if (list.clientWidth === width) return draw();
    width = list.clientWidth;
    return redraw();
  }).observe(list);
  addEventListener("beforeprint", () => {
    state.printing = true;
    redraw();
    if (state.shown.length > MOST_PRINTED) at("shown").textContent += `, the first ${MOST_PRINTED} printed`;
  });
  addEventListener("afterprint", () => {
    state.printing = false;
    at("shown").textContent = `${state.shown.length} of ${calls.length} calls`;
    redraw();
  });

  choose();
})();
