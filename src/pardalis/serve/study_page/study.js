// Shows one item after the other and sends what the rater says of it.

import { $, el } from "./look/dom.js";

const STORED = "pardalis.rater";
let rater = "";
let number = 0; // of the item that is shown
let state = { items: 0, judged: [] };

/** Return the content of an answer of the server; its errors are sentences. */
async function ask(path, body = null) {
  const options = body && {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options ?? {});
  } catch {
    throw new Error("The server cannot be reached; try again in a moment.");
  }
  const content = await response.json();
  if (!response.ok) throw new Error(content.error.message);
  return content;
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

function fill(place, parts, name) {
  let images = 0;
  const shown = parts.map((part) => "text" in part
    ? document.createTextNode(part.text)
    : el("img", { src: `images/${part.image}`, alt: `Image ${(images += 1)} of the ${name}` }));
  const empty = parts.every((part) => part.text?.trim() === "");
  place.replaceChildren(...(empty ? [el("p", { class: "empty" }, "(empty)")] : shown));
}

function open(id) {
  for (const name of ["start", "item", "done"]) $(name).hidden = name !== id;
  $("progress").hidden = id === "start";
  $("count").textContent = `${state.judged.length} of ${state.items} judged`;
  $("bar").max = state.items;
  $("bar").value = state.judged.length;
  $(id === "item" ? "prompt-title" : "done-title").focus();
}

async function show(index) {
  const item = await ask(`items/${index}`);
  number = index;
  $("item").reset();
  $("choice").disabled = true;
  fill($("prompt"), item.prompt, "prompt");
  fill($("left"), item.left, "left answer");
  fill($("right"), item.right, "right answer");
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
  attempt(async () => {
    state = await ask(`progress?rater=${encodeURIComponent($("rater").value)}`);
    rater = $("rater").value;
    try {
      localStorage.setItem(STORED, rater);
    } catch {
      // A browser that keeps nothing asks for the name again.
    }
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

try {
  $("rater").value = localStorage.getItem(STORED) ?? "";
} catch {
  // As above.
}
$("rater").focus();
