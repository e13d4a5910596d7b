// Messages as elements.

import { children, textOf } from "./conversation.js";
import { el, iconButton } from "./dom.js";
import { ImageView, view } from "./images.js";
import { retrievedView } from "./retrieved.js";

const NOTES = {
  stopped: "Stopped.",
  lost: "The connection was lost here.",
  length: "Stopped at the most tokens that a response may have.",
  ended: "The server stopped here.",
  refused: "Refused by a filter of this server.",
  failed: "The response failed here.",
};

/** Shows one message; `actions` are {edit, again, turn, busy}. */
export class MessageView {
  constructor(conversation, message, asked, actions) {
    this.message = message;
    this.asked = asked; // the text that the message responds to
    this.parts = el("div", { class: "parts" });
    this.note = el("p", { class: "note" });
    this.under = el("div", { class: "under" });
    this.views = [];
    const speaker = message.role === "user" ? "You" : message.model || "Model";
    this.element = el("li", { class: `message ${message.role}` },
      el("h2", { class: message.role === "user" ? "unseen" : "speaker" }, speaker),
      this.parts, this.note, message.retrieved?.length ? retrievedView(message.retrieved) : null,
      this.under);
    this.element.dataset.id = message.id;
    this.update();
    this.addActions(conversation, actions);
  }

  get running() {
    return this.message.status === "running";
  }

  update() {
    const { message } = this;
    message.parts.forEach((part, number) => {
      const known = this.views[number] ?? this.newView(part, number);
      known(part);
    });
    const waiting = this.running && message.parts.every((part) => part.type !== "image" && !part.text);
    this.element.classList.toggle("waiting", waiting);
    this.element.classList.toggle("running", this.running);
    const isEmpty = !this.running && !message.parts.length;
    this.note.textContent = NOTES[message.status] ?? (isEmpty ? "The model wrote nothing." : "");
    this.element.setAttribute("aria-busy", String(this.running));
  }

  newView(part, number) {
    if (part.type !== "image") {
      const text = el("div", { class: "text", dir: "auto" });
      this.parts.append(text);
      this.views[number] = ({ type, text: written }) => {
        text.classList.toggle("refusal", type === "refusal");
        if (text.textContent !== written) text.textContent = written;
      };
    } else {
      const image = new ImageView(this.alt(part), () => this.open(part));
      this.parts.append(image.element);
      this.views[number] = (now) => image.update(now, this.running);
    }
    return this.views[number];
  }

  alt(part) {
    if (this.message.role === "user") return `Attached image ${part.name ?? ""}`.trim();
    return this.asked ? `Image generated for: ${this.asked}` : "Generated image";
  }

  open(part) {
    const whole = this.message.parts.filter((each) => each.type === "image" && each.done);
    const { model, seed } = this.message;
    const generated = [model, seed === undefined ? null : `seed ${seed}`].filter(Boolean).join(", ");
    view(whole.map((each) => ({
      url: each.url,
      text: this.message.role === "user" ? each.name ?? "Attached image" : this.asked || "Image",
      facts: generated,
    })), whole.indexOf(part));
  }

  addActions(conversation, { edit, again, turn, busy }) {
    const { message } = this;
    const all = children(conversation, message.parent);
    if (all.length > 1) this.under.append(arrows(all, message, turn));
    if (message.role === "user") {
      if (!busy) this.under.append(iconButton("edit", "Edit this message", () => edit(message)));
    } else if (!this.running && !busy) {
      this.under.append(iconButton("again", "Another response", () => again(message)));
    }
    if (textOf(message) && !this.running && navigator.clipboard) {
      const copy = iconButton("copy", "Copy the text", async () => {
        await navigator.clipboard.writeText(textOf(message));
        copy.querySelector("use").setAttribute("href", "#i-check");
        setTimeout(() => copy.querySelector("use").setAttribute("href", "#i-copy"), 1500);
      });
      this.under.append(copy);
    }
    if (message.role === "assistant" && message.seed !== undefined) {
      this.under.append(el("span", { class: "facts" }, `seed ${message.seed}`));
    }
  }
}

function arrows(all, message, turn) {
  const number = all.indexOf(message);
  const button = (name, label, by) => iconButton(name, label, () => turn(all[number + by]), {
    disabled: !all[number + by],
    "data-focus": `${message.parent}${by}`,
  });
  return el("span", { class: "versions" },
    button("left", "Earlier version", -1),
    el("span", { role: "img", "aria-label": `version ${number + 1} of ${all.length}` },
      `${number + 1}/${all.length}`),
    button("right", "Later version", 1));
}
