// One text with several seeds, side by side.

import { ApiError, stream } from "./api.js";
import { $, announce, el, grow, show } from "./dom.js";
import { ImageView, view } from "./images.js";
import * as settings from "./settings.js";

const AT_ONCE = 4; // a browser opens six connections to a server, and the page needs some

let controller = null;

export function startGallery() {
  const prompt = $("gallery-prompt");
  prompt.addEventListener("input", () => grow(prompt));
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("gallery-form").requestSubmit();
  });
  $("gallery-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!controller && prompt.value.trim()) generate(prompt.value.trim());
  });
  $("gallery-stop").addEventListener("click", () => controller?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (!$("gallery").hidden) controller?.abort();
  });
}

async function generate(prompt) {
  const first = Number($("gallery-seed").value) || 0;
  const seeds = Array.from({ length: Number($("gallery-count").value) }, (_, n) => first + n);
  const body = { ...settings.imageOptions(), prompt, chat: $("gallery-chat").checked };
  const images = seeds.map((seed) => new Seeded(prompt, seed, body.model, () => open(images, seed)));
  const list = el("ul", { class: "tiles" }, ...images.map((image) => image.element));
  const heading = el("h2", { dir: "auto" }, prompt);
  $("gallery-results").querySelector(".hint")?.remove();
  $("gallery-results").prepend(el("section", { class: "series" }, heading, list));
  show($("gallery-notice"), "");
  controller = new AbortController();
  buttons();
  announce(`${seeds.length} images begin.`);
  let failure = null;
  const waiting = [...images];
  const work = async () => {
    while (waiting.length && !controller.signal.aborted && !failure) {
      const image = waiting.shift();
      try {
        await image.write(body, controller.signal);
      } catch (error) {
        if (!controller.signal.aborted) failure = error;
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  for (const image of images) image.end();
  const isComplete = images.every((image) => image.part.done);
  if (isComplete) $("gallery-seed").value = first + seeds.length; // the next ones are others
  controller = null;
  buttons();
  const whole = images.filter((image) => image.part.done).length;
  announce(`${whole} of ${images.length} images are complete.`);
  if (failure) {
    show($("gallery-notice"), failure.message, failure.kind === "key"
      ? { label: "Open settings", run: () => $("open-settings").click() }
      : { label: "Try again", run: () => $("gallery-form").requestSubmit() });
  }
}

function buttons() {
  $("gallery-go").hidden = controller !== null;
  $("gallery-stop").hidden = controller === null;
}

function open(images, seed) {
  const whole = images.filter((image) => image.part.done);
  const number = whole.findIndex((image) => image.seed === seed);
  view(whole.map((image) => ({ url: image.part.url, text: image.prompt,
    facts: [image.model, `seed ${image.seed}`].filter(Boolean).join(", ") })), number);
}

/** An image of a seed. */
class Seeded {
  constructor(prompt, seed, model, open) {
    Object.assign(this, { prompt, seed, model, refusal: null });
    this.part = { url: null, rows: 0, of: 0, done: false };
    this.view = new ImageView(`Image generated for: ${prompt}, seed ${seed}`, open);
    this.element = el("li", {}, this.view.element, el("p", { class: "facts" }, `seed ${seed}`));
    this.view.update(this.part, true);
    this.view.caption.textContent = "Waiting";
  }

  async write(body, signal) {
    this.view.update(this.part, true);
    const events = stream("/v1/images/generations", { ...body, seed: this.seed }, signal);
    for await (const event of events) {
      if (event.type === "error") {
        if (event.error.code !== "moderation_blocked") throw new ApiError(event.error.message);
        this.refusal = event.error.message;
        return;
      }
      Object.assign(this.part, { url: `data:image/png;base64,${event.b64_json}`,
        rows: event.rows, of: event.image_rows, done: event.type.endsWith("completed") });
      this.view.update(this.part, true);
      if (this.part.done) return;
    }
    throw new ApiError("The connection to the server was lost; what had come stays.", "lost");
  }

  end() {
    this.view.update(this.part, false);
    if (this.refusal) this.view.caption.textContent = `Refused: ${this.refusal}`;
  }
}
