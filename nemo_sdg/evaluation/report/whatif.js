"use strict";
// Another selection of the rows that are here, as soon as a slider moves.
const WhatIf = (() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const SHOWN = 50;
  let rows, now, page = {};

  function unpacked(text, kind) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new kind(bytes.buffer);
  }

  function read(round) {
    const made = { ...round, count: round.ids.length, scores: {} };
    for (const name in round.scores) made.scores[name] = unpacked(round.scores[name], Float64Array);
    made.flags = unpacked(round.flags, Uint8Array);
    for (const name of ["characters", "prompt", "text", "same", "tie", "root", "wave"])
      if (round[name]) made[name] = unpacked(round[name], Int32Array);
    if (round.log) made.log = unpacked(round.log, Float64Array);
    if (round.topic) made.topic = { ...round.topic, of: unpacked(round.topic.of, Int32Array) };
    made.pairs = {};
    for (const name in round.pairs) made.pairs[name] = unpacked(round.pairs[name], Int32Array);
    made.numPrompts = new Set(made.prompt).size;
    made.decided = made.flags.map((flags) => (flags & Selection.KEPT ? 1 : 0));
    return made;
  }

  function element(tag, content, props = {}) {
    const made = Object.assign(document.createElement(tag), props);
    for (const part of [].concat(content)) if (part !== null) made.append(part);
    return made;
  }

  const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
  const whole = (number) => Math.round(number).toLocaleString("en");
  const three = (number) => (number === null || !Number.isFinite(number) ? "–" : number.toFixed(2));

  // A slider and a number that say the same; an end of the slider is no limit where `open` says which.
  function dial(label, value, low, high, step, open) {
    const slider = element("input", [], { type: "range", min: low, max: high, step });
    const number = element("input", [], { type: "number", step: "any" });
    const free = open === "low" ? low : open === "high" ? high : null;
    const set = (to) => {
      number.value = to === null || to === undefined ? "" : to;
      slider.value = number.value === "" ? (free === null ? 0 : free) : number.value;
    };
    slider.setAttribute("aria-label", label);
    number.setAttribute("aria-label", `${label}, exactly`);
    slider.addEventListener("input", () => {
      number.value = free !== null && Number(slider.value) === free ? "" : slider.value;
      changed();
    });
    number.addEventListener("input", () => {
      slider.value = number.value === "" ? (free === null ? 0 : free) : number.value;
      changed();
    });
    set(value);
    return { slider, number, set, get: () => (number.value === "" ? null : Number(number.value)) };
  }

  function build() {
    const labels = data.settings.labels, samples = Math.max(1, ...sizes());
    page = { minimum: {}, maximum: {}, weights: {} };
    const heads = ["", "minimum", "maximum", "weight"].map((text) => element("b", text));
    const head = element("div", heads, { className: "dials head" });
    const lines = labels.map((name) => {
      const [low, high] = bounds(name);
      page.minimum[name] = dial(`minimum of ${name}`, data.settings.minimum[name], low, high, 0.05, "low");
      page.maximum[name] = dial(`maximum of ${name}`, data.settings.maximum[name], low, high, 0.05, "high");
      page.weights[name] = dial(`weight of ${name}`, data.settings.weights[name], -1, 1, 0.01, null);
      const cells = [["minimum", page.minimum], ["maximum", page.maximum], ["weight", page.weights]].map(([what, group]) =>
        element("label", [element("span", what), group[name].slider, group[name].number]));
      return element("div", [element("b", name), ...cells], { className: "dials" });
    });
    page.scalar = dial("lowest scalar", data.settings.minimum_scalar, -2, 10, 0.05, "low");
    page.top = dial("best responses of a prompt", data.settings.per_prompt, 1, samples + 1, 1, "high");
    const others = element("div", [
      element("label", [element("span", "lowest scalar"), page.scalar.slider, page.scalar.number]),
      element("label", [element("span", "best of a prompt"), page.top.slider, page.top.number]),
    ], { className: "dials two" });
    byId("dials").replaceChildren(head, ...lines, others);
  }

  function bounds(name) {
    let low = 0, high = 4;
    for (const value of rows.scores[name] || []) if (Number.isFinite(value) && value !== Selection.MISSING) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    return [Math.floor(low * 2) / 2, Math.ceil(high * 2) / 2];
  }

  function sizes() {
    const counts = new Map();
    for (const prompt of rows.prompt) counts.set(prompt, (counts.get(prompt) || 0) + 1);
    return [...new Set(counts.values())];
  }

  // A sample reaches its share of the target.
  function targetHere() {
    const { target } = data.settings;
    return target === null ? null : Math.max(1, Math.round((target * rows.count) / rows.of));
  }

  function asked() {
    const group = (dials) => Object.fromEntries(
      Object.entries(dials).map(([name, one]) => [name, one.get()]).filter(([, value]) => value !== null && !Number.isNaN(value)));
    const { unique, percentile, length_free } = data.settings, target = targetHere();
    return { minimum: group(page.minimum), maximum: group(page.maximum), weights: group(page.weights),
      minimum_scalar: page.scalar.get(), per_prompt: page.top.get(), unique, percentile, length_free, target };
  }

  function problem(settings) {
    for (const name in settings.minimum)
      if (settings.minimum[name] > settings.maximum[name])
        return `The minimum of ${name} lies above its maximum, so nothing could pass.`;
    if (!Object.keys(settings.weights).length) return "Without weights there is no scalar.";
    if (settings.per_prompt !== null && !(settings.per_prompt >= 1 && Number.isInteger(settings.per_prompt)))
      return "The best responses of a prompt are 1 or more, a whole number.";
    return "";
  }

  let waiting = false;
  function changed() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  function draw() {
    const settings = asked(), wrong = problem(settings);
    byId("wrong").textContent = wrong;
    byId("what-if").classList.toggle("off", wrong !== "");
    if (wrong) return void (byId("command").textContent = "");
    const found = Selection.decide(rows, settings);
    const accepted = Uint8Array.from(found.reasons, (reason) => (reason === Selection.PASSED ? 1 : 0));
    now = { settings, accepted, scalar: found.scalar };
    reasons(found.reasons);
    const entered = moved("enter", (row) => accepted[row] && !rows.decided[row]);
    moved("leave", (row) => !accepted[row] && rows.decided[row]);
    figures(Figures.compare(rows, rows.decided, accepted), entered);
    byId("command").textContent = command(settings);
    byId("short").hidden = settings.target === null || found.accepted >= settings.target;
  }

  function figures([before, after], entered) {
    const scale = rows.of / Math.max(rows.count, 1), about = rows.of > rows.count ? "about " : "";
    const topic = rows.topic ? rows.topic.what : "";
    const largest = (one) => (one.topicName === null ? "–" : `${percent(one.topicShare)} (${one.topicName})`);
    const lines = [
      ["accepted rows", `${about}${whole(before.accepted * scale)}`, `${about}${whole(after.accepted * scale)}`],
      ["share of the candidates", percent(before.share), percent(after.share)],
      ["of them also among as many longest rows", percent(before.longest), percent(after.longest)],
      ["prompts with an accepted row", percent(before.prompts), percent(after.prompts)],
      ["different texts", percent(before.texts), percent(after.texts)],
      ["different pairs of words", percent(before.pairs), percent(after.pairs)],
    ];
    if (topic) lines.push(
      [`largest share, by ${topic}`, largest(before), largest(after)],
      [`evenness, by ${topic}`, three(before.topicEven), three(after.topicEven)]);
    byId("figures").replaceChildren(...lines.map(([name, was, is]) =>
      element("tr", [element("td", name), element("td", was, { className: "n" }), element("td", is, { className: `n${was === is ? "" : " moved"}` })])));
    byId("count").textContent = `${about}${whole(after.accepted * scale)}`;
    const more = (after.accepted - before.accepted) * scale;
    const same = entered ? "as many as in the run, not the same" : "as in the run";
    byId("change").textContent = more ? `${more > 0 ? "+" : "−"}${whole(Math.abs(more))} against the run` : same;
  }

  function reasons(all) {
    const counts = new Map();
    for (const reason of all) if (reason !== Selection.PASSED) counts.set(reason, (counts.get(reason) || 0) + 1);
    const ordered = [...counts].sort((a, b) => b[1] - a[1]);
    byId("reasons").replaceChildren(...ordered.map(([reason, count]) =>
      element("tr", [element("td", reason), element("td", whole(count), { className: "n" })])));
  }

  function moved(id, which) {
    const some = [];
    for (let row = 0; row < rows.count; row++) if (which(row)) some.push(row);
    some.sort((a, b) => now.scalar[b] - now.scalar[a] || rows.tie[a] - rows.tie[b]);
    byId(`${id}-count`).textContent = whole(some.length);
    byId(`${id}-more`).textContent = some.length > SHOWN ? `and ${whole(some.length - SHOWN)} more` : "";
    byId(id).replaceChildren(...some.slice(0, SHOWN).map((row) => {
      const scores = data.settings.labels.map((name) => three(rows.scores[name] ? rows.scores[name][row] : null));
      const said = (rows.texts[row] || []).map((text, i) =>
        element("div", text, { className: i ? "text" : "asked text", dir: "auto" }));
      const figures = ` scalar ${three(now.scalar[row])} (${scores.join(", ")})`;
      const under = element("div", [element("code", rows.ids[row]), figures], { className: "under" });
      return element("tr", element("td", [...said, under]));
    }));
    return some.length;
  }

  const plain = /^[A-Za-z_][A-Za-z0-9_]*$/;
  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

  function numeral(number) {  // YAML wants a point before an exponent, and a sign behind it
    const [digits, power] = String(number).split("e");
    return power ? `${digits.includes(".") ? digits : digits + ".0"}e${power}` : digits;
  }

  function mapping(group) {
    const said = Object.entries(group).map(([name, value]) => `${plain.test(name) ? name : JSON.stringify(name)}: ${numeral(value)}`);
    return `{${said.join(", ")}}`;
  }

  function same(a, b) {
    const names = Object.keys(a);
    return names.length === Object.keys(b).length && names.every((name) => a[name] === b[name]);
  }

  // The settings that differ from the run's, as words of the command line; a group whole, so that a limit may go.
  function command(settings) {
    const words = [];
    for (const name of ["minimum", "maximum", "weights"])
      if (!same(settings[name], data.settings[name])) words.push(`select.${name}=${mapping(settings[name])}`);
    for (const name of ["minimum_scalar", "per_prompt"])
      if (settings[name] !== data.settings[name])
        words.push(`select.${name}=${settings[name] === null ? "null" : numeral(settings[name])}`);
    const run = byId("run").value || "RUN";
    return words.length ? ["nemo-sdg", "fork", run, `${run}-what-if`, ...words].map(quoted).join(" ") : "";
  }

  function start() {
    byId("run").value = data.name;
    if (location.protocol === "file:") {
      const folder = decodeURIComponent(location.pathname).replace(/\/[^/]*$/, "");
      if (folder) byId("run").value = folder;
    }
    const rounds = byId("round");
    data.rounds.forEach((round, index) => rounds.append(element("option", `round ${round.round}`, { value: index })));
    byId("which").hidden = data.rounds.length < 2;
    const take = () => {
      rows = read(data.rounds[Number(rounds.value)]);
      byId("later").hidden = rows.round === data.rounds[0].round;
      byId("sample").hidden = rows.of === rows.count;
      byId("sample-size").textContent = `${whole(rows.count)} of ${whole(rows.of)}`;
      byId("sample-target").textContent = data.settings.target === null ? ""
        : ` Of these, ${whole(targetHere())} stand for the target of ${whole(data.settings.target)}.`;
      build();
      draw();
    };
    rounds.addEventListener("change", take);
    byId("reset").addEventListener("click", () => { build(); draw(); });
    byId("run").addEventListener("input", () => draw());
    byId("copy").addEventListener("click", () => copy(byId("command").textContent));
    byId("copy-ids").addEventListener("click", () => copy(accepted().join("\n")));
    take();
    byId("what-if").hidden = false;
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // a page from a file may not have the clipboard
      const area = element("textarea", text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    byId("copied").textContent = "copied";
    setTimeout(() => (byId("copied").textContent = ""), 1500);
  }

  const accepted = () => rows.ids.filter((_, row) => now.accepted[row]);

  start();
  return { accepted, read, command, settings: () => now.settings };
})();
