// The conversation: the composer, and responses as they come.

import { ApiError, stream } from "./api.js";
import { carriesFiles, filesOf, imagePart } from "./attach.js";
import { add, children, inputItems, newConversation, newId, path, remove, textOf }
  from "./conversation.js";
import { $, announce, el, grow, iconButton, show } from "./dom.js";
import { MessageView } from "./messages.js";
import * as settings from "./settings.js";
import * as store from "./store.js";

const SAVE_MS = 1000; // between two savings of a response that is written

let conversation = newConversation();
let attachments = [];
let editing = null; // the message that the composer changes
let views = [];
const running = new Map(); // by a conversation's id: {conversation, message, controller}
const deleted = new Set(); // ids of conversations
let saving = Promise.resolve();
let attaching = Promise.resolve();
let onKept = () => {};

export const current = () => conversation;

/** Start the view; `kept` is called when what is kept has changed. */
export function startChat(kept) {
  onKept = kept;
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  const prompt = $("prompt");
  prompt.addEventListener("input", () => grow(prompt));
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (running.has(conversation.id)) stop();
    else if (editing) endEditing();
  });
  $("editing").querySelector("button").addEventListener("click", endEditing);
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    attach([...$("files").files]);
    $("files").value = "";
  });
  $("chat").addEventListener("paste", (event) => {
    const files = filesOf(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    attach(files);
  });
  startDrop();
}

/** Show a conversation; one whose response is being written is the one in memory. */
export function showConversation(chosen) {
  conversation = running.get(chosen.id)?.conversation ?? chosen;
  for (const message of conversation.messages) {
    if (message.status === "running" && running.get(conversation.id)?.message !== message) {
      message.status = "stopped"; // the page was left while it was written
    }
  }
  endEditing();
  show($("notice"), "");
  render();
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

/** Fill the composer. */
export function suggest(text, mode) {
  $("prompt").value = text;
  grow($("prompt"));
  if (mode) settings.put("mode", mode);
  $("prompt").focus();
}

export function complain(error, action = null) {
  show($("notice"), error.message, action);
}

/** Delete a conversation, and end a response that is written in it. */
export async function forget(id) {
  deleted.add(id);
  running.get(id)?.controller.abort();
  running.delete(id);
  saving = saving.then(() => store.drop(id));
  await saving;
}

// ── the composer ───────────────────────────────────────────────────────────────────────────────

function attach(files) {
  for (const file of files) {
    attaching = attaching.then(async () => {
      try {
        attachments.push(await imagePart(file));
        announce(`Attached ${file.name || "an image"}.`);
      } catch (error) {
        complain(error);
      }
      renderAttachments();
    });
  }
  $("prompt").focus();
}

function renderAttachments() {
  $("attachments").replaceChildren(...attachments.map((part) => el("li", {},
    el("img", { src: part.url, alt: part.name }),
    iconButton("close", `Remove ${part.name}`, () => {
      attachments = attachments.filter((each) => each !== part);
      renderAttachments();
      $("prompt").focus();
    }))));
}

function startDrop() {
  let depth = 0; // dragenter and dragleave come for every element under the pointer
  const veil = (event, by) => {
    if (!carriesFiles(event) || $("chat").hidden) return;
    event.preventDefault();
    depth = Math.max(0, depth + by);
    $("drop").hidden = depth === 0;
  };
  document.addEventListener("dragenter", (event) => veil(event, 1));
  document.addEventListener("dragleave", (event) => veil(event, -1));
  document.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth = 0;
    $("drop").hidden = true;
    if (!$("chat").hidden) attach(filesOf(event.dataTransfer));
  });
}

function edit(message) {
  editing = message;
  attachments = message.parts.filter((part) => part.type === "image");
  renderAttachments();
  $("editing").hidden = false;
  for (const view of views) view.element.classList.toggle("edited", view.message === message);
  suggest(textOf(message));
}

function endEditing() {
  if (editing) {
    attachments = [];
    renderAttachments();
    $("prompt").value = "";
    grow($("prompt"));
    for (const view of views) view.element.classList.remove("edited");
  }
  editing = null;
  $("editing").hidden = true;
}

async function send() {
  await attaching;
  const text = $("prompt").value.trim();
  if ((!text && !attachments.length) || running.has(conversation.id)) return;
  const parent = editing ? editing.parent : path(conversation).at(-1)?.id ?? "";
  const parts = [...attachments, ...(text ? [{ type: "text", text }] : [])];
  endEditing();
  const message = add(conversation, { id: newId(), parent, role: "user", parts });
  attachments = [];
  renderAttachments();
  $("prompt").value = "";
  grow($("prompt"));
  respond(conversation, message);
}

function stop() {
  running.get(conversation.id)?.controller.abort();
  $("prompt").focus();
}

// ── responses ──────────────────────────────────────────────────────────────────────────────────

function again(message) {
  const asked = conversation.messages.find((each) => each.id === message.parent);
  respond(conversation, asked);
}

