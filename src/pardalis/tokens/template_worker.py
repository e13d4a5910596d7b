"""The program that renders chat templates in a process of its own.

It reads one JSON value a line: first the template, then lists of calls, each a table of the
template's variables. It answers each list by a list of ``{"text": ...}`` or ``{"error": ...}``. The
template is somebody else's program, so it runs in Jinja's sandbox, and the kernel ends this process
when a list takes too much processor time (SIGPROF) and refuses memory above the limit. Nothing of
Pardalis is imported. The environment is that of transformers, so templates render the same text.

    python template_worker.py SECONDS BYTES CHARACTERS
"""

import json
import resource
import signal
import sys
from datetime import date
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

_TODAY = date(2024, 7, 26)  # of all conversations, so that a result does not depend on the day
_LONGEST_ERROR = 200


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: transformers' mark of what the assistant says; it adds no text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's ``namespace`` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # the template may set any name, also `self`
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"the name {name!r} begins with an underscore")


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without the escapes for HTML that Jinja's own filter adds."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _TODAY.strftime,
        "namespace": _Namespace,
    }
    return environment.from_string(source)


def _rendered(template: jinja2.Template, variables: dict[str, Any], most: int) -> dict[str, str]:
    length, texts = 0, []
    try:
        for text in template.generate(**variables):
            texts.append(text)
            length += len(text)
            if length > most:
                return {"error": f"it writes more than {most:,} characters"}
    except MemoryError:
        return {"error": "it needs more memory than it may use"}
    except Exception as error:  # a template may raise any
        return {"error": _line(error)}
    return {"text": "".join(texts)}


def _line(error: Exception) -> str:
    message = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return message if len(message) <= _LONGEST_ERROR else message[:_LONGEST_ERROR] + "..."


def main(seconds: int, n_bytes: int, most: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source = json.loads(sys.stdin.readline())
    template = None
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process
        try:
            template = template or _compiled(source)
        except Exception as error:
            answers: Any = {"broken": _line(error) or "it cannot be compiled"}
        else:
            answers = [_rendered(template, variables, most) for variables in json.loads(line)]
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
