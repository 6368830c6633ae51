// The page of one latent: every result beside what is found where nothing is to be found.

const CONTEXTS = 4;
const HEATS = 8;

function section(title, ...children) {
  return el("section", {}, el("h2", {}, title), children);
}

function featureView(latent, detail) {
  const row = table.place.get(latent);
  if (row === undefined) {
    return [el("h1", { tabindex: "-1" }, `No latent ${latent}`), el("p", {}, "The report has no such latent.")];
  }
  const get = (name) => table.at(row, name);
  return [
    steppers(row),
    el("h1", { tabindex: "-1" }, `Latent ${latent}`),
    chips(row, get),
    descriptionOf(get),
    facts.judged ? explanationOf(get, detail) : null,
    resultsOf(get),
    detail ? cardOf(detail.card) : null,
    detail ? null : el("p", { class: "note" }, "No texts and answers were kept for this latent."),
    detail && detail.outputs ? outputsOf(detail.outputs) : null,
    detail && detail.judgements.length ? judgementsOf(detail.judgements) : null,
    detail && detail.curves.length ? section("Dose and response", dosePlots(detail.curves)) : null,
    detail && detail.contexts.length ? contextsOf(detail.contexts) : null,
    filterOf(get, detail),
    detail && detail.duplicates.length ? duplicatesOf(detail.duplicates) : null,
    columnsOf(row),
  ];
}

function steppers(row) {
  if (!list.order.length) arrange();
  const place = list.order.indexOf(row);
  const link = (at, label) => {
    const other = place < 0 ? undefined : list.order[at];
    if (other === undefined) return el("span", { class: "off" }, label);
    return el("a", { href: `#/feature/${table.at(other, "latent")}` }, label);
  };
  return el(
    "nav",
    { class: "steps", "aria-label": "Latents" },
    el("a", { href: featuresHash() }, "All latents"),
    link(place - 1, "Previous"),
    link(place + 1, "Next"),
    place < 0 ? null : el("span", { class: "note" }, `${count(place + 1)} of ${count(list.order.length)}`),
  );
}

function chips(row, get) {
  const chip = (text, kind = "") => el("li", { class: `chip ${kind}` }, inline(text, 80));
  const source = get("source");
  const verdict = get("filter_verdict");
  return el(
    "ul",
    { class: "chips" },
    chip(source === null ? "shared by its norm" : `exclusive to ${modelOf(row)} by its norm`, source === null ? "" : `m${source % 4}`),
    chip(`block: ${get("partition")}`),
    !facts.judged ? null : get("harmful") === null ? chip("no flag asked or read") : get("harmful") ? chip("flagged", "flagged") : chip("not flagged"),
    get("category") ? chip(get("category")) : null,
    verdict ? chip(`filter: ${verdict.replaceAll("_", " ")}`) : null,
    get("interpretable") === null ? null : chip(get("interpretable") ? "interpretable" : "not interpretable"),
    get("dead") ? chip("dead", "flagged") : null,
  );
}

function descriptionOf(get) {
  const model = (s) => facts.models[s] || `model ${s}`;
  const rows = [
    ["Fires on", get("fires_on")],
    ["Words around it", get("characteristic_words")],
    ...[0, 1].flatMap((s) => [
      [`Promotes in ${model(s)}`, get(`promoted_${s}`)],
      [`Suppresses in ${model(s)}`, get(`suppressed_${s}`)],
    ]),
  ].filter(([, text]) => text !== null);
  if (!rows.length) return facts.judged ? null : section("Words and tokens", el("p", {}, "It was not described."));
  return section(
    "Words and tokens",
    el(
      "p",
      { class: "note" },
      "Counted in its strongest texts against the corpus, and read off the unembedding, as if no later layer changed it.",
    ),
    sheetTable(["", ""], rows.map(([what, text]) => [inline(what, 100), said(text, 600)])),
  );
}

function explanationOf(get, detail) {
  const text = get("explanation");
  const reason = get("reason");
  return section(
    "Explanation",
    el("p", { class: "explanation" }, text === null ? "None was given." : said(text)),
    reason ? el("p", {}, el("b", {}, get("harmful") ? "Flagged: " : "Not flagged: "), said(reason)) : null,
    detail && detail.flag_raw
      ? el("details", {}, el("summary", {}, "The judge's whole answer"), el("p", {}, said(detail.flag_raw)))
      : null,
  );
}

function cardOf(lines) {
  return section(
    "What is known of it",
    el("p", { class: "note" }, "Each number with its 95% interval, and what nobody looked at."),
    sheetTable(["", ""], lines.map(([what, text]) => [inline(what, 60), said(text, 1000)])),
  );
}

