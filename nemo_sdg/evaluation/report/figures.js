// What the page says of a selection. Each is defined where it is shown; `rows` as Rows.read gives them.
const Figures = (() => {
  // quality.ranking.length_honesty: the share of the accepted that as many of the longest rows would have had.
  function longest(rows, accepted) {
    const count = accepted.reduce((sum, one) => sum + one, 0);
    if (!count) return null;
    const border = Float64Array.from(rows.characters).sort()[rows.count - count];
    let above = 0, aboveKept = 0, at = 0, atKept = 0;
    for (let row = 0; row < rows.count; row++) {
      if (rows.characters[row] > border) { above++; aboveKept += accepted[row]; }
      if (rows.characters[row] === border) { at++; atKept += accepted[row]; }
    }
    return (aboveKept + ((count - above) * atKept) / at) / count;
  }

  function differing(numbers, accepted) {
    const found = new Set();
    for (let row = 0; row < numbers.length; row++) if (accepted[row]) found.add(numbers[row]);
    return found.size;
  }

  const numPairs = (rows, accepted) =>
    rows.pairs.rows.reduce((sum, row, i) => sum + (accepted[row] ? rows.pairs.ends[i] - (rows.pairs.ends[i - 1] || 0) : 0), 0);

  // quality.variety.distinct for n = 2, of the first `most` pairs of words.
  function distinctPairs(rows, accepted, most) {
    const found = new Set();
    let seen = 0;
    for (let i = 0; i < rows.pairs.rows.length && seen < most; i++) {
      if (!accepted[rows.pairs.rows[i]]) continue;
      for (let k = rows.pairs.ends[i - 1] || 0; k < rows.pairs.ends[i] && seen < most; k++, seen++) found.add(rows.pairs.pairs[k]);
    }
    return seen ? found.size / seen : null;
  }

  // The largest share of a topic, its name, and how even the shares are: their entropy over that of equal shares.
  function topics(rows, accepted) {
    if (!rows.topic) return null;
    const counts = new Array(rows.topic.names.length).fill(0);
    let all = 0, entropy = 0, largest = 0;
    for (let row = 0; row < rows.count; row++) if (accepted[row]) { counts[rows.topic.of[row]]++; all++; }
    if (!all) return null;
    counts.forEach((count, topic) => {
      if (count) entropy -= (count / all) * Math.log(count / all);
      if (count > counts[largest]) largest = topic;
    });
    return { share: counts[largest] / all, name: rows.topic.names[largest], even: entropy / Math.log(counts.length) };
  }

  function of(rows, accepted, mostPairs) {
    const count = accepted.reduce((sum, one) => sum + one, 0), topic = topics(rows, accepted);
    return {
      accepted: count,
      share: rows.count ? count / rows.count : null,
      longest: longest(rows, accepted),
      texts: count ? differing(rows.same, accepted) / count : null,
      prompts: rows.numPrompts ? differing(rows.prompt, accepted) / rows.numPrompts : null,
      pairs: distinctPairs(rows, accepted, mostPairs),
      topicShare: topic && topic.share, topicName: topic && topic.name, topicEven: topic && topic.even,
    };
  }

  // Of two selections; pairs of words are counted in as many of each, because their variety falls as a text grows.
  function compare(rows, before, after) {
    const most = Math.min(numPairs(rows, before), numPairs(rows, after));
    return [of(rows, before, most), of(rows, after, most)];
  }

  return { compare, longest, topics };
})();
