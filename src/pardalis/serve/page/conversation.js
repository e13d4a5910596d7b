// A conversation is a tree of messages. An edited message or another response is one more child of
// the same parent; `chosen` says which child is shown.
//
// A message: {id, parent, role, parts, status, note, model, seed, retrieved}; the parent of a first
// message is "". A part: {type: "text" or "refusal", text} or {type: "image", url, name, rows, of,
// done}. What was retrieved for a response is as the server writes it: {source, name, score, by,
// content}.

export const newId = () => crypto.getRandomValues(new Uint32Array(3)).join("-");

export function newConversation() {
  return { id: newId(), title: "New conversation", named: false, updated: Date.now(),
    messages: [], chosen: {} };
}

export const children = (conversation, parent) =>
  conversation.messages.filter((message) => message.parent === parent);

/** Return the messages that are shown, first to last. */
export function path(conversation) {
  const shown = [];
  for (let parent = ""; ;) {
    const all = children(conversation, parent);
    if (!all.length) return shown;
    const next = all.find((each) => each.id === conversation.chosen[parent]) ?? all.at(-1);
    shown.push(next);
    parent = next.id;
  }
}

/** Add a message and show it. */
export function add(conversation, message) {
  conversation.messages.push(message);
  conversation.chosen[message.parent] = message.id;
  if (!conversation.named && message.role === "user" && message.parent === "") {
    conversation.title = titleOf(message);
  }
  return message;
}

/** Remove a message that nothing follows. */
export function remove(conversation, message) {
  conversation.messages = conversation.messages.filter((each) => each !== message);
  delete conversation.chosen[message.parent];
}

export const textOf = (message) =>
  message.parts.filter((part) => part.type === "text").map((part) => part.text).join("\n");

function titleOf(message) {
  const text = textOf(message).replace(/\s+/g, " ").trim();
  return text.length > 60 ? `${text.slice(0, 59)}…` : text || "About an image";
}

/**
 * Return messages as input items of the Responses API; images that are not whole are left out, and
 * so are a message of which nothing but a refusal came and that refusal: it would be refused again.
 */
export function inputItems(messages) {
  const refused = new Set(messages.filter(isRefused).map((message) => message.parent));
  return messages
    .filter((message) => !refused.has(message.id) && !isRefused(message))
    .flatMap((message) => message.role === "user" ? userItems(message) : assistantItems(message));
}

const isRefused = ({ parts }) => parts.length > 0 && parts.every((part) => part.type === "refusal");

function userItems(message) {
  const content = message.parts.map((part) =>
    part.type === "text"
      ? { type: "input_text", text: part.text }
      : { type: "input_image", image_url: part.url });
  return [{ type: "message", role: "user", content }];
}

function assistantItems(message) {
  return message.parts.flatMap((part, number) => {
    if (part.type !== "image") {
      const content = [{ type: "output_text", text: part.text }];
      return part.text ? [{ type: "message", role: "assistant", content }] : [];
    }
    const result = part.url?.split(",")[1];
    const id = `ig_${message.id}_${number}`;
    return part.done ? [{ type: "image_generation_call", id, status: "completed", result }] : [];
  });
}

/** Return a conversation with the messages of another copy of it that it lacks. */
export function merged(conversation, other) {
  const own = new Set(conversation.messages.map((message) => message.id));
  const missing = (other?.messages ?? []).filter((message) => !own.has(message.id));
  return { ...conversation, messages: [...conversation.messages, ...missing],
    chosen: { ...other?.chosen, ...conversation.chosen } };
}
