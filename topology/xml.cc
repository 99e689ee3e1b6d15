// SPDX-License-Identifier: Apache-2.0
#include "topology/xml.h"

#include <expat.h>

#include <limits>
#include <memory>
#include <type_traits>

#include "kernels/base/error.h"

namespace trireme {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxElements = 200'000;
constexpr size_t kMaxBytes = 64u << 20;

// What expat's callbacks, through which no exception may pass, build or object to.
struct Building {
  XML_Parser parser;
  XmlElement root;
  std::vector<XmlElement*> open;
  size_t elements = 0;
  std::string objection;

  void object(std::string reason) {
    if (objection.empty()) objection = std::move(reason);
    XML_StopParser(parser, XML_FALSE);
  }
};

void on_start(void* data, const XML_Char* name, const XML_Char** attributes) {
  Building& building = *static_cast<Building*>(data);
  if (!building.objection.empty()) return;
  if (building.open.size() >= kMaxDepth) {
    return building.object("it is nested deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  if (++building.elements > kMaxElements) {
    return building.object("it has more than " + std::to_string(kMaxElements) + " elements");
  }
  XmlElement* element = &building.root;
  // A parent's children do not move while one of them is open: it is the last.
  if (!building.open.empty()) element = &building.open.back()->children.emplace_back();
  element->name = name;
  element->line = static_cast<int>(XML_GetCurrentLineNumber(building.parser));
  for (; *attributes != nullptr; attributes += 2) {
    element->attributes.emplace_back(attributes[0], attributes[1]);
  }
  building.open.push_back(element);
}

void on_end(void* data, const XML_Char*) {
  Building& building = *static_cast<Building*>(data);
  if (building.objection.empty() && !building.open.empty()) building.open.pop_back();
}

void on_text(void* data, const XML_Char* text, int length) {
  Building& building = *static_cast<Building*>(data);
  if (!building.open.empty()) building.open.back()->text.append(text, static_cast<size_t>(length));
}

void on_entity(void* data, const XML_Char* name, int, const XML_Char*, int, const XML_Char*,
               const XML_Char*, const XML_Char*, const XML_Char*) {
  static_cast<Building*>(data)->object("it declares the entity \"" + std::string(name) +
                                       "\"; no topology needs one");
}

}  // namespace

const std::string* XmlElement::find(const std::string& attribute) const {
  for (const auto& [key, value] : attributes) {
    if (key == attribute) return &value;
  }
  return nullptr;
}

XmlElement parse_xml(const std::string& text, const std::string& source) {
  const auto refuse = [&](const std::string& reason) {
    throw Error(Code::kInvalidArgument, "cannot read the topology " + source + ": " + reason);
  };
  if (text.size() > kMaxBytes) refuse("it has more than 64 MiB");
  const std::unique_ptr<std::remove_pointer_t<XML_Parser>, void (*)(XML_Parser)> parser(
      XML_ParserCreate(nullptr), XML_ParserFree);
  if (parser == nullptr) throw Error(Code::kResourceExhausted, "no memory for an XML parser");
  Building building;
  building.parser = parser.get();
  XML_SetUserData(parser.get(), &building);
  XML_SetElementHandler(parser.get(), on_start, on_end);
  XML_SetCharacterDataHandler(parser.get(), on_text);
  XML_SetEntityDeclHandler(parser.get(), on_entity);
  const auto status = XML_Parse(parser.get(), text.data(), static_cast<int>(text.size()), XML_TRUE);
  if (status == XML_STATUS_OK && building.objection.empty()) return std::move(building.root);
  const std::string reason = building.objection.empty()
                                 ? XML_ErrorString(XML_GetErrorCode(parser.get()))
                                 : building.objection;
  refuse("line " + std::to_string(XML_GetCurrentLineNumber(parser.get())) + ": " + reason);
  return {};
}

std::string xml_escape(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&': escaped += "&amp;"; break;
      case '<': escaped += "&lt;"; break;
      case '>': escaped += "&gt;"; break;
      case '"': escaped += "&quot;"; break;
      default: escaped += c;
    }
  }
  return escaped;
}

}  // namespace trireme
