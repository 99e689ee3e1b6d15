// SPDX-License-Identifier: Apache-2.0
#include "topology/machine_file.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "topology/fabric.h"
#include "topology/hwloc_xml.h"
#include "topology/machine_text.h"
#include "topology/nccl_xml.h"
#include "topology/nvml_profile.h"
#include "topology/xml.h"
#include "topology/yaml.h"

namespace trireme {
namespace {

[[noreturn]] void refuse(const std::string& source, const std::string& found) {
  throw Error(Code::kInvalidArgument,
              "cannot read the topology " + source + ": " + found +
                  "; known are a Topology as `trireme probe --json` prints it, NCCL's and hwloc's "
                  "XML, what ibnetdiscover prints, topograph's YAML, profiles of nvml-mock");
}

std::vector<Machine> read_xml(const std::string& text, const std::string& source,
                              const std::string& name) {
  const XmlElement root = parse_xml(text, source);
  if (root.name == "system") return read_nccl_xml(root, source, name);
  if (root.name == "topology") return {read_hwloc_xml(root, source, name)};
  refuse(source, "its root is <" + root.name.substr(0, 60) + ">");
}

std::vector<Machine> read_yaml(const std::string& text, const std::string& source,
                               const std::string& name) {
  const YamlNode root = parse_yaml(text, source);
  if (root.find("device_defaults") != nullptr) return {read_nvml_profile(root, source, name)};
  if (root.find("blocks") != nullptr) return read_topograph(root, source);
  refuse(source, "it is YAML without device_defaults or blocks");
}

// Node descriptions may hold any byte; messages hold UTF-8.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; }, '?');
  return text;
}

}  // namespace

std::vector<Machine> read_machines(const std::string& text, const std::string& source,
                                   const std::string& name) {
  const std::string_view begin = trim(text);
  if (begin.empty()) refuse(source, "it is empty");
  if (text.find('\0') != text.npos) refuse(source, "it is not text");
  // A byte order mark may stand before XML.
  if (begin.starts_with("<") || begin.starts_with("\xEF\xBB\xBF<"))
    return read_xml(text, source, name);
  if (text.find("\nswitchguid=") != text.npos || text.find("\ncaguid=") != text.npos) {
    return read_ibnetdiscover(printable(text), source);
  }
  if (text.find("node.AddLink(") != text.npos) return read_link_table(printable(text), source);
  return read_yaml(text, source, name);
}

}  // namespace trireme
