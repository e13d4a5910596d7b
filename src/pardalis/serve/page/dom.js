// Elements, made without ever reading text as HTML.

export const $ = (id) => document.getElementById(id);

/** Return a new element; `props` are its properties, `on...` its listeners, others attributes. */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Return a button that shows an icon; `label` is what a screen reader says. */
export function iconButton(name, label, onclick, props = {}) {
  return el("button", {
    type: "button", class: "bare small", "aria-label": label, title: label, onclick, ...props,
  }, icon(name));
}

/** Say something to a screen reader. */
export function announce(text) {
  $("live").textContent = text;
}

/** Show one sentence in an element, with something to do about it; no text clears it. */
export function show(place, text, action = null) {
  if (!text) {
    place.replaceChildren();
    return;
  }
  place.replaceChildren(el("p", {}, text));
  if (action) {
    place.append(el("button", { type: "button", class: "link", onclick: action.run }, action.label));
  }
  place.append(iconButton("close", "Dismiss", () => place.replaceChildren()));
}

/** Let a text field be as tall as its text. */
export function grow(field) {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, window.innerHeight * 0.4)}px`;
}

/** Save a text or a data URL as a file. */
export function download(name, content, type) {
  const url = type ? URL.createObjectURL(new Blob([content], { type })) : content;
  el("a", { href: url, download: name }).click();
  if (type) setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Return a name for a file, of a text. */
export function fileName(text, ending) {
  const plain = text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  return `${plain.slice(0, 60) || "pardalis"}.${ending}`;
}
