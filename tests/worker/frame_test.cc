// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/frame.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "proto/micro_batch.pb.h"
#include "worker/comm/control.h"

namespace trireme {
namespace {

ToWorker abandon(size_t reason_bytes) {
  ToWorker message;
  message.mutable_abandon()->set_reason(std::string(reason_bytes, 'r'));
  return message;
}

std::string read_reason(std::string_view bytes) {
  ToWorker message;
  EXPECT_TRUE(message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())));
  return message.abandon().reason();
}

TEST(Frame, SurvivesAnyCut) {
  const std::vector<size_t> sizes = {0, 1, 7, 300, 70000};
  std::string stream;
  for (const size_t size : sizes) stream += make_frame(abandon(size), 1 << 20);
  for (const size_t step : {1, 3, 4, 5, 1000, 1 << 20}) {
    FrameReader reader(1 << 20);
    std::vector<size_t> read;
    for (size_t i = 0; i < stream.size(); i += step) {
      reader.append(std::string_view(stream).substr(i, step));
      while (const auto bytes = reader.next()) read.push_back(read_reason(*bytes).size());
    }
    EXPECT_EQ(read, sizes) << "step " << step;
    EXPECT_EQ(reader.error(), "");
  }
}

TEST(Frame, EmptyMessage) {
  FrameReader reader(10);
  reader.append(make_frame(ToWorker(), 10));
  const auto bytes = reader.next();
  ASSERT_TRUE(bytes.has_value());
  EXPECT_EQ(bytes->size(), 0u);
  EXPECT_FALSE(reader.next().has_value());
}

TEST(Frame, LimitIsExact) {
  const std::string frame = make_frame(abandon(100), 1000);
  const auto size = static_cast<uint32_t>(frame.size() - 4);
  FrameReader fits(size);
  fits.append(frame);
  EXPECT_TRUE(fits.next().has_value());

  FrameReader too_small(size - 1);
  too_small.append(frame.substr(0, 4));  // the length alone is refused
  EXPECT_FALSE(too_small.next().has_value());
  EXPECT_NE(too_small.error(), "");
  too_small.append(frame);
  EXPECT_FALSE(too_small.next().has_value());
}

TEST(Frame, GreatestLengthAllocatesNothing) {
  FrameReader reader(64u << 20);
  reader.append("\xff\xff\xff\xff");
  EXPECT_FALSE(reader.next().has_value());
  EXPECT_NE(reader.error().find("4294967295"), std::string::npos);
}

TEST(Frame, SenderRefusesWhatThePeerWould) {
  try {
    make_frame(abandon(1000), 999);
    FAIL() << "a frame beyond the limit";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kResourceExhausted);
  }
}

ControlAddress sample_address() {
  ControlAddress address;
  address.hosts = {"10.77.0.1", "fd00::1"};
  address.port = 45678;
  for (size_t i = 0; i < address.key.size(); ++i) address.key[i] = static_cast<uint8_t>(i * 9);
  return address;
}

TEST(ControlAddress, RoundTrip) {
  const ControlAddress address = sample_address();
  const ControlAddress parsed = ControlAddress::parse(address.serialise());
  EXPECT_EQ(parsed.hosts, address.hosts);
  EXPECT_EQ(parsed.port, address.port);
  EXPECT_EQ(parsed.key, address.key);
}

TEST(ControlAddress, RefusesEveryTruncation) {
  const std::string text = sample_address().serialise();
  const size_t first_host = text.find("10.77");
  for (size_t size = 0; size < first_host + 2; ++size) {
    EXPECT_THROW(ControlAddress::parse(text.substr(0, size)), Error) << size;
  }
}

TEST(ControlAddress, RefusesWrongFields) {
  const std::string good = sample_address().serialise();
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    return text.replace(text.find(from), from.size(), to);
  };
  EXPECT_THROW(ControlAddress::parse(changed("control-1", "control-2")), Error);
  EXPECT_THROW(ControlAddress::parse(changed("45678", "0")), Error);
  EXPECT_THROW(ControlAddress::parse(changed("45678", "65536")), Error);
  EXPECT_THROW(ControlAddress::parse(changed("45678", "-1")), Error);
  EXPECT_THROW(ControlAddress::parse(changed("000912", "00091g")), Error);
  EXPECT_THROW(ControlAddress::parse(changed("000912", "0009")), Error);
  EXPECT_THROW(ControlAddress::parse(changed("10.77.0.1", "example.org")), Error);
}

}  // namespace
}  // namespace trireme
