// SPDX-License-Identifier: Apache-2.0
#include "launch/options.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/dtype.h"
#include "launch/bench_options.h"
#include "launch/flag_kinds.h"
#include "launch/probe_options.h"
#include "topology/placement.h"

namespace trireme {
namespace {

using std::chrono::milliseconds;

// Ranks tell of themselves five times a second: with less, each would be dead at once.
constexpr milliseconds kLeastSilence{1000};

constexpr const char* kAboutTrireme =
    "Trireme serves a large language model from an MPI job.\n"
    "Alone it runs in one process; under mpirun or srun rank 0 coordinates and the other ranks "
    "compute.";

constexpr const char* kExamples = R"(Examples:
  trireme serve --model PATH                        one process, 127.0.0.1:50051
  mpirun -n 3 --bind-to none trireme serve --model PATH   two workers, with all cores
  trireme chat "What is the capital of France?"     asks that server
  trireme generate --model PATH --chat "Hello"      no server at all

PATH is a Hugging Face directory (config.json, *.safetensors, a tokenizer) or a GGUF file.
`trireme help SUBCOMMAND` tells the rest. Exit status: 0 done, 2 bad options or input, 1 failure.)";

constexpr const char* kServeExamples = R"(Examples:
  trireme serve --model PATH --listen 127.0.0.1:0 --address_file server.addr
  trireme serve --model PATH --listen unix:/run/user/1000/trireme.sock
  trireme serve --model PATH --listen 0.0.0.0:50051 --tls_cert c.pem --tls_key k.pem --token_file token
  mpirun -n 5 --bind-to none trireme serve --model PATH --pp 2 --tp 2

Ends on SIGTERM or Ctrl-C: takes no more requests, lets those that run finish for up to --drain_limit.
A second signal ends it at once.)";

constexpr const char* kGenerateExamples = R"(Examples:
  trireme generate --model PATH --prompt "Once upon a time" --max_tokens 50
  trireme generate --model PATH --chat "Name a prime." --temperature 0.8 --top_p 0.9 --seed 7
  trireme generate --model PATH --prompt_ids 1,2,3 --json --logprobs 5
  mpirun -n 3 --bind-to none trireme generate --model PATH --input prompts.jsonl --json > answers.jsonl

A line of --input: {"prompt": "…"} or {"chat": "…"} or {"prompt_ids": […]}, and where it differs from
the flags: max_tokens, min_tokens, temperature, top_p, top_k, min_p, repetition_penalty,
frequency_penalty, presence_penalty, logit_bias ({"ID": VALUE}), seed, n, stop, stop_token_ids,
ignore_eos, logprobs.)";

constexpr const char* kChatExamples = R"(Examples:
  trireme chat "What is the capital of France?"
  trireme chat                                      a conversation: Ctrl-C stops an answer, /quit ends
  trireme chat --server unix:/run/user/1000/trireme.sock --system "Answer in one sentence.")";

constexpr const char* kTopExamples = R"(Examples:
  trireme top                                       live, on a terminal; q ends it
  trireme top --server node17:50051 --once          once; so it is, too, where the output is no terminal
  trireme top --json | jq .health.ranks             a line at every change

A rank is suspected when it was silent for 2 s, or does not move for 10 s though nobody keeps it waiting.)";

constexpr const char* kPlanExamples = R"(Examples:
  trireme plan --model PATH --explain                            what serve would do here
  trireme plan --model PATH --topology cluster.json --explain    for a cluster that you do not have
  trireme plan --model PATH --topology cluster.json --svg plan.svg --tpot_max 50ms
  trireme plan --model PATH --topology cluster.json --json > placement.json

With --topology PATH needs a config.json only, or a GGUF file's metadata: no weight is read.)";

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  if (text.empty() || text.back() == separator) parts.emplace_back();
  return parts;
}

std::vector<int32_t> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  for (const std::string& part : split(text, ',')) {
    int32_t id = 0;
    const char* const end = part.data() + part.size();
    const auto [stop, error] = std::from_chars(part.data(), end, id);
    if (error != std::errc() || stop != end) {
      bad_value("--prompt_ids", part, "token ids with commas between them, such as 1,2,3");
    }
    ids.push_back(id);
  }
  return ids;
}