function resultsOf(get) {
  const source = get("source");
  const nulls = source === null ? null : facts.nulls[source];
  const beside = (kind, what, value) => {
    const values = nulls ? nulls[kind][what] : [];
    if (!values.length) return "-";
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const range = `${number(mean)} (${number(Math.min(...values))} to ${number(Math.max(...values))})`;
    if (value === null || what.endsWith("spread")) return `${range} of ${values.length}`;
    const low = what === "likeness";
    const beyond = values.filter((v) => (low ? v <= value : v >= value)).length;
    return `${range}; ${beyond} of ${values.length} as ${low ? "low" : "high"}`;
  };
  const judged = [
    ["Exclusivity, 1 to 5", "exclusivity", "score"],
    ["Exclusivity, judge blinded", "exclusivity_blinded", "blinded_score"],
    ["Its spread over prompts", "exclusivity_spread", "spread"],
    ["Clarity of its effect, 1 to 5", "steering_interpretability", "interpretability"],
  ];
  const unjudged = [
    ["Likeness of effects, -1 to 1", "likeness", "likeness"],
    ["Its spread over prompts", "likeness_spread", "likeness_spread"],
    ["Effect on its own model, nats", "effect", "effect"],
  ];
  const scored = (facts.judged ? judged : unjudged).map(([label, name, what]) => {
    const value = get(name);
    return [label, number(value), beside("shared", what, value), beside("random", what, value)];
  });
  const detection = get("detection_score");
  const why = get("not_scorable");
  const rest = !facts.judged ? [] : [
    [
      "Detection score",
      detection === null ? (why ? said(`not scorable: ${why}`, 200) : "-") : number(detection),
      "0.50 by chance",
      "0.50 by chance",
    ],
    ...[["detection_held_out", "ranks 11 to 20"], ["detection_quantiles", "weaker passages"]].map(([name, where]) => [
      `Detection, ${where}`,
      number(get(name)),
      "0.50 by chance",
      "0.50 by chance",
    ]),
  ];
  const status = get("exclusivity_status");
  const rates = facts.kept_by_chance.map((one) => `${one.what}: ${count(one.count)} of ${count(one.of)}`);
  return section(
    "Results, beside what is not exclusive",
    sheetTable(["result", "this latent", "shared latents of the same model", "random directions"], [...scored, ...rest]),
    el(
      "p",
      { class: "note" },
      status
        ? `Exclusivity: ${status.replaceAll("_", " ")}. `
        : facts.judged
          ? "Its exclusivity was not asked for. "
          : get("likeness") === null
            ? "Its effects were not compared. "
            : "Likeness 1: both models' next words change alike; 0: they have nothing in common. ",
      get("sampled") ? `Why it was looked at: ${visible(get("sampled"))}. ` : "",
      "Means, with the range in brackets.",
    ),
    rates.length ? el("p", { class: "note" }, "Where nothing differs: ", said(rates.join("; "), 1000)) : null,
  );
}

function outputsOf(outputs) {
  const { prompts, strengths, models, answers, note } = outputs;
  let [p, k] = [0, Math.max(strengths.length - 1, 0)];
  const told = el("output", { class: "strength" });
  const sides = models.map((name, m) => {
    const text = el("div", { class: "answer" });
    return [el("div", { class: `side m${m % 4}` }, el("h3", {}, inline(name, 80)), text), text];
  });
  const slider = el("input", {
    type: "range",
    min: 0,
    max: Math.max(strengths.length - 1, 0),
    step: 1,
    value: k,
    "aria-label": "Strength",
    input: (event) => show(p, Number(event.target.value)),
  });
  const step = (by, label, sign) =>
    el("button", { type: "button", "aria-label": label, click: () => show(p, k + by) }, sign);
  const select = el(
    "select",
    { change: (event) => show(Number(event.target.value), k) },
    prompts.map((text, i) => el("option", { value: i }, shortened(text, 80)[0])),
  );
  const prompt = el("p", { class: "prompt" });

  function show(prompt_, strength) {
    p = prompt_;
    k = Math.min(Math.max(strength, 0), strengths.length - 1);
    slider.value = k;
    const label = `strength ${strengths[k]}`;
    slider.setAttribute("aria-valuetext", label);
    told.textContent = strengths[k] === 0 ? `${label} (not steered)` : label;
    prompt.replaceChildren(el("b", {}, "Prompt: "), said(prompts[p], 1000));
    sides.forEach(([, text], m) => text.replaceChildren(said(answers[m]?.[p]?.[k] ?? "(no answer)")));
  }

  if (prompts.length && strengths.length) show(0, k);
  return section(
    "Steered answers",
    el(
      "p",
      { class: "note" },
      "Left: the model that the direction is from. Right: the other one, with the direction carried " +
        "over by the linear map.",
    ),
    note ? el("p", { class: "note" }, said(note, 1000)) : null,
    el(
      "div",
      { class: "controls steering" },
      el("label", {}, "Prompt ", select),
      el("span", { class: "stepper" }, step(-1, "Weaker", "\u2212"), slider, step(1, "Stronger", "+"), told),
    ),
    prompt,
    el("div", { class: "sides" }, sides.map(([node]) => node)),
  );
}

