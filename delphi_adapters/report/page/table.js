// The table of all latents. Only the rows in sight are in the document.

const ROW = 36;
const BEYOND = 8;
const PRINTED = 200;
const JUDGED = [
  ["explanation", "explanation"],
  ["harmful", "flag"],
  ["category", "category"],
  ["exclusivity", "exclusivity"],
  ["exclusivity_blinded", "blinded"],
  ["detection_score", "detection"],
];
const UNJUDGED = [
  ["fires_on", "fires on"],
  ["characteristic_words", "words around"],
  ["promoted_0", "promotes (1)"],
  ["promoted_1", "promotes (2)"],
  ["likeness", "likeness"],
  ["effect", "effect"],
];
const MAIN = [
  ["latent", "latent"],
  ["source", "model"],
  ...(facts.judged ? JUDGED : UNJUDGED),
  ["filter_verdict", "filter"],
  ["filter_score", "filter score"],
  ["relative_decoder_norm", "norm share"],
  ["firings", "firings"],
];
const NARROW = facts.judged ? ["latent", "explanation", "exclusivity", "harmful"] : ["latent", "characteristic_words", "likeness"];
const DESCRIBING = ["fires_on", "characteristic_words", "promoted_0", "promoted_1", "suppressed_0", "suppressed_1"];
const WIDE_ONES = new Set(["explanation", "reason", ...DESCRIBING]);
const CHECKS = [
  ["flagged", "flagged", (row) => table.at(row, "harmful") === true],
  ["kept", "kept by the filter", (row) => table.at(row, "filter_verdict") === "kept"],
  ["interpretable", "interpretable", (row) => table.at(row, "interpretable") === true],
  ["scored", "with exclusivity", (row) => table.at(row, "exclusivity") !== null],
  ["compared", "compared in both models", (row) => table.at(row, "likeness") !== null],
  ["alive", "not dead", (row) => table.at(row, "dead") !== true],
].filter(([name]) => !(facts.judged ? ["compared"] : ["flagged", "interpretable", "scored"]).includes(name));

const keysOf = new Map();
let haystack = null;
const list = { query: new URLSearchParams(), order: [], top: 0 };

function sortKeys(name) {
  if (!keysOf.has(name)) {
    const values = table.columns[name].values;
    const keys =
      name === "source"
        ? values.map((s) => (s === null ? "\uffff" : facts.models[s].toLowerCase()))
        : values.map((v) => (typeof v === "string" ? v.toLowerCase() : v === null ? null : Number(v)));
    keysOf.set(name, keys);
  }
  return keysOf.get(name);
}

function firstDirection(name) {
  const kind = table.columns[name].kind;
  return kind === "string" || ["latent", "source", "likeness"].includes(name) ? "asc" : "desc";
}

function defaultSort() {
  const given = (name) => table.columns[name].values.some((v) => v !== null);
  return ["exclusivity", "filter_score", "likeness"].find(given) || "latent";
}

function sorted(rows, name, direction) {
  const keys = sortKeys(name);
  const score = table.columns.filter_score.values;
  const sign = direction === "asc" ? 1 : -1;
  const present = rows.filter((row) => keys[row] !== null);
  const absent = rows.filter((row) => keys[row] === null);
  const likeness = table.columns.likeness.values;
  const tied = (a, b) =>
    (score[b] ?? -1) - (score[a] ?? -1) || (likeness[a] ?? 2) - (likeness[b] ?? 2) || a - b;
  present.sort((a, b) => (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : tied(a, b)));
  return present.concat(absent.sort(tied));
}

function matches(query) {
  const text = (query.get("q") || "").trim().toLowerCase();
  const part = query.get("of") || "";
  const tests = CHECKS.filter(([name]) => query.get(name)).map((check) => check[2]);
  if (part.startsWith("m:")) {
    const source = part === "m:shared" ? null : Number(part.slice(2));
    tests.push((row) => table.at(row, "source") === source);
  } else if (part.startsWith("p:")) {
    tests.push((row) => table.at(row, "partition") === part.slice(2));
  }
  if (text) {
    haystack ??= Array.from({ length: table.rows }, (_, row) =>
      ["explanation", "reason", "category", ...DESCRIBING].map((name) => table.at(row, name) || "").join("\n").toLowerCase(),
    );
    const latent = /^#?\d+$/.test(text) ? Number(text.replace("#", "")) : null;
    tests.push((row) => haystack[row].includes(text) || table.at(row, "latent") === latent);
  }
  const rows = [];
  for (let row = 0; row < table.rows; row++) if (tests.every((test) => test(row))) rows.push(row);
  return rows;
}

function arrange() {
  const name = table.columns[list.query.get("sort")] ? list.query.get("sort") : defaultSort();
  list.sort = name;
  list.direction = ["asc", "desc"].includes(list.query.get("dir")) ? list.query.get("dir") : firstDirection(name);
  list.order = sorted(matches(list.query), name, list.direction);
}

function featuresHash() {
  const text = list.query.toString();
  return "#/features" + (text ? `?${text}` : "");
}

function columnsShown() {
  const all = list.query.get("columns") === "all";
  if (!all && matchMedia("(max-width: 700px)").matches) return MAIN.filter(([name]) => NARROW.includes(name));
  if (!all) return MAIN;
  const rest = Object.keys(table.columns).filter((name) => !MAIN.some(([own]) => own === name));
  return [...MAIN, ...rest.map((name) => [name, name.replaceAll("_", " ")])];
}