std::map<std::string, uint64_t> parse_max_memory(const std::string& text) {
  std::map<std::string, uint64_t> limits;
  for (const std::string& part : split(text, ',')) {
    const size_t equals = part.find('=');
    if (equals == 0 || equals == std::string::npos) {
      bad_value("--max_memory", part,
                "KEY=SIZE with commas between them, such as 0=10GiB,cpu=4GiB");
    }
    const std::string key = part.substr(0, equals);
    if (!limits.emplace(key, parse_bytes(part.substr(equals + 1), "--max_memory")).second) {
      bad_value("--max_memory", text, "each key once, and " + key + " is there twice");
    }
  }
  return limits;
}

std::map<int32_t, double> parse_biases(const std::string& text) {
  const std::string allowed = "ID=VALUE with commas between them, such as 198=-100,25=1.5";
  std::map<int32_t, double> biases;
  for (const std::string& part : split(text, ',')) {
    const char* const end = part.data() + part.size();
    int32_t id = 0;
    double bias = 0;
    const auto key = std::from_chars(part.data(), end, id);
    if (key.ec != std::errc() || key.ptr == end || *key.ptr != '=') {
      bad_value("--logit_bias", part, allowed);
    }
    const auto value = std::from_chars(key.ptr + 1, end, bias);
    if (value.ec != std::errc() || value.ptr != end) bad_value("--logit_bias", part, allowed);
    if (!biases.emplace(id, bias).second) {
      bad_value("--logit_bias", text,
                "each token once, and " + std::to_string(id) + " is there twice");
    }
  }
  return biases;
}

// A flag that may be repeated and takes one value each time.
CLI::Option* add_repeated(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                          const std::string& help) {
  return app.add_option(name, values, help)
      ->expected(1)
      ->allow_extra_args(false)
      ->take_all()
      ->default_str("");
}

std::string dtype_or_file(const std::string& value) {
  if (parse_dtype(value) || CLI::ExistingFile(value).empty()) return "";
  return value + " is neither fp32, bf16, fp16, int8 or int4 nor a file";
}

void add_placement_flags(CLI::App& app, PlacementFlags& flags) {
  app.add_option("--model", flags.model, "Hugging Face directory or GGUF file (required)");
  app.add_option("--tp", flags.tp, "ranks that share each layer")->check(positive());
  app.add_option("--pp", flags.pp, "stages: ranges of layers, one after the other")
      ->check(positive());
  app.add_option("--dp", flags.dp, "replicas of the whole model")->check(positive());
  app.add_option("--device_map", flags.device_map,
                 "auto; balanced, balanced_low_0 or sequential as accelerate has them; or a file: "
                 "HF's modules to workers, or a placement (plan --json writes one)");
  app.add_option_function<std::string>(
      "--max_memory",
      [&flags](const std::string& text) { flags.max_memory_bytes = parse_max_memory(text); },
      "what workers may use, such as 0=10GiB,node7:1=20GiB; cpu: every CPU worker");
  app.add_option(
         "--dtype", flags.dtype,
         "fp32, bf16, fp16, on GPUs int8 or int4 (of layers' matrices; the rest bf16), or a JSON "
         "file by module name: {\"\": \"bf16\", \"lm_head\": \"fp32\"} (default: the checkpoint's)")
      ->check(dtype_or_file, "NAME|FILE");
  app.add_option("--max_sequences", flags.max_sequences, "requests computed at once, per replica")
      ->check(positive());
  app.add_option("--max_batch_tokens", flags.max_batch_tokens, "tokens of one micro-batch")
      ->check(positive());
  app.add_option("--context", flags.context,
                 "longest prompt + output (default: the model's, or what fits)")
      ->check(positive());
  app.add_option("--threads", flags.threads, "of each CPU rank; 0: its share of the node's cores")
      ->check(CLI::NonNegativeNumber);
  add_duration(app, "--start_timeout", flags.start_timeout, "of each step before the load: 30s")
      ->default_str("60s");
  app.add_option("--objective", flags.objective,
                 "of the plan: throughput within the limits, or latency of one request alone")
      ->check(CLI::IsMember({"throughput", "latency"}))
      ->capture_default_str();
  add_duration(app, "--tpot_max", flags.tpot_max, "longest time per output token, such as 50ms");
  add_duration(app, "--ttft_max", flags.ttft_max, "longest time to the first token, such as 2s");
  app.add_option("--isa", flags.isa, "CPU instructions to use, for tests (auto: the best)");
}

