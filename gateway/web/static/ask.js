// Questions before something is done, and words about what was done.

import { byId, make, say } from "/static/dom.js";

const SHOWN_MS = 7000;

/** Ask, and do it if the answer is yes. `does` is given the fields, and gives {problem} if it could not be done. */
export function ask({ title, text, fields = [], yes, danger = false, does }) {
  const dialog = byId("ask");
  const button = byId("ask-yes");
  say(byId("ask-title"), title);
  say(byId("ask-text"), text);
  say(byId("ask-problem"), "");
  say(button, yes);
  button.disabled = false;
  button.className = danger ? "strong danger" : "strong";
  byId("ask-fields").replaceChildren(
    ...fields.map((each) =>
      make(
        "label",
        {},
        each.label,
        make("input", {
          name: each.name,
          type: each.type,
          value: each.value ?? null,
          min: each.min ?? null,
          max: each.max ?? null,
          maxlength: each.type === "text" ? 200 : null,
          required: each.needed || each.type === "number" ? "" : null,
          autocomplete: "off",
        }),
      ),
    ),
  );
  byId("ask-form").onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    const said = Object.fromEntries(new FormData(event.target));
    const { problem } = await does(said);
    button.disabled = false;
    if (problem) say(byId("ask-problem"), problem);
    else dialog.close();
  };
  byId("ask-no").onclick = () => dialog.close();
  dialog.showModal();
  // Who presses Return at once has not decided anything yet: what ends something is not what has the focus.
  (byId("ask-fields").querySelector("input") ?? byId("ask-no")).focus();
}

/** Say what came of it, for a moment; a screen reader says it, too. */
export function toast(text, kind = "") {
  const made = make("p", { class: `toast ${kind}` }, text);
  byId("toasts").append(made);
  setTimeout(() => made.remove(), SHOWN_MS);
}
