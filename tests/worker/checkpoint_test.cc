// SPDX-License-Identifier: Apache-2.0
#include "worker/model/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>

#include "tests/worker/model_files.h"

namespace trireme {
namespace {

std::vector<float> read_all(Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<float> values(tensor.rows() * tensor.cols());
  checkpoint.read(tensor, 0, 0, Tensor(values.data(), DType::kF32, tensor.rows(), tensor.cols()));
  return values;
}

TEST(Checkpoint, ShardsHoldWhatTheSingleFileHolds) {
  const auto single = Checkpoint::open(test_data("tiny-chatglm3"));  // bf16
  const auto sharded = Checkpoint::open(test_data("tiny-chatglm3-fp16-sharded"));
  EXPECT_EQ(single->total_bytes(), sharded->total_bytes());
  for (const char* name : {"transformer.embedding.word_embeddings.weight",
                           "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight",
                           "transformer.encoder.layers.2.self_attention.query_key_value.bias",
                           "transformer.output_layer.weight"}) {
    const TensorInfo* a = single->find(name);
    const TensorInfo* b = sharded->find(name);
    ASSERT_TRUE(a != nullptr && b != nullptr) << name;
    EXPECT_EQ(a->type, "BF16");
    EXPECT_EQ(b->type, "F16");
    EXPECT_EQ(a->shape, b->shape);
    EXPECT_EQ(read_all(*single, *a), read_all(*sharded, *b)) << name;
  }
  EXPECT_EQ(single->find("transformer.nothing"), nullptr);
}

TEST(Checkpoint, CountsWholeRowsOfMatricesAndValuesOfVectors) {
  const auto checkpoint = Checkpoint::open(test_data("tiny-llama3"));
  const TensorInfo& matrix = *checkpoint->find("model.layers.0.mlp.down_proj.weight");  // [64, 168]
  std::vector<float> out(64 * 168);
  checkpoint->read(matrix, 3, 100, Tensor(out.data(), DType::kF32, 5, 7));
  EXPECT_EQ(checkpoint->bytes_read(), 5u * 168 * 4);
  const TensorInfo& vector = *checkpoint->find("model.norm.weight");
  checkpoint->read(vector, 0, 10, Tensor(out.data(), DType::kF32, 1, 7));
  EXPECT_EQ(checkpoint->bytes_read(), 5u * 168 * 4 + 7 * 4);
}

// A checkpoint of one tensor [3, 40], all ones but for one value.
std::string with_value(const TemporaryFolder& folder, const char* type, const std::string& one,
                       const std::string& value, int64_t row, int64_t col) {
  std::string data;
  for (int64_t i = 0; i < 3 * 40; ++i) data += i == row * 40 + col ? value : one;
  const std::string header = std::string(R"({"w":{"dtype":")") + type +
                             R"(","shape":[3,40],"data_offsets":[0,)" +
                             std::to_string(data.size()) + "]}}";
  folder.write("model.safetensors", bytes_of(uint64_t{header.size()}) + header + data);
  return folder.path();
}

TEST(Checkpoint, RefusesValuesThatAreNotFinite) {
  const struct {
    const char* type;
    std::string one;
    std::vector<std::string> values;
  } cases[] = {
      {"F32",
       bytes_of(1.0f),
       {bytes_of(NAN), bytes_of(-NAN), bytes_of(INFINITY), bytes_of(-INFINITY),
        bytes_of(0x7F800001)}},
      {"BF16",
       bytes_of(uint16_t{0x3F80}),
       {bytes_of(uint16_t{0x7F80}), bytes_of(uint16_t{0xFF80}), bytes_of(uint16_t{0xFFFF}),
        bytes_of(uint16_t{0x7F81})}},
      {"F16",
       bytes_of(uint16_t{0x3C00}),
       {bytes_of(uint16_t{0x7C00}), bytes_of(uint16_t{0xFC00}), bytes_of(uint16_t{0xFE00}),
        bytes_of(uint16_t{0x7C01})}},
  };
  for (const auto& item : cases) {
    for (const std::string& value : item.values) {
      const TemporaryFolder folder;
      const auto checkpoint =
          Checkpoint::open(with_value(folder, item.type, item.one, value, 2, 37));
      const TensorInfo& tensor = *checkpoint->find("w");
      for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        std::vector<std::byte> out(3 * 40 * element_size(dtype));
        const std::string needed =
            folder.path() +
            "/model.safetensors: its value at row 2, column 37 is infinite or not "
            "a number as " +
            dtype_name(dtype);
        expect_error(Code::kInvalidArgument, "cannot load tensor w of " + needed,
                     [&] { checkpoint->read(tensor, 1, 30, Tensor(out.data(), dtype, 2, 10)); });
        checkpoint->read(tensor, 0, 0, Tensor(out.data(), dtype, 2, 40));
        checkpoint->read(tensor, 2, 0, Tensor(out.data(), dtype, 1, 37));
      }
    }
  }
}

TEST(Checkpoint, RefusesValuesPastTheRangeOfTheServingType) {
  const TemporaryFolder folder;
  const auto checkpoint =
      Checkpoint::open(with_value(folder, "F32", bytes_of(1.0f), bytes_of(65520.0f), 0, 0));
  float out[40];
  checkpoint->read(*checkpoint->find("w"), 0, 0, Tensor(out, DType::kBF16, 1, 40));
  expect_error(Code::kInvalidArgument, "row 0, column 0 is infinite or not a number as fp16", [&] {
    checkpoint->read(*checkpoint->find("w"), 0, 0, Tensor(out, DType::kF16, 1, 40));
  });
}

TEST(Checkpoint, RefusesToReadATypeByName) {
  const TemporaryFolder folder;
  folder.write("model.safetensors",
               safetensors_file(R"({"a":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},)"
                                R"("b":{"dtype":"F4","shape":[2,2],"data_offsets":[4,6]}})",
                                6));
  const auto checkpoint = Checkpoint::open(folder.path());
  float out[4];
  for (const char* name : {"a", "b"}) {
    const TensorInfo& tensor = *checkpoint->find(name);
    expect_error(Code::kInvalidArgument,
                 "its type is " + tensor.type + "; one of F32, F16, BF16, Q8_0",
                 [&] { checkpoint->read(tensor, 0, 0, Tensor(out, DType::kF32, 2, 2)); });
  }
  EXPECT_EQ(checkpoint->bytes_read(), 0u);
}

struct BadPath {
  const char* name;
  Code code;
  const char* message;
  void (*make)(const TemporaryFolder& folder);
  const char* path;  // inside the folder
};

class BadCheckpoint : public testing::TestWithParam<BadPath> {};

TEST_P(BadCheckpoint, IsRefused) {
  const TemporaryFolder folder;
  GetParam().make(folder);
  expect_error(GetParam().code, GetParam().message,
               [&] { Checkpoint::open(folder.path() + GetParam().path); });
}

void copy_shards(const TemporaryFolder& folder) {
  std::filesystem::copy(test_data("tiny-chatglm3-fp16-sharded"), folder.path());
}

const std::string kSecondShard = "model-00002-of-00003.safetensors";

INSTANTIATE_TEST_SUITE_P(
    All, BadCheckpoint,
    testing::Values(
        BadPath{"Absent", Code::kNotFound, "no such file or directory", [](auto&) {}, "/nothing"},
        BadPath{"EmptyFolder", Code::kNotFound, "has neither model.safetensors nor", [](auto&) {},
                ""},
        BadPath{"Pickle", Code::kFailedPrecondition, "save_pretrained",
                [](auto& folder) {
                  folder.write("config.json", "{}");
                  folder.write("pytorch_model-00001-of-00002.bin", "pickle");
                },
                ""},
        BadPath{"PickleIsNamed", Code::kFailedPrecondition, "(consolidated.00.pt)",
                [](auto& folder) { folder.write("consolidated.00.pt", "pickle"); }, ""},
        BadPath{"NoGguf", Code::kInvalidArgument, "does not begin with the letters GGUF",
                [](auto& folder) { folder.write("weights.bin", "pickle"); }, "/weights.bin"},
        BadPath{"Pipe", Code::kNotFound, "it is no regular file",
                [](auto& folder) { mkfifo((folder.path() + "/pipe").c_str(), 0600); }, "/pipe"},
        BadPath{"ShardMissing", Code::kNotFound, "model-00002-of-00003.safetensors is missing",
                [](auto& folder) {
                  copy_shards(folder);
                  std::filesystem::remove(folder.path() + "/" + kSecondShard);
                },
                ""},
        BadPath{"ShardTruncated", Code::kInvalidArgument, "it is truncated; download it again",
                [](auto& folder) {
                  copy_shards(folder);
                  std::filesystem::resize_file(folder.path() + "/" + kSecondShard, 50000);
                },
                ""},
        BadPath{"ShardWithoutTensor", Code::kInvalidArgument, "has no tensor",
                [](auto& folder) {
                  copy_shards(folder);
                  folder.write(kSecondShard, safetensors_file("{}", 0));
                },
                ""},
        BadPath{"ShardIsADirectory", Code::kNotFound, "it is a directory",
                [](auto& folder) {
                  copy_shards(folder);
                  std::filesystem::remove(folder.path() + "/" + kSecondShard);
                  std::filesystem::create_directory(folder.path() + "/" + kSecondShard);
                },
                ""}),
    [](const auto& row) { return std::string(row.param.name); });

}  // namespace
}  // namespace trireme
