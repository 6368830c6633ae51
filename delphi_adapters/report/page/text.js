// Text of models and corpora becomes text nodes and nothing else; what cannot be seen is spelt out.

const CUT = 4000;
const TOKEN_CUT = 200;
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e0fff}\p{Cs}]/gu;

function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(UNSEEN, (c) => {
    return "\u27e8U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
  });
}

function shortened(text, limit) {
  if (text.length <= limit) return [visible(text), 0];
  const end = /[\ud800-\udbff]/.test(text[limit - 1]) ? limit - 1 : limit;
  return [visible(text.slice(0, end)), text.length - end];
}

function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined));
  return node;
}

// A text that somebody else wrote, whole lines, isolated from the direction of its surroundings.
function said(text, limit = CUT) {
  const [shown, left] = shortened(text, limit);
  const words = el("bdi", { class: "said" }, shown);
  if (!left) return words;
  const more = el(
    "button",
    {
      type: "button",
      class: "more",
      click: () => {
        words.textContent = visible(text);
        more.remove();
      },
    },
    `show ${count(left)} more characters`,
  );
  return el("span", {}, words, " ", more);
}

function inline(text, limit = 300) {
  const [shown, left] = shortened(text, limit);
  return el("bdi", {}, left ? `${shown}\u2026` : shown);
}

function count(value) {
  return Math.round(value).toLocaleString("en-US");
}

function number(value, digits = 2) {
  if (value === null || value === undefined) return "-";
  if (Number.isInteger(value) && Math.abs(value) >= 10) return count(value);
  if (value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits) return value.toExponential(1);
  return value.toLocaleString("en-US", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

function latentLink(latent) {
  return el("a", { href: `#/feature/${latent}` }, String(latent));
}
