// SPDX-License-Identifier: Apache-2.0
#include "launch/picture.h"

#include <gtest/gtest.h>

#include <regex>
#include <string>
#include <vector>

#include "launch/explain.h"
#include "tests/support/models.h"
#include "topology/placement.h"

namespace trireme {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

// `nodes` of `each` GPUs, an island per node.
Topology gpus(int nodes, int each, const std::string& type, uint64_t memory,
              Topology topology = {}) {
  const int32_t first = topology.ranks_size() + 1;
  for (int node = 0; node < nodes; ++node) {
    Island& island = *topology.add_islands();
    island.mutable_link()->set_link_class(LINK_CLASS_NVL);
    island.mutable_link()->set_bandwidth_bytes_per_s(450e9);
    for (int device = 0; device < each; ++device) {
      RankInfo& rank = *topology.add_ranks();
      rank.set_rank(first + node * each + device);
      rank.set_host(type + "-" + std::to_string(node));
      rank.mutable_device()->set_kind(DEVICE_KIND_CUDA);
      rank.mutable_device()->set_type(type);
      rank.mutable_device()->set_memory_bytes(memory);
      island.add_ranks(rank.rank());
    }
  }
  return topology;
}

struct Shape {
  double x, y, width, height;
};

std::vector<Shape> rects(const std::string& svg) {
  static const std::regex rect(
      "<rect x=\"([-0-9.]+)\" y=\"([-0-9.]+)\" width=\"([-0-9.]+)\" height=\"([-0-9.]+)\"");
  std::vector<Shape> shapes;
  for (std::sregex_iterator at(svg.begin(), svg.end(), rect), end; at != end; ++at) {
    shapes.push_back(
        {std::stod((*at)[1]), std::stod((*at)[2]), std::stod((*at)[3]), std::stod((*at)[4])});
  }
  return shapes;
}

// Whole, inside its frame, and no two shapes half over each other: apart, or one within the other.
void check_picture(const std::string& svg) {
  ASSERT_TRUE(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
  static const std::regex size("viewBox=\"0 0 ([0-9.]+) ([0-9.]+)\"");
  std::smatch match;
  ASSERT_TRUE(std::regex_search(svg, match, size));
  const double width = std::stod(match[1]);
  const double height = std::stod(match[2]);
  const std::vector<Shape> shapes = rects(svg);
  constexpr double kSlack = 0.3;  // coordinates are rounded
  for (const Shape& a : shapes) {
    EXPECT_GE(a.x, 0);
    EXPECT_GE(a.y, 0);
    EXPECT_GE(a.width, 0);
    EXPECT_LE(a.x + a.width, width + kSlack);
    EXPECT_LE(a.y + a.height, height + kSlack);
    for (const Shape& b : shapes) {
      const bool apart = a.x + a.width <= b.x + kSlack || b.x + b.width <= a.x + kSlack ||
                         a.y + a.height <= b.y + kSlack || b.y + b.height <= a.y + kSlack;
      const auto within = [](const Shape& in, const Shape& out) {
        return in.x >= out.x - kSlack && in.y >= out.y - kSlack &&
               in.x + in.width <= out.x + out.width + kSlack &&
               in.y + in.height <= out.y + out.height + kSlack;
      };
      ASSERT_TRUE(apart || within(a, b) || within(b, a))
          << a.x << ' ' << a.y << ' ' << a.width << ' ' << a.height << " over " << b.x << ' ' << b.y
          << ' ' << b.width << ' ' << b.height;
    }
  }
  size_t opened = 0, closed = 0;
  for (size_t at = 0; (at = svg.find("<g>", at)) != std::string::npos; ++at) ++opened;
  for (size_t at = 0; (at = svg.find("</g>", at)) != std::string::npos; ++at) ++closed;
  EXPECT_EQ(opened, closed);
}

Placement place(const Topology& topology, const ModelSpec& model, int tp, int pp, int dp) {
  PlacementOptions options;
  options.tp = tp;
  options.pp = pp;
  options.dp = dp;
  return plan_placement(topology, model, options);
}

TEST(Picture, ShowsEveryStageOfTwoNodes) {
  const Topology topology = gpus(2, 8, "H100", 80 * kGiB);
  const Placement placement = place(topology, chatglm3(), 4, 2, 2);
  const std::string svg = draw_placement(topology, chatglm3(), placement);
  check_picture(svg);
  for (const StageSpec& stage : placement.replicas(0).stages()) {
    const std::string layers = "L" + std::to_string(stage.layers().begin()) + "–" +
                               std::to_string(stage.layers().end() - 1);
    EXPECT_NE(svg.find(layers), std::string::npos) << layers;
  }
  for (const char* part : {"H100-1", "NVLink", "network", "Legend", "rank 16", "TP 4/4"}) {
    EXPECT_NE(svg.find(part), std::string::npos) << part;
  }
}

TEST(Picture, MixedNodesCpusAndHundreds) {
  Topology mixed = gpus(1, 4, "A100", 40 * kGiB);
  mixed = gpus(2, 3, "T4", 16 * kGiB, mixed);
  mixed = gpus(1, 1, "RTX4090", 24 * kGiB, mixed);
  mixed.mutable_ranks(2)->mutable_device()->set_degraded(true);
  mixed.mutable_ranks(2)->mutable_device()->set_degraded_reason("two of twelve NVLinks are down");
  check_picture(draw_placement(mixed, chatglm3(), place(mixed, chatglm3(), 1, 9, 1)));

  const Topology cpus = make_topology(3, 16 * kGiB);
  check_picture(draw_placement(cpus, smollm2(), place(cpus, smollm2(), 1, 3, 1)));

  const Topology many = gpus(300, 8, "H100", 80 * kGiB, gpus(40, 4, "A10", 24 * kGiB));
  const std::string svg = draw_placement(many, chatglm3(), place(many, chatglm3(), 4, 1, 600));
  check_picture(svg);
  EXPECT_LT(svg.size(), 300'000u);
  EXPECT_NE(svg.find("280 nodes like "), std::string::npos);
}

TEST(Picture, NamesAreEscaped) {
  Topology topology = make_topology(1, 16 * kGiB);
  topology.mutable_ranks(0)->set_host("<script>&\"a\x01");
  ModelSpec model = smollm2();
  model.set_name("a<b");
  const std::string svg = draw_placement(topology, model, place(topology, model, 1, 1, 1));
  check_picture(svg);
  EXPECT_EQ(svg.find("<script"), std::string::npos);
  EXPECT_NE(svg.find("a&lt;b"), std::string::npos);
}

TEST(Explain, SaysMemoryAndWhatDecided) {
  Topology topology = gpus(2, 2, "A100", 40 * kGiB);
  NetworkLink& network = *topology.add_network();
  network.mutable_speed()->set_link_class(LINK_CLASS_NET);
  network.mutable_speed()->set_bandwidth_bytes_per_s(1.1e9);
  network.mutable_speed()->set_latency_s(60e-6);
  Placement placement = place(topology, chatglm3(), 2, 2, 1);
  placement.mutable_predicted()->set_objective(OBJECTIVE_THROUGHPUT);
  placement.mutable_predicted()->set_tpot_ms(12.5);
  placement.mutable_predicted()->set_tpot_limit_ms(50);
  placement.mutable_predicted()->set_gap(0.02);
  placement.mutable_predicted()->set_bound(1);
  placement.mutable_predicted()->add_reasons("a reason of the planner");
  const std::string text = explain_placement(topology, chatglm3(), placement);
  for (const char* part :
       {"A100-1", "embedding 0-", " head", "1/2", "40.0", "TPOT 12.5 ms (limit 50.0)", "gap 2.00 %",
        "a reason of the planner", "memory is tightest on rank", "TP stays inside A100-0",
        "the two all-reduces of a layer would cost 0."}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in:\n" << text;
  }
}

TEST(Explain, AlikeReplicasAreShownOnce) {
  const Topology topology = gpus(40, 8, "H100", 80 * kGiB);
  const std::string text =
      explain_placement(topology, chatglm3(), place(topology, chatglm3(), 4, 1, 80));
  EXPECT_NE(text.find("0 x80"), std::string::npos) << text;
  EXPECT_LT(text.size(), 6000u);
}

}  // namespace
}  // namespace trireme
