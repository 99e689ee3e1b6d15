// SPDX-License-Identifier: Apache-2.0
// The template engine against what jinja2 made of the same templates (tests/data/jinja_cases.json),
// and against templates that mean harm.
#include <gtest/gtest.h>

#include "coordinator/tokenizer/jinja/json.h"
#include "coordinator/tokenizer/jinja/template.h"
#include "tests/coordinator/tokenizer_files.h"

namespace trireme::jinja {
namespace {

std::string render(std::string_view source, const Dict& context = {}) {
  const Function date = [](const Arguments&) { return Value("22 Nov 2026"); };
  return Template(source).render(context, date);
}

TEST(Jinja, RendersAsJinja2Does) {
  const Value file = parse_json(read_whole(test_data("jinja_cases.json")));
  const Dict& context = *file.dict()->find("context")->dict();
  const List& cases = *file.dict()->find("cases")->list();
  ASSERT_GT(cases.size(), 100u);
  for (const Value& one : cases) {
    const std::string& source = *one.dict()->find("template")->text();
    const Value& expected = *one.dict()->find("output");
    try {
      const std::string output = render(source, context);
      ASSERT_NE(expected.text(), nullptr)
          << source << ": jinja2 refuses it, rendered as " << output;
      EXPECT_EQ(output, *expected.text()) << source;
    } catch (const Error& error) {
      EXPECT_TRUE(expected.is_none()) << source << ": " << error.what();
      EXPECT_TRUE(error.code() == Code::kInvalidArgument || error.code() == Code::kUnimplemented);
    }
  }
}

TEST(Jinja, WhatIsNotKnownIsNamed) {
  const auto expect_unknown = [](const char* source, const char* word) {
    expect_error(Code::kUnimplemented, word, [&] { render(source); });
  };
  expect_unknown("{% include 'x' %}", "line 1: the statement 'include'");
  expect_unknown("a\n{% call f() %}{% endcall %}", "line 2: the statement 'call'");
  expect_unknown("{{ 'a'|wordcount }}", "the filter 'wordcount'");
  expect_unknown("{{ 1 is prime }}", "the test 'prime'");
  expect_unknown("{{ 'a'.zfill(3) }}", "the method 'zfill'");
  expect_unknown("{{ 'é'|upper }}", "outside of ASCII");
  expect_error(Code::kInvalidArgument, "line 3: ", [] { render("\n\n{% if %}"); });
  expect_error(Code::kInvalidArgument, "no, thanks",
               [] { render("{{ raise_exception('no, thanks') }}"); });
  EXPECT_EQ(render("{{ strftime_now('%d') }}"), "22 Nov 2026");
}

// Each would need much time, memory or stack if nothing stopped it.
TEST(Jinja, HostileTemplatesEndSoon) {
  const std::string many(100'000, '(');
  std::string sum = "{{ 1";
  for (int i = 0; i < 20'000; ++i) sum += "+1";
  std::string blocks;
  for (int i = 0; i < 5'000; ++i) blocks += "{% if 1 %}";
  const std::string sources[] = {
      "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
      "{% for i in range(999999) %}{% endfor %}",
      "{{ range(99999)|list * 99999 }}",
      "{{ 'x' * 99999999999 }}",
      "{{ 9223372036854775807 + 1 }}{{ -9223372036854775807 - 2 }}",
      "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s "
      "%}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(999) %}{% set ns.s = [ns.s] %}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% "
      "endfor %}{{ ns.s }}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
      "{% set ns = namespace(s='a') %}{% for i in range(40) %}{% set ns.s = ns.s.replace('a', "
      "'aaaa') %}{% endfor %}",
      "{% set ns = namespace() %}{% set ns.me = ns %}{% set ns.list = [ns] %}{{ ns }}",
      "{{ " + many + " }}",
      "{{ " + std::string(100'000, '[') + " }}",
      "{{ " + std::string(100'000, '-') + "1 }}",
      "{{ a" + std::string(100'000, '.') + " }}",
      sum + " }}",
      blocks,
      "{% for i in x if " + many + " %}",
      std::string(kTemplateBytesMax + 1, 'x'),
      "\xFF",
      "{{ 99999999999999999999 }}",
      "{{ 1e999 }}",
  };
  for (const std::string& source : sources) {
    EXPECT_THROW(render(source), Error) << source.substr(0, 80);
  }
}

}  // namespace
}  // namespace trireme::jinja
