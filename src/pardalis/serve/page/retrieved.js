// The documents that the model read before it wrote a response.

import { el } from "./dom.js";
import { view } from "./images.js";

/** Return a list of retrieved documents, folded up; without their content only their names. */
export function retrievedView(documents) {
  const count = documents.length === 1 ? "1 document" : `${documents.length} documents`;
  return el("details", { class: "retrieved" },
    el("summary", {}, `Read before: ${count}`),
    el("ol", {}, ...documents.map((each) => el("li", {}, el("p", { class: "facts" }, about(each)),
      ...content(each)))));
}

/** Say where a document is from, and how near it stands to the request. */
export const about = ({ source, name, by, score }) =>
  `${name} (${source}), found by its ${by}, score ${score.toFixed(2)}`;

function content(document) {
  const parts = document.content ?? [];
  const images = parts.filter((part) => part.type === "input_image")
    .map((part) => ({ url: part.image_url, text: document.name, facts: about(document) }));
  let number = 0;
  return parts.map((part) => part.type === "input_text"
    ? el("p", { class: "read", dir: "auto" }, part.text)
    : thumbnail(images, number++));
}

function thumbnail(images, number) {
  const { url, text } = images[number];
  const of = images.length > 1 ? ` ${number + 1} of ${images.length}` : "";
  return el("button", { type: "button", class: "thumbnail", title: "Show it large",
    onclick: () => view(images, number) }, el("img", { src: url, alt: `Image${of} of ${text}` }));
}
