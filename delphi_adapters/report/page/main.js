// Which view is shown is in the address, so that it can be shared and gone back to.

const VIEWS = [
  ["overview", "Overview"],
  ["features", "Latents"],
  ["trust", "How far to trust this"],
];
let leaving = [];
let showing = null;
let turn = 0;

function listening(target, type, handler) {
  target.addEventListener(type, handler);
  return () => target.removeEventListener(type, handler);
}

async function route() {
  const mine = ++turn;
  const [path, query] = (location.hash.slice(1) || "/overview").split("?");
  const [, view, which] = path.split("/");
  let made;
  leaving.forEach((leave) => leave());
  leaving = [];
  showing = null;
  if (view === "features") {
    const next = new URLSearchParams(query);
    if (next.toString() !== list.query.toString()) list.top = 0;
    made = featuresView(next);
  } else if (view === "feature") {
    const latent = Number(which);
    const detail = await detailOf(latent);
    if (mine !== turn) return;
    made = featureView(latent, detail);
  } else if (view === "trust") {
    made = trustView();
  } else if (view === "overview") {
    made = overviewView();
  } else {
    return; // a link inside the page
  }
  const main = document.getElementById("main");
  main.className = view;
  main.replaceChildren(...made.flat().filter((one) => one !== null));
  for (const link of document.querySelectorAll("#nav a")) {
    const own = link.dataset.view === (view === "feature" ? "features" : view);
    if (own) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = main.querySelector("h1");
  document.title = `${heading.textContent} \u00b7 ${visible(facts.title).slice(0, 120)}`;
  window.scrollTo(0, 0);
  if (showing) showing();
  if (mine > 1) heading.focus({ preventScroll: true });
}

async function start() {
  document.getElementById("name").append(inline(facts.title, 120));
  document
    .getElementById("nav")
    .append(...VIEWS.map(([view, label]) => el("a", { href: `#/${view}`, "data-view": view }, label)));
  try {
    await openTable();
  } catch (error) {
    const text = `The report could not be opened: ${error}. It needs a browser of 2023 or later.`;
    document.getElementById("main").replaceChildren(el("p", { class: "notice" }, text));
    return;
  }
  window.addEventListener("hashchange", route);
  await route();
  document.documentElement.dataset.ready = "yes";
}

start();
