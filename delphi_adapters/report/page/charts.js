// Plots as inline SVG; colours are the style sheet's.

const WIDE = 720;
const BINS = 40;
const EDGE = { left: 52, right: 14, top: 14, bottom: 38 };

function plot(height, label, x, y, xLabel, yLabel, ...children) {
  const ticks = [];
  for (const at of x.ticks) {
    ticks.push(
      svg("text", { x: x.to(at), y: height - EDGE.bottom + 17, class: "tick middle" }, x.name(at)),
    );
  }
  for (const at of y.ticks) {
    ticks.push(
      svg("line", { x1: EDGE.left, x2: WIDE - EDGE.right, y1: y.to(at), y2: y.to(at), class: "grid" }),
      svg("text", { x: EDGE.left - 7, y: y.to(at) + 4, class: "tick end" }, y.name(at)),
    );
  }
  const middle = (EDGE.left + WIDE - EDGE.right) / 2;
  ticks.push(svg("text", { x: middle, y: height - 4, class: "axis middle" }, xLabel));
  ticks.push(svg("text", { x: EDGE.left, y: EDGE.top - 3, class: "axis" }, yLabel));
  const shape = `0 0 ${WIDE} ${height}`;
  return svg("svg", { viewBox: shape, class: "plot", role: "img", "aria-label": label }, ticks, children);
}

function scale(low, high, from, to, ticks, name = String, bend = (v) => v) {
  const width = bend(high) - bend(low) || 1;
  return { to: (v) => from + ((bend(v) - bend(low)) / width) * (to - from), ticks, name };
}

function steps(high) {
  const rough = high / 4;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) || 1;
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, i) => i * step);
}

// Latents by relative decoder norm, stacked by partition; the height is the root of the count.
function normHistogram() {
  const height = 250;
  const names = [...new Set(table.columns.partition.values)];
  const kinds = kindsOf(names);
  const bins = Array.from({ length: BINS }, () => names.map(() => 0));
  let dead = 0;
  for (let row = 0; row < table.rows; row++) {
    const norm = table.at(row, "relative_decoder_norm");
    if (table.at(row, "dead")) dead++;
    else if (norm !== null) {
      const bin = Math.min(Math.floor(norm * BINS), BINS - 1);
      bins[bin][names.indexOf(table.at(row, "partition"))]++;
    }
  }
  const totals = bins.map((some) => some.reduce((a, b) => a + b, 0));
  const most = Math.max(...totals, 1);
  const x = scale(0, 1, EDGE.left, WIDE - EDGE.right, [0, 0.2, 0.5, 0.8, 1]);
  const marks = [0, 0.04, 0.25, 1].map((part) => Math.round(part * most));
  const y = scale(0, most, height - EDGE.bottom, EDGE.top, [...new Set(marks)], count, Math.sqrt);
  const bars = bins.flatMap((some, bin) => {
    let below = 0;
    return some.map((n, kind) => {
      if (!n) return null;
      const [left, right] = [x.to(bin / BINS), x.to((bin + 1) / BINS)];
      const [bottom, top] = [y.to(below), y.to((below += n))];
      const what = `${names[kind]}: ${count(n)} from ${(bin / BINS).toFixed(3)}`;
      return svg(
        "rect",
        { x: left + 0.5, y: top, width: right - left - 1, height: bottom - top, class: kinds[kind] },
        svg("title", {}, visible(what)),
      );
    });
  });
  const limits = [0.2, 0.8].map((at) =>
    svg("line", { x1: x.to(at), x2: x.to(at), y1: EDGE.top, y2: height - EDGE.bottom, class: "limit" }),
  );
  const label =
    `share of ${facts.models[0]} in the decoder norms (dashed: the limits of exclusive latents)`;
  const said = `Histogram of relative decoder norms of ${count(table.rows - dead)} latents.`;
  const node = plot(height, said, x, y, visible(label), "latents (root scale)", bars, limits);
  return el("figure", {}, legend(names, kinds), node, el("figcaption", {}, `${count(dead)} dead latents are left out.`));
}

// A block of one model has the model's colour, others are grey.
function kindsOf(partitions) {
  return partitions.map((name) => {
    const own = /^exclusive_(\d+)$/.exec(name);
    return own ? `m${own[1] % 4}` : "shared";
  });
}

function legend(names, kinds) {
  const one = (name, i) => el("li", {}, el("span", { class: `key ${kinds[i]}` }), " ", inline(name, 60));
  return el("ul", { class: "legend" }, names.map(one));
}

// Mean rating by strength with bands of confidence, one plot for every dimension.
function dosePlots(curves) {
  const dimensions = [...new Set(curves.map((one) => one.dimension))];
  return dimensions.map((dimension) => {
    const some = curves.filter((one) => one.dimension === dimension);
    return el(
      "figure",
      {},
      el("h3", {}, inline(dimension, 80)),
      legend(some.map((one) => one.model), some.map((_, i) => `m${i % 4}`)),
      dosePlot(dimension, some),
      doseTable(some),
    );
  });
}

function dosePlot(dimension, curves) {
  const height = 260;
  const present = (list) => list.filter((v) => v !== null);
  const strengths = [...new Set(curves.flatMap((one) => one.strengths))].sort((a, b) => a - b);
  const values = present(curves.flatMap((one) => [...one.mean, ...(one.low || []), ...(one.high || [])]));
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 1)];
  const [first, last] = [strengths[0] ?? 0, strengths.at(-1) ?? 1];
  const shown = strengths.filter((_, i) => i % Math.ceil(strengths.length / 12) === 0);
  const x = scale(first, last, EDGE.left, WIDE - EDGE.right, shown);
  const marks = steps(high - low).map((v) => v + low);
  const y = scale(low, high, height - EDGE.bottom, EDGE.top + 4, marks, (v) => number(v, 1));
  const path = (one, list) => one.strengths.map((s, i) => [x.to(s), list[i]]).filter((p) => p[1] !== null);
  const join = (points) => points.map(([a, b]) => `${a.toFixed(1)},${y.to(b).toFixed(1)}`).join(" ");
  const lines = curves.flatMap((one, i) => {
    const points = path(one, one.mean);
    const band =
      one.low && one.high ? [...path(one, one.high), ...path(one, one.low).reverse()] : null;
    return [
      band && svg("polygon", { points: join(band), class: `band m${i % 4}` }),
      svg("polyline", { points: join(points), class: `line m${i % 4}` }),
      points.map(([a, b]) => svg("circle", { cx: a, cy: y.to(b), r: 3.2, class: `m${i % 4}` })),
    ];
  });
  const label = `Mean rating of ${dimension} by strength of steering; the table below has the values.`;
  return plot(height, visible(label), x, y, "strength", "mean rating", lines.flat(2));
}

function doseTable(curves) {
  const rows = curves.flatMap((one) =>
    one.strengths.map((strength, i) => {
      const interval =
        one.low && one.high ? `${number(one.low[i])} to ${number(one.high[i])}` : "-";
      return [inline(one.model, 60), String(strength), number(one.mean[i]), interval];
    }),
  );
  const node = sheetTable(["model", "strength", "mean", "95% interval"], rows);
  return el("details", {}, el("summary", {}, "Values"), node);
}