void add_run_flags(CLI::App& app, PlacementFlags& flags) {
  app.add_flag("--verify_checkpoint", flags.verify_checkpoint,
               "read and digest every tensor on every host while loading, and compare");
  app.add_flag("--deterministic", flags.deterministic,
               "GPUs: the same bits whatever is computed beside, at a price (CPUs: always)");
  app.add_flag("--enforce_eager", flags.enforce_eager,
               "GPUs: record no decode step as a CUDA graph: slower, for finding faults");
  app.add_option("--peer_sums", flags.peer_sums,
                 "sums in the memory of GPUs that reach each other's: auto (where that beats NCCL "
                 "at the start), always (or an error), never")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->capture_default_str();
}

void add_plan_flags(CLI::App& app, PlanFlags& flags) {
  app.add_option("--topology", flags.topology,
                 "files with the machines to plan for, absent or not; probe (default): this job's")
      ->take_all();
  app.add_flag("--json", flags.json, "as JSON, which --device_map reads");
  app.add_flag("--explain", flags.explain, "each rank's memory and time, and what decided");
  app.add_option("--svg", flags.svg, "FILE gets a picture of it");
  app.footer(kPlanExamples);
}

CLI::App* add_serve(CLI::App& app, Options& options) {
  ServeFlags& flags = options.serve;
  CLI::App* const serve = app.add_subcommand("serve", "Serves a model over gRPC");
  add_placement_flags(*serve, options.placement);
  add_run_flags(*serve, options.placement);
  serve->add_option("--listen", flags.listen, "HOST:PORT (port 0: any), [IPv6]:PORT or unix:PATH")
      ->capture_default_str();
  serve->add_option("--address_file", flags.address_file,
                    "gets the address once the model answers; gone again at the end");
  serve->add_option("--max_queue", flags.max_queue, "requests that may wait; more are refused")
      ->check(positive());
  serve->add_option("--token_file", flags.token_file, "callers must prove to know its content");
  serve->add_option("--tls_cert", flags.tls_cert, "certificate chain, PEM");
  serve->add_option("--tls_key", flags.tls_key, "its private key, PEM");
  serve->add_option("--tls_client_ca", flags.tls_client_ca,
                    "clients must show a certificate of this CA, PEM");
  serve->add_option("--save_plan", flags.save_plan, "FILE gets the placement, for --device_map");
  serve->add_flag("--allow_insecure", flags.allow_insecure,
                  "listen beyond this machine without TLS and token");
  add_duration(*serve, "--dead_after", flags.dead_after,
               "silence after which a worker counts as dead, 1s or more", kLeastSilence)
      ->default_str("10s");
  add_duration(*serve, "--drain_limit", flags.drain_limit,
               "what running requests have when the end was asked for (default: 30s; with "
               "--drain_before until just before the job's end)");
  add_duration(*serve, "--drain_before", flags.drain_before,
               "takes no more requests from so long before the end of the Slurm job, such as 2min");
  serve->add_option("--status_file", flags.status_file,
                    "gets what the job does, and how it ended, as JSON (launch/README.md)");
  serve->footer(kServeExamples);
  return serve;
}

void add_sampling_flags(CLI::App& app, GenerateFlags& flags) {
  app.add_option("--temperature", flags.temperature, "0: greedy; up to 100")->capture_default_str();
  app.add_option("--top_p", flags.top_p, "above 0, up to 1 (off)")->capture_default_str();
  app.add_option("--top_k", flags.top_k, "0: off")->capture_default_str();
  app.add_option("--min_p", flags.min_p, "least part of the best token's probability; 0: off")
      ->capture_default_str();
  app.add_option("--repetition_penalty", flags.repetition_penalty,
                 "of tokens in prompt and output, 0.01 to 10; 1: off")
      ->capture_default_str();
  app.add_option("--frequency_penalty", flags.frequency_penalty,
                 "for each time that a token was drawn, -2 to 2")
      ->capture_default_str();
  app.add_option("--presence_penalty", flags.presence_penalty, "of tokens that were drawn, -2 to 2")
      ->capture_default_str();
  app.add_option_function<std::string>(
      "--logit_bias", [&flags](const std::string& text) { flags.logit_bias = parse_biases(text); },
      "added to the logits of tokens, -100 to 100: ID=VALUE,ID=VALUE");
  app.add_option("--seed", flags.seed, "the same seed draws the same tokens")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--n", flags.n, "answers to each prompt, each with a draw of its own, up to 128")
      ->capture_default_str();
  app.add_option("--min_tokens", flags.min_tokens,
                 "of each answer, before anything but --max_tokens ends it");
}

