// An image on the page: while it is written, and large.

import { $, download, el, fileName } from "./dom.js";

const COMFORTABLE = 256; // CSS pixels; small images are enlarged to about this
const SMOOTH_FROM = 200; // image pixels of width; smaller ones keep their pixels crisp

/** Show an image at a whole multiple of its size, so that all its pixels are equal squares. */
function scale(image) {
  const { naturalWidth: width } = image;
  const times = Math.max(1, Math.round(COMFORTABLE / width));
  image.style.setProperty("--width", `${Math.min(width * times, 512)}px`);
  image.classList.toggle("crisp", width < SMOOTH_FROM);
}

/** An image that fills row by row. */
export class ImageView {
  constructor(alt, open) {
    this.image = el("img", { alt: "", decoding: "sync", onload: () => scale(this.image) });
    this.frame = el("button", { type: "button", class: "frame", onclick: open }, this.image);
    this.caption = el("figcaption", {});
    this.element = el("figure", { class: "image" }, this.frame, this.caption);
    this.alt = alt;
  }

  /** Show a part of a message; `running` says whether more of it comes. */
  update({ url, rows = 0, of = 0, done }, running) {
    if (url && this.image.src !== url) this.image.src = url;
    this.image.hidden = !url;
    this.image.alt = done ? this.alt : `${this.alt}, unfinished`;
    this.frame.classList.toggle("written", Boolean(done));
    this.frame.classList.toggle("running", running && !done);
    this.frame.disabled = !done;
    this.frame.title = done ? "Show it large" : "";
    const below = done || !of ? 0 : 100 * (1 - rows / of);
    this.frame.style.setProperty("--below", `${below}%`);
    this.frame.style.setProperty("--line", of ? `${(100 * rows) / of}%` : "0%");
    this.frame.dataset.rows = done ? "all" : String(rows);
    this.caption.textContent = done ? "" : running
      ? of ? `Writing row ${Math.min(rows + 1, of)} of ${of}` : "Beginning"
      : of ? `Stopped at row ${rows} of ${of}` : "Stopped before its first row";
  }
}

// ── large ──────────────────────────────────────────────────────────────────────────────────────

let shown = [];
let place = 0;

/** Show one of several images large; each is {url, text, facts}. */
export function view(images, number) {
  [shown, place] = [images, number];
  turn(0);
  $("viewer").showModal();
}

function turn(by) {
  place = (place + by + shown.length) % shown.length;
  const { url, text, facts } = shown[place];
  const image = $("viewer-image");
  image.onload = () => image.classList.toggle("crisp", image.naturalWidth < SMOOTH_FROM);
  [image.src, image.alt] = [url, text];
  $("viewer-text").textContent = text;
  $("viewer-facts").textContent = facts;
  for (const id of ["viewer-back", "viewer-on"]) $(id).hidden = shown.length < 2;
}

export function startViewer() {
  $("viewer-back").addEventListener("click", () => turn(-1));
  $("viewer-on").addEventListener("click", () => turn(1));
  $("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });
  $("viewer").addEventListener("click", (event) => {
    if (event.target === $("viewer")) $("viewer").close();
  });
  $("viewer-save").addEventListener("click", (event) => {
    event.preventDefault();
    const { url, text, facts } = shown[place];
    const ending = url.startsWith("data:image/jpeg") ? "jpg" : "png";
    download(fileName(`${text} ${facts}`, ending), url);
  });
}

