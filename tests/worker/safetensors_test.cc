// SPDX-License-Identifier: Apache-2.0
#include "worker/model/safetensors.h"

#include <gtest/gtest.h>

#include "tests/worker/model_files.h"
#include "worker/model/checkpoint.h"

namespace trireme {
namespace {

struct Hostile {
  const char* name;
  std::string bytes;
  const char* message;
};

// A header of one tensor "a" with these fields.
std::string one(const std::string& fields) { return "{\"a\":{" + fields + "}}"; }

const std::string kGood = R"("dtype":"F32","shape":[2,2],"data_offsets":[0,16])";
const std::string kDeep(40, '[');

const std::vector<Hostile> kHostile = {
    {"Empty", "", "it has 0 bytes; at least 8"},
    {"LengthOnly", bytes_of(uint64_t{16}), "header needs 16 bytes, but the file has 0"},
    {"HugeLength", bytes_of(~uint64_t{0}) + "{}", "at most 100000000 are allowed"},
    {"LengthPastEnd", bytes_of(uint64_t{9}) + "{}", "header needs 9 bytes, but the file has 2"},
    {"NoJson", safetensors_file("not json", 0), "no valid JSON at byte"},
    {"CutJson", safetensors_file(one(kGood).substr(0, 30), 16), "no valid JSON"},
    {"BadUtf8", safetensors_file("{\"\xff\":1}", 0), "no valid JSON"},
    {"Array", safetensors_file("[]", 0), "a JSON array; an object is needed"},
    {"Deep", safetensors_file("{\"a\":" + kDeep, 0), "nested deeper than 32"},
    {"TwoOfOneName", safetensors_file("{\"a\":{" + kGood + "},\"a\":{" + kGood + "}}", 16),
     "the key \"a\" occurs twice"},
    {"NoObject", safetensors_file("{\"a\":7}", 0), "tensor 'a' is no object"},
    {"NoDtype", safetensors_file(one(R"("shape":[1],"data_offsets":[0,4])"), 4), "no dtype"},
    {"DtypeNumber", safetensors_file(one(R"("dtype":7,"shape":[1],"data_offsets":[0,4])"), 4),
     "no dtype"},
    {"NoShape", safetensors_file(one(R"("dtype":"F32","data_offsets":[0,4])"), 4),
     "no shape that is a list"},
    {"NegativeSize", safetensors_file(one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4),
     "no shape that is a list"},
    {"FractionalSize",
     safetensors_file(one(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), 4),
     "no shape that is a list"},
    {"SizePast63Bits",
     safetensors_file(one(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4])"),
                      4),
     "no shape that is a list"},
    {"NineDimensions",
     safetensors_file(one(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), 4),
     "no shape that is a list of at most 8"},
    {"ShapeOverflows",
     safetensors_file(one(R"("dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,4])"),
                      4),
     "its size overflows"},
    {"NoOffsets", safetensors_file(one(R"("dtype":"F32","shape":[1])"), 4), "no data_offsets"},
    {"OneOffset", safetensors_file(one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4),
     "no [begin, end] in order"},
    {"OffsetsReversed",
     safetensors_file(one(R"("dtype":"F32","shape":[1],"data_offsets":[8,4])"), 8),
     "no [begin, end] in order"},
    {"Truncated", safetensors_file(one(kGood), 15), "the file has 15 bytes of data"},
    {"OffsetPast63Bits",
     safetensors_file(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615])"),
                      8),
     "no data_offsets that is a list"},
    {"SizeDiffers",
     safetensors_file(one(R"("dtype":"F32","shape":[2,2],"data_offsets":[0,12])"), 12),
     "has 12 bytes, but its type F32 and shape need 16"},
    {"Overlap",
     safetensors_file(
         "{\"a\":{" + kGood + R"(},"b":{"dtype":"F16","shape":[2],"data_offsets":[12,16]}})", 16),
     "'a' and 'b' overlap"},
};

class HostileSafetensors : public testing::TestWithParam<Hostile> {};

TEST_P(HostileSafetensors, IsRefused) {
  const TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", GetParam().bytes);
  expect_error(Code::kInvalidArgument, GetParam().message, [&] { SafetensorsFile file(path); });
  expect_error(Code::kInvalidArgument, path, [&] { SafetensorsFile file(path); });
}

INSTANTIATE_TEST_SUITE_P(All, HostileSafetensors, testing::ValuesIn(kHostile),
                         [](const auto& row) { return std::string(row.param.name); });

class HostileIndex : public testing::TestWithParam<Hostile> {};

INSTANTIATE_TEST_SUITE_P(
    All, HostileIndex,
    testing::Values(
        Hostile{"Parent", R"({"weight_map":{"a":"../x.safetensors"}})", "no plain file name"},
        Hostile{"Absolute", R"({"weight_map":{"a":"/etc/passwd"}})", "no plain file name"},
        Hostile{"Hidden", R"({"weight_map":{"a":".x"}})", "no plain file name"},
        Hostile{"Backslash", R"({"weight_map":{"a":"x\\y"}})", "no plain file name"},
        Hostile{"ZeroByte", R"({"weight_map":{"a":"x\u0000y"}})", "no plain file name"},
        Hostile{"EmptyName", R"({"weight_map":{"a":""}})", "no plain file name"},
        Hostile{"NumberForName", R"({"weight_map":{"a":1}})", "no plain file name"},
        Hostile{"NoMap", R"({"metadata":{}})", "it has no weight_map"},
        Hostile{"EmptyMap", R"({"weight_map":{}})", "it has no weight_map"},
        Hostile{"TwoOfOneName", R"({"weight_map":{"a":"x","a":"y"}})", "occurs twice"}),
    [](const auto& row) { return std::string(row.param.name); });

TEST_P(HostileIndex, IsRefused) {
  const TemporaryFolder folder;
  folder.write("model.safetensors.index.json", GetParam().bytes);
  expect_error(Code::kInvalidArgument, GetParam().message,
               [&] { Checkpoint::open(folder.path()); });
}

TEST(Safetensors, ReadsAWellFormedHeader) {
  const TemporaryFolder folder;
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("m":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
      R"("none":{"dtype":"F32","shape":[0,4],"data_offsets":[20,20]},)"
      R"("new":{"dtype":"F4","shape":[2],"data_offsets":[20,21]}}  )";
  const SafetensorsFile file(folder.write("model.safetensors", safetensors_file(header, 21)));
  EXPECT_EQ(file.tensors().size(), 4u);
  const SafetensorsTensor& matrix = file.tensors().at("m");
  EXPECT_EQ(matrix.dtype, "BF16");
  EXPECT_EQ(matrix.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(matrix.offset, 8 + header.size() + 8);
  EXPECT_EQ(matrix.bytes, 12u);
}

}  // namespace
}  // namespace trireme
