// Conversations in this browser, by IndexedDB. Without it they last as long as the page.

import { merged } from "./conversation.js";

const memory = new Map();
let database = null;

const of = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** Open the store; return whether it keeps anything. */
export async function open() {
  try {
    const request = indexedDB.open("pardalis", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("titles", { keyPath: "id" });
    };
    database = await of(request);
    return true;
  } catch {
    return false;
  }
}

const titleOf = ({ id, title, updated }) => ({ id, title, updated });

/** Return {id, title, updated} of each conversation, newest first. */
export async function list() {
  const all = database
    ? await of(database.transaction("titles").objectStore("titles").getAll())
    : [...memory.values()].map(titleOf);
  return all.sort((one, other) => other.updated - one.updated);
}

export async function load(id) {
  if (!database) return memory.get(id) ?? null;
  return (await of(database.transaction("conversations").objectStore("conversations").get(id)))
    ?? null;
}

/**
 * Keep a conversation, with the messages that another tab has added to it.
 *
 * Without room, an error named QuotaExceededError is thrown, and what was kept before stays.
 */
export async function save(conversation, removed = []) {
  if (!database) {
    memory.set(conversation.id, conversation);
    return;
  }
  const transaction = database.transaction(["conversations", "titles"], "readwrite");
  const conversations = transaction.objectStore("conversations");
  const kept = await of(conversations.get(conversation.id));
  if (kept) kept.messages = kept.messages.filter((each) => !removed.includes(each.id));
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error ?? new Error("not kept"));
  });
  conversations.put(merged(conversation, kept));
  transaction.objectStore("titles").put(titleOf(conversation));
  await done;
}

export async function drop(id) {
  memory.delete(id);
  if (!database) return;
  const transaction = database.transaction(["conversations", "titles"], "readwrite");
  transaction.objectStore("titles").delete(id);
  await of(transaction.objectStore("conversations").delete(id));
}
