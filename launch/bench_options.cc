// SPDX-License-Identifier: Apache-2.0
#include "launch/bench_options.h"

#include <cmath>

#include "kernels/base/error.h"
#include "launch/flag_kinds.h"

namespace trireme {
namespace {

constexpr const char* kExamples = R"(Examples:
  trireme bench --requests 200 --concurrency 16 --input_len 512 --output_len 128
  trireme bench --requests 600 --rate 4 --input_len 512 --output_len 128 --ttft_max 2s --tpot_max 100ms
  trireme bench --requests 600 --rate 4 --burstiness 0.25 --input_len 512 --output_len 128 --json

--concurrency: the next request begins when one has ended (closed loop): what the server can do. After
one that was refused none begins before the server wants it.
--rate: requests begin whatever has become of those before (open loop): what its users would see.
Prompts are random words of the model's own vocabulary, answers have --output_len tokens each. One more
request, not counted, goes ahead.

TTFT: from sending to the first token. TPOT: the time behind it, by the tokens behind it. ITL: between
two messages with tokens. E2EL: to the end. Of requests that were answered whole. Goodput: answers a
second that kept within every limit given. Requests that the server refuses for want of a place (its
queue is full) are a result; any other failure makes the exit status 1.)";

CLI::Validator more_than_zero() {
  return {[](std::string& text) {
            double value = 0;
            return CLI::detail::lexical_cast(text, value) && value > 0 && std::isfinite(value)
                       ? std::string()
                       : "found " + text + ", needed is a number above 0";
          },
          "NUMBER"};
}

}  // namespace

CLI::App* add_bench_flags(CLI::App& app, BenchFlags& flags) {
  CLI::App* const bench = app.add_subcommand("bench", "Measures a server under a load");
  add_client_flags(*bench, flags);
  bench->add_option("--requests", flags.requests, "how many (required)")
      ->check(positive())
      ->default_str("");
  bench->add_option("--concurrency", flags.concurrency, "under way at once (or --rate)")
      ->check(positive());
  bench->add_option("--rate", flags.rate, "begun in a second, on average (or --concurrency)")
      ->check(more_than_zero());
  bench
      ->add_option("--burstiness", flags.burstiness,
                   "with --rate: gaps have a gamma distribution of this shape; 1: Poisson, less: "
                   "in bursts, more: evenly")
      ->check(more_than_zero())
      ->capture_default_str();
  bench->add_option("--input_len", flags.input_len, "tokens of each prompt (required)")
      ->check(positive())
      ->default_str("");
  bench->add_option("--output_len", flags.output_len, "tokens of each answer (required)")
      ->check(positive())
      ->default_str("");
  bench->add_option("--temperature", flags.temperature, "0: greedy; up to 100")
      ->capture_default_str();
  bench->add_option("--seed", flags.seed, "the same seed draws the same prompts and gaps")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_duration(*bench, "--ttft_max", flags.ttft_max, "for goodput: longest TTFT, such as 2s");
  add_duration(*bench, "--tpot_max", flags.tpot_max, "for goodput: longest TPOT, such as 100ms");
  add_duration(*bench, "--e2el_max", flags.e2el_max, "for goodput: longest E2EL, such as 30s");
  bench->add_flag("--json", flags.json, "one JSON object on stdout in place of tables");
  bench->footer(kExamples);
  return bench;
}

void check_bench(const BenchFlags& flags) {
  const auto need = [](bool given, const std::string& what) {
    if (!given) {
      throw Error(Code::kInvalidArgument, what + " is required; see: trireme bench --help");
    }
  };
  need(flags.requests > 0, "--requests");
  need(flags.input_len > 0, "--input_len");
  need(flags.output_len > 0, "--output_len");
  need(flags.concurrency || flags.rate, "--concurrency or --rate");
  if (flags.concurrency && flags.rate) {
    throw Error(
        Code::kInvalidArgument,
        "--concurrency and --rate exclude each other: the one begins a request when another "
        "has ended, the other by the clock");
  }
  if (flags.burstiness != 1.0 && !flags.rate) {
    throw Error(Code::kInvalidArgument, "--burstiness is of the gaps that --rate makes: add it");
  }
}

}  // namespace trireme
