// A dialog over the canvas: a title with controls above, what it is about between, and below what was said last and the buttons.
import { make } from "./dom.js";
import { text } from "./text.js";

const opened = []; // the topmost last

// Escape is answered here and not by the browser, which asks only once before it closes; also where nothing has the focus.
document.addEventListener("keydown", (event) => {
  const dialog = opened.at(-1);
  if (event.key !== "Escape" || event.isComposing || !dialog) return;
  if (event.target.type === "search" && event.target.value) return; // which it empties
  event.preventDefault();
  event.stopPropagation();
  if (!event.repeat) dialog.close();
}, true);

export class Dialog {
  said = make("output", { role: "status" });

  /** A button that does `act`; its label and its tooltip are words of the page. */
  button(key, act) {
    return make("button", { type: "button", title: text(`${key}Help`), click: () => this.tried(act) }, text(key));
  }

  open(title, controls, body, buttons) {
    this.dialog = make(
      "dialog", { class: "atelier atelier-dialog", "aria-label": title, cancel: (event) => this.close(event), close: () => this.closed() },
      make("div", { class: "atelier-row" }, make("h2", {}, title), ...controls), body,
      make("div", { class: "atelier-row" }, this.said, ...buttons, this.button("close", () => this.close())),
    );
    // The canvas has keys of its own; what is typed here is not meant for it.
    this.dialog.addEventListener("keydown", (event) => {
      event.stopPropagation();
      this.key(event);
    });
    this.ready();
    document.body.append(this.dialog);
    this.dialog.showModal();
    opened.push(this);
  }

  /** Runs an action; a refusal is said. */
  async tried(act) {
    try {
      await act();
    } catch (error) {
      this.said.textContent = error.message;
    }
    this.ready();
  }

  /** The same for what changes what others build on: it waits for those that were asked for before. */
  inTurn(act) {
    this.turns = (this.turns ?? Promise.resolve()).then(() => this.tried(act));
    return this.turns;
  }

  /** Whether it may be closed now. */
  mayClose() {
    return true;
  }

  close(event) {
    event?.preventDefault();
    if (!opened.includes(this) || !this.mayClose()) return;
    opened.splice(opened.indexOf(this), 1);
    this.dialog.close();
    this.dialog.remove();
  }

  /** The browser has closed it by itself: what may not be closed is opened again. */
  closed() {
    if (!opened.includes(this)) return;
    this.close();
    if (opened.includes(this)) this.dialog.showModal();
  }

  /** Sets which controls can be used; after every action. */
  ready() {}

  key(_event) {}
}
