// The rules of one limit, and the form that changes them. Its fields are those of KNOBS, which build.rs writes.
"use strict";

const rules = (() => {
  const form = document.getElementById("form"), fields = document.getElementById("fields");
  const token = document.getElementById("token"), said = document.getElementById("said");
  const inputs = new Map();
  let shown = null; // The limit as last shown: its name and its rules.

  for (const [path, name, choices, isSwitch] of KNOBS) {
    const label = document.createElement("label"), hint = document.createElement("small");
    const input = document.createElement(choices.length > 0 ? "select" : "input");
    for (const choice of choices) input.append(new Option(choice, choice));
    if (choices.length === 0) input.inputMode = "decimal";
    input.name = path;
    input.addEventListener("input", () => {
      input.classList.toggle("edited", input.value !== input.dataset.shown);
      input.removeAttribute("aria-invalid");
    });
    label.append(name, input, hint);
    fields.append(label);
    inputs.set(path, { input, hint, isChoice: choices.length > 0, isSwitch });
  }

  // A setting as it stands in a field. What is off is 0 there, as POST /config takes it.
  const read = (settings, path) => {
    const value = path.split(".").reduce((from, key) => from[key], settings);
    if (typeof value === "boolean") return value ? "on" : "off";
    return String(value ?? 0);
  };
  const written = (path, text) => {
    if (inputs.get(path).isSwitch) return text === "on";
    if (inputs.get(path).isChoice) return text;
    // What is no number goes as it is, so that the refusal says what is wrong with it.
    return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const put = (change, path, value) => {
    const [first, second] = path.split(".");
    if (second) change[first] = { ...change[first], [second]: value };
    else change[first] = value;
  };

  // Shows a limit; what the operator is editing stays.
  const show = (limit, canChange) => {
    const other = shown?.name !== limit.name;
    shown = { name: limit.name, rules: limit.rules };
    for (const [path, { input, hint }] of inputs) {
      const value = read(limit.rules.in_force, path), configured = read(limit.rules.configured, path);
      if (other || input.value === input.dataset.shown || input.dataset.shown === undefined) {
        input.value = value;
        input.classList.remove("edited");
        input.removeAttribute("aria-invalid");
      }
      input.dataset.shown = value;
      input.disabled = !canChange;
      hint.textContent = value === configured ? "" : `configured: ${configured}`;
      hint.classList.toggle("differs", value !== configured);
    }
    if (other) said.hidden = true;
    document.getElementById("send").hidden = !canChange;
    document.getElementById("back").disabled = limit.rules.source === "configuration";
    const epoch = `Epoch ${limit.rules.epoch}. `;
    document.getElementById("standing").textContent = epoch + (limit.rules.source === "configuration"
      ? "Active: the configuration's own settings."
      : "Active: settings changed here. They last until the configuration of this limit changes or Envoy restarts.")
      + (canChange ? "" : " To change them here, configure an admin token (console.admin_token).");
  };

  const say = (text, refused) => {
    said.textContent = text;
    said.classList.toggle("refused", refused);
    said.hidden = false;
  };

  const send = async (change) => {
    const buttons = form.querySelectorAll("button");
    buttons.forEach((button) => { button.disabled = true; });
    try {
      const answer = await fetch("/config", {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${token.value.trim()}` },
        body: JSON.stringify({ limit: shown.name, epoch: shown.rules.epoch, ...change }),
      });
      const reply = await answer.json();
      if (answer.ok) {
        show({ name: reply.limit, rules: reply.rules }, true);
        for (const { input } of inputs.values()) {
          input.value = input.dataset.shown;
          input.classList.remove("edited");
        }
        say(reply.changed ? `Epoch ${reply.rules.epoch}. ${reply.note}` : "Nothing changed: these were the rules already.", false);
      } else {
        say(`Refused (${answer.status}): ${reply.error.message}`, true);
        const wrong = inputs.get(reply.error.param)?.input ?? (answer.status === 401 ? token : null);
        wrong?.setAttribute("aria-invalid", "true");
        wrong?.focus();
      }
    } catch {
      say("Not sent, or not answered: nimgate can't be reached. See above whether it is active.", true);
    } finally {
      buttons.forEach((button) => { button.disabled = false; });
    }
  };

  token.addEventListener("input", () => token.removeAttribute("aria-invalid"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const change = {};
    for (const [path, { input }] of inputs) {
      if (input.value !== input.dataset.shown) put(change, path, written(path, input.value));
    }
    if (Object.keys(change).length === 0) say("Nothing to send: no field was changed.", true);
    else send(change);
  });
  document.getElementById("back").addEventListener("click", () => {
    const change = {};
    for (const [path] of KNOBS) put(change, path, null);
    send(change);
  });

  return { show };
})();
