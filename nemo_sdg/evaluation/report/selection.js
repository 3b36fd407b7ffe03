// The order of the rules is that of nemo_sdg/quality/selection.py, on numbers alone. Ids agree exactly: sums are exact
// (Shewchuk, as math.fsum), scores are the float64 that the rows say, ties go to the earlier sample, then the smaller hash.
const Selection = (() => {
  const MISSING = -100, BAD = 1, SETTLED = 2, KEPT = 4, NEAR = 8, SHARE = 16, PASSED = "";

  function fsum(values, count) {
    const parts = [];
    for (let k = 0; k < count; k++) {
      let x = values[k], i = 0;
      for (let j = 0; j < parts.length; j++) {
        let y = parts[j];
        if (Math.abs(x) < Math.abs(y)) [x, y] = [y, x];
        const high = x + y, low = y - (high - x);
        if (low) parts[i++] = low;
        x = high;
      }
      parts.length = i;
      parts.push(x);
    }
    let n = parts.length, high = 0, low = 0;
    if (!n) return 0;
    high = parts[--n];
    while (n > 0) {
      const x = high, y = parts[--n];
      high = x + y;
      low = y - (high - x);
      if (low) break;
    }
    if (n > 0 && ((low < 0 && parts[n - 1] < 0) || (low > 0 && parts[n - 1] > 0))) {
      const y = low * 2, x = high + y;
      if (y === x - high) high = x;
    }
    return high;
  }

  // quality.rules.scalarise of every row.
  function scalars(rows, weights) {
    const all = Object.values(rows.scores), count = rows.count, found = new Float64Array(count), products = [];
    const weighed = Object.entries(weights).filter(([name]) => rows.scores[name]).map(([name, w]) => [rows.scores[name], w]);
    for (let row = 0; row < count; row++) {
      let n = 0, finite = true;
      for (const scores of all) if (!Number.isFinite(scores[row])) finite = false;
      for (const [scores, weight] of weighed) if (scores[row] !== MISSING) products[n++] = weight * scores[row];
      found[row] = finite && n ? fsum(products, n) : NaN;
    }
    return found;
  }

  const wordOf = (number) => String(Number(number.toPrecision(6)));

  // quality.rules.thresholds of one row: PASSED, or why not.
  function beyond(rows, row, settings, scalar) {
    if (Object.keys(settings.weights).every((name) => !rows.scores[name] || rows.scores[name][row] === MISSING))
      return "nothing that has a weight was scored";
    if (!Number.isFinite(scalar)) return "score not finite";
    for (const name of [...Object.keys(settings.minimum), ...Object.keys(settings.maximum)])
      if (!rows.scores[name] || rows.scores[name][row] === MISSING) return `${name} was not scored`;
    for (const name in settings.minimum)
      if (rows.scores[name][row] < settings.minimum[name]) return `${name} below ${wordOf(settings.minimum[name])}`;
    for (const name in settings.maximum)
      if (rows.scores[name][row] > settings.maximum[name]) return `${name} above ${wordOf(settings.maximum[name])}`;
    if (settings.minimum_scalar !== null && scalar < settings.minimum_scalar)
      return `scalar below ${wordOf(settings.minimum_scalar)}`;
    return PASSED;
  }

  // quality.versions: of an answer and its revisions the one that passes, or else has the highest scalar; else the first.
  function superseded(rows, scalar, good) {
    const best = new Map(), older = new Uint8Array(rows.count).fill(1);
    const value = (row) => (Number.isFinite(scalar[row]) ? scalar[row] : -Infinity);
    for (let row = 0; row < rows.count; row++) {
      const now = best.get(rows.root[row]);
      if (now === undefined || good[row] > good[now] || (good[row] === good[now] && value(row) > value(now)))
        best.set(rows.root[row], row);
    }
    for (const row of best.values()) older[row] = 0;
    return older;
  }

  // numpy.percentile, linear interpolation.
  function percentile(values, share) {
    const sorted = Float64Array.from(values).sort(), at = (sorted.length - 1) * (share / 100);
    const below = Math.floor(at), t = at - below;
    const a = sorted[below], b = sorted[Math.min(below + 1, sorted.length - 1)];
    return t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
  }

  // quality.ranking: what is left of the scalars when their line over log(characters) is taken away.
  function withoutLength(rows, scalar, passed) {
    const logs = passed.map((row) => rows.log[row]), n = passed.length;
    let mean = 0, slope = 0;
    if (n && logs.some((log) => log !== logs[0])) {
      mean = fsum(logs, n) / n;
      const middle = fsum(passed.map((row) => scalar[row]), n) / n, away = logs.map((log) => log - mean);
      slope = fsum(away.map((a, i) => a * (scalar[passed[i]] - middle)), n) / fsum(away.map((a) => a * a), n);
    }
    return scalar.map((value, row) => value - slope * (rows.log[row] - mean));
  }

  // Every row's reason to go, PASSED for those that are accepted; with a target, as few waves as reach it.
  function decide(rows, settings) {
    const scalar = scalars(rows, settings.weights), limits = new Array(rows.count);
    const good = new Uint8Array(rows.count);
    for (let row = 0; row < rows.count; row++) {
      limits[row] = beyond(rows, row, settings, scalar[row]);
      good[row] = limits[row] === PASSED && !(rows.flags[row] & BAD) ? 1 : 0;
    }
    const waves = settings.target === null || !rows.wave ? [Infinity] : [...new Set(rows.wave)].sort((a, b) => a - b);
    let found;
    for (const wave of waves) {
      found = upTo(rows, settings, wave, scalar, limits, good);
      if (found.accepted >= settings.target) break;
    }
    return { ...found, scalar };
  }

  function upTo(rows, settings, wave, scalar, limits, good) {
    const reasons = new Array(rows.count).fill(PASSED), passed = [];
    // A version of a later wave is no version of an answer of an earlier one, so that all may be looked at.
    const older = rows.root ? superseded(rows, scalar, good) : null;
    for (let row = 0; row < rows.count; row++) {
      if (rows.wave && rows.wave[row] > wave) reasons[row] = "of a later wave, which the target does not need";
      else if (rows.flags[row] & SETTLED) reasons[row] = "as it was decided";
      else if (older && older[row]) reasons[row] = "another version of it is better";
      else if (rows.flags[row] & BAD) reasons[row] = "its text, its end or a check";
      else if (limits[row] !== PASSED) reasons[row] = limits[row];
      else passed.push(row);
    }
    const ranks = settings.length_free ? withoutLength(rows, scalar, passed) : scalar;
    let left = passed;
    if (settings.percentile !== null && passed.length) {
      const cut = percentile(passed.map((row) => ranks[row]), settings.percentile);
      left = passed.filter((row) => ranks[row] >= cut || void (reasons[row] = `below percentile ${settings.percentile}`));
    }
    const late = passed.some((row) => rows.flags[row] & NEAR);
    if (settings.unique || late || settings.per_prompt !== null || settings.target !== null) {
      left.sort((a, b) => ranks[b] - ranks[a] || rows.tie[a] - rows.tie[b]);
      const seen = new Set(), of = new Map(), most = settings.per_prompt === null ? Infinity : settings.per_prompt;
      left = left.filter((row) => {
        const kept = of.get(rows.prompt[row]) || 0;
        if (settings.unique && seen.has(rows.text[row])) return void (reasons[row] = "same text as a better one");
        if (rows.flags[row] & NEAR) return void (reasons[row] = "near duplicate of a better one, as it was decided");
        if (kept >= most) return void (reasons[row] = `not among the best ${settings.per_prompt} of its prompt`);
        seen.add(rows.text[row]);
        of.set(rows.prompt[row], kept + 1);
        return true;
      });
    }
    left = left.filter((row) => !(rows.flags[row] & SHARE) || void (reasons[row] = "above its share, as it was decided"));
    if (settings.target !== null)
      for (const row of left.splice(settings.target)) reasons[row] = `beyond the target of ${settings.target}`;
    return { reasons, accepted: left.length };
  }

  return { BAD, SETTLED, KEPT, NEAR, SHARE, PASSED, MISSING, decide, fsum, percentile };
})();
