// The document. Texts of a profile become text nodes and attributes, never HTML.

const byId = (id) => document.getElementById(id);

/** Makes an element; `on` has its listeners, `style` its properties, the rest are attributes. */
const el = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "style") {
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
};

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Calls `action` once typing has paused. */
const afterTyping = (action) => {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, 80);
  };
};

/** Whether a key pressed in `element` is typed into it. */
const isTyping = (element) =>
  Boolean(element.closest?.("input:not([type=checkbox]):not([type=radio]), select, textarea"));

// One tooltip for all: what is shown is also in the details, so that no pointer is needed.
const tooltip = byId("tooltip");

/** Shows lines beside the pointer; the first is the heading. */
const showTip = (x, y, [heading, ...lines]) => {
  tooltip.replaceChildren(
    el("strong", {}, heading),
    ...lines.filter(Boolean).map((line) => el("div", {}, line)),
  );
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const [roomX, roomY] = [document.documentElement.clientWidth, document.documentElement.clientHeight];
  const left = x + 14 + width > roomX ? x - 14 - width : x + 14;
  const top = y + 16 + height > roomY ? y - 12 - height : y + 16;
  tooltip.style.left = `${clamp(left, 4, Math.max(4, roomX - width - 4))}px`;
  tooltip.style.top = `${Math.max(4, top)}px`;
};

const hideTip = () => {
  tooltip.hidden = true;
};
