// SPDX-License-Identifier: Apache-2.0
#include "worker/model/gguf.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/worker/model_files.h"
#include "worker/model/checkpoint.h"
#include "worker/model/quant.h"

namespace trireme {
namespace {

struct Hostile {
  const char* name;
  std::string bytes;
  const char* message;
};

std::string with(const std::function<void(GgufBuilder&)>& change) {
  GgufBuilder builder;
  change(builder);
  return builder.build();
}

// A file with one key "k" of this type and these value bytes.
std::string value(uint32_t type, const std::string& bytes) {
  return with([&](GgufBuilder& b) { b.raw("k", type, bytes); });
}

std::string array(uint32_t type, uint64_t length, const std::string& items) {
  return value(9, bytes_of(type) + bytes_of(length) + items);
}

std::string tensor(const std::vector<uint64_t>& dimensions, uint32_t type, uint64_t offset) {
  return with([&](GgufBuilder& b) {
    b.tensor("t", dimensions, type, offset);
    b.data.resize(256);
  });
}

constexpr uint64_t k32 = uint64_t{1} << 32;

const std::vector<Hostile> kHostile = {
    {"Empty", "", "the magic needs 1 x 4 bytes"},
    {"OtherMagic", with([](auto& b) { b.magic = "GGML"; }), "does not begin with the letters GGUF"},
    {"VersionOne", with([](auto& b) { b.version = 1; }), "its version is 1; 2 or 3"},
    {"BigEndian", with([](auto& b) { b.version = 3u << 24; }), "its version is 50331648"},
    {"MetadataCount", with([](auto& b) { b.metadata_count = k32; }),
     "the metadata needs 4294967296 x 13 bytes"},
    {"TensorCount", with([](auto& b) { b.tensor_count = k32 - 1; }),
     "the tensor directory needs 4294967295 x 32 bytes"},
    {"TensorCountOverflows", with([](auto& b) { b.tensor_count = ~uint64_t{0}; }),
     "the tensor directory needs"},
    {"CountPastEnd", with([](auto& b) {
       b.integer("k", 1);
       b.metadata_count = 2;
     }),
     "the name of a metadata key"},
    {"EmptyKey", with([](auto& b) { b.integer("", 1); }), "the name of a metadata key has 0 bytes"},
    {"KeyPastEnd",
     "GGUF" + bytes_of(3) + bytes_of(uint64_t{0}) + bytes_of(uint64_t{1}) + bytes_of(~uint64_t{0}) +
         "12345",
     "the name of a metadata key needs 18446744073709551615 x 1 bytes"},
    {"LongKey", with([](auto& b) { b.integer(std::string(70000, 'k'), 1); }), "has 70000 bytes"},
    {"UnknownValueType", value(13, bytes_of(uint64_t{0})), "metadata 'k' has type 13"},
    {"StringPastEnd", value(8, bytes_of(k32) + "abc"), "needs 4294967296 x 1 bytes"},
    {"Boolean", value(7, bytes_of(uint8_t{7})), "is the boolean 7"},
    {"Past63Bits", value(10, bytes_of(~uint64_t{0})), "at most 2^63 - 1"},
    {"ArrayOfArrays", array(9, 0, ""), "an array of type 9"},
    {"ArrayOfUnknown", array(77, 0, ""), "an array of type 77"},
    {"ArrayOfMany", array(8, k32, ""), "has 4294967296 elements; at most 16777216"},
    {"ArrayPastEnd", array(4, 1 << 24, "abcd"), "needs 16777216 x 4 bytes"},
    {"StringsPastEnd", array(8, 1 << 23, "abcd"), "needs 8388608 x 8 bytes"},
    {"KeyTwice", with([](auto& b) { b.integer("k", 1).integer("k", 2); }),
     "metadata 'k' occurs twice"},
    {"AlignmentZero", with([](auto& b) { b.integer("general.alignment", 0); }),
     "general.alignment is 0"},
    {"AlignmentOdd", with([](auto& b) { b.integer("general.alignment", 48); }),
     "general.alignment is 48"},
    {"AlignmentHuge", with([](auto& b) { b.integer("general.alignment", 1u << 31); }),
     "general.alignment is 2147483648"},
    {"AlignmentText", with([](auto& b) { b.string("general.alignment", "x"); }),
     "'general.alignment' has another type; an integer"},
    {"NoDimensions", tensor({}, 0, 0), "has 0 dimensions"},
    {"FiveDimensions", tensor({1, 1, 1, 1, 1}, 0, 0), "has 5 dimensions"},
    {"SizeOverflows", tensor({uint64_t{1} << 33, uint64_t{1} << 33}, 0, 0), "its size overflows"},
    {"BytesOverflow", tensor({uint64_t{1} << 62}, 0, 0), "its size overflows"},
    {"UnknownElementType", tensor({32}, 4, 0), "the element type 4, which is not known"},
    {"PartOfABlock", tensor({33}, 8, 0), "rows of 33 values; Q8_0 needs a multiple of 32"},
    {"Misaligned", tensor({4}, 0, 16), "starts at 16; a multiple of general.alignment 32"},
    {"Truncated", tensor({64, 2}, 0, 0), "needs 512 bytes at data offset 0, but the file has 256"},
    {"OffsetPastEnd", tensor({4}, 0, uint64_t{1} << 63), "but the file has 256 bytes of data"},
    {"TensorTwice", with([](auto& b) { b.values("t", {1}, {0}).values("t", {1}, {0}); }),
     "tensor 't' occurs twice"},
    {"Overlap", with([](auto& b) {
       b.tensor("t", {16}, 0, 0).tensor("u", {1}, 0, 32);
       b.data.resize(64);
     }),
     "the tensors 't' and 'u' overlap"},
};

class HostileGguf : public testing::TestWithParam<Hostile> {};

TEST_P(HostileGguf, IsRefused) {
  const TemporaryFolder folder;
  const std::string path = folder.write("model.gguf", GetParam().bytes);
  expect_error(Code::kInvalidArgument, GetParam().message, [&] { GgufFile file(path); });
}

INSTANTIATE_TEST_SUITE_P(All, HostileGguf, testing::ValuesIn(kHostile),
                         [](const auto& row) { return std::string(row.param.name); });

// Any prefix of a good file is refused: no read relies on a check that comes later.
TEST(Gguf, RefusesEveryPrefix) {
  const TemporaryFolder folder;
  const std::string whole = with([](GgufBuilder& b) {
    b.string("general.name", "x").number("n", 1.5f);
    b.raw("list", 9, bytes_of(uint32_t{8}) + bytes_of(uint64_t{1}) + GgufBuilder::text("item"));
    b.values("t", {4, 2}, std::vector<float>(8, 1));
  });
  EXPECT_EQ(GgufFile(folder.write("whole.gguf", whole)).tensors().size(), 1u);
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string path = folder.write("cut.gguf", whole.substr(0, size));
    EXPECT_THROW(GgufFile file(path), Error) << size;
  }
}

TEST(Gguf, ReadsMetadataByType) {
  const TemporaryFolder folder;
  const std::string strings = bytes_of(uint32_t{8}) + bytes_of(uint64_t{2});
  const GgufFile file(folder.write(
      "model.gguf", with([&](GgufBuilder& b) {
        b.version = 2;
        b.raw("i8", 1, bytes_of(int8_t{-3})).raw("u64", 10, bytes_of(uint64_t{1} << 40));
        b.raw("f64", 12, bytes_of(2.5)).raw("yes", 7, bytes_of(uint8_t{1}));
        b.raw("strings", 9, strings + GgufBuilder::text("a") + GgufBuilder::text(""));
        b.raw("ints", 9, bytes_of(uint32_t{3}) + bytes_of(uint64_t{1}) + bytes_of(int16_t{-7}));
        b.raw("floats", 9, bytes_of(uint32_t{6}) + bytes_of(uint64_t{1}) + bytes_of(0.5f));
      })));
  EXPECT_EQ(file.integer("i8"), -3);
  EXPECT_EQ(file.integer("u64"), int64_t{1} << 40);
  EXPECT_EQ(file.number("f64"), 2.5);
  EXPECT_EQ(file.boolean("yes"), true);
  EXPECT_EQ(file.strings("strings"), (std::vector<std::string>{"a", ""}));
  EXPECT_EQ(file.integers("ints"), (std::vector<int64_t>{-7}));
  EXPECT_EQ(file.numbers("floats"), (std::vector<double>{0.5}));
  EXPECT_FALSE(file.integer("absent").has_value());
  expect_error(Code::kInvalidArgument, "'f64' has another type; an integer is needed",
               [&] { file.integer("f64"); });
}

// golden.gguf holds what the Python gguf package makes of random blocks.
class Dequantised : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(All, Dequantised,
                         testing::Values("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K",
                                         "Q4_K", "Q5_K", "Q6_K"),
                         [](const auto& row) { return std::string(row.param); });

TEST_P(Dequantised, EqualsTheReferenceBitForBit) {
  const auto checkpoint = Checkpoint::open(test_data("gguf/golden.gguf"));
  const TensorInfo* tensor = checkpoint->find(GetParam());
  const TensorInfo* expected = checkpoint->find(std::string(GetParam()) + ".expected");
  ASSERT_TRUE(tensor != nullptr && expected != nullptr);
  ASSERT_EQ(tensor->shape, expected->shape);
  ASSERT_EQ(tensor->type, GetParam());
  const int64_t rows = tensor->rows();
  const int64_t cols = tensor->cols();
  std::vector<float> want(rows * cols);
  checkpoint->read(*expected, 0, 0, Tensor(want.data(), DType::kF32, rows, cols));
  // Slices that begin and end anywhere in a block, in all types that weights are served in.
  for (const auto& [begin, count] : std::vector<std::pair<int64_t, int64_t>>{
           {0, cols}, {1, cols - 1}, {31, 2}, {255, 300}, {256, 256}, {cols - 1, 1}}) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      std::vector<std::byte> got(rows * count * element_size(dtype));
      checkpoint->read(*tensor, 1, begin, Tensor(got.data(), dtype, rows - 1, count));
      for (int64_t i = 0; i < (rows - 1) * count; ++i) {
        const float value = want[(1 + i / count) * cols + begin + i % count];
        const std::string here = bytes_of(value);
        const std::string rounded = dtype == DType::kF32    ? here
                                    : dtype == DType::kBF16 ? bytes_of(float_to_bf16(value))
                                                            : bytes_of(float_to_fp16(value));
        ASSERT_EQ(std::memcmp(got.data() + i * element_size(dtype), rounded.data(), rounded.size()),
                  0)
            << dtype_name(dtype) << " column " << begin << " value " << i;
      }
    }
  }
}

