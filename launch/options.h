// SPDX-License-Identifier: Apache-2.0
// Every setting, with unit and default. options.cc is the only reader of flags and environment.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "topology/probe_machine.h"

namespace trireme {

// How this process was started; from the launcher's environment.
struct LaunchInfo {
  int num_ranks = 1;  // 1: alone, or a launcher with one rank
  bool under_launcher = false;
  int rank = 0;
  // Tasks of a Slurm step that no PMI makes ranks of one job, of which this is not the first; 1: it
  // is not so.
  int separate_tasks = 1;
  std::string slurm_job_id;  // empty: not in a Slurm job
  std::optional<std::chrono::system_clock::time_point> slurm_job_end;
  // NCCL's that its environment or nccl.conf sets (topology/nccl_settings.h).
  std::map<std::string, std::string> nccl_variables;
  std::string cache_folder;  // $XDG_CACHE_HOME, else ~/.cache; empty: the user has none
};

// Flags that every sub-command which places a model shares.
struct PlacementFlags {
  std::string model;                                 // --model PATH
  std::optional<int32_t> tp, pp, dp;                 // --tp --pp --dp
  std::string device_map = "auto";                   // auto, balanced, …, or FILE
  std::map<std::string, uint64_t> max_memory_bytes;  // --max_memory 0=10GiB,cpu=4GiB
  std::string dtype;               // a name or a file, as set_dtypes; empty: the checkpoint's
  int32_t max_sequences = 32;      // running at once in a replica
  int32_t max_batch_tokens = 512;  // tokens of one micro-batch
  std::optional<int32_t> context;  // default: the model's, or what the memory holds
  int32_t threads = 0;             // per CPU rank; 0: its share of the node's cores
  std::string isa = "auto";        // CPU path, for tests
  bool deterministic = false;      // GPUs: rows bit-identical whatever the batch
  bool enforce_eager = false;      // GPUs: no CUDA graphs
  std::string peer_sums = "auto";  // or always, never: GPUs sum in each other's memory
  std::chrono::milliseconds start_timeout{60000};  // --start_timeout: of each step before the load
  bool verify_checkpoint = false;        // digest all weights on every node; serve and generate
  std::string objective = "throughput";  // or latency
  std::optional<std::chrono::milliseconds> tpot_max, ttft_max;
};

struct PlanFlags {
  std::vector<std::string> topology;  // files, or "probe": this job's machines
  bool json = false;
  bool explain = false;
  std::string svg;  // FILE
};

struct ServeFlags {
  std::string listen = "127.0.0.1:50051";
  std::string address_file;
  int32_t max_queue = 256;
  std::string token_file;
  std::string tls_cert, tls_key, tls_client_ca;
  std::string save_plan;        // --save_plan FILE: the placement, for --device_map
  bool allow_insecure = false;  // --allow_insecure: a non-loopback bind without TLS and token
  std::chrono::milliseconds dead_after{10000};
  std::string status_file;  // what rank 0 does, for whoever started it
  // What running requests have once the end was asked for. Default: 30 s, or until shortly before
  // the job's end where that is the reason.
  std::optional<std::chrono::milliseconds> drain_limit;
  std::chrono::milliseconds drain_before{0};  // the job's end; 0: never
};

struct GenerateFlags {
  std::vector<std::string> prompts;              // --prompt
  std::vector<std::string> chats;                // --chat
  std::vector<std::vector<int32_t>> prompt_ids;  // --prompt_ids
  std::string input;                             // --input FILE.jsonl
  std::optional<int32_t> max_tokens;
  double temperature = 0.0;  // generate is greedy unless told otherwise
  double top_p = 1.0;
  int32_t top_k = 0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double frequency_penalty = 0.0, presence_penalty = 0.0;
  std::map<int32_t, double> logit_bias;  // --logit_bias ID=V,ID=V
  std::optional<uint64_t> seed;
  int32_t n = 1;
  std::optional<int32_t> min_tokens;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int32_t logprobs = 0;
  bool json = false;
};

// Where a server is, and what it asks for.
struct ClientFlags {
  std::string server = "127.0.0.1:50051";
  std::string token_file;
  std::string tls_ca;
};

struct TopFlags : ClientFlags {
  bool once = false;
  bool json = false;
  bool colour = true;  // of a terminal
  std::chrono::milliseconds interval{1000};
};

struct BenchFlags : ClientFlags {
  int32_t requests = 0;                // how many are sent
  std::optional<int32_t> concurrency;  // closed loop: so many under way at once
  std::optional<double> rate;          // open loop: so many begin in a second
  double burstiness = 1.0;             // shape of the gaps between them; 1: Poisson
  int32_t input_len = 0;               // tokens of each prompt
  int32_t output_len = 0;              // of each answer
  uint64_t seed = 0;                   // of prompts and gaps
  double temperature = 0.0;
  std::optional<std::chrono::milliseconds> ttft_max, tpot_max, e2el_max;  // what counts as good
  bool json = false;
};

struct ChatFlags : ClientFlags {
  std::string system;
  std::string text;  // one question, or empty for a conversation
  std::string tools_file;
  std::optional<int32_t> max_tokens;
  std::optional<double> temperature;
  std::optional<uint64_t> seed;
};

struct ProbeFlags {
  std::vector<std::string> topology;  // --topology FILE…; none: this job's machines
  std::string nccl_xml;               // --nccl_xml FILE: written
  bool json = false;
  ProbeSources sources;
};

struct Options {
  enum class Command { kServe, kGenerate, kChat, kPlan, kProbe, kTop, kBench, kNone };
  Command command = Command::kNone;
  LaunchInfo launch;
  PlacementFlags placement;
  ServeFlags serve;
  GenerateFlags generate;
  ChatFlags chat;
  TopFlags top;
  BenchFlags bench;
  ProbeFlags probe;
  std::string sub_command;  // its name
  // Every flag of the sub-command with its value as text, the default where it was not given: what
  // the ranks of a job compare.
  std::vector<std::pair<std::string, std::string>> flags;
  PlanFlags plan;
};

// What the launcher's environment says this process is: rank 0 of n > 1 or alone runs the
// sub-command, other ranks run_worker(). Throws kInvalidArgument.
LaunchInfo read_launch_info();

// Throws kInvalidArgument where tasks of one step would each be a job of their own: what needs one
// job asks it first.
void require_one_job(const LaunchInfo& launch);

// Parses the command line. Prints help or version itself and returns kNone for them; throws
// kInvalidArgument for bad flags, naming the flag.
Options parse_options(int argc, char** argv);

// Throws kInvalidArgument: what was found for a flag, and what is allowed.
[[noreturn]] void bad_value(const std::string& flag, const std::string& text,
                            const std::string& allowed);

// "10GiB", "512MiB", "4096" -> bytes; "10s", "500ms", "2min" -> milliseconds. Throw
// kInvalidArgument naming `flag`.
uint64_t parse_bytes(const std::string& text, const std::string& flag);
std::chrono::milliseconds parse_duration(const std::string& text, const std::string& flag);

}  // namespace trireme
