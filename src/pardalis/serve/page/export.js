// A conversation as a file that stands alone: its images are data URLs in it.

import { path } from "./conversation.js";
import { about } from "./retrieved.js";

const STYLE = `
:root { color-scheme: light dark }
body { max-width: 44rem; margin: 3rem auto; padding: 0 1rem; font: 1rem/1.6 system-ui, sans-serif }
h2 { margin: 2rem 0 .25rem; font-size: .85rem; opacity: .7 }
p { margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere }
img { display: block; margin: .5rem 0; min-width: 256px; max-width: 100%; border-radius: 8px;
  image-rendering: pixelated }`;

const speaker = (message) => message.role === "user" ? "You" : message.model || "Model";
const seedOf = (message) => message.seed === undefined ? "" : ` (seed ${message.seed})`;
const shown = (part) => part.type === "refusal" ? `Refused: ${part.text}` : part.text;
const readBefore = ({ retrieved }) =>
  retrieved?.length ? `Read before: ${retrieved.map(about).join("; ")}` : "";
const altOf = (part) => part.name ? `attached image ${part.name}` : "generated image";

/** Return the messages that are shown as a web page. */
export function asHtml(conversation) {
  const page = document.implementation.createHTMLDocument(conversation.title);
  page.documentElement.lang = "en";
  const add = (parent, tag, text, attributes = {}) => {
    const element = page.createElement(tag);
    element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
  };
  page.head.prepend(Object.assign(page.createElement("meta"), { name: "viewport",
    content: "width=device-width, initial-scale=1" }));
  const charset = page.createElement("meta");
  charset.setAttribute("charset", "utf-8");
  page.head.prepend(charset);
  add(page.body, "h1", conversation.title);
  for (const message of path(conversation)) {
    add(page.body, "h2", speaker(message) + seedOf(message));
    for (const part of message.parts) {
      if (part.type !== "image") add(page.body, "p", shown(part), { dir: "auto" });
      else if (part.url) add(page.body, "img", "", { src: part.url, alt: altOf(part) });
    }
    if (readBefore(message)) add(page.body, "p", readBefore(message), { dir: "auto" });
  }
  const html = page.documentElement.outerHTML; // texts in it are escaped
  return `<!doctype html>\n${html.replace("</head>", `<style>${STYLE}</style></head>`)}\n`;
}

/** Return the messages that are shown as Markdown, in which their texts have no markup. */
export function asMarkdown(conversation) {
  const blocks = [`# ${plain(conversation.title)}`];
  for (const message of path(conversation)) {
    blocks.push(`## ${plain(speaker(message) + seedOf(message))}`);
    for (const part of message.parts) {
      if (part.type !== "image") blocks.push(plain(shown(part)).replace(/\n/g, "  \n"));
      else if (part.url) blocks.push(`![${plain(altOf(part))}](${part.url})`);
    }
    if (readBefore(message)) blocks.push(plain(readBefore(message)));
  }
  return `${blocks.join("\n\n")}\n`;
}

const plain = (text) => text
  .replace(/[\\`*_{}[\]<>#|~&!]/g, "\\$&")
  .replace(/^(\s*)([-+=])/gm, "$1\\$2")
  .replace(/^(\s*\d+)([.)])/gm, "$1\\$2");