function cellOf(row, name) {
  const value = table.at(row, name);
  if (name === "latent") return latentLink(value);
  if (name === "source") return inline(modelOf(row), 60);
  if (name === "harmful") return value ? el("span", { class: "flag" }, "flagged") : value === false ? "no" : "";
  if (value === null) return "";
  if (typeof value === "string") return inline(name === "filter_verdict" ? value.replaceAll("_", " ") : value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return table.columns[name].kind === "int64" ? count(value) : number(value);
}

// What a narrow cell cuts off is shown where one points at it.
function wholeOf(row, name) {
  const value = name === "source" ? modelOf(row) : table.at(row, name);
  return typeof value === "string" ? shortened(value, 600)[0] : null;
}

function columnClass(name) {
  if (WIDE_ONES.has(name)) return "wide-column";
  const words = table.columns[name].kind === "string" || name === "source" || name === "harmful";
  return `${words ? "text-column" : "num"} c-${name}`;
}

function featuresView(query) {
  list.query = query;
  const columns = columnsShown();
  const body = el("tbody", {});
  const heads = new Map();
  const told = el("p", { class: "note", role: "status" });
  const grid = el("table", {
    class: `features ${list.query.get("columns") === "all" ? "all" : columns.length === MAIN.length ? "main" : "narrow"}`,
    "aria-label": "Latents",
  });
  const view = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of latents" }, grid);
  let range = [-1, -1];

  const rowOf = (row, place) =>
    el(
      "tr",
      { "aria-rowindex": place + 2 },
      columns.map(([name]) =>
        el("td", { class: columnClass(name), title: wholeOf(row, name) }, cellOf(row, name)),
      ),
    );

  const spacer = (rows) => {
    const node = el("tr", { class: "spacer", "aria-hidden": "true" }, el("td", { colspan: columns.length }));
    node.firstChild.style.height = `${rows * ROW}px`;
    return node;
  };

  function draw(anew, all = 0) {
    const seen = Math.min(Math.ceil((view.clientHeight || 800) / ROW), PRINTED);
    const first = all ? 0 : Math.max(Math.floor(view.scrollTop / ROW) - BEYOND, 0);
    const last = Math.min(all || first + seen + 2 * BEYOND, list.order.length);
    if (!anew && first === range[0] && last === range[1]) return;
    range = [first, last];
    const rows = list.order.slice(first, last).map((row, i) => rowOf(row, first + i));
    body.replaceChildren(...(all ? rows : [spacer(first), ...rows, spacer(list.order.length - last)]));
  }

  function update(top = 0) {
    arrange();
    told.textContent = `${count(list.order.length)} of ${count(table.rows)} latents`;
    grid.setAttribute("aria-rowcount", list.order.length + 1);
    for (const [name, head] of heads) {
      const own = name === list.sort;
      if (own) head.setAttribute("aria-sort", list.direction === "asc" ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
    draw(true);
    view.scrollTop = list.top = top;
    draw(true);
  }

  function set(name, value) {
    if (value) list.query.set(name, value);
    else list.query.delete(name);
    history.replaceState(null, "", featuresHash());
    update();
  }

  function sortBy(name) {
    const turned = list.direction === "asc" ? "desc" : "asc";
    list.query.set("dir", name === list.sort ? turned : firstDirection(name));
    set("sort", name);
  }

  for (const [name, label] of columns) {
    const meaning = table.columns[name].meaning;
    const button = el("button", { type: "button", title: meaning, click: () => sortBy(name) }, label);
    heads.set(name, el("th", { scope: "col", class: columnClass(name), "data-column": name }, button));
  }
  grid.append(el("thead", {}, el("tr", {}, [...heads.values()])), body);
  let waiting = false;
  view.addEventListener("scroll", () => {
    list.top = view.scrollTop;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw(false);
    });
  });
  leaving.push(
    listening(window, "resize", () => draw(true)),
    listening(window, "beforeprint", () => {
      draw(true, Math.min(PRINTED, list.order.length));
      const all = list.order.length <= PRINTED;
      told.textContent += all ? "" : `; the first ${PRINTED} are printed, report.md and features.parquet have all`;
    }),
    listening(window, "afterprint", () => update(list.top)),
  );
  showing = () => update(list.top);
  return [el("h1", { tabindex: "-1" }, "Latents"), controls(set), told, view];
}

function controls(set) {
  const query = list.query;
  const option = (value, label) =>
    el("option", { value, selected: query.get("of") === value }, visible(label));
  const partitions = [...new Set(table.columns.partition.values)];
  const search = el("input", {
    type: "search",
    value: query.get("q") || "",
    placeholder: "words or a latent's number",
    input: (event) => set("q", event.target.value),
  });
  const select = el(
    "select",
    { change: (event) => set("of", event.target.value) },
    option("", "all"),
    el(
      "optgroup",
      { label: "exclusive by norm" },
      facts.models.map((name, s) => option(`m:${s}`, name)),
      option("m:shared", "none (shared)"),
    ),
    el("optgroup", { label: "block of the dictionary" }, partitions.map((name) => option(`p:${name}`, name))),
  );
  const checks = CHECKS.map(([name, label]) => {
    const change = (event) => set(name, event.target.checked ? "1" : "");
    return el("label", { class: "check" }, el("input", { type: "checkbox", name, checked: Boolean(query.get(name)), change }), " ", label);
  });
  const all = query.get("columns") === "all";
  const turn = () => {
    set("columns", all ? "" : "all");
    route();
  };
  return el(
    "form",
    { class: "controls", submit: (event) => event.preventDefault() },
    el("label", {}, "Search ", search),
    el("label", {}, "Which ", select),
    el("fieldset", {}, el("legend", { class: "hidden" }, "Only latents that are"), checks),
    el("button", { type: "button", "aria-pressed": String(all), click: turn }, all ? "Fewer columns" : "All columns"),
  );
}
