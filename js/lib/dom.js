// Elements, the panels' style, and their place in a node.
import { app } from "../../../scripts/app.js";
import { makeRoom } from "./room.js";

/** An element with attributes (a function is a listener) and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

if (!document.getElementById("lora-atelier-style")) {
  const address = new URL("../style.css", import.meta.url).href;
  document.head.append(make("link", { id: "lora-atelier-style", rel: "stylesheet", href: address }));
}

const GAP = 4; // pixels that the classic canvas leaves below a widget
const MARGIN = 10; // pixels that the classic canvas leaves free on each side of an element in a node

/** Whether an element has more in it than shows. */
const scrolls = (place) => place && (place.scrollHeight > place.clientHeight || place.scrollWidth > place.clientWidth);

/**
 * Puts a panel at the end of a node. Works with both renderers; workflows hold nothing of it.
 * `height()`: the least height in pixels, none for nothing; call `fit()` of what is returned when it has changed. `fixed`: it takes no
 * more where the node is higher.
 */
export function addPanel(node, name, element, height, fixed = false) {
  element.classList.add("atelier");
  element.style.minHeight = `${height()}px`;
  const room = () => (height() ? height() + 2 * MARGIN : 0);
  const widget = node.addDOMWidget(name, "atelier", element, { serialize: false, hideOnZoom: false, getMinHeight: room });
  // What has a size and no layout takes no share of the room that a node has left.
  if (fixed) Object.assign(widget, { computeLayoutSize: undefined, computeSize: () => [0, room() || -GAP] });
  widget.serialize = false;
  // The properties panel would draw it too, and leave it as narrow as it is itself; a panel is as wide as its node.
  if (widget.options) widget.options.hideInPanel = true;
  Object.defineProperty(widget, "width", { configurable: true, get: () => undefined, set() {} });
  // On the classic canvas the panel lies above it: the wheel is the canvas's, unless something in the panel scrolls.
  element.addEventListener("wheel", (event) => {
    if (!window.LiteGraph?.vueNodesMode && !scrolls(event.target.closest(".atelier-film, .atelier-scroll"))) app.canvas?.processMouseWheel?.(event);
  });
  // Keys that work a control must not reach the canvas's shortcuts.
  element.addEventListener("keydown", (event) => {
    if (event.target.closest("button, select, a, summary")) event.stopPropagation();
  });
  if (node.graph) makeRoom(node); // in one that stands on the canvas already, the panel itself is the first that takes room
  let before = height();
  const fit = () => {
    element.style.minHeight = `${height()}px`;
    const [width, least] = node.computeSize();
    if (node.size[1] < least || node.size[0] < width) node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], least)]);
    node.setDirtyCanvas?.(true, true);
    if (height() > before) makeRoom(node);
    before = height();
  };
  return { widget, fit };
}

export const root = () => app.rootGraph ?? app.graph?.rootGraph ?? app.graph;
