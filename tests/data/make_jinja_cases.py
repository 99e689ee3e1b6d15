# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/jinja_cases.json: run once, `pip install jinja2`; the result is committed.

Templates of our own and what jinja2 makes of them with the settings of transformers' chat templates. A case
whose output is null is one that jinja2 refuses.
"""
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent

TOOL = {"type": "function", "function": {"name": "f", "description": "<b> & 'x' \"y\" 天气", "parameters": {
    "type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer", "default": 1.0}}}}}
CONTEXT = {
    "messages": [
        {"role": "system", "content": "  Be kind.\n"},
        {"role": "user", "content": "你好 👋🏽 <|user|>", "n": 3},
        {"role": "assistant", "content": "", "calls": [{"name": "f", "arguments": {"a": 1, "b": [None, True, 2.5]}}]},
        {"role": "user", "content": "a,b,,c"},
    ],
    "tools": [TOOL], "none_value": None, "number": 7, "real": 0.1, "yes": True, "empty": [], "text": "a-b-c",
    "bos": "<s>", "mixed": [3, 1, 2, 1], "words": ["b", "A", "c", "a"],
}

EXPRESSIONS = """
1 + 2 * 3 ** 2 - 4 / 2
7 // 2 ~ -7 // 2 ~ 7 % 3 ~ -7 % 3
2 ** -1
-number|abs
"a" "b" ~ 1 ~ none ~ true ~ 2.0 ~ 1e20 ~ 1e-7 ~ 0.1
1 < 2 < 3 and not 3 < 2 or false
number is number and number is integer and not number is float
'x' if number > 5 else 'y'
'x' if number < 5
missing is defined
missing
missing is not defined and none_value is none
missing|default('d') ~ none_value|default('d') ~ none_value|default('d', true)
none_value
yes
1.0
[1, 'a', none, true, 1.5, {'k': [[]]}]
{'a': 1, "b": 'it\\'s'}
(1, 2)[1]
text[0] ~ text[-1] ~ text[1:3] ~ text[::-1] ~ text[::2] ~ text[-2:]
messages[-1].role ~ messages[0]['role'] ~ messages[1:3]|length
messages[9] is defined
messages[0].missing is defined
messages[0].get('role') ~ messages[0].get('x', 'y') ~ messages[0].get('x')
messages[0].items()|list|length
tools[0].function.keys()|list
'role' in messages[0]
'x' not in text and 'b-' in text
3 in mixed and 9 not in mixed
number in (1, 7)
messages[1].content|length
messages[1].content[3:4]
messages[1].content|tojson
tools|tojson
tools[0]|tojson(indent=4)
tools[0].function|tojson(indent=2, sort_keys=true)
messages[1].content|tojson(ensure_ascii=true)
"\\x41\\u4f60\\n\\t\\q\\\\"|tojson
'\\101\\'"'
mixed|sort|join(', ')
mixed|unique|list
words|sort|join
words|sort(case_sensitive=true, reverse=true)|join
mixed|max ~ mixed|min ~ mixed|first ~ mixed|last
empty|first is defined
messages|map(attribute='role')|join('|')
messages|map(attribute='n', default=0)|list
words|map('upper')|list
messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|length
messages|rejectattr('role', 'in', ['user', 'system'])|list|length
messages|selectattr('calls', 'defined')|list|length
mixed|select('gt', 1)|list ~ mixed|reject('odd')|list
none_value|map('upper')|list
'  x y '|trim ~ '|' ~ '  x '.strip() ~ '|' ~ 'xxyx'.strip('x') ~ '|' ~ ' x '.lstrip() ~ '|' ~ ' x '.rstrip()
'a,b,,c'.split(',') ~ ' a  b '.split() ~ 'a,b,c'.split(',', 1) ~ 'a,b,c'.rsplit(',', 1)
'a\\nb\\n\\nc'.splitlines()
'</think>' in '<think>x</think>y' and '<think>x</think>y'.split('</think>')[-1] == 'y'
text.startswith('a-') and text.endswith(('x', '-c'))
text.replace('-', '+') ~ text|replace('-', '', 1) ~ 'ab'.replace('', '.')
text.upper() ~ text|upper ~ 'ABC'|lower ~ 'hello world'|title ~ 'hELLO'|capitalize
text.find('b') ~ text.find('z') ~ text.count('-')
'12'.isdigit() and not 'a1'.isdigit()
'42'|int ~ '1.5'|float ~ 'x'|int ~ 3.9|int
([1, 2] + [3]) ~ 'ab' * 2 ~ [0] * 3
range(3)|list ~ range(1, 10, 4)|list ~ range(3, 0, -1)|list
'a\\nb\\n\\nc'|indent(2) ~ 'a\\nb'|indent(1, true)
{'b': 1, 'a': 2}|dictsort|tojson ~ {'b': 1}|items|list|tojson
messages[2].calls[0].arguments|string
number|string + 'x'
dict(a=1, b='c')|tojson
text is string and messages is iterable and messages is sequence and tools[0] is mapping and not text is mapping
missing is iterable ~ none_value is iterable ~ number is sequence
number is divisibleby 7 and number is odd
4 is even
text is eq 'a-b-c' and number is sameas number
1 == 1.0 and true == 1 and 'a' != 1
not empty ~ (not 'x') ~ (not 0.0)
(1 if yes else 2, 3)|length
'a' < 'b' and [1] == [1] and {'a': 1} == {'a': 1}
text|reverse ~ mixed|reverse|list
'{"a": 1}' + '}}' ~ '%}'
""".strip("\n").split("\n")

TEMPLATES = [
    "{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for m in messages -%}\n  {{ loop.index }}/{{ loop.length }} {{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}\n{%- endfor %}",
    "  {% if yes %}\n    a\n  {% endif %}\n  b {{ number }}\n  {# c #}\nd\n",
    "{%- if yes -%}\n  a  {%- else -%} b {%- endif +%}\nx\n  {%+ if yes %}y{% endif %}\n",
    "a\n\n{{- 'x' -}}\n\n b {{ 'y' }}\n{% if no %}{% elif yes %}E{% else %}F{% endif %}\n\n",
    "{% raw %}{{ x }} {% if %}{% endraw %}\n{{ '{{' }}",
    "{% set x = 1 %}{% for i in range(3) %}{% set x = i %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(n=0, l='') %}{% for i in mixed %}{% set ns.n = ns.n + i %}{% set ns.l = ns.l ~ i %}{% endfor %}{{ ns.n }}{{ ns.l }}",
    "{% set x %}a{{ number }}b{% endset %}{{ x|upper }}{% set y | trim %}  z {% endset %}[{{ y }}]",
    "{% set a, b = 1, 'x' %}{{ b }}{{ a }}{% for k, v in {'p': 1, 'q': 2}.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% macro m(a, b='d', c=none) %}<{{ a }}{{ b }}{{ c }}{{ number }}>{% endmacro %}{{ m(1) }}{{ m(1, c='z') }}{{ m('q', 2) ~ '!' }}",
    "{% macro r(n) %}{{ n }}{% if n > 0 %}{{ r(n - 1) }}{% endif %}{% endmacro %}{{ r(3) }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}{% for i in mixed if i > 1 %}{{ loop.index }}:{{ i }} {% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if not loop.last }};{% endfor %}",
    "{% for i in mixed %}{{ loop.cycle('a', 'b') }}{% for j in [1, 2] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for c in 'añ你' %}{{ c }}.{% endfor %}{% for k in {'a': 1} %}{{ k }}{% endfor %}",
    "{{ bos }}{% for message in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}{{ index }}{% endfor %}",
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% endif %}{{ loop_messages|length }}{{ system|trim }}",
    "{% generation %}x{{ number }}{% endgeneration %}",
    "{% for t in tools %}{%- set f = t.function if t.function is defined else t %}\n## {{ f.name }}\n\n{{ f | tojson(indent=4) }}{% endfor %}",
    "{{ raise_exception('no ' ~ text) }}", "{{ missing.a }}", "{{ missing + 'a' }}", "{{ none_value + 1 }}",
    "{{ 1 / 0 }}", "{% for x in none_value %}{% endfor %}", "{{ 'a' + 1 }}", "{{ number() }}", "{% if %}", "{% for %}",
    "{{ 1", "{% if yes %}", "{% endif %}", "{{ (1 }}", "{{ 'a }}", "{# x", "{% unknown %}", "{{ 1 | nothing }}",
    "{{ x is nothing }}", "{% break %}", "{{ }}", "{{ messages|tojson(1 }}", "{% set a, b = [1] %}", "{{ 'x' in none_value }}",
]


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    cases = []
    for template in ["{{ " + expression + " }}" for expression in EXPRESSIONS] + TEMPLATES:
        try:
            output = environment.from_string(template).render(**CONTEXT)
        except Exception:  # whatever jinja2 throws
            output = None
        cases.append({"template": template, "output": output})
    result = {"context": CONTEXT, "cases": cases}
    (HERE / "jinja_cases.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