// Scales that are infinite, NaN, zero or the largest: a NaN has any payload, the rest all bits.
TEST_P(Dequantised, AnyBytesAreABlock) {
  const GgufFile file(test_data("gguf/golden.gguf"));
  const std::string name = std::string(GetParam()) + ".extreme";
  const GgufTensor& tensor = file.tensors().at(name);
  const GgufTensor& expected = file.tensors().at(name + ".expected");
  const int64_t cols = tensor.shape[1];
  std::vector<float> want(tensor.shape[0] * cols);
  std::memcpy(want.data(), file.file().data() + expected.offset, expected.bytes);
  std::vector<float> got(cols);
  int64_t not_finite = 0;
  for (int64_t row = 0; row < tensor.shape[0]; ++row) {
    const std::byte* data = file.file().data() + tensor.offset;
    convert_row(*find_ggml_type(tensor.type), data + row * (tensor.bytes / tensor.shape[0]), 0,
                Tensor(got.data(), DType::kF32, 1, cols));
    for (int64_t i = 0; i < cols; ++i) {
      const float value = want[row * cols + i];
      not_finite += std::isfinite(value) ? 0 : 1;
      if (std::isnan(value) && std::isnan(got[i])) continue;
      ASSERT_EQ(bytes_of(got[i]), bytes_of(value)) << "row " << row << " column " << i;
    }
  }
  EXPECT_GT(not_finite, 0);
}

}  // namespace
}  // namespace trireme
