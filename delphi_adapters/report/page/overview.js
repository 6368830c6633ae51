// The overview, and how far to trust it.

function sheetTable(head, rows) {
  const numeric = head.map((_, c) =>
    rows.every((row) => typeof row[c] === "string" && /^[-+$]?[\d.,]*%?$/.test(row[c])),
  );
  const kind = (one, c) => (numeric[c] ? "num" : one instanceof Node && one.textContent.length > 40 ? "prose" : null);
  const cell = (tag, one, c, extra) => el(tag, { class: kind(one, c), ...extra }, one);
  const header = head.some((one) => one)
    ? el("thead", {}, el("tr", {}, head.map((one, c) => cell("th", visible(one), c, { scope: "col" }))))
    : null;
  const body = rows.map((row) => el("tr", {}, row.map((one, c) => cell("td", one, c))));
  return el("div", { class: "wide" }, el("table", { class: "sheet" }, header, el("tbody", {}, body)));
}

function sheet(one) {
  const rows = one.rows.map((row) =>
    row.map((value) => {
      if (typeof value !== "string") return latentLink(value.latent);
      return value.length > 40 ? said(value, 400) : visible(value);
    }),
  );
  return el(
    "section",
    { class: one.head.length > 4 ? "broad" : "" },
    el("h2", {}, inline(one.title, 120)),
    one.note ? el("p", { class: "note" }, visible(one.note)) : null,
    sheetTable(one.head, rows),
  );
}

// What was found, in sentences, before any table.
function answerOf(parts) {
  return el(
    "section",
    { class: "answer-first", "aria-label": "The answer" },
    parts.map((one) => el("p", {}, el("b", {}, said(one.lead, 400)), " ", said(one.text, 1500))),
  );
}

function overviewView() {
  const [models, ...others] = facts.overview;
  return [
    el("h1", { tabindex: "-1" }, inline(facts.title, 200)),
    el("p", { class: "note" }, visible(facts.created)),
    facts.warnings.map((text) => el("p", { class: "notice", role: "note" }, said(text))),
    facts.answer.length ? answerOf(facts.answer) : null,
    trustStrip(),
    el("p", { class: "note" }, "The list of findings as a picture, beside this file: ", facts.pictures.join(", "), "."),
    models ? sheet(models) : null,
    el(
      "section",
      {},
      el("h2", {}, "Where latents write"),
      el(
        "p",
        { class: "note" },
        "0: only into ",
        inline(facts.models[1] || "the others", 60),
        "; 1: only into ",
        inline(facts.models[0], 60),
        ". A block that may write into one model only is at an end by construction.",
      ),
      normHistogram(),
    ),
    el("div", { class: "sheets" }, others.map(sheet)),
  ];
}

const LEVELS = { bad: "bad", caution: "caution", good: "good" };
const SIGNS = { bad: "\u2715", caution: "!", good: "\u2713" };

function badge(level) {
  return el("span", { class: `badge ${level}` }, el("span", { "aria-hidden": "true" }, SIGNS[level]), ` ${LEVELS[level]}`);
}

function trustStrip() {
  const of = (level) => facts.trust.filter((one) => one.level === level);
  const parts = Object.keys(LEVELS).map((level) =>
    el("span", { class: "tally" }, badge(level), ` ${of(level).length}`),
  );
  return el(
    "p",
    { class: "strip" },
    el("a", { href: "#/trust" }, "How far to trust this"),
    " ",
    parts,
    of("bad").length ? el("span", { class: "note" }, "First: ", inline(of("bad")[0].about, 100)) : null,
  );
}

function trustView() {
  const cards = facts.trust.map((one) =>
    el(
      "li",
      { class: `card ${one.level}` },
      el("h2", {}, badge(one.level), " ", inline(one.about, 200)),
      el("p", { class: "figure" }, said(one.number, 400)),
      el("p", {}, said(one.meaning, 600)),
    ),
  );
  return [
    el("h1", { tabindex: "-1" }, "How far to trust this"),
    el(
      "p",
      { class: "note" },
      "Computed from this report's own numbers. The limits between good, caution and bad are a " +
        "judgement that says where to look; they prove nothing.",
    ),
    el("ul", { class: "cards" }, cards),
  ];
}
