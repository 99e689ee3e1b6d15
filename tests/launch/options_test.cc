// SPDX-License-Identifier: Apache-2.0
#include "launch/options.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "kernels/base/error.h"

namespace trireme {
namespace {

Options parse(std::vector<std::string> words) {
  words.insert(words.begin(), "trireme");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return parse_options(static_cast<int>(argv.size()), argv.data());
}

// The launcher's variables as a test wants them, and nothing else of what this process inherited.
class Environment {
 public:
  explicit Environment(const std::vector<std::pair<std::string, std::string>>& values) {
    clear();
    for (const auto& [name, value] : values) setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() { clear(); }

 private:
  static void clear() {
    for (const char* name :
         {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "PMI_RANK", "PMIX_RANK",
          "SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
          "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID", "SLURM_JOB_END_TIME",
          "NCCL_IB_HCA", "NCCL_SOCKET_IFNAME", "NCCL_CONF_FILE"}) {
      unsetenv(name);
    }
  }
};

std::string error_of(const std::vector<std::string>& words) {
  try {
    parse(words);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kInvalidArgument) << error.what();
    return error.what();
  }
  return "";
}

// The words of a command line without quotes.
Options parse_line(const std::string& line) {
  std::istringstream words(line);
  return parse({std::istream_iterator<std::string>(words), {}});
}

TEST(Options, Serve) {
  const Options options = parse_line(
      "serve --model M --tp 2 --pp 3 --dp 4 --listen [::1]:7 --address_file A "
      "--max_queue 9 --token_file T --tls_cert C --tls_key K --tls_client_ca L "
      "--allow_insecure --dead_after 2min --drain_limit 90s --drain_before 5min "
      "--status_file S --dtype bf16 --max_sequences 5 --max_batch_tokens 6 --context "
      "77 --max_memory 0=1GiB,cpu=512MiB --threads 2 --device_map F");
  EXPECT_EQ(options.command, Options::Command::kServe);
  EXPECT_EQ(options.placement.model, "M");
  EXPECT_EQ(options.placement.tp, 2);
  EXPECT_EQ(options.placement.pp, 3);
  EXPECT_EQ(options.placement.dp, 4);
  EXPECT_EQ(options.placement.dtype, "bf16");
  EXPECT_EQ(options.placement.max_sequences, 5);
  EXPECT_EQ(options.placement.max_batch_tokens, 6);
  EXPECT_EQ(options.placement.context, 77);
  EXPECT_EQ(options.placement.threads, 2);
  EXPECT_EQ(options.placement.device_map, "F");
  EXPECT_EQ(options.placement.max_memory_bytes,
            (std::map<std::string, uint64_t>{{"0", 1u << 30}, {"cpu", 512u << 20}}));
  EXPECT_EQ(options.serve.listen, "[::1]:7");
  EXPECT_EQ(options.serve.address_file, "A");
  EXPECT_EQ(options.serve.max_queue, 9);
  EXPECT_EQ(options.serve.token_file, "T");
  EXPECT_EQ(options.serve.tls_cert, "C");
  EXPECT_EQ(options.serve.tls_key, "K");
  EXPECT_EQ(options.serve.tls_client_ca, "L");
  EXPECT_TRUE(options.serve.allow_insecure);
  EXPECT_EQ(options.serve.dead_after, std::chrono::minutes(2));
  EXPECT_EQ(options.serve.drain_limit, std::chrono::seconds(90));
  EXPECT_EQ(options.serve.drain_before, std::chrono::minutes(5));
  EXPECT_EQ(options.serve.status_file, "S");
}

TEST(Options, ServeDefaults) {
  const Options options = parse({"serve", "--model", "M"});
  EXPECT_EQ(options.serve.listen, "127.0.0.1:50051");
  EXPECT_EQ(options.serve.dead_after, std::chrono::seconds(10));
  EXPECT_FALSE(options.serve.drain_limit.has_value());
  EXPECT_EQ(options.serve.drain_before, std::chrono::seconds(0));
  EXPECT_EQ(options.placement.device_map, "auto");
  EXPECT_FALSE(options.placement.tp.has_value());
  EXPECT_FALSE(options.placement.context.has_value());
  EXPECT_FALSE(options.serve.allow_insecure);
}

TEST(Options, Generate) {
  const Options options = parse({"generate",
                                 "--model",
                                 "M",
                                 "--prompt",
                                 "a b",
                                 "--prompt",
                                 "c",
                                 "--chat",
                                 "d",
                                 "--prompt_ids",
                                 "1,2,3",
                                 "--prompt_ids",
                                 "4",
                                 "--max_tokens",
                                 "8",
                                 "--temperature",
                                 "0.5",
                                 "--top_p",
                                 "0.9",
                                 "--top_k",
                                 "3",
                                 "--seed",
                                 "18446744073709551615",
                                 "--stop",
                                 "x",
                                 "--stop",
                                 "y z",
                                 "--stop_token_ids",
                                 "5,6",
                                 "--ignore_eos",
                                 "--logprobs",
                                 "2",
                                 "--json"});
  EXPECT_EQ(options.command, Options::Command::kGenerate);
  EXPECT_EQ(options.generate.prompts, (std::vector<std::string>{"a b", "c"}));
  EXPECT_EQ(options.generate.chats, std::vector<std::string>{"d"});
  EXPECT_EQ(options.generate.prompt_ids, (std::vector<std::vector<int32_t>>{{1, 2, 3}, {4}}));
  EXPECT_EQ(options.generate.max_tokens, 8);
  EXPECT_EQ(options.generate.temperature, 0.5);
  EXPECT_EQ(options.generate.top_p, 0.9);
  EXPECT_EQ(options.generate.top_k, 3);
  EXPECT_EQ(options.generate.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(options.generate.stop, (std::vector<std::string>{"x", "y z"}));
  EXPECT_EQ(options.generate.stop_token_ids, (std::vector<int32_t>{5, 6}));
  EXPECT_TRUE(options.generate.ignore_eos);
  EXPECT_EQ(options.generate.logprobs, 2);
  EXPECT_TRUE(options.generate.json);
}

TEST(Options, GenerateSampling) {
  const GenerateFlags flags =
      parse({"generate", "--model", "M", "--prompt", "a", "--min_p", "0.1", "--repetition_penalty",
             "1.2", "--frequency_penalty", "-0.5", "--presence_penalty", "0.75", "--logit_bias",
             "198=-100,25=1.5", "--n", "4", "--min_tokens", "6"})
          .generate;
  EXPECT_EQ(flags.min_p, 0.1);
  EXPECT_EQ(flags.repetition_penalty, 1.2);
  EXPECT_EQ(flags.frequency_penalty, -0.5);
  EXPECT_EQ(flags.presence_penalty, 0.75);
  EXPECT_EQ(flags.logit_bias, (std::map<int32_t, double>{{25, 1.5}, {198, -100}}));
  EXPECT_EQ(flags.n, 4);
  EXPECT_EQ(flags.min_tokens, 6);
}

TEST(Options, GenerateIsGreedyByDefault) {
  EXPECT_EQ(parse({"generate", "--model", "M", "--prompt", "a"}).generate.temperature, 0.0);
}

TEST(Options, ChatAndPlan) {
  const Options chat =
      parse({"chat", "--server", "unix:/s", "--system", "S", "--token_file", "T", "--tls_ca", "C",
             "--max_tokens", "3", "--temperature", "0", "--seed", "1", "Why?"});
  EXPECT_EQ(chat.command, Options::Command::kChat);
  EXPECT_EQ(chat.chat.server, "unix:/s");
  EXPECT_EQ(chat.chat.system, "S");
  EXPECT_EQ(chat.chat.text, "Why?");
  EXPECT_EQ(chat.chat.temperature, 0.0);
  EXPECT_EQ(chat.chat.max_tokens, 3);
  EXPECT_EQ(parse({"chat"}).chat.text, "");

  const Options top = parse({"top", "--server", "h:1", "--once", "--json", "--interval", "250ms",
                             "--token_file", "T", "--tls_ca", "C"});
  EXPECT_EQ(top.command, Options::Command::kTop);
  EXPECT_EQ(top.top.server, "h:1");
  EXPECT_EQ(top.top.token_file, "T");
  EXPECT_EQ(top.top.tls_ca, "C");
  EXPECT_EQ(top.top.interval, std::chrono::milliseconds(250));
  EXPECT_TRUE(top.top.once && top.top.json);
  EXPECT_FALSE(parse({"top"}).top.once);
  const Options bench = parse_line(
      "bench --server h:1 --requests 9 --rate 2.5 --burstiness 0.5 --input_len 3 --output_len 4 "
      "--seed 5 --ttft_max 2s --tpot_max 50ms --e2el_max 1min --json");
  EXPECT_EQ(bench.command, Options::Command::kBench);
  EXPECT_EQ(bench.bench.server, "h:1");
  EXPECT_EQ(bench.bench.requests, 9);
  EXPECT_EQ(bench.bench.rate, 2.5);
  EXPECT_FALSE(bench.bench.concurrency.has_value());
  EXPECT_EQ(bench.bench.burstiness, 0.5);
  EXPECT_EQ(bench.bench.input_len + 10 * bench.bench.output_len, 43);
  EXPECT_EQ(bench.bench.seed, 5u);
  EXPECT_EQ(bench.bench.ttft_max, std::chrono::milliseconds(2000));
  EXPECT_EQ(bench.bench.tpot_max, std::chrono::milliseconds(50));
  EXPECT_EQ(bench.bench.e2el_max, std::chrono::milliseconds(60000));
  EXPECT_TRUE(bench.bench.json);

  const Options plan = parse({"plan", "--model", "M", "--pp", "2", "--json"});
  EXPECT_EQ(plan.command, Options::Command::kPlan);
  EXPECT_EQ(plan.placement.pp, 2);
  EXPECT_TRUE(plan.plan.json);
}

// Each mistake is named, with the place to read on.
TEST(Options, NamesWhatIsWrong) {
  struct Row {
    std::vector<std::string> words;
    std::vector<std::string> needed;
  };
  const std::vector<Row> rows{
      {{}, {"sub-command", "trireme --help"}},
      {{"sreve"}, {"sreve", "--help"}},
      {{"serve"}, {"--model", "trireme serve --help"}},
      {{"serve", "--modl", "M"}, {"--modl", "trireme serve --help"}},
      {{"serve", "--model", "M", "--frobnicate"}, {"--frobnicate", "trireme serve --help"}},
      {{"serve", "--model", "M", "--max-queue", "3"}, {"--max-queue"}},
      {{"serve", "--model", "M", "--tp", "0"}, {"--tp"}},
      {{"serve", "--model", "M", "--pp", "-2"}, {"--pp"}},
      {{"serve", "--model", "M", "--dp", "two"}, {"--dp", "two"}},
      {{"serve", "--model", "M", "--tp", "99999999999"}, {"--tp"}},
      {{"serve", "--model", "M", "--dtype", "int3"}, {"--dtype", "int3"}},
      {{"serve", "--model", "M", "--dead_after", "10"}, {"--dead_after", "\"10\"", "10s"}},
      {{"serve", "--model", "M", "--dead_after", "1h"}, {"--dead_after", "1h"}},
      {{"serve", "--model", "M", "--dead_after", "900ms"}, {"--dead_after", "900ms", "1000ms"}},
      {{"serve", "--model", "M", "--drain_limit", "soon"}, {"--drain_limit", "soon", "2min"}},
      {{"serve", "--model", "M", "--drain_before", "-1s"}, {"--drain_before", "-1s"}},
      {{"serve", "--model", "M", "--max_memory", "10GiB"}, {"--max_memory", "KEY=SIZE"}},
      {{"serve", "--model", "M", "--max_memory", "0=10GB"}, {"--max_memory", "10GB", "GiB"}},
      {{"serve", "--model", "M", "--max_memory", "0=1,0=2"}, {"--max_memory", "twice"}},
      {{"serve", "--model", "M", "--max_queue", "0"}, {"--max_queue"}},
      {{"serve", "--model", "M", "--context", "0"}, {"--context"}},
      {{"serve", "--model", "M", "extra"}, {"extra"}},
      {{"generate", "--model", "M"}, {"--prompt", "--input"}},
      {{"generate", "--model", "M", "--prompt_ids", "1,x"}, {"--prompt_ids", "\"x\""}},
      {{"generate", "--model", "M", "--prompt_ids", "1,"}, {"--prompt_ids"}},
      {{"generate", "--model", "M", "--prompt_ids", "1,4294967296"}, {"--prompt_ids"}},
      {{"generate", "--model", "M", "--prompt", "a", "--logprobs", "2"}, {"--logprobs", "--json"}},
      {{"generate", "--model", "M", "--prompt", "a", "--seed", "-1"}, {"--seed"}},
      {{"generate", "--model", "M", "--prompt", "a", "--best_of", "1"}, {"--best_of"}},
      {{"generate", "--model", "M", "--prompt", "a", "--min_p", "few"}, {"--min_p", "few"}},
      {{"generate", "--model", "M", "--prompt", "a", "--n", "1.5"}, {"--n", "1.5"}},
      {{"generate", "--model", "M", "--prompt", "a", "--logit_bias", "3"}, {"ID=VALUE", "\"3\""}},
      {{"generate", "--model", "M", "--prompt", "a", "--logit_bias", "3="}, {"\"3=\""}},
      {{"generate", "--model", "M", "--prompt", "a", "--logit_bias", "3=1,"}, {"found \"\""}},
      {{"generate", "--model", "M", "--prompt", "a", "--logit_bias", "x=1"}, {"\"x=1\""}},
      {{"generate", "--model", "M", "--prompt", "a", "--logit_bias", "3=1x"}, {"\"3=1x\""}},
      {{"generate", "--model", "M", "--prompt", "a", "--logit_bias", "3=1,3=2"},
       {"3 is there twice"}},
      {{"top", "--interval", "10ms"}, {"--interval", "10ms", "100ms"}},
      {{"plan", "--model", "M", "--max_sequences", "65537"}, {"--max_sequences", "65537", "65536"}},
      {{"serve", "--model", "M", "--max_batch_tokens", "2000000"},
       {"--max_batch_tokens", "1048576"}},
      {{"bench"}, {"--requests is required"}},
      {{"bench", "--requests", "1", "--input_len", "1"}, {"--output_len is required"}},
      {{"bench", "--requests", "1", "--input_len", "1", "--output_len", "1"},
       {"--rate is required"}},
      {{"bench", "--requests", "1", "--input_len", "1", "--output_len", "1", "--rate", "nan"},
       {"--rate", "nan", "above 0"}},
      {{"bench", "--requests", "1", "--input_len", "1", "--output_len", "1", "--rate", "1",
        "--concurrency", "1"},
       {"--concurrency and --rate"}},
      {{"bench", "--requests", "1", "--input_len", "1", "--output_len", "1", "--concurrency", "1",
        "--burstiness", "2"},
       {"--burstiness", "--rate"}},
      {{"help", "sreve"}, {"sreve"}},
  };
  for (const Row& row : rows) {
    const std::string message = error_of(row.words);
    for (const std::string& word : row.needed) {
      EXPECT_NE(message.find(word), std::string::npos)
          << "\"" << word << "\" is missing in: " << message;
    }
  }
}

TEST(Options, HelpTeaches) {
  for (const char* command : {"serve", "generate", "chat"}) {
    for (const std::vector<std::string>& words :
         {std::vector<std::string>{command, "--help"}, std::vector<std::string>{"help", command}}) {
      testing::internal::CaptureStdout();
      EXPECT_EQ(parse(words).command, Options::Command::kNone);
      const std::string text = testing::internal::GetCapturedStdout();
      EXPECT_NE(text.find(std::string("trireme ") + command), std::string::npos) << text;
      EXPECT_NE(text.find("Examples:"), std::string::npos) << text;
    }
  }
  testing::internal::CaptureStdout();
  EXPECT_EQ(parse({"--version"}).command, Options::Command::kNone);
  EXPECT_EQ(testing::internal::GetCapturedStdout().rfind("trireme ", 0), 0u);
}

TEST(Options, Launchers) {
  struct Row {
    std::vector<std::pair<std::string, std::string>> values;
    int num_ranks, rank;
    bool under_launcher;
  };
  const std::vector<Row> rows{
      {{}, 1, 0, false},
      {{{"OMPI_COMM_WORLD_SIZE", "3"}, {"OMPI_COMM_WORLD_RANK", "2"}}, 3, 2, true},
      {{{"PMI_SIZE", "4"}, {"PMI_RANK", "0"}}, 4, 0, true},
      {{{"PMIX_RANK", "1"}, {"SLURM_NTASKS", "5"}, {"SLURM_PROCID", "1"}}, 5, 1, true},
      // A batch script's own command is not started by srun.
      {{{"SLURM_NTASKS", "5"}, {"SLURM_PROCID", "0"}}, 1, 0, false},
      {{{"OMPI_COMM_WORLD_SIZE", "1"}, {"OMPI_COMM_WORLD_RANK", "0"}}, 1, 0, true},
  };
  for (const Row& row : rows) {
    const Environment environment(row.values);
    const LaunchInfo info = read_launch_info();
    EXPECT_EQ(info.num_ranks, row.num_ranks);
    EXPECT_EQ(info.rank, row.rank);
    EXPECT_EQ(info.under_launcher, row.under_launcher);
  }
  for (const auto& [size, rank] : std::vector<std::pair<std::string, std::string>>{
           {"x", "0"}, {"2", "2"}, {"2", "-1"}, {"0", "0"}, {"2", ""}}) {
    const Environment environment({{"OMPI_COMM_WORLD_SIZE", size}, {"OMPI_COMM_WORLD_RANK", rank}});
    EXPECT_THROW(read_launch_info(), Error) << size << " " << rank;
  }
}

TEST(Options, OnlyRank0Prints) {
  const Environment environment({{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", "1"}});
  testing::internal::CaptureStdout();
  EXPECT_EQ(parse({"--help"}).command, Options::Command::kNone);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
}

TEST(Options, Bytes) {
  EXPECT_EQ(parse_bytes("4096", "--f"), 4096u);
  EXPECT_EQ(parse_bytes("3KiB", "--f"), 3u << 10);
  EXPECT_EQ(parse_bytes("512MiB", "--f"), 512u << 20);
  EXPECT_EQ(parse_bytes("10GiB", "--f"), uint64_t{10} << 30);
  EXPECT_EQ(parse_bytes("2TiB", "--f"), uint64_t{2} << 40);
  for (const char* bad : {"", "GiB", "-1", "1.5GiB", "1 GiB", "1gib", "99999999999TiB",
                          "18446744073709551616", "1GiBx"}) {
    EXPECT_THROW(parse_bytes(bad, "--f"), Error) << bad;
  }
}

TEST(Options, Durations) {
  EXPECT_EQ(parse_duration("500ms", "--f").count(), 500);
  EXPECT_EQ(parse_duration("10s", "--f").count(), 10000);
  EXPECT_EQ(parse_duration("2min", "--f").count(), 120000);
  for (const char* bad : {"", "10", "s", "-1s", "1.5s", "25000min", "18446744073709551615min"}) {
    EXPECT_THROW(parse_duration(bad, "--f"), Error) << bad;
  }
}

// What ranks compare: every flag, given or not.
TEST(Options, FlagsAsText) {
  const auto flags_of = [](std::vector<std::string> words) {
    const Options options = parse(std::move(words));
    return std::map<std::string, std::string>(options.flags.begin(), options.flags.end());
  };
  const auto plain = flags_of({"serve", "--model", "m"});
  EXPECT_EQ(plain.at("--model"), "m");
  EXPECT_EQ(plain.at("--max_sequences"), "32");
  EXPECT_EQ(plain.at("--dead_after"), "10s");
  EXPECT_EQ(plain.at("--start_timeout"), "60s");
  EXPECT_EQ(plain.at("--tp"), "");
  EXPECT_EQ(plain.at("--device_map"), "auto");
  EXPECT_FALSE(plain.contains("--help"));
  // A default that is given is no difference.
  EXPECT_EQ(flags_of({"serve", "--model", "m", "--max_sequences", "32", "--device_map", "auto",
                      "--max_queue", "256", "--dead_after", "10s"}),
            plain);
  EXPECT_NE(flags_of({"serve", "--model", "m", "--allow_insecure"}), plain);
  EXPECT_EQ(
      flags_of({"serve", "--model", "m", "--max_memory", "0=1GiB,cpu=2GiB"}).at("--max_memory"),
      "0=1GiB,cpu=2GiB");
  EXPECT_EQ(flags_of({"generate", "--model", "m", "--prompt", "a", "--prompt", "b"}).at("--prompt"),
            "a,b");
  EXPECT_EQ(parse({"plan", "--model", "m"}).sub_command, "plan");
}

// The environment wins over nccl.conf; what is not looked at stays out.
TEST(Options, WhatOfNcclIsSet) {
  const std::string file = testing::TempDir() + "nccl-" + std::to_string(getpid()) + ".conf";
  std::ofstream(file) << "# NCCL_IB_DISABLE=1\nNCCL_IB_HCA=mlx5_9\r\nNCCL_SOCKET_IFNAME==ib0\n"
                         "NCCL_DEBUG=INFO\nnothing\nNCCL_RAS_ADDR=[::1]:5\n";
  const Environment environment(
      {{"NCCL_CONF_FILE", file}, {"NCCL_IB_HCA", "=mlx5_1:1"}, {"NCCL_SOCKET_IFNAME", "a\nb"}});
  std::map<std::string, std::string> set = read_launch_info().nccl_variables;
  std::filesystem::remove(file);
  EXPECT_EQ(set["NCCL_IB_HCA"], "=mlx5_1:1");
  EXPECT_EQ(set["NCCL_SOCKET_IFNAME"], "a b") << "fit for a message";
  EXPECT_EQ(set["NCCL_RAS_ADDR"], "[::1]:5");
  EXPECT_EQ(set.count("NCCL_DEBUG"), 0u);
  EXPECT_EQ(set.count("NCCL_IB_DISABLE"), 0u);
  setenv("NCCL_CONF_FILE", "/does/not/exist", 1);
  EXPECT_EQ(read_launch_info().nccl_variables.count("NCCL_RAS_ADDR"), 0u);
}

// Else a user of srun without PMIx would get as many servers as tasks, each with the whole model.
TEST(Options, TasksThatNoPmiJoinsAreRefused) {
  const std::vector<std::string> serve = {"serve", "--model", "M"};
  {
    const Environment srun(
        {{"SLURM_STEP_NUM_TASKS", "5"}, {"SLURM_NTASKS", "5"}, {"SLURM_PROCID", "3"}});
    const std::string error = error_of(serve);
    EXPECT_NE(error.find("srun started 5 tasks without PMIx"), std::string::npos) << error;
    EXPECT_NE(error.find("srun --mpi=pmix"), std::string::npos) << error;
    EXPECT_NE(error_of({"probe"}), "");
    EXPECT_EQ(error_of({"chat", "a client for each task"}), "");
  }
  for (const char* joined : {"PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"}) {
    const Environment ranks({{"SLURM_STEP_NUM_TASKS", "5"},
                             {"SLURM_NTASKS", "5"},
                             {"SLURM_PROCID", "3"},
                             {"OMPI_COMM_WORLD_SIZE", "5"},
                             {"PMI_SIZE", "5"},
                             {joined, "3"}});
    EXPECT_EQ(error_of(serve), "") << joined;
    EXPECT_EQ(read_launch_info().num_ranks, 5) << joined;
  }
  {
    const Environment shell({{"SLURM_STEP_NUM_TASKS", "5"}, {"SLURM_PROCID", "0"}});
    EXPECT_EQ(error_of(serve), "") << "srun --pty bash";
  }
  const Environment batch({{"SLURM_NTASKS", "5"}, {"SLURM_PROCID", "0"}});
  EXPECT_EQ(error_of(serve), "") << "a batch script is no task";
}

TEST(Options, TheEndOfASlurmJob) {
  {
    const Environment environment({{"SLURM_JOB_ID", "17"}, {"SLURM_JOB_END_TIME", "1764106803"}});
    const LaunchInfo info = read_launch_info();
    EXPECT_EQ(info.slurm_job_id, "17");
    EXPECT_EQ(info.slurm_job_end,
              std::chrono::system_clock::time_point(std::chrono::seconds(1764106803)));
    EXPECT_FALSE(info.under_launcher);
  }
  // Nothing that squeue would take for an option, no time that a clock cannot hold.
  for (const char* end : {"", "soon", "-1", "0", "99999999999999999", "1764106803x"}) {
    const Environment environment({{"SLURM_JOB_ID", "--all"}, {"SLURM_JOB_END_TIME", end}});
    EXPECT_EQ(read_launch_info().slurm_job_id, "");
    EXPECT_FALSE(read_launch_info().slurm_job_end.has_value()) << end;
  }
  const Environment none({});
  EXPECT_EQ(read_launch_info().slurm_job_id, "");
}

}  // namespace
}  // namespace trireme