/** Stream a response to a message of the user into a conversation. */
async function respond(talk, asked) {
  show($("notice"), "");
  const shown = path(talk);
  const read = settings.get("reads") === "last"
    ? [asked]
    : shown.slice(0, shown.findIndex((each) => each.id === asked.id) + 1);
  const body = { ...settings.responseOptions(children(talk, asked.id).length),
    input: inputItems(read), include: ["retrieved.content"] };
  const message = add(talk, { id: newId(), parent: asked.id, role: "assistant", parts: [],
    status: "running", model: settings.get("model") });
  const controller = new AbortController();
  running.set(talk.id, { conversation: talk, message, controller });
  render();
  $("scroll").scrollTop = $("scroll").scrollHeight;
  announce("The response begins.");
  keep(talk);
  const timer = setInterval(() => keep(talk), SAVE_MS);
  let failure = null;
  try {
    for await (const event of stream("/v1/responses", body, controller.signal)) {
      apply(event, message);
      paint(message);
      if (message.status !== "running") break;
    }
    if (message.status === "running") {
      throw new ApiError("The connection to the server was lost.", "lost");
    }
  } catch (error) {
    failure = controller.signal.aborted ? null : error;
    message.status = !failure ? "stopped" : failure.kind === "lost" ? "lost" : "failed";
  } finally {
    clearInterval(timer);
  }
  if (deleted.has(talk.id)) return;
  running.delete(talk.id);
  const removed = message.parts.length || !failure ? [] : [message.id];
  if (removed.length) remove(talk, message);
  talk.updated = Date.now();
  keep(talk, removed);
  if (talk === conversation) render();
  announce(failure ? "" : summary(message));
  if (failure) tell(failure, talk, asked);
}

/** Change a message as an event says. */
function apply(event, message) {
  if (event.response?.retrieved) message.retrieved = event.response.retrieved;
  const part = message.parts[event.output_index];
  switch (event.type) {
    case "response.created":
      message.seed = event.response.seed;
      break;
    case "response.output_item.added":
      message.parts[event.output_index] = event.item.type === "message"
        ? { type: "text", text: "" }
        : { type: "image", url: null, rows: 0, of: 0, done: false };
      break;
    case "response.content_part.added":
      if (event.part.type === "refusal") part.type = "refusal";
      break;
    case "response.output_text.delta":
    case "response.refusal.delta":
      part.text += event.delta;
      break;
    case "response.image_generation_call.partial_image":
      Object.assign(part, { url: `data:image/png;base64,${event.partial_image_b64}`,
        rows: event.rows, of: event.image_rows });
      break;
    case "response.output_item.done":
      if (event.item.type === "message") {
        const [content] = event.item.content;
        part.text = content.refusal ?? content.text;
      } else Object.assign(part, { url: `data:image/png;base64,${event.item.result}`, done: true });
      break;
    case "response.completed":
      message.status = "done";
      break;
    case "response.incomplete": {
      const { reason } = event.response.incomplete_details;
      message.status = { max_output_tokens: "length", content_filter: "refused" }[reason] ?? "ended";
      break;
    }
    case "response.failed":
      throw new ApiError(`The response failed: ${event.response.error.message}`);
  }
}

function summary(message) {
  const words = textOf(message).split(/\s+/).filter(Boolean).length;
  const images = message.parts.filter((part) => part.done).length;
  const counts = [words && `${words} ${words === 1 ? "word" : "words"}`,
    images && `${images} ${images === 1 ? "image" : "images"}`].filter(Boolean);
  if (message.status === "refused") return "A filter of this server refused the response.";
  const end = message.status === "stopped" ? "The response was stopped" : "The response is complete";
  return `${end}: ${counts.join(", ") || "nothing"}.`;
}

/** Show a failure near the composer, with what can be done about it. */
function tell(failure, talk, asked) {
  if (talk !== conversation) return;
  const retry = { label: "Try again", run: () => respond(talk, asked) };
  if (failure.kind === "key") {
    complain(failure, { label: "Open settings", run: () => $("open-settings").click() });
  } else if (failure.kind === "context" && asked.parent && settings.get("reads") === "all") {
    complain(failure, { label: "Let the model read only the last message", run: () => {
      settings.put("reads", "last");
      respond(talk, asked);
    } });
  } else complain(failure, retry);
}

/** Save a conversation after those that are being saved. */
function keep(talk, removed = []) {
  saving = saving.then(async () => {
    if (deleted.has(talk.id)) return;
    try {
      await store.save(talk, removed);
      onKept(talk);
    } catch (error) {
      complain({ message: error?.name === "QuotaExceededError"
        ? "This browser has no room left, so the newest messages are not kept; export this conversation, or delete others."
        : "This browser could not keep the newest messages; export this conversation to save it." });
    }
  });
}

/** Rename the conversation that is shown. */
export function rename(title) {
  Object.assign(conversation, { title, named: true });
  keep(conversation);
}

// ── what is shown ──────────────────────────────────────────────────────────────────────────────

function render() {
  const focused = document.activeElement?.dataset?.focus;
  const shown = path(conversation);
  const busy = running.has(conversation.id);
  const actions = { edit, again, busy, turn: (message) => {
    conversation.chosen[message.parent] = message.id;
    endEditing();
    render();
    keep(conversation);
  } };
  views = shown.map((message, number) => {
    const asked = number ? textOf(shown[number - 1]) : "";
    return new MessageView(conversation, message, asked, actions);
  });
  $("messages").replaceChildren(...views.map((view) => view.element));
  $("empty").hidden = shown.length > 0;
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  if (focused) {
    const same = document.querySelector(`[data-focus="${focused}"]`);
    (same?.disabled ? same.parentElement.querySelector("button:enabled") : same)?.focus();
  }
}

let frame = 0;

/** Show what has come of a message, once for each frame of the screen. */
function paint(message) {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const box = $("scroll");
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 120;
    views.find((view) => view.message === message)?.update();
    if (follows) box.scrollTop = box.scrollHeight;
  });
}