CLI::App* add_generate(CLI::App& app, Options& options, std::vector<std::string>& prompt_ids) {
  GenerateFlags& flags = options.generate;
  CLI::App* const generate = app.add_subcommand("generate", "Answers prompts without a server");
  add_placement_flags(*generate, options.placement);
  add_run_flags(*generate, options.placement);
  add_repeated(*generate, "--prompt", flags.prompts, "text to go on from; may be repeated");
  add_repeated(*generate, "--chat", flags.chats, "one user message; may be repeated");
  add_repeated(*generate, "--prompt_ids", prompt_ids, "token ids, taken as they are: 1,2,3");
  generate->add_option("--input", flags.input, "file with one JSON object per line");
  generate->add_option("--max_tokens", flags.max_tokens,
                       "of each answer (default: what is left of the context)");
  add_sampling_flags(*generate, flags);
  add_repeated(*generate, "--stop", flags.stop, "text that ends the answer; may be repeated");
  generate->add_option("--stop_token_ids", flags.stop_token_ids, "ids that end it: 1,2,3")
      ->delimiter(',')
      ->default_str("");
  generate->add_flag("--ignore_eos", flags.ignore_eos, "go on past the model's own stop ids");
  generate->add_option("--logprobs", flags.logprobs, "best K of each output token; with --json");
  generate->add_flag("--json", flags.json, "one JSON object per answer on stdout");
  generate->footer(kGenerateExamples);
  return generate;
}

CLI::App* add_top(CLI::App& app, TopFlags& flags) {
  CLI::App* const top = app.add_subcommand("top", "Shows what every rank of a server is doing");
  add_client_flags(*top, flags);
  top->add_flag("--once", flags.once, "prints the state of now and ends");
  top->add_flag("--json", flags.json, "a JSON object a line: at every change, or with --once one");
  add_duration(*top, "--interval", flags.interval, "between two looks at the load, 100ms or more",
               milliseconds(100))
      ->default_str("1s");
  top->footer(kTopExamples);
  return top;
}

CLI::App* add_chat(CLI::App& app, ChatFlags& flags) {
  CLI::App* const chat = app.add_subcommand("chat", "Asks a server, or talks with it");
  chat->add_option("text", flags.text, "one question; without it, a conversation");
  add_client_flags(*chat, flags);
  chat->add_option("--system", flags.system, "system message");
  chat->add_option("--tools", flags.tools_file,
                   "a JSON file of functions that the model may call; in a conversation the line "
                   "after a call is its result");
  chat->add_option("--max_tokens", flags.max_tokens, "of each answer");
  chat->add_option("--temperature", flags.temperature, "0: greedy (default: the server's, 1)");
  chat->add_option("--seed", flags.seed, "the same seed draws the same answer")
      ->check(CLI::NonNegativeNumber);
  chat->footer(kChatExamples);
  return chat;
}

void check_placement(const CLI::App& app, const PlacementFlags& flags) {
  if (!app.parsed()) return;
  // Not left to CLI11, which would speak of the missing flag where another one is misspelt.
  if (flags.model.empty()) {
    throw Error(Code::kInvalidArgument,
                "--model is required; see: trireme " + app.get_name() + " --help");
  }
  const auto check_most = [](const char* flag, int32_t value, int32_t most) {
    if (value > most) bad_value(flag, std::to_string(value), "1 to " + std::to_string(most));
  };
  check_most("--max_sequences", flags.max_sequences, kMaxSequences);
  check_most("--max_batch_tokens", flags.max_batch_tokens, kMaxBatchTokens);
}

void check_generate(const GenerateFlags& flags) {
  if (flags.prompts.empty() && flags.chats.empty() && flags.prompt_ids.empty() &&
      flags.input.empty()) {
    throw Error(Code::kInvalidArgument,
                "generate has nothing to answer: give --prompt, --chat, --prompt_ids or --input");
  }
  if (flags.logprobs != 0 && !flags.json) {
    throw Error(Code::kInvalidArgument, "--logprobs is shown by --json only: add it");
  }
}

