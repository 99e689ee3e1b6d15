// SPDX-License-Identifier: Apache-2.0
#include "coordinator/service.h"

#include <gtest/gtest.h>

#include "coordinator/tokenizer/utf8.h"
#include "proto/status_details.pb.h"
#include "tests/coordinator/service_harness.h"
#include "tests/support/relay.h"
#include "worker/sampler.h"

namespace trireme {
namespace {

using grpc::StatusCode;

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Service, StreamsDeltasThenOneFinished) {
  Harness harness;
  v1::GenerateRequest request = ids_request({5, 6, 7}, 40);
  request.set_logprobs(3);
  const Seen seen = generate(*harness.stub_, request);
  ASSERT_TRUE(seen.status.ok()) << seen.status.error_message();
  EXPECT_EQ(seen.ids, harness.workers_.continuation({5, 6, 7}, 40));
  EXPECT_EQ(seen.text, harness.tokenizer_->decode(seen.ids));
  EXPECT_EQ(seen.num_logprobs, 40);
  ASSERT_TRUE(seen.finished.has_value());
  EXPECT_FALSE(seen.after_finished);
  EXPECT_EQ(seen.finished->finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(seen.finished->usage().prompt_tokens(), 3);
  EXPECT_EQ(seen.finished->usage().completion_tokens(), 40);
  EXPECT_FALSE(seen.finished->has_matched_stop());
  EXPECT_TRUE(harness.idle());
}

TEST(Service, TokensComeAsTheyAreDrawn) {
  Harness harness;
  harness.workers_.set_step(milliseconds(20));
  const Seen seen = generate(*harness.stub_, ids_request({5}, 20));
  EXPECT_GE(seen.num_deltas, 18);  // one each, where nothing delays this client
}

TEST(Service, TextGetsThePrefixAndStops) {
  Harness harness;
  v1::GenerateRequest request;
  request.set_text("abc");
  request.set_max_tokens(64);
  const Seen whole = generate(*harness.stub_, request);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  const auto prompt = harness.chat_->plain("abc");
  EXPECT_EQ(whole.ids, harness.workers_.continuation(prompt, 64));

  // A stop id, of the request.
  request.add_stop_token_ids(whole.ids[10]);
  const Seen by_id = generate(*harness.stub_, request);
  ASSERT_TRUE(by_id.finished.has_value());
  EXPECT_EQ(by_id.finished->finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(by_id.finished->matched_stop(), std::to_string(whole.ids[10]));
  EXPECT_EQ(by_id.ids.back(), whole.ids[10]);
  EXPECT_EQ(whole.text.rfind(by_id.text, 0), 0u);

  // A stop string.
  request.clear_stop_token_ids();
  request.add_stop(whole.text.substr(whole.text.size() / 2, 4));
  const auto offset = find_broken_utf8(request.stop(0));
  if (offset) request.set_stop(0, "e");
  const Seen by_text = generate(*harness.stub_, request);
  ASSERT_TRUE(by_text.finished.has_value()) << by_text.status.error_message();
  const size_t cut = whole.text.find(request.stop(0));
  ASSERT_NE(cut, std::string::npos);
  EXPECT_EQ(by_text.text, whole.text.substr(0, cut));
  EXPECT_EQ(by_text.finished->matched_stop(), request.stop(0));
}

TEST(Service, ChatRendersTheConversation) {
  Harness harness;
  v1::ChatRequest request;
  for (const auto& [role, content] : {std::pair{"system", "Be brief."}, {"user", "Hello"}}) {
    request.add_messages()->set_role(role);
    request.mutable_messages()->rbegin()->set_content(content);
  }
  request.set_max_tokens(9);
  grpc::ClientContext context;
  const Seen seen = read_all(*harness.stub_->Chat(&context, request));
  ASSERT_TRUE(seen.status.ok()) << seen.status.error_message();
  const std::vector<ChatTurn> turns{{"system", "Be brief."}, {"user", "Hello"}};
  EXPECT_EQ(seen.ids, harness.workers_.continuation(harness.chat_->render(turns), 9));
}

TEST(Service, SixtyFourStreamsEqualTheirSequentialRuns) {
  Harness harness;
  constexpr int kStreams = 64;
  std::vector<v1::GenerateRequest> requests;
  std::vector<Seen> alone;
  for (int i = 0; i < kStreams; ++i) {
    requests.push_back(ids_request({i + 1, 2 * i + 3}, 20 + i));
    alone.push_back(generate(*harness.stub_, requests.back()));
    ASSERT_TRUE(alone.back().status.ok());
  }
  harness.workers_.set_step(milliseconds(1));
  std::vector<Seen> together(kStreams);
  std::vector<std::thread> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back([&, i] { together[i] = generate(*harness.stub_, requests[i]); });
  }
  for (std::thread& client : clients) client.join();
  for (int i = 0; i < kStreams; ++i) {
    ASSERT_TRUE(together[i].status.ok()) << together[i].status.error_message();
    EXPECT_EQ(together[i].ids, alone[i].ids);
    EXPECT_EQ(together[i].text, alone[i].text);
  }
  EXPECT_TRUE(harness.idle());
}

TEST(Service, CancelFreesAtOnce) {
  Harness harness;
  harness.workers_.set_step(milliseconds(5));
  grpc::ClientContext context;
  const auto reader = harness.stub_->Generate(&context, ids_request({1}, 500));
  v1::GenerateReply reply;
  ASSERT_TRUE(reader->Read(&reply));
  context.TryCancel();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(harness.idle());
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(500));
  while (reader->Read(&reply)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
}

TEST(Service, AClientThatVanishesFreesAndHarmsNobody) {
  Harness harness;
  harness.workers_.set_step(milliseconds(2));
  auto relay = std::make_unique<Relay>(harness.server_->address());
  const auto stub = v1::Inference::NewStub(Harness::connect(relay->address()));
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, ids_request({1}, 500));
  v1::GenerateReply reply;
  ASSERT_TRUE(reader->Read(&reply));

  grpc::ClientContext other_context;
  const auto other = harness.stub_->Generate(&other_context, ids_request({9}, 200));
  ASSERT_TRUE(other->Read(&reply));
  relay.reset();  // the connection is gone, without a word
  EXPECT_TRUE(Harness::eventually([&] { return harness.engine_->load().running() == 1; }));
  const Seen seen = read_all(*other);
  EXPECT_TRUE(seen.status.ok()) << seen.status.error_message();
  EXPECT_TRUE(harness.idle());
  while (reader->Read(&reply)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST(Service, AFullQueueRefusesAtOnce) {
  HarnessOptions options;
  options.max_sequences = 2;
  options.max_queue = 3;
  Harness harness(options);
  harness.workers_.hold(true);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateReply>>> readers;
  const auto open = [&](int i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(harness.stub_->Generate(contexts.back().get(), ids_request({i + 1}, 5)));
    ASSERT_TRUE(Harness::eventually([&] {
      const v1::Load load = harness.engine_->load();
      return load.running() + load.waiting() == i + 1;
    }));
  };
  for (int i = 0; i < 5; ++i) open(i);
  const Seen refused = generate(*harness.stub_, ids_request({1}, 5));
  EXPECT_EQ(refused.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(holds(refused.status.error_message(), "--max_queue"))
      << refused.status.error_message();
  v1::StatusDetails details;
  v1::RetryInfo retry;
  ASSERT_TRUE(details.ParseFromString(refused.status.error_details()));
  EXPECT_EQ(details.code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(details.message(), refused.status.error_message());
  ASSERT_EQ(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  ASSERT_TRUE(retry.ParseFromString(details.details(0).value()));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);  // no request has ended yet
  EXPECT_TRUE(holds(refused.status.error_message(), "; try again in 1.0 s"));
  harness.workers_.hold(false);
  for (const auto& reader : readers) {
    const Seen seen = read_all(*reader);
    EXPECT_TRUE(seen.status.ok()) << seen.status.error_message();
    EXPECT_EQ(seen.ids.size(), 5u);
  }
}

TEST(Service, ADeadlineEndsWithItsStatus) {
  Harness harness;
  harness.workers_.set_step(milliseconds(20));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(300));
  const Seen seen = read_all(*harness.stub_->Generate(&context, ids_request({1}, 500)));
  EXPECT_EQ(seen.status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_FALSE(seen.finished.has_value());
  EXPECT_TRUE(harness.idle());
}

TEST(Service, AClientThatDoesNotReadIsEnded) {
  HarnessOptions options;
  options.context = 1 << 16;
  options.max_sequences = 1;
  Harness harness(options);
  v1::GenerateRequest request = ids_request({1}, 60000);
  request.set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = harness.stub_->Generate(&context, request);
  ASSERT_TRUE(Harness::eventually([&] { return harness.engine_->load().output_tokens() > 0; }));
  EXPECT_TRUE(harness.idle());
  EXPECT_LT(harness.engine_->load().output_tokens(), 60000u);
  const Seen seen = read_all(*reader);
  EXPECT_EQ(seen.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(holds(seen.status.error_message(), std::to_string(kMaxBacklogBytes)))
      << seen.status.error_message();
  EXPECT_TRUE(generate(*harness.stub_, ids_request({1}, 3)).status.ok());
}

TEST(Service, ADeadWorkerEndsItsStreams) {
  Harness harness;
  harness.workers_.set_step(milliseconds(5));
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateReply>>> readers;
  v1::GenerateReply reply;
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(harness.stub_->Generate(contexts.back().get(), ids_request({i + 1}, 500)));
    ASSERT_TRUE(readers.back()->Read(&reply));
  }
  const auto start = std::chrono::steady_clock::now();
  harness.workers_.report(1, ChannelEvent::Kind::kClosed);
  for (const auto& reader : readers) {
    const Seen seen = read_all(*reader);
    EXPECT_EQ(seen.status.error_code(), StatusCode::UNAVAILABLE);
    for (const char* word : {"rank 1", "host oar1", "stage 0"}) {
      EXPECT_TRUE(holds(seen.status.error_message(), word)) << seen.status.error_message();
    }
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(500));
  EXPECT_EQ(generate(*harness.stub_, ids_request({1}, 3)).status.error_code(),
            StatusCode::UNAVAILABLE);
}

// Each answer as the request for it alone gives it; and each stops by itself.
TEST(Service, SeveralAnswersInOneStream) {
  Harness harness;
  v1::GenerateRequest request = ids_request({5, 6, 7}, 30);
  request.set_n(4);
  request.set_logprobs(1);
  request.mutable_sampling()->set_seed(9);
  request.mutable_sampling()->set_temperature(0.5);  // so that the played workers mind the seed
  std::vector<Seen> alone;
  for (int32_t index = 0; index < 4; ++index) {
    v1::GenerateRequest one = request;
    one.set_n(1);
    one.mutable_sampling()->set_seed(seed_of_answer(9, index));
    alone.push_back(generate(*harness.stub_, one));
    ASSERT_TRUE(alone.back().status.ok());
  }
  EXPECT_NE(alone[0].ids, alone[1].ids);
  // Answer 2 ends early, at a token that the others do not draw.
  const auto elsewhere = [&](int32_t id) {
    return std::count(alone[0].ids.begin(), alone[0].ids.end(), id) +
           std::count(alone[1].ids.begin(), alone[1].ids.end(), id) +
           std::count(alone[3].ids.begin(), alone[3].ids.end(), id);
  };
  size_t place = 4;
  while (elsewhere(alone[2].ids.at(place)) > 0) ++place;
  request.add_stop_token_ids(alone[2].ids[place]);
  const std::vector<Seen> seen = generate_all(*harness.stub_, request);
  ASSERT_EQ(seen.size(), 4u);
  for (size_t index = 0; index < 4; ++index) {
    ASSERT_TRUE(seen[index].finished.has_value()) << index;
    EXPECT_FALSE(seen[index].after_finished) << index;
    EXPECT_EQ(seen[index].finished->usage().prompt_tokens(), 3);
    const size_t length = seen[index].ids.size();
    EXPECT_EQ(static_cast<size_t>(seen[index].finished->usage().completion_tokens()), length);
    EXPECT_EQ(static_cast<size_t>(seen[index].num_logprobs), length);
    EXPECT_EQ(length, index == 2 ? place + 1 : 30);
    EXPECT_TRUE(
        std::equal(seen[index].ids.begin(), seen[index].ids.end(), alone[index].ids.begin()));
    EXPECT_EQ(seen[index].finished->finish_reason(),
              index == 2 ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
  }
  EXPECT_EQ(seen[0].text, alone[0].text);
  EXPECT_TRUE(harness.idle());
}

TEST(Service, AbortAndCancelEndAllAnswers) {
  Harness harness;
  harness.workers_.set_step(milliseconds(5));
  v1::GenerateRequest request = ids_request({1}, 500);
  request.set_request_id("mine");
  request.set_n(4);
  grpc::ClientContext context;
  const auto reader = harness.stub_->Generate(&context, request);
  v1::GenerateReply reply;
  ASSERT_TRUE(reader->Read(&reply));
  EXPECT_EQ(harness.engine_->load().running(), 4);
  EXPECT_TRUE(abort_request(*harness.stub_, "mine").ok());
  EXPECT_EQ(read_all(*reader).status.error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(harness.idle());

  grpc::ClientContext other_context;
  const auto other = harness.stub_->Generate(&other_context, request);
  ASSERT_TRUE(other->Read(&reply));
  other_context.TryCancel();
  EXPECT_TRUE(harness.idle());
}

TEST(Service, AQueueWithoutRoomForAllAnswersTakesNone) {
  HarnessOptions options;
  options.max_queue = 5;
  Harness harness(options);
  v1::GenerateRequest request = ids_request({1}, 5);
  request.set_n(6);
  const Seen refused = generate(*harness.stub_, request);
  EXPECT_EQ(refused.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(holds(refused.status.error_message(), "asks for 6 answers"))
      << refused.status.error_message();
  EXPECT_TRUE(refused.ids.empty());
  EXPECT_EQ(harness.engine_->load().output_tokens(), 0u);
  request.set_n(5);
  EXPECT_EQ(generate_all(*harness.stub_, request).size(), 5u);
}

TEST(Service, AbortOfOthersRequestsTakesTheToken) {
  const std::string token = "0123456789abcdef0123456789abcdef";
  for (const bool has_token : {false, true}) {
    HarnessOptions options;
    options.token = has_token ? token : "";
    Harness harness(options);
    harness.workers_.set_step(milliseconds(5));
    v1::GenerateRequest request = ids_request({1}, 500);
    request.set_request_id("mine");
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    const auto reader = harness.stub_->Generate(&context, request);
    v1::GenerateReply reply;
    ASSERT_TRUE(reader->Read(&reply));

    const auto stranger = v1::Inference::NewStub(Harness::connect(harness.server_->address()));
    const grpc::Status status = abort_request(*stranger, "mine", token);
    EXPECT_EQ(abort_request(*stranger, "unknown", token).error_code(), StatusCode::NOT_FOUND);
    if (has_token) {
      EXPECT_TRUE(status.ok()) << status.error_message();
    } else {
      EXPECT_EQ(status.error_code(), StatusCode::PERMISSION_DENIED);
      EXPECT_EQ(status.error_message(),
                "cannot abort mine: it came over another connection, and to end others' requests "
                "takes the admin token, which this server has none of; start it with --token_file");
      EXPECT_TRUE(reader->Read(&reply));  // it goes on
      EXPECT_TRUE(abort_request(*harness.stub_, "mine").ok());
    }
    EXPECT_EQ(read_all(*reader).status.error_code(), StatusCode::CANCELLED);
    EXPECT_TRUE(harness.idle());
  }
}

TEST(Service, AbortEndsByIdOnly) {
  Harness harness;
  harness.workers_.set_step(milliseconds(5));
  v1::GenerateRequest request = ids_request({1}, 500);
  request.set_request_id("mine");
  grpc::ClientContext context;
  const auto reader = harness.stub_->Generate(&context, request);
  v1::GenerateReply reply;
  ASSERT_TRUE(reader->Read(&reply));
  EXPECT_EQ(generate(*harness.stub_, request).status.error_code(), StatusCode::ALREADY_EXISTS);

  const auto abort = [&](const std::string& id) { return abort_request(*harness.stub_, id); };
  EXPECT_EQ(abort("another").error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(abort("").error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(abort("mine").ok());
  EXPECT_EQ(read_all(*reader).status.error_code(), StatusCode::CANCELLED);
  EXPECT_EQ(abort("mine").error_code(), StatusCode::NOT_FOUND);
  EXPECT_TRUE(harness.idle());
  // The id is free again.
  request.set_max_tokens(2);
  EXPECT_TRUE(generate(*harness.stub_, request).status.ok());
}

TEST(Service, BadFieldsAreNamedAndHarmNobody) {
  Harness harness;
  harness.workers_.set_step(milliseconds(2));
  grpc::ClientContext context;
  const auto good = harness.stub_->Generate(&context, ids_request({1}, 100));
  v1::GenerateRequest request = ids_request({1}, 5);
  request.mutable_sampling()->set_top_p(2);
  const grpc::Status bad = generate(*harness.stub_, request).status;
  EXPECT_EQ(bad.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(bad.error_message().rfind("sampling.top_p: ", 0), 0u) << bad.error_message();
  request = ids_request({1}, 5);
  request.set_priority(1);
  EXPECT_EQ(generate(*harness.stub_, request).status.error_code(), StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(read_all(*good).status.ok());
}

TEST(Service, TokenizeAndBack) {
  Harness harness;
  v1::TokenizeRequest text;
  text.set_text("Grüße, 世界!");
  v1::TokenizeReply ids;
  grpc::ClientContext first;
  ASSERT_TRUE(harness.stub_->Tokenize(&first, text, &ids).ok());
  EXPECT_EQ((std::vector<int32_t>{ids.token_ids().begin(), ids.token_ids().end()}),
            harness.tokenizer_->encode(text.text()));
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = ids.token_ids();
  v1::DetokenizeReply reply;
  grpc::ClientContext second;
  ASSERT_TRUE(harness.stub_->Detokenize(&second, back, &reply).ok());
  EXPECT_EQ(reply.text(), text.text());
}

TEST(Service, WhileItLoads) {
  HarnessOptions options;
  options.serve = false;
  Harness harness(options);
  const Seen early = generate(*harness.stub_, ids_request({1}, 3));
  EXPECT_EQ(early.status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(holds(early.status.error_message(), "still loading"));
  // The placement is known already.
  Placement placement;
  grpc::ClientContext context;
  ASSERT_TRUE(harness.cluster_->GetPlacement(&context, {}, &placement).ok());
  EXPECT_EQ(placement.SerializeAsString(), harness.placement_.SerializeAsString());
  harness.start_serving();
  EXPECT_TRUE(generate(*harness.stub_, ids_request({1}, 3)).status.ok());
}

TEST(Service, DrainLetsRunningRequestsEnd) {
  Harness harness;
  harness.workers_.set_step(milliseconds(5));
  grpc::ClientContext context;
  const auto reader = harness.stub_->Generate(&context, ids_request({1}, 60));
  v1::GenerateReply reply;
  ASSERT_TRUE(reader->Read(&reply));
  harness.service_.drain("the server drains");
  EXPECT_EQ(generate(*harness.stub_, ids_request({1}, 3)).status.error_code(),
            StatusCode::UNAVAILABLE);
  const Seen seen = read_all(*reader);
  EXPECT_TRUE(seen.status.ok()) << seen.status.error_message();
  EXPECT_TRUE(seen.finished.has_value());
}

}  // namespace
}  // namespace trireme
