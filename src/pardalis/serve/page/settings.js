// What the next request is sent with, and the form that changes it.

import { $, el } from "./dom.js";

const number = (label, help, start, min, max, step) => ({ label, help, start, min, max, step });

const FIELDS = {
  instructions: { label: "Instructions", help: "Read before the conversation, as a system text.",
    start: "", lines: true },
  reads: { label: "The model reads", start: "all",
    help: "A model with a short context, or of single captions, does better with the last message alone.",
    options: { all: "the whole conversation", last: "only the last message" } },
  temperature: number("Temperature of text",
    "0 takes the most likely word each time; higher values surprise more.", 0.7, 0, 2, 0.05),
  top_p: number("Top-p of text",
    "Choose among the most likely words that together reach this probability; 1 keeps all.",
    0.95, 0.05, 1, 0.05),
  image_temperature: number("Temperature of images",
    "Lower values give calmer images, higher ones more varied.", 0.7, 0, 2, 0.05),
  image_top_p: number("Top-p of images", "As for text, for each part of an image.",
    0.9, 0.05, 1, 0.05),
  guidance: number("Guidance of images",
    "How strictly an image follows its text; 1 is off, and small models like about 2.",
    1.5, 1, 8, 0.25),
  seed: { label: "Seed", help: "The same seed gives the same response again. Empty: a new one each time.",
    start: "", whole: true },
  max_output_tokens: { label: "Most tokens of a response",
    help: "Empty: as many as the model's context has room for.", start: "", whole: true },
  api_key: { label: "API key", help: "For a server that asks for one. It is kept in this tab only.",
    start: "", secret: true },
};

const listeners = [];
let values = starts();

function starts() {
  const all = Object.entries(FIELDS).map(([name, field]) => [name, field.start]);
  return { ...Object.fromEntries(all), model: "", mode: "both" };
}

const read = (storage, name) => {
  try {
    return storage().getItem(`pardalis.${name}`);
  } catch {
    return null;
  }
};

const write = (storage, name, value) => {
  try {
    storage().setItem(`pardalis.${name}`, value);
  } catch {
    // Settings of a browser that keeps nothing last as long as the page.
  }
};

const local = () => localStorage;
const tab = () => sessionStorage;

export const get = (name) => values[name];
export const key = () => values.api_key.trim();

export function set(name, value) {
  values[name] = value;
  const { api_key, ...others } = values;
  write(local, "settings", JSON.stringify(others));
  write(tab, "key", api_key);
  for (const listener of listeners) listener(name);
}

/** Call a function with the name of whatever changes. */
export const onChange = (listener) => listeners.push(listener);

export function restore() {
  try {
    const kept = JSON.parse(read(local, "settings") ?? "{}");
    for (const name of Object.keys(values)) {
      if (typeof kept[name] === typeof values[name]) values[name] = kept[name];
    }
  } catch {
    // What cannot be read is not used.
  }
  values.api_key = read(tab, "key") ?? "";
  fill();
  const theme = read(local, "theme") ?? "auto";
  for (const radio of document.querySelectorAll("[name=theme]")) {
    radio.checked = radio.value === theme;
    radio.addEventListener("change", () => {
      write(local, "theme", radio.value);
      if (radio.value === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = radio.value;
    });
  }
  $("defaults").addEventListener("click", () => {
    const { model, mode, api_key } = values;
    for (const [name, value] of Object.entries({ ...starts(), model, mode, api_key })) {
      set(name, value);
    }
    fill();
  });
}

/** Return the settings of images as fields of a request. */
export function imageOptions() {
  const { model, image_temperature, image_top_p, guidance } = values;
  return { ...(model && { model }), image_temperature, image_top_p, guidance };
}

/** Return the settings as fields of a request; `shift` is added to a seed that is set. */
export function responseOptions(shift = 0) {
  const { temperature, top_p, mode, instructions, seed, max_output_tokens } = values;
  return {
    ...imageOptions(), temperature, top_p,
    modalities: mode === "both" ? ["text", "image"] : [mode],
    ...(instructions.trim() && { instructions }),
    ...(seed !== "" && { seed: Number(seed) + shift }),
    ...(max_output_tokens !== "" && { max_output_tokens: Number(max_output_tokens) }),
  };
}

// ── the form ───────────────────────────────────────────────────────────────────────────────────

function fill() {
  $("fields").replaceChildren(...Object.entries(FIELDS).map(([name, field]) => row(name, field)));
}

function row(name, field) {
  const id = `setting-${name}`;
  const shown = el("output", { for: id }, String(values[name]));
  const props = { id, name, value: values[name], "aria-describedby": `${id}-help` };
  const change = (event) => {
    const { value } = event.target;
    if (field.step) {
      shown.textContent = value;
      set(name, Number(value));
    } else if (field.whole) {
      const whole = value.replace(/\D/g, "");
      event.target.value = whole;
      set(name, whole);
    } else set(name, value);
  };
  const input = field.options
    ? el("select", { ...props, onchange: change },
      ...Object.entries(field.options).map(([value, text]) =>
        el("option", { value, selected: value === values[name] }, text)))
    : field.lines
      ? el("textarea", { ...props, rows: 3, oninput: change })
      : el("input", {
        ...(field.step && { type: "range", min: field.min, max: field.max, step: field.step }),
        ...(field.whole && { inputMode: "numeric", placeholder: "automatic" }),
        ...(field.secret && { type: "password" }),
        autocomplete: "off", ...props, oninput: change,
      });
  return el("div", { class: field.step ? "setting slider" : "setting" },
    el("label", { htmlFor: id }, field.label), field.step ? shown : null, input,
    el("p", { id: `${id}-help` }, field.help));
}

/** Change a setting from elsewhere than its form. */
export function put(name, value) {
  set(name, value);
  fill();
}