// CLI11's words, the sub-command's name, and where to read on.
[[noreturn]] void refuse(const CLI::App& app, const CLI::ParseError& error) {
  std::string command = "trireme";
  for (const CLI::App* const sub : app.get_subcommands()) command += ' ' + sub->get_name();
  throw Error(Code::kInvalidArgument, std::string(error.what()) + "; see: " + command + " --help");
}

// False: help or version was asked for, and printed if `prints`.
bool parse_or_print(CLI::App& app, const CLI::App& help, const std::string& help_for, int argc,
                    char** argv, bool prints) {
  const CLI::App* subject = &app;
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) throw CLI::RequiredError("A sub-command");
    if (!help.parsed()) return true;
    if (!help_for.empty()) subject = app.get_subcommand(help_for);
  } catch (const CLI::CallForVersion& version) {
    if (prints) std::cout << version.what() << '\n';
    return false;
  } catch (const CLI::CallForHelp&) {
    for (const CLI::App* const sub : app.get_subcommands()) subject = sub;
  } catch (const CLI::ParseError& error) {
    refuse(app, error);
  } catch (const CLI::OptionNotFound&) {
    throw Error(Code::kInvalidArgument,
                "there is no sub-command \"" + help_for + "\"; see: trireme --help");
  }
  if (prints) std::cout << subject->help(subject == &app ? "" : "trireme");
  return false;
}

// The sub-command that was called and its flags; repeated values with commas between them.
void keep_flags(const CLI::App& app, Options& options) {
  for (const CLI::App* const sub : app.get_subcommands()) {
    options.sub_command = sub->get_name();
    for (const CLI::Option* const option : sub->get_options()) {
      if (option == sub->get_help_ptr()) continue;
      std::string value = option->get_default_str();
      if (option->count() > 0) value = CLI::detail::join(option->results(), ",");
      options.flags.emplace_back(option->get_name(), value);
    }
  }
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options options;
  options.launch = read_launch_info();
  std::string help_for;
  std::vector<std::string> prompt_ids;

  CLI::App app(kAboutTrireme, "trireme");
  app.set_version_flag("--version", "trireme " TRIREME_VERSION);
  app.option_defaults()->always_capture_default();  // shown by --help, compared between ranks
  app.require_subcommand(0, 1);  // 0, so that a misspelt one is named before a missing one
  const CLI::App* const serve = add_serve(app, options);
  const CLI::App* const generate = add_generate(app, options, prompt_ids);
  const CLI::App* const chat = add_chat(app, options.chat);
  const CLI::App* const bench = add_bench_flags(app, options.bench);
  const CLI::App* const top = add_top(app, options.top);
  CLI::App* const plan = app.add_subcommand("plan", "Shows where a model would go");
  add_placement_flags(*plan, options.placement);
  add_plan_flags(*plan, options.plan);
  const CLI::App* const probe = add_probe_flags(app, options.probe);
  CLI::App* const help = app.add_subcommand("help", "Tells what a sub-command does");
  help->add_option("subcommand", help_for, "its name");
  app.footer(kExamples);

  if (!parse_or_print(app, *help, help_for, argc, argv, options.launch.rank == 0)) return options;

  keep_flags(app, options);
  if (serve->parsed()) options.command = Options::Command::kServe;
  if (generate->parsed()) options.command = Options::Command::kGenerate;
  if (chat->parsed()) options.command = Options::Command::kChat;
  if (bench->parsed()) options.command = Options::Command::kBench;
  if (plan->parsed()) options.command = Options::Command::kPlan;
  if (top->parsed()) options.command = Options::Command::kTop;
  // https://no-color.org
  const char* const no_color = std::getenv("NO_COLOR");
  options.top.colour = no_color == nullptr || *no_color == '\0';
  if (probe->parsed()) options.command = Options::Command::kProbe;
  if (probe->parsed() || !options.placement.model.empty()) require_one_job(options.launch);
  for (const CLI::App* const one : {serve, generate, static_cast<const CLI::App*>(plan)}) {
    check_placement(*one, options.placement);
  }
  for (const std::string& ids : prompt_ids) options.generate.prompt_ids.push_back(parse_ids(ids));
  if (generate->parsed()) check_generate(options.generate);
  if (bench->parsed()) check_bench(options.bench);
  return options;
}

}  // namespace trireme
