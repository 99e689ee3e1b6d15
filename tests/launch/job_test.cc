// SPDX-License-Identifier: Apache-2.0
// A job whose workers are threads, up to its load.
#include "launch/job.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "kernels/base/error.h"
#include "tests/coordinator/engine_fixture.h"
#include "topology/device_map.h"

namespace trireme {
namespace {

// A placement of one's own may have fewer KV blocks than its context needs. A request that leaves
// max_tokens out is one that can run all the same.
TEST(Job, ServesWhatItsKvBlocksHold) {
  Options options;
  options.command = Options::Command::kServe;
  options.placement.model = TRIREME_SOURCE_DIR "/tests/data/tiny-llama3";
  Placement placement;
  {
    const Job job(options);
    placement = job.placement();
    EXPECT_EQ(job.served_model().context, placement.context());
  }
  placement.set_num_blocks(2);
  ASSERT_GT(placement.context(), 2 * placement.block_size() + 1);
  const std::string file =
      testing::TempDir() + "job-placement-" + std::to_string(getpid()) + ".json";
  std::ofstream(file) << placement_to_json(placement);
  options.placement.device_map = file;
  Job job(options);
  std::filesystem::remove(file);
  EXPECT_EQ(job.served_model().context, 2 * placement.block_size() + 1);

  v1::GenerateRequest message;
  for (const int32_t id : {1, 2, 3}) message.mutable_token_ids()->add_ids(id);
  PreparedRequest prepared = prepare(message, job.served_model());
  const auto sink = std::make_shared<RecordingSink>();
  prepared.request.sink = sink;
  EXPECT_NO_THROW(job.engine().submit(std::move(prepared.request)));
  job.engine().stop("the test ends");
  EXPECT_EQ(sink->end, "UNAVAILABLE");
}

TEST(Job, HasNoMoreThreadsThanItMay) {
  Options options;
  options.command = Options::Command::kServe;
  options.placement.model = TRIREME_SOURCE_DIR "/tests/data/tiny-llama3";
  // In 64 bits the product of these is 4.
  options.placement.tp = 769546;
  options.placement.pp = 494770;
  options.placement.dp = 48448661;
  try {
    const Job job(options);
    ADD_FAILURE() << "it was formed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("it must be 1 to 256"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace trireme
