// Shows one item after the other and sends what the rater says of it.

import { $, el } from "./look/dom.js";

const STORED = "pardalis.rater";
const KEY = "pardalis.key";
let key = ""; // opens the study, if it asks for one
let rater = "";
let number = 0; // of the item that is shown
let state = { items: 0, judged: [] };

/** Return an answer of the server; its errors are sentences. */
async function request(path, body = null) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server cannot be reached; try again in a moment.");
  }
  if (response.status === 401) {
    $("with-key").hidden = false;
    open("start");
    $("key").focus();
    throw new Error("This study needs its key; enter it, or open the link that you were given.");
  }
  if (!response.ok) throw new Error((await response.json()).error.message);
  return response;
}

/** Return the key of a link, which may be percent-encoded, or stand there as it is. */
function decoded(raw = "") {
  try {
    return decodeURIComponent(raw);
  } catch {
    return raw;
  }
}

async function ask(path, body = null) {
  return (await request(path, body)).json();
}

/** Run what a rater has asked for; what goes wrong is shown, and nothing is lost. */
async function attempt(work) {
  $("notice").textContent = "";
  for (const button of document.querySelectorAll("button")) button.disabled = true;
  try {
    await work();
  } catch (error) {
    $("notice").textContent = error.message;
  } finally {
    for (const button of document.querySelectorAll("button")) button.disabled = false;
    $("back").disabled = number === 0;
  }
}

/** Return an image of the study; an `img` alone would send no key. */
async function image(name, alt) {
  const url = URL.createObjectURL(await (await request(`images/${name}`)).blob());
  return el("img", { src: url, alt, onload: () => URL.revokeObjectURL(url) });
}

async function content(parts, name) {
  let images = 0;
  const shown = await Promise.all(parts.map((part) => "text" in part
    ? document.createTextNode(part.text)
    : image(part.image, `Image ${(images += 1)} of the ${name}`)));
  const empty = parts.every((part) => part.text?.trim() === "");
  return empty ? [el("p", { class: "empty" }, "(empty)")] : shown;
}

/** Keep a value in the browser; one that keeps nothing asks for it again. */
function keep(storage, name, value) {
  try {
    storage.setItem(name, value);
  } catch {
    // It stays for as long as the page does.
  }
}

function kept(storage, name) {
  try {
    return storage.getItem(name) ?? "";
  } catch {
    return "";
  }
}

function open(id) {
  for (const name of ["start", "item", "done"]) $(name).hidden = name !== id;
  $("progress").hidden = id === "start";
  if (id === "start") return;
  $("count").textContent = `${state.judged.length} of ${state.items} judged`;
  $("bar").max = state.items;
  $("bar").value = state.judged.length;
  $(id === "item" ? "prompt-title" : "done-title").focus();
}

async function show(index) {
  const item = await ask(`items/${index}`);
  const places = { prompt: "prompt", left: "left answer", right: "right answer" };
  const shown = await Promise.all(
    Object.entries(places).map(([id, name]) => content(item[id], name)),
  );
  number = index;
  $("item").reset();
  $("choice").disabled = true;
  Object.keys(places).forEach((id, n) => $(id).replaceChildren(...shown[n]));
  $("prompt-title").textContent = `Prompt ${index + 1}`;
  open("item");
  window.scrollTo(0, 0);
}

/** Show the first item from an index on that is not judged, or say that there is none. */
async function proceed(from) {
  const judged = new Set(state.judged);
  const left = [...Array(state.items).keys()].filter((index) => !judged.has(index));
  const next = left.find((index) => index >= from) ?? left[0];
  if (next === undefined) open("done");
  else await show(next);
}

$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim() || key;
  attempt(async () => {
    state = await ask(`progress?rater=${encodeURIComponent($("rater").value)}`);
    rater = $("rater").value;
    keep(localStorage, STORED, rater);
    keep(sessionStorage, KEY, key);
    await proceed(0);
  });
});

$("item").addEventListener("change", () => {
  const said = new FormData($("item"));
  $("choice").disabled = !(said.has("left") && said.has("right"));
});

$("item").addEventListener("submit", (event) => {
  event.preventDefault();
  const said = new FormData($("item"));
  attempt(async () => {
    state = await ask("judgements", { rater, item: number, ...Object.fromEntries(said) });
    await proceed(number + 1);
  });
});

$("back").addEventListener("click", () => attempt(() => show(number - 1)));
$("review").addEventListener("click", () => attempt(() => show(state.items - 1)));

document.addEventListener("keydown", (event) => {
  if ($("item").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const input = document.querySelector(`[data-key="${CSS.escape(event.key)}"]:enabled`);
  if (input) {
    input.click();
    input.focus();
  } else if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    if (!event.repeat) $("item").requestSubmit($("next"));
  }
});

// The key of a link stands behind #, which no server or log is sent; it leaves the address bar.
const linked = decoded(location.hash.match(/^#key=(.*)$/)?.[1]);
if (linked) history.replaceState(null, "", location.pathname);
key = linked || kept(sessionStorage, KEY);
$("rater").value = kept(localStorage, STORED);
$("rater").focus();
