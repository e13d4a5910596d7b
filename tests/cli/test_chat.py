"""A conversation by lines in a pipe, as JSON, and in a terminal."""

import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from indexed_documents import write_source
from rich.console import Console
from shapes import decoder_config
from small_nets import write_clip

import pardalis
from pardalis.bundle import Bundle
from pardalis.cli import chat, common, terminal
from pardalis.cli.main import main
from pardalis.documents import Image, Text, read_jsonl
from pardalis.inference import Engine
from pardalis.model import Decoder, initialise
from pardalis.retrieval import ClipConfig, IndexConfig, Retriever, build_index


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=64, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder)
    return folder


@pytest.fixture
def talk(folder, tmp_path, monkeypatch, capsys):
    """Run ``pardalis chat`` with lines in an empty folder; return its code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*lines: str, arguments: tuple[str, ...] = (), stdin=None):
        monkeypatch.setattr(sys, "stdin", stdin or io.StringIO("".join(f"{x}\n" for x in lines)))
        code = main(["chat", str(folder), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def events(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


SHORT = ("--mode", "text", "--max-new-tokens", "4")


def test_lines_of_a_pipe_are_answered_in_order(talk, folder):
    code, out, err = talk("An owl?", "", "A fox?", arguments=SHORT)
    assert (code, err) == (0, "The answer is cut at 4 tokens.\n" * 2)
    first = pardalis.generate(folder, "An owl?", chat=True, mode="text", max_new_tokens=4)
    messages = [
        {"role": "user", "content": "An owl?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "A fox?"},
    ]
    second = pardalis.generate(folder, messages, chat=True, mode="text", max_new_tokens=4)
    ended = [text if text.endswith("\n") else text + "\n" for text in (first.text, second.text)]
    assert out == "".join(ended)


def test_every_event_is_one_object_a_line(talk):
    code, out, err = talk(
        "owl", "/nonsense", "/reset", arguments=("--json", "--mode", "image", "--system", "s")
    )
    found = events(out)
    assert code == 6 and "1 line failed" in err
    assert [each.get("event") for each in found] == [
        "image_begun", "image", "answer", "error", "note", None,
    ]  # fmt: skip
    assert found[1]["path"] == "chat-images/0001.png" == found[2]["images"][0]
    with PIL.Image.open(found[1]["path"]) as image:
        assert image.size == (16, 16)
    assert found[2]["reason"] == "images" and found[2]["usage"]["images"] == 1
    assert "no command '/nonsense'" in found[3]["error"] and found[3]["kind"] == "request"
    *deltas, answer, note = events(talk("a", arguments=("--json", *SHORT))[1])
    assert "".join(each["text"] for each in deltas) == answer["text"]
    assert note == {"event": "note", "text": "The answer is cut at 4 tokens."}


def test_images_of_answers_keep_their_files(talk):
    talk("owl", "owl", arguments=("--mode", "image", "--images", "out"))
    talk("owl", arguments=("--mode", "image", "--images", "out"))
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "0001.png", "0002.png", "0003.png",
    ]  # fmt: skip


# ── lines ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it's").mkdir()
    for name in ("owl.png", "two words.PNG", "it's/b.jpg"):
        PIL.Image.new("RGB", (16, 16)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "segments"),
    [
        ("What is owl.png?", ["What is", "owl.png", "?"]),
        ("owl.png", ["owl.png"]),
        ("'two words.PNG' and owl.png!", ["two words.PNG", "and", "owl.png", "!"]),
        ('"two words.PNG"', ["two words.PNG"]),
        (r"see two\ words.PNG", ["see", "two words.PNG"]),
        ("it's/b.jpg don't 'quote", ["it's/b.jpg", "don't 'quote"]),
        ("none.png is no file", ["none.png is no file"]),
        ("  spaces  stay ", ["  spaces  stay "]),
        ("an \0 owl.png\0", ["an \0 owl.png\0"]),
        ("x" * 9999 + ".png", ["x" * 9999 + ".png"]),
    ],
)
def test_words_that_name_images_are_images(pictures, line, segments):
    found = chat._segments(line)
    shown = [str(s.source) if isinstance(s, Image) else s.text for s in found]
    assert shown == segments
    files = {"owl.png", "two words.PNG", "it's/b.jpg"}
    assert [isinstance(s, Image) for s in found] == [part in files for part in segments]
    assert all(s.role == "user" for s in found)


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


class Recorder:
    """Where a chat shows what happens."""

    is_interactive = False

    def __init__(self) -> None:
        self.said: list[str] = []
        self.answers: list[str] = []
        self.reasons: list[str] = []

    def text(self, text):
        pass

    image_begun = image = lambda self, *_: None

    def note(self, text):
        self.said.append(text)

    def error(self, error):
        self.said.append(f"! {error}")

    def answered(self, response):
        self.answers.append(response.text)
        self.reasons.append(response.reason)


@pytest.fixture
def session(folder, pictures):
    config = pardalis.GenerationConfig(
        mode="text", max_new_tokens=3, chat=True, temperature=1.5, seed=1
    )
    with Engine(folder, max_slots=1) as engine:
        yield chat.Chat(engine, config, Recorder(), pictures / "images")


def texts(session: chat.Chat) -> list[str | None]:
    return [s.text if isinstance(s, Text) else None for s in session._document(0).segments]


def test_undo_retry_and_reset(session):
    session.say("a")
    session.say("b")
    one, two = session.out.answers
    session.say("/retry")
    assert texts(session) == ["a", one, "b", session.out.answers[2]]
    assert session.out.answers[2] != two
    session.say("/undo")
    assert texts(session) == ["a", one]
    session.say("/reset")
    assert texts(session) == []
    session.say("/seed 1")
    session.say("a")
    assert session.out.answers[-1] == one
    for line in ("/reset", "/undo", "/retry", "/seed x", "/image none.png", "/save a.exe", "/oh"):
        session.say(line)
    errors = [line for line in session.out.said if line.startswith("! ")]
    assert len(errors) == session.n_failed == 6
    assert all(line.endswith(".") for line in errors)
    session.say("/help")
    assert "/retry" in session.out.said[-1]
    session.say("/quit")
    assert session.ended


def test_system_images_and_slashes(session, pictures):
    session.say("/system Be brief.")
    session.say("/image 'two words.PNG'")
    session.say("//etc is a folder")
    [system, first, message, _] = session._document(0).segments
    assert (system.text, system.role) == ("Be brief.", "system")
    assert isinstance(first, Image) and message.text == "/etc is a folder"
    session.say("/system")
    session.say("/reset")
    session.say(f"{pictures / 'owl.png'} what?")
    assert texts(session)[:2] == [None, " what?".strip()]


def test_a_message_that_fails_leaves_the_conversation(session, pictures):
    session.say("a")
    before = texts(session)
    (pictures / "bad.png").write_bytes(b"none")
    session.say("what is bad.png")
    session.say("caf\udce9")
    session.say("word " * 99)
    assert texts(session) == before and session.n_failed == 3
    assert "bad.png" in session.out.said[0]
    assert "not in the encoding" in session.out.said[1]
    assert "fills the model's context of 64; shorten it" in session.out.said[2]
    session.say("/image owl.png")
    session.say("bad.png")
    assert session._pending  # it comes with the next message still


def test_the_oldest_messages_are_left_out_when_the_context_is_full(session):
    for n in range(9):
        session.say(f"message {n}")
    assert not session.n_failed and len(session.out.answers) == 9
    dropped = [line for line in session.out.said if "no longer fit" in line]
    assert dropped and "context of 64 tokens" in dropped[0]
    assert session._first > 0 and len(session._exchanges) == 9
    document = session._document(session._first)
    assert len(session.engine.bundle.codec.encode_prompt(document)) <= 64


def test_a_conversation_is_saved_and_read_again(session, pictures):
    session.say("What is owl.png")
    for name in ("a.html", "b.md", "c.jsonl"):
        session.say(f"/save {name}")
    assert "What is" in (pictures / "a.html").read_text() and (pictures / "b.md").exists()
    [document] = read_jsonl(pictures / "c.jsonl")
    assert [s.role for s in document.segments] == ["user", "user", "assistant"]
    session.say("/save a.html")
    session.say("/save owl.png/a.html")
    assert "a.html exists" in session.out.said[-2] and session.n_failed == 2


def test_an_interrupt_stops_the_answer_only(session, monkeypatch):
    session.config = pardalis.GenerationConfig(mode="text", chat=True)
    monkeypatch.setattr(
        session.out, "text", lambda text: signal.raise_signal(signal.SIGINT), raising=False
    )
    before = signal.getsignal(signal.SIGINT)
    session.say("a")
    assert session.out.reasons == ["aborted"] and not session.n_failed
    assert signal.getsignal(signal.SIGINT) is before
    assert texts(session) == ["a", session.out.answers[0]]


def test_an_interrupt_while_the_prompt_is_read(folder, pictures, monkeypatch):
    config = pardalis.GenerationConfig(mode="text", chat=True)
    with Engine(folder, max_slots=1, prefill_tokens=1) as engine:
        session = chat.Chat(engine, config, Recorder(), pictures / "images")
        step, steps = engine.step, []

        def interrupted_step():
            steps.append(signal.raise_signal(signal.SIGINT))
            return step()

        monkeypatch.setattr(engine, "step", interrupted_step)
        session.say("a long message of many tokens")
    assert session.out.reasons == ["aborted"]
    assert session.out.answers == [""]
    assert len(steps) < 5  # of one token of the prompt each


def test_other_encodings(talk):
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nowl\n"), encoding="utf-8")
    code, out, err = talk(stdin=stdin, arguments=("--mode", "text", "--max-new-tokens", "2"))
    assert code == 6 and "not in the encoding 'utf-8'" in err and out
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="latin-1")
    assert talk(stdin=stdin, arguments=SHORT)[0] == 0


# ── terminals ────────────────────────────────────────────────────────────────────────────────────


def console(**options) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=60, **options)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "blocks"),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
        ({"TERM": "xterm-256color"}, "blocks"),
    ],
)
def test_a_protocol_is_used_if_the_terminal_names_itself(environment, expected):
    assert terminal.protocol_of(console(color_system="truecolor"), environment) == expected
    assert terminal.protocol_of(Console(file=io.StringIO()), environment) == "none"
    if expected == "blocks":
        assert terminal.protocol_of(console(color_system=None), environment) == "none"


def test_images_in_a_terminal():
    noise = np.random.default_rng(0).integers(0, 256, (80, 40, 3), np.uint8)
    image = PIL.Image.fromarray(noise)
    kitty, blocks, other = console(), console(color_system="truecolor"), console()
    terminal.show_image(kitty, image, "kitty")
    chunks = kitty.file.getvalue().split("\x1b\\")
    assert len(chunks) > 2 and chunks[0].startswith("\x1b_Gf=100,a=T,m=1;")
    assert chunks[-2].startswith("\x1b_Gm=0;") and all(len(chunk) < 4200 for chunk in chunks)
    terminal.show_image(other, image, "iterm2")
    assert other.file.getvalue().startswith("\x1b]1337;File=inline=1;")
    terminal.show_image(blocks, image, "blocks")
    assert blocks.file.getvalue().count("▀") == 40 * 40
    text = terminal.as_blocks(PIL.Image.new("RGB", (2, 2), "red"), 2)
    assert text.plain == "▀▀\n" and str(text.spans[0].style) == "#ff0000 on #ff0000"


def test_a_model_cannot_control_the_terminal():
    assert common.printable("a\x1b]0;x\x07\tb\n\x9bé") == "a\ufffd]0;x\ufffd\tb\n\ufffdé"


def test_in_a_terminal(folder, tmp_path):
    """Prompts, an answer, an image as blocks, Ctrl-C at the prompt, Ctrl-D."""
    primary, secondary = pty.openpty()

    def in_foreground() -> None:
        fcntl.ioctl(secondary, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it

    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pardalis", "chat", str(folder), "--mode", "image"],
        stdin=secondary, stdout=secondary, stderr=secondary, cwd=tmp_path, env=environment,
        start_new_session=True, close_fds=True,
        preexec_fn=in_foreground,
    )  # fmt: skip
    os.close(secondary)
    shown = b""

    def until(wanted: bytes, count: int = 1, again: bytes = b"") -> None:
        """Read until `wanted` is shown `count` times, typing `again` every two quiet seconds."""
        nonlocal shown
        deadline = time.monotonic() + 300
        while shown.count(wanted) < count and time.monotonic() < deadline:
            if select.select([primary], [], [], 2)[0]:
                try:
                    shown += os.read(primary, 65536)
                except OSError:
                    return
            elif again:
                os.write(primary, again)
        assert shown.count(wanted) >= count, shown

    try:
        until(b"> ")
        os.write(primary, b"\x03")
        # readline loses a signal that comes between its prompt and its wait for a key.
        until(b"> ", 2, again=b"\x03")
        prompts = shown.count(b"> ")
        os.write(primary, b"owl\n")
        until(b"[chat-images/0001.png]")
        until(b"> ", prompts + 1)
        os.write(primary, b"\x04")
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        process.wait()
        os.close(primary)
    assert "▀".encode() in shown and (tmp_path / "chat-images" / "0001.png").exists()


# ── retrieved documents ──────────────────────────────────────────────────────────────────────────


def test_each_message_gets_documents(talk, folder, tmp_path):
    bundle, clip = pardalis.load(folder), write_clip(tmp_path / "clip")
    source = write_source(tmp_path, "pairs", ["an owl", "a fox", "an oak"], range(3))
    config = IndexConfig(embedder=ClipConfig(folder=clip), document_tokens=40)
    build_index(tmp_path / "index", [source], bundle.codec, config)
    flags = ("--retrieve", "index", "--clip", "clip", "--documents", "1", *SHORT)
    code, out, err = talk("a fox", "/retry", arguments=(*flags, "--json"))
    assert (code, err) == (0, "")
    said = events(out)
    retriever = Retriever(tmp_path / "index", 1, embedder=ClipConfig(folder=clip))
    options = {"chat": True, "mode": "text", "max_new_tokens": 4, "retriever": retriever}
    expected = pardalis.generate(bundle, "a fox", **options)
    assert said[0] == {"event": "retrieved", "documents": [asdict(expected.retrieved[0])]}
    answer, _ = [each for each in said if each["event"] == "answer"]
    assert answer["text"] == expected.text
    assert [each["event"] for each in said].count("retrieved") == 2
    code, out, err = talk("a fox", arguments=flags)
    assert "Retrieved by text, score" in err
    assert out.rstrip("\n") == expected.text.rstrip("\n")
    assert talk("a fox", arguments=("--documents", "1"))[0] == 6
