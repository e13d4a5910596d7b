"""A template is somebody else's program: it ends, takes bounded memory, and reads nothing."""

import gc
import os
import pickle
import threading

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from pardalis.errors import BundleError, DataError
from pardalis.tokens import template_process
from pardalis.tokens.template_process import TemplateProcess

MESSAGES = [
    {"role": "user", "content": "Is 3 < 4 & 'naïve'?\n"},
    {"role": "assistant", "content": "x"},
]


def rendered(source: str, **variables) -> str | DataError:
    [text] = TemplateProcess(source).render([{"messages": MESSAGES, **variables}])
    return text


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {{ m.role }}\n  {% if m %}\n{{ m.content }}\n{% endif %}\n"
        "{% endfor %}",
        "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ missing }}",
        "{% set a = namespace(b=1) %}{% for m in 'xy' %}{% set a.b = 2 %}{% endfor %}{{ a.b }}",
        "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(bos_token) }}{{ dict(a=1) }}",
        "{%- set m = messages[-1] -%} {{- m['content'] | trim | upper ~ m.get('tools', []) -}} ",
        "{{ messages is iterable }}{{ messages | map(attribute='role') | join(',') }}\n",
    ],
)
def test_texts_are_those_of_transformers(source):
    [theirs], _ = render_jinja_template([MESSAGES], chat_template=source, bos_token="<s>")
    assert rendered(source, bos_token="<s>", add_generation_prompt=False) == theirs


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_endless_work_is_ended(monkeypatch):
    monkeypatch.setattr(template_process, "SECONDS", 1)
    process = TemplateProcess("{% if messages == 'endless' %}" + ENDLESS + "{% endif %}ok")
    for _ in range(2):
        with pytest.raises(BundleError, match=r"takes more than 1 s for one conversation; correct"):
            process.render([{"messages": "endless"}])
        assert process.render([{"messages": []}]) == ["ok"]  # by the next process


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 2 ** (10**8) ** 3 }}",
        "{{ range(10**10) | list }}",
        "{{ 'a' | center(10**10) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ ([1] * 10**10) | length }}",
        "{% set n = namespace(a='a') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}"
        "{% endfor %}",
        "{{ messages | tojson(indent=10**10) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ 'abcd' }}{% endfor %}{% endfor %}",
    ],
)
def test_what_grows_without_bound_is_refused_in_a_sentence(source, monkeypatch):
    monkeypatch.setattr(template_process, "SECONDS", 2)
    monkeypatch.setattr(template_process, "MEMORY", 2**28)
    try:
        message = str(rendered(source))
    except BundleError as error:
        message = str(error)
    assert message.startswith("The ") and message.endswith(".") and "\n" not in message
    assert len(message) < 400, message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__init__=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception('Not\nthis.') }}",
        "{{ missing.attribute }}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_the_sandbox_refuses_is_a_sentence(source):
    error = rendered(source)
    assert isinstance(error, DataError)
    assert str(error).startswith("The chat template does not take this conversation: ")
    assert "\n" not in str(error)


def test_a_template_that_is_none():
    for source in ("{% for", "{{", "{% nonsense %}", "{% if %}" * 3, "(" * 3 + "{{" + "(" * 9999):
        with pytest.raises(BundleError, match=r"^The (chat template cannot be read|process)"):
            rendered(source)


def test_the_day_is_always_the_same():
    assert rendered("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"


def test_one_wrong_conversation_costs_only_itself():
    process = TemplateProcess("{{ messages[0].role + 'x' }}")
    one, two = process.render([{"messages": []}, {"messages": MESSAGES}])
    assert isinstance(one, DataError) and two == "userx"


def test_it_starts_late_is_shared_by_threads_and_ends_with_its_object():
    process = TemplateProcess("{{ messages }}")
    assert process._worker is None
    found: dict[int, list] = {}

    def work(n: int) -> None:
        found[n] = [process.render([{"messages": f"{n} {i}"}])[0] for i in range(20)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [f"{n} {i}" for i in range(20)] for n in range(3)}
    worker = process._worker
    del process, threads, work
    gc.collect()
    assert worker.returncode == 0


def test_a_copy_and_a_fork_have_processes_of_their_own():
    process = TemplateProcess("{{ messages }}")
    assert process.render([{"messages": "a"}]) == ["a"]
    assert pickle.loads(pickle.dumps(process)).render([{"messages": "b"}]) == ["b"]
    child = os.fork()
    if not child:
        try:
            os._exit(process.render([{"messages": "c"}]) != ["c"])
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert process.render([{"messages": "d"}]) == ["d"]


def test_nothing_is_imported_from_the_working_folder(tmp_path, monkeypatch):
    for name in ("json", "jinja2", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert rendered("ok") == "ok"