function judgementsOf(judgements) {
  const prompts = [...new Set(judgements.map((one) => one.prompt))];
  return section(
    "What the judge says of the answers",
    prompts.map((prompt) =>
      el(
        "div",
        { class: "judged" },
        el("h3", {}, said(prompt, 300)),
        el(
          "dl",
          {},
          judgements
            .filter((one) => one.prompt === prompt)
            .flatMap((one) => [
              el("dt", {}, inline(one.question, 60), ": ", el("b", {}, one.score === null ? inline(one.status, 40) : `${one.score} of 5`)),
              el("dd", {}, one.reason ? said(one.reason) : "No reason was given."),
            ]),
        ),
      ),
    ),
    el("p", { class: "note" }, "Exclusivity is 6 less the similarity."),
  );
}

function contextsOf(contexts) {
  const most = Math.max(...contexts.flatMap((one) => one.activations.flat()), 1e-30);
  const holder = el("ol", { class: "contexts" });
  const add = (some) => holder.append(...some.map((one) => contextOf(one, most)));
  add(contexts.slice(0, CONTEXTS));
  const rest = contexts.slice(CONTEXTS);
  const more = el(
    "button",
    {
      type: "button",
      click: () => {
        add(rest);
        more.remove();
      },
    },
    `Show ${rest.length} more`,
  );
  return section(
    "Texts on which it is most active",
    el("p", { class: "note" }, "In each model's own tokens; the darker, the more active. Point at a token for its activation."),
    holder,
    rest.length ? more : null,
  );
}

function contextOf(context, most) {
  const where = context.text_id === null ? "" : `, text ${context.text_id}`;
  const said = context.said ? `, ${context.said}` : "";
  const alike = context.tokens.length === 1 && facts.models.length > 1;
  return el(
    "li",
    {},
    el("p", { class: "note" }, `activation ${number(context.activation)}${where}${said}`),
    context.tokens.map((tokens, s) =>
      el(
        "div",
        { class: "tokens" },
        alike
          ? el("span", { class: "of" }, "all models")
          : el("span", { class: `of m${s % 4}` }, inline(facts.models[s] ?? String(s), 40)),
        el("bdi", { class: "said" }, tokens.map((text, t) => tokenOf(text, context.activations[s]?.[t] ?? 0, most))),
      ),
    ),
  );
}

function tokenOf(text, activation, most) {
  const [shown, left] = shortened(text, TOKEN_CUT);
  const words = shown.replaceAll("\n", "\u21b5\n") + (left ? `\u2026 [${count(left)} more characters]` : "");
  if (!(activation > 0)) return el("bdi", {}, words);
  const heat = Math.max(Math.ceil((activation / most) * HEATS), 1);
  return el("bdi", { class: `heat h${Math.min(heat, HEATS)}`, title: `activation ${number(activation)}` }, words);
}

function filterOf(get, detail) {
  const scores = Object.entries(detail ? detail.filter : {});
  if (!get("filter_verdict") && !scores.length) return null;
  const rows = scores.map(([name, value]) => [
    inline(name.replaceAll("_", " "), 60),
    typeof value === "number" ? number(value, 3) : said(String(value), 400),
  ]);
  return section(
    "The false-exclusive filter",
    el("p", { class: "note" }, "Kept latents are told by their own model's activations and not by the other's. Of predictable ones the other model tells where they fire, which does not say that it does the same there. Scaling ratios (Minder et al. 2025) say how much of the latent the other model has in what is not reconstructed, and in what is."),
    rows.length ? sheetTable(["", ""], rows) : el("p", {}, inline(get("filter_verdict").replaceAll("_", " "))),
  );
}

function duplicatesOf(duplicates) {
  const rows = duplicates.map((one) => [
    latentLink(one.latent),
    one.source === null ? "shared" : inline(facts.models[one.source] ?? String(one.source), 60),
    number(one.correlation),
    table.place.has(one.latent) ? inline(wordsOf(one.latent)) : "",
  ]);
  return section("Latents that fire together with it", sheetTable(["latent", "exclusive to", "correlation", "about"], rows));
}

function wordsOf(latent) {
  const row = table.place.get(latent);
  return table.at(row, "explanation") ?? table.at(row, "characteristic_words") ?? table.at(row, "fires_on") ?? "";
}

function columnsOf(row) {
  const items = Object.entries(table.columns).flatMap(([name, column]) => {
    const value = column.values[row];
    const shown = typeof value === "number" ? number(value, 4) : value === null ? "-" : said(String(value), 400);
    return [el("dt", {}, name.replaceAll("_", " "), el("small", {}, visible(column.meaning))), el("dd", {}, shown)];
  });
  return section("Everything in the table", el("details", {}, el("summary", {}, "All columns"), el("dl", { class: "columns" }, items)));
}
