// What the file holds: facts at once, the table when it is opened, details when they are looked at.

const facts = JSON.parse(document.getElementById("facts").textContent);
const groupOf = new Map(facts.groups.flatMap((some, g) => some.map((latent) => [latent, g])));
const opened = new Map();
const GROUPS_HELD = 8;
let table = null;

async function unpacked(id) {
  const block = document.getElementById(id);
  const packed = Uint8Array.from(atob(block.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function openTable() {
  const { rows, columns } = await unpacked("table");
  for (const column of Object.values(columns)) {
    if (!column.levels) continue;
    column.values = column.values.map((place) => (place === null ? null : column.levels[place]));
  }
  const place = new Map(columns.latent.values.map((latent, i) => [latent, i]));
  table = {
    rows,
    columns,
    place,
    at: (row, name) => columns[name].values[row],
  };
}

async function detailOf(latent) {
  const group = groupOf.get(latent);
  if (group === undefined) return null;
  let held = opened.get(group);
  if (!held) {
    held = await unpacked(`details-${group}`);
    opened.set(group, held);
    if (opened.size > GROUPS_HELD) opened.delete(opened.keys().next().value);
  }
  return held.find((one) => one.latent === latent);
}

function modelOf(row) {
  const source = table.at(row, "source");
  return source === null ? "shared" : facts.models[source];
}
