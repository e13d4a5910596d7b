// The page: what is shown, by the address, and what is kept.

import { ApiError, models } from "./api.js";
import { complain, current, forget, rename, showConversation, startChat, suggest } from "./chat.js";
import { newConversation } from "./conversation.js";
import { $, download, el, fileName, icon } from "./dom.js";
import { asHtml, asMarkdown } from "./export.js";
import { startGallery } from "./gallery.js";
import { startViewer } from "./images.js";
import * as settings from "./settings.js";
import * as store from "./store.js";

const EXAMPLES = [
  { text: "a flat drawing of a deer", mode: "image", says: "An image" },
  { text: "a 3D rendering of a red heart", mode: "image", says: "An image" },
  { text: "a shaded illustration of a mushroom", mode: "image", says: "An image" },
  { text: "Tell me about owls, with an image.", mode: "both", says: "Text and images" },
];

const narrow = matchMedia("(max-width: 50rem)");

async function start() {
  settings.restore();
  startChat(kept);
  startGallery();
  startViewer();
  startSidebar();
  startManager();
  startChoices();
  fillExamples();
  const keeps = await store.open();
  window.addEventListener("hashchange", route);
  await route();
  if (!keeps) {
    complain(new ApiError("This browser keeps no conversations here; export what you want to save."));
  }
  await fillModels();
}

// ── what is shown ──────────────────────────────────────────────────────────────────────────────

async function route() {
  const [, kind, id] = location.hash.split("/");
  const isGallery = location.hash === "#/gallery";
  $("gallery").hidden = !isGallery;
  $("chat").hidden = isGallery;
  $("manage").hidden = isGallery;
  openSidebar(false);
  if (!isGallery && current().id !== id) { // without an id: a new one
    const found = kind === "c" ? await store.load(id) : null;
    showConversation(found ?? newConversation());
  }
  await fillList();
  const isTouched = matchMedia("(pointer: coarse)").matches; // focus would open its keyboard
  if (!isTouched) $(isGallery ? "gallery-prompt" : "prompt").focus();
}

/** Show that a conversation is kept: in the list, and in the address if that has none. */
async function kept(conversation) {
  const isShown = conversation.id === current().id && !$("chat").hidden;
  if (isShown && location.hash.length < 2) history.replaceState(null, "", `#/c/${conversation.id}`);
  await fillList();
}

let listed = "";

async function fillList() {
  const isGallery = !$("gallery").hidden;
  const all = await store.list();
  const shown = JSON.stringify([isGallery, current().id, all.map(({ id, title }) => [id, title])]);
  if (shown !== listed) { // else the keyboard stays where it is
    $("conversations").replaceChildren(...all.map(({ id, title }) => el("li", {},
      el("a", { href: `#/c/${id}`, dir: "auto",
        "aria-current": !isGallery && id === current().id ? "page" : null }, title))));
  }
  listed = shown;
  $("kept").hidden = all.length === 0;
  $("title").textContent = isGallery ? "Gallery" : current().title;
  document.title = `${$("title").textContent} · Pardalis`;
  $("open-gallery").setAttribute("aria-current", isGallery ? "page" : "false");
}

function fillExamples() {
  $("examples").replaceChildren(...EXAMPLES.map(({ text, mode, says }) => el("li", {},
    el("button", { type: "button", onclick: () => suggest(text, mode) },
      icon("image"), el("span", {}, text), el("small", {}, says)))));
}

function startSidebar() {
  $("new").addEventListener("click", () => {
    showConversation(newConversation());
    if (location.hash) location.hash = "";
    else route();
  });
  $("open-gallery").addEventListener("click", () => { location.hash = "#/gallery"; });
  $("menu").addEventListener("click", () => openSidebar($("menu").ariaExpanded !== "true"));
  $("scrim").addEventListener("click", () => openSidebar(false));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("menu").ariaExpanded === "true") openSidebar(false);
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address says what is shown
    $($("chat").hidden ? "gallery-prompt" : "prompt").focus();
  });
  narrow.addEventListener("change", () => openSidebar(false));
}

/** Open or close the sidebar of a narrow screen; on a wide one it is always there. */
function openSidebar(isOpen) {
  const wasOpen = $("menu").ariaExpanded === "true";
  $("menu").ariaExpanded = String(isOpen);
  $("sidebar").classList.toggle("open", isOpen);
  $("sidebar").inert = narrow.matches && !isOpen;
  $("stage").inert = narrow.matches && isOpen;
  $("scrim").hidden = !isOpen;
  if (isOpen) $("new").focus();
  else if (wasOpen) $("menu").focus();
}

// ── models and choices ─────────────────────────────────────────────────────────────────────────

async function fillModels() {
  let all = [];
  try {
    all = await models();
  } catch (error) {
    complain(error, error.kind === "key"
      ? { label: "Open settings", run: () => $("open-settings").click() }
      : { label: "Try again", run: () => { complain({ message: "" }); fillModels(); } });
    return;
  }
  const names = all.map((model) => model.id);
  if (!names.includes(settings.get("model"))) settings.set("model", names[0]);
  $("model").replaceChildren(...all.map((model) => el("option", { value: model.id },
    model.adapter ? `${model.id} (adapter)` : model.id)));
  $("model").value = settings.get("model");
  $("greeted").textContent = settings.get("model");
  if (!all[0].generates_images) {
    for (const option of $("mode").options) option.disabled = option.value !== "text";
    settings.set("mode", "text");
  }
}

function startChoices() {
  $("model").addEventListener("change", () => settings.set("model", $("model").value));
  $("mode").value = settings.get("mode");
  $("mode").addEventListener("change", () => settings.set("mode", $("mode").value));
  settings.onChange((name) => {
    if (name === "mode") $("mode").value = settings.get("mode");
    if (name === "model") $("greeted").textContent = settings.get("model");
  });
  let key = settings.key();
  $("open-settings").addEventListener("click", () => $("settings").showModal());
  $("settings").addEventListener("close", () => {
    if (key === settings.key()) return;
    key = settings.key();
    complain({ message: "" });
    fillModels();
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("button.close")) dialog.close();
    });
  }
}

// ── a conversation as a whole ──────────────────────────────────────────────────────────────────

function startManager() {
  const dialog = $("manager");
  const label = $("delete").querySelector("span");
  let asked = false; // whether to delete it
  $("manage").addEventListener("click", () => {
    asked = false;
    label.textContent = "Delete";
    $("name").value = current().title;
    dialog.showModal();
    $("name").select();
  });
  dialog.addEventListener("close", () => {
    const title = $("name").value.trim();
    if (dialog.returnValue === "rename" && title) rename(title);
    dialog.returnValue = "";
  });
  $("export-html").addEventListener("click", () => {
    download(fileName(current().title, "html"), asHtml(current()), "text/html");
  });
  $("export-markdown").addEventListener("click", () => {
    download(fileName(current().title, "md"), asMarkdown(current()), "text/markdown");
  });
  $("delete").addEventListener("click", async () => {
    if (!asked) {
      asked = true;
      label.textContent = "Delete it for good?";
      return;
    }
    await forget(current().id);
    dialog.close();
    $("new").click();
  });
}

start();
