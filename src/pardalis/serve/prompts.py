"""What a client sends as documents: messages, and the items of the Responses API, within limits."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pardalis.documents import Document, messages_to_document
from pardalis.errors import PardalisError, RequestError
from pardalis.serve.config import ServeConfig
from pardalis.serve.errors import APIError
from pardalis.serve.remote_images import RemoteImages


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes documents of prompts; ``images`` fetches those that are named by URLs."""

    config: ServeConfig
    images: RemoteImages

    def of_messages(self, messages: list[dict[str, Any]]) -> Document:
        """Return a conversation of the Chat Completions API; it may block on a network.

        An assistant's message may be one that this server has sent, with its ``content_parts`` or
        ``images``.

        Raises:
            APIError: the messages have another shape, or exceed a limit.
        """
        return self._document([_with_all_parts(message) for message in messages], "messages")

    def of_items(self, items: str | list[dict[str, Any]], instructions: str | None) -> Document:
        """Return the input of the Responses API; raises as :meth:`of_messages`."""
        if isinstance(items, str):
            items = [{"role": "user", "content": items}]
        messages = [_message(item, f"input[{number}]") for number, item in enumerate(items)]
        if instructions:
            messages.insert(0, {"role": "system", "content": instructions})
        return self._document(messages, "input")

    def _document(self, messages: list[dict[str, Any]], field: str) -> Document:
        most = self.config.max_turns
        if len(messages) > most:
            raise APIError(
                f"{field} has {len(messages)} entries; at most {most} are taken.", param=field
            )
        urls = list(_urls(messages))
        if len(urls) > self.config.max_images:
            raise APIError(
                f"{field} has {len(urls)} images; at most {self.config.max_images} are taken.",
                param=field,
            )
        try:
            for url, replace in urls:
                if url[:5].lower() != "data:":
                    replace(self.images.as_data_url(url))
            return messages_to_document(messages)
        except RequestError as error:
            raise APIError(str(error).replace("messages[", f"{field}[", 1), param=field) from error
        except PardalisError as error:
            raise APIError.of(error) from error


def _with_all_parts(message: Any) -> Any:
    """Return a message with the images and the refusal of its own fields in its content."""
    if not isinstance(message, Mapping):
        return message
    message = dict(message)
    refusal = message.pop("refusal", None)
    parts, images = message.pop("content_parts", None), message.pop("images", None)
    if isinstance(parts, list) and parts:
        message["content"] = parts
    elif isinstance(images, list) and images:
        content = message.get("content")
        texts = [{"type": "text", "text": content}] if isinstance(content, str) and content else []
        others = content if isinstance(content, list) else []
        message["content"] = [*texts, *others, *images]
    content = message.get("content")
    if isinstance(refusal, str) and refusal:
        said = [{"type": "text", "text": content}] if isinstance(content, str) and content else []
        parts = content if isinstance(content, list) else said
        content = message["content"] = [*parts, {"type": "refusal", "refusal": refusal}]
    if isinstance(content, list):
        message["content"] = [_plain(_part(part)) for part in content]
    return message


def _plain(part: Any) -> Any:
    """Return an image's part without the index and the detail that clients put in it."""
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return part
    part = {key: value for key, value in part.items() if key != "index"}
    if isinstance(url := part.get("image_url"), Mapping) and url.get("detail") in (None, "auto"):
        part["image_url"] = {key: value for key, value in url.items() if key != "detail"}
    return part


def _message(item: Any, where: str) -> dict[str, Any]:
    """Return an input item as a message."""
    if not isinstance(item, Mapping):
        raise APIError(f"{where} must be an object.", param=where)
    kind = item.get("type", "message")
    if kind == "image_generation_call":
        result = item.get("result")
        if not isinstance(result, str):
            raise APIError(f"{where} needs its image as base64 in result.", param=where)
        url = f"data:image/png;base64,{result}"
        return {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    if kind != "message":
        raise APIError(f"{where} is of the type {kind!r}, which is not supported.", param=where)
    extra = sorted(set(item) - {"type", "role", "content", "id", "status", "phase"})
    if extra:
        raise APIError(f"{where}.{extra[0]} is not supported; leave it out.", param=where)
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    role = "system" if item.get("role") == "developer" else item.get("role")
    return {"role": role, "content": content}


def _part(part: Any) -> Any:
    """Return a content part without the fields that OpenAI's clients add to it."""
    if not isinstance(part, Mapping):
        return part
    if part.get("type") == "input_image" and part.get("detail") in (None, "auto"):
        return {key: value for key, value in part.items() if key not in ("detail", "file_id")}
    if part.get("type") == "output_text":
        return {"type": "text", "text": part.get("text")}
    if part.get("type") == "refusal":  # of an earlier answer: the model reads it as a text
        return {"type": "text", "text": part.get("refusal")}
    return part


def _urls(messages: list[dict[str, Any]]) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Yield the URL of each image, and what puts another in its place."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if not isinstance(part, dict):
                continue
            match part:
                case {"type": "image_url", "image_url": {"url": str(url)}}:
                    yield (
                        url,
                        lambda new, c=content, p=place: c.__setitem__(
                            p, {"type": "image_url", "image_url": {"url": new}}
                        ),
                    )
                case {"type": "input_image", "image_url": str(url)}:
                    yield (
                        url,
                        lambda new, c=content, p=place: c.__setitem__(
                            p, {"type": "input_image", "image_url": new}
                        ),
                    )
